"""The registry: models that load by name, read from weights/registry.toml, and how a name becomes files on this machine."""

import dataclasses
import functools
import importlib.resources
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxinterp.checkpoints import fetch, hub
from jaxinterp.checkpoints.cache import verified, weights_folder
from jaxinterp.checkpoints.fetch import WheelFile, WheelFolder
from jaxinterp.errors import FetchError, InputError

ACCEPTED = "JAXINTERP_ACCEPT_GEMMA_TERMS"


@dataclasses.dataclass(frozen=True)
class HubRepository:
    """A source: a repository of the hub, in the precision that its authors published."""

    repo: str
    revision: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the registry.

    Attributes:
        name: by which it loads.
        description: one line.
        parameters: how many.
        licence: of the weights.
        terms: where the terms stand that must be accepted first, or "".
        opt_in: whether they must be.
        sources: where the weights come from, in the order tried.
    """

    name: str
    description: str
    parameters: int
    licence: str
    terms: str
    opt_in: bool
    sources: tuple[HubRepository | WheelFile | WheelFolder, ...]


@functools.cache
def entries() -> Mapping[str, Entry]:
    """The registry, by name."""
    shipped = importlib.resources.files("jaxinterp") / "_weights" / "registry.toml"
    checkout = Path(__file__).parents[2] / "weights" / "registry.toml"
    table = tomllib.loads((shipped if shipped.is_file() else checkout).read_text(encoding="utf-8"))
    return {name: _entry(name, dict(values)) for name, values in table.items()}


def _entry(name: str, values: dict[str, Any]) -> Entry:
    sources = tuple(_source(dict(source)) for source in values.pop("sources"))
    return Entry(name, sources=sources, terms=values.pop("terms", ""), **values)


def _source(values: dict[str, Any]) -> HubRepository | WheelFile | WheelFolder:
    if values.pop("kind") == "hub":
        return HubRepository(**values)
    if "folder" in values:
        packages, folder = tuple(values["packages"]), values["folder"]
        return WheelFolder(tuple(WheelFile(packages, (f"{folder}/{file['file']}",), **file) for file in values["files"]))
    return WheelFile(packages=tuple(values.pop("packages")), members=tuple(values.pop("members")), **values)


def local(name: str) -> Path | None:
    """The files of a registry model that are on this machine, or None: a folder or a .gguf file.

    What was fetched into the cache before comes first, so that a name keeps standing for the same weights.
    """
    sources = entries()[name].sources
    for source in sources:
        if isinstance(source, WheelFile) and verified(weights_folder(name) / source.file, source.sha256, source.size):
            return weights_folder(name) / source.file
        if isinstance(source, WheelFolder) and source.whole(weights_folder(name) / source.name):
            return weights_folder(name) / source.name
    for source in sources:
        found = hub.cached(source.repo, revision=source.revision) if isinstance(source, HubRepository) else fetch.installed(source)
        if found is not None:
            return found
    return None


def resolve(name: str, *, local_files_only: bool = False, accept_terms: bool = False) -> Path:
    """The files of a registry model: those on this machine, else from the first source that can be reached.

    Args:
        name: of the registry.
        local_files_only: fetch nothing.
        accept_terms: accepts the terms of a model that has some.

    Raises:
        InputError: the model has terms that were not accepted.
        FetchError: no source can be reached; the message says why for each.
    """
    entry = entries()[name]
    if entry.opt_in and not accept_terms and os.environ.get(ACCEPTED) != "1":
        how = f"load with accept_terms=True or set {ACCEPTED}=1"
        raise InputError(f"{name} is under the {entry.licence} ({entry.terms}): read them and, if you agree, {how}.")
    found = local(name)
    if found is not None:
        return found
    if local_files_only:
        raise FetchError(f"{name} is not on this machine, and nothing may be fetched (local_files_only).")
    reasons = []
    for source in entry.sources:
        try:
            if isinstance(source, HubRepository):
                return hub.fetch(source.repo, revision=source.revision)
            folder = weights_folder(name)
            return fetch.fetch_folder(source, folder) if isinstance(source, WheelFolder) else fetch.fetch(source, folder)
        except FetchError as error:
            reasons.append(str(error).rstrip("."))
    raise FetchError(f"{name} could not be fetched. " + ". ".join(reasons) + ".")
