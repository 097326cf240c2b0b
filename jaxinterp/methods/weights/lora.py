"""LoRA adapters merged into the weights: W' = W + s B A for every matrix that an adapter changes (Hu et al. 2021, arXiv:2106.09685).

The merged model computes what the model with the adapter beside it does, to rounding, and costs what the model costs. It can be
saved, stacked and edited as any other. Cost of merging: one copy of each parameter that changes. Misleads in weights of 16 bits,
where an update smaller than their rounding is partly lost: load the model in float32 to study a small adapter.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.checkpoints import mapping
from jaxinterp.checkpoints.adapters import placed, read_adapter
from jaxinterp.errors import InputError
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.tokens import concrete
from jaxinterp.runs.progress import Progress


def merge_lora(lm: LanguageModel, folder: str | os.PathLike[str], *, scale: float = 1.0, adapter: str | None = None) -> LanguageModel:
    """A model with a LoRA adapter, as PEFT saves it, merged into its weights.

    Ranks, alphas and their patterns, rank-stabilised scales, fused projections, trained biases and modules that were trained whole
    are as the adapter's files say. DoRA, other kinds of adapters and what is not understood are refused by name; nothing is
    unpickled. Not for use inside jit: it reads files.

    Args:
        lm: the model that the adapter was trained beside.
        folder: with adapter_config.json and adapter_model.safetensors.
        scale: a factor on all that the adapter changes: 1 is the adapter as trained, 0 nothing, -1 the opposite.
        adapter: name of an adapter other than PEFT's "default".

    Returns:
        A LanguageModel of the same config.

    Raises:
        CheckpointError: files that are missing, cut, pickled or not understood, or tensors that do not fit the model.
        InputError: a scale that is not finite.

    Example:
        >>> tuned = ji.weights.merge_lora(lm, "my-adapter")
    """
    if not np.isfinite(scale):
        raise InputError(f"merge_lora(): scale is {scale}; expected a finite number.")
    flat = mapping.flatten(lm.stacked().params)
    if not all(map(concrete, flat.values())):
        raise InputError("merge_lora() reads files, so it cannot run inside jit or vmap: merge first and pass the merged model.")
    places = placed(read_adapter(Path(folder).expanduser(), adapter), lm.config, np.dtype(flat["embed.W_E"].dtype))
    with Progress("merging", sum(map(len, places.values())), "tensors") as progress:
        for path, changes in places.items():
            flat[path] = _changed(flat[path], changes, scale)
            progress.advance(len(changes))
    merged = lm.replace(params=mapping.unflatten(flat))
    return merged.by_layer() if isinstance(lm.params["blocks"][0], tuple) else merged


def _changed(weight: Any, changes: list[Any], scale: float) -> Any:
    """One parameter with its updates, each through the layout in which its file's tensor is read."""
    array = np.array(weight, np.promote_types(np.float32, weight.dtype))
    for leaf, place, update in changes:
        ours = leaf.layout.our_view(leaf.parts(array)[place], leaf.part, leaf.sizes)
        values = leaf.layout.view(update.values(leaf.layout), leaf.part, leaf.sizes)
        ours[...] = scale * (values + leaf.add) + (1 - scale) * ours if update.whole else ours + scale * values
    return jax.device_put(array.astype(weight.dtype), weight.sharding if isinstance(weight, jax.Array) else None)
