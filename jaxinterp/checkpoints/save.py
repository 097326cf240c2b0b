"""Saving: a LanguageModel as a folder that transformers reads and that loads back bit for bit."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp.checkpoints import mapping, own, safetensors
from jaxinterp.checkpoints.families import family_for
from jaxinterp.checkpoints.layout import sizes_of
from jaxinterp.checkpoints.load import weight_dtype
from jaxinterp.checkpoints.safetensors import Spec
from jaxinterp.errors import CheckpointError, InputError
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.parameters import parameter_shapes

SHARD_BYTES = 5_000_000_000


def save(lm: LanguageModel, folder: str | os.PathLike[str], dtype: Any = None) -> Path:
    """Writes a model in HF layout, or in our own where no class of transformers describes it exactly.

    The folder appears whole, by one rename, or not at all. A model loaded in the dtype that it was saved in is bit-equal.

    Args:
        lm: the model; one whose weights lie a layer at a time is stacked on the way, a copy for as long as it is written.
        folder: to make; it must not hold anything yet.
        dtype: of the weights in the files; None keeps theirs.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something already, or the parameters do not have the shapes of the config.
        CheckpointError: the folder cannot be written.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} holds something already; choose another folder or remove it first.")
    lm = lm.stacked()
    params = mapping.flatten(lm.params)
    shapes = mapping.flatten(parameter_shapes(lm.config))
    wrong = {path for path in shapes.keys() & params.keys() if shapes[path].shape != params[path].shape} | shapes.keys() ^ params.keys()
    if wrong:
        raise InputError(f"The parameters do not have the shapes of the model's config: {', '.join(sorted(wrong)[:8])}.")
    kind = weight_dtype(dtype if dtype is not None else jnp.result_type(*params.values()))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write(lm, params, made, kind)
            made.chmod(0o777 & ~_umask())
            os.replace(made, target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}.") from None
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(lm: LanguageModel, params: Mapping[str, Any], folder: Path, dtype: np.dtype) -> None:
    fitting = family_for(lm.config, dtype)
    if fitting is None:
        leaves, name, values = own.plan(parameter_shapes(lm.config)), own.FILE, own.write_config(lm.config)
    else:
        family, values = fitting
        leaves = mapping.plan(parameter_shapes(lm.config), family.table_of(lm.config), sizes_of(lm.config))
        name, values = "config.json", _token_ids(lm.tokenizer) | values | {"torch_dtype": dtype.name}
    (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    writers = mapping.file_tensors(leaves)
    tensors = {tensor: (dtype, group[0][0].file_shape) for tensor, group in writers.items()}
    _write_shards(folder, tensors, lambda tensor: mapping.assemble(writers[tensor], params, dtype))
    if lm.tokenizer is not None:
        from jaxinterp.checkpoints.tokenizer import save_tokenizer

        save_tokenizer(lm.tokenizer, folder)


def _token_ids(tokenizer: Any) -> dict[str, int | None]:
    """The special tokens that config.json repeats."""
    return {} if tokenizer is None else {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}


def _write_shards(folder: Path, tensors: Mapping[str, Spec], value_of: Callable[[str], np.ndarray]) -> None:
    """The tensors in one file, or in several with an index where they are larger than SHARD_BYTES."""
    shards: list[dict[str, Spec]] = [{}]
    filled = total = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = (dtype, shape)
        filled, total = filled + size, total + size
    # what transformers looks for: the tensors are laid out as torch has them
    metadata = {"format": "pt"}
    if len(shards) == 1:
        safetensors.write(folder / safetensors.SINGLE, shards[0], value_of, metadata)
        return
    names = [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        safetensors.write(folder / name, shard, value_of, metadata)
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / safetensors.INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
