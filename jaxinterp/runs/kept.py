"""Finished chunks of a sweep on disk: a call that was stopped goes on from them."""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError

FILE = "sweep.json"
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digest_of(*values: Any) -> str:
    """A hash of pytrees that is the same in every process: their structure, and every array's type, shape and bytes."""
    digest = hashlib.sha256()
    for value in values:
        leaves, tree = jax.tree.flatten(value)
        digest.update(ADDRESS.sub("", str(tree)).encode())
        for leaf in leaves:
            array = np.ascontiguousarray(np.asarray(leaf))
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()


def code_of(function: Any) -> str:
    """What a function does, as far as that can be seen: its name, and a hash of its instructions and constants."""
    inner = inspect.unwrap(function) if callable(function) else function
    code = getattr(inner, "__code__", None)
    if code is None:
        return ADDRESS.sub("", repr(inner))
    seen = code.co_code + ADDRESS.sub("", repr((code.co_consts, code.co_names))).encode()
    return f"{inner.__module__}.{inner.__qualname__} {hashlib.sha256(seen).hexdigest()}"


class Kept:
    """A folder of finished chunks, each a file that is written whole or not at all."""

    def __init__(self, folder: str | Path, digest: str) -> None:
        """Opens the folder, or makes it.

        Args:
            folder: where chunks are kept.
            digest: of the call: model, prompts, cells, metrics and edits.

        Raises:
            InputError: the folder holds another call's chunks, or something else.
        """
        self.folder = Path(folder)
        note = self.folder / FILE
        if note.exists():
            try:
                known = json.loads(note.read_text())["digest"]
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{note} cannot be read, so it is not known what the chunks in {folder} are of; name another folder."
                ) from None
            if known != digest:
                raise InputError(
                    f"{folder} holds chunks of another sweep (its model, prompts, cells, metric or edits differ); name another folder."
                )
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{folder} exists and does not hold a sweep; `out` must be a new or empty folder, or that of the same call.")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _whole(note, json.dumps({"digest": digest}).encode())

    def read(self) -> list[dict[str, np.ndarray]]:
        """What was kept: arrays by name, a dictionary a chunk."""
        from safetensors.numpy import load_file

        return [load_file(path) for path in sorted(self.folder.glob("cells-*.safetensors"))]

    def write(self, arrays: Mapping[str, np.ndarray], first: int) -> None:
        """Keeps a chunk whose first cell is `first`."""
        from safetensors.numpy import save

        _whole(self.folder / f"cells-{first:09d}.safetensors", save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))


def _whole(path: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there, so that no reader ever sees a part of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
