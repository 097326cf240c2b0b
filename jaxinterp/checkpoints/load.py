"""Loading: from a registry name, a folder, a GGUF file or a hub id to a LanguageModel.

Weights are memory-mapped and copied piece by piece into their stacked arrays, so loading needs little more memory than the
model itself. Nothing global is changed, and neither torch nor transformers is imported.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checkpoints import mapping, own
from jaxinterp.checkpoints.families import read_config
from jaxinterp.checkpoints.layout import sizes_of
from jaxinterp.checkpoints.mapping import Table
from jaxinterp.checkpoints.safetensors import SafetensorsSource, folder_files, pickle_refusal
from jaxinterp.checkpoints.source import Source
from jaxinterp.errors import CheckpointError, FetchError, InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.parameters import parameter_shapes

DTYPES = ("float32", "bfloat16", "float16", "float64")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load(
    source: str | os.PathLike[str],
    *,
    dtype: Any = "float32",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    accept_terms: bool = False,
    check: bool = False,
) -> LanguageModel:
    """Loads a model with its weights, config and tokenizer.

    Args:
        source: a name of the registry ("smollm2-135m-instruct"), a folder in HF layout or in our own, a .gguf file, or a
            hub id ("EleutherAI/pythia-70m"), looked for in this order.
        dtype: of the weights: "float32", "bfloat16", "float16", or "float64" where JAX has x64 enabled.
        revision: of a hub id: branch, tag or commit.
        cache_dir: of a hub id: where the hub client keeps its files; None is its own cache.
        token: of a hub id: an access token, True for the one that is logged in, None for that one if there is one.
        local_files_only: nothing is fetched; what is not here is an error.
        accept_terms: accepts the terms of a model of the registry that has some (or set JAXINTERP_ACCEPT_GEMMA_TERMS=1).
        check: runs the model once and refuses one whose logits are not finite, or whose loss on a known sentence is no better
            than chance. `ji.verify` checks much more.

    Returns:
        A LanguageModel; its tokenizer is None where the checkpoint has none.

    Raises:
        CheckpointError: the files are incomplete, damaged, or of a kind that is not understood.
        FetchError: they are not here and cannot be fetched.
        InputError: the dtype is unknown, or float64 without x64.
    """
    kind = weight_dtype(dtype)
    where = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    path = locate(source, **where, accept_terms=accept_terms)
    lm = load_gguf(path, kind) if path.suffix == ".gguf" else load_folder(path, kind)
    if check:
        from jaxinterp.checkpoints.sanity import check_sane

        check_sane(lm, os.fspath(source))
    return lm


def weight_dtype(dtype: Any) -> np.dtype:
    """The numpy dtype of a name, refused where JAX would silently make it another one."""
    try:
        kind = np.dtype(jnp.dtype(dtype))
    except TypeError:
        kind = None
    if kind is None or kind.name not in DTYPES:
        raise InputError(f"dtype={dtype!r} is not a dtype of weights; expected one of {', '.join(DTYPES)}.")
    if jax.dtypes.canonicalize_dtype(kind) != kind:
        raise InputError("dtype='float64' needs JAX in 64-bit mode: set JAX_ENABLE_X64=1 or jax.config.update('jax_enable_x64', True).")
    return kind


def load_folder(folder: Path, dtype: np.dtype) -> LanguageModel:
    """Loads a folder in HF layout (config.json) or in our own (jaxinterp.json)."""
    from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder

    if (folder / own.FILE).exists():
        config = own.read_config(folder / own.FILE)
        source = SafetensorsSource(folder_files(folder))
        leaves = own.plan(parameter_shapes(config))
        mapping.check(leaves, source)
    elif (folder / "config.json").exists():
        config, family = read_config(own.read_json(folder / "config.json"), dtype, str(folder / "config.json"))
        files = SafetensorsSource(folder_files(folder))
        source = family.unpack(files) if family.unpack else files
        table = _without_prefix(family.table_of(config), family.prefix, source)
        leaves = _checked(config, table, source, family.ignorable, family.tied_copies)
    else:
        raise CheckpointError(f"{folder} holds neither config.json nor {own.FILE}, so it is not a checkpoint.")
    params = mapping.unflatten(mapping.fill(leaves, source, dtype))
    return LanguageModel(params=params, config=config, tokenizer=tokenizer_from_folder(folder))


def load_gguf(path: Path, dtype: np.dtype) -> LanguageModel:
    """Loads a GGUF file."""
    from jaxinterp.checkpoints.gguf import GgufSource, config_fields
    from jaxinterp.checkpoints.tokenizer import tokenizer_from_gguf

    source = GgufSource(path)
    values, gguf = config_fields(source)
    config, _ = read_config(values, dtype, str(path))
    leaves = _checked(config, gguf.table, source, gguf.ignorable)
    params = mapping.unflatten(mapping.fill(leaves, source, dtype))
    tokenizer = tokenizer_from_gguf(source.fields) if source.fields.get("tokenizer.ggml.tokens") else None
    return LanguageModel(params=params, config=config, tokenizer=tokenizer)


def _checked(
    config: TransformerConfig, table: Table, source: Source, ignorable: tuple[str, ...], tied_copies: Mapping[str, str] | None = None
) -> list[mapping.Leaf]:
    """The plan of a whole file, once everything in it is accounted for."""
    leaves = mapping.plan(parameter_shapes(config), table, sizes_of(config), source.tensors)
    copies = dict.fromkeys(table["unembed.W_U"].keys, table["embed.W_E"].keys[0]) | dict(tied_copies or {})
    mapping.check(leaves, source, ignorable=ignorable, copies=copies if config.unembed == "tied" else {})
    return leaves


def _without_prefix(table: Table, prefix: str, source: Source) -> Table:
    """The table for this file: files of the bare model leave out the prefix that all names but the unembedding's have."""
    if any(name.startswith(prefix) for name in source.tensors):
        return table
    return {path: dataclasses.replace(rule, key=tuple(key.removeprefix(prefix) for key in rule.keys)) for path, rule in table.items()}


def locate(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    accept_terms: bool = False,
) -> Path:
    """The folder or .gguf file that a source stands for, fetched if need be; arguments as for `load`."""
    from jaxinterp.checkpoints import hub, registry

    name = os.fspath(source)
    if isinstance(source, str) and name in registry.entries():
        return registry.resolve(name, local_files_only=local_files_only, accept_terms=accept_terms)
    path = Path(name).expanduser()
    if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
        return path
    if path.is_file():
        if path.suffix in PICKLES:
            raise CheckpointError(pickle_refusal(path))
        raise CheckpointError(f"{path} is a single file; expected the folder that holds it together with config.json, or a .gguf file.")
    if not isinstance(source, str) or not HUB_ID.fullmatch(name) or path.suffix == ".gguf":
        raise CheckpointError(f"There is no folder or file {path}.")
    try:
        return hub.fetch(name, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    except FetchError as error:
        names = ", ".join(registry.entries())
        raise FetchError(f"{error} There is no folder {name!r} here either, and the registry holds {names}.") from None
