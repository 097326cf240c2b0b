"""Low-rank changes of single matrices, by our parameter names: W' = W + s A B, as a pure function.

Every matrix maps what it reads to what it writes, [in, out]: "blocks.attn.W_Q" [D, H E], "blocks.attn.W_O" [H E, D],
"blocks.mlp.W_out" [M, D], "embed.W_E" [V, D], "unembed.W_U" [D, V]. The result is exact; cost: one copy of that parameter.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.model.config import Group, TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.parameters import PARAMETER_AXES
from jaxinterp.model.tokens import concrete

INPUTS = {"W_O": 2}
"""How many axes of one matrix are what it reads, where that is not the first alone."""


def low_rank(
    lm: LanguageModel, name: str, a: Float[Array | np.ndarray, "*n I r"], b: Float[Array | np.ndarray, "*n r O"], *,
    layer: Any = None, expert: int | None = None, scale: Any = 1.0,
) -> LanguageModel:  # fmt: skip
    """The model with scale * a @ b added to one of its matrices, or to that of several layers.

    Pure: it jits, vmaps and differentiates in a, b, scale and the layer.

    Args:
        lm: the model.
        name: of a matrix: "blocks.attn.W_Q", "blocks.mlp.W_out", "unembed.W_U" ... A tied "embed.W_E" is the unembedding too.
        a: [I r], with I what the matrix reads (heads and their features are one axis); [n I r] for n layers.
        b: [r O], with O what it writes; [n r O] for n layers.
        layer: of a matrix of the blocks: an int, or n of them; None is every layer.
        expert: of a matrix of experts: which one.
        scale: the factor.

    Returns:
        A LanguageModel with that parameter changed; all others are the same arrays.

    Raises:
        InputError: a name that is not a matrix of this model, a layer or an expert out of range, or shapes that do not fit.

    Example:
        >>> a, b = np.ones((576, 1), np.float32), np.ones((1, 576), np.float32)
        >>> changed = ji.weights.low_rank(lm, "blocks.attn.W_Q", a, b, layer=3, scale=1e-3)
        >>> changed.params["blocks"][0]["attn"]["W_Q"].shape
        (30, 576, 9, 64)
    """
    part, _, leaf = name.removeprefix("blocks.").rpartition(".")
    axes = PARAMETER_AXES.get(f"{part}.{leaf}", "")
    if not leaf.startswith("W_") or not axes or (axes[0] == "L") != name.startswith("blocks."):
        names = [f"blocks.{n}" if letters[0] == "L" else n for n, letters in PARAMETER_AXES.items() if ".W_" in n]
        raise InputError(f"low_rank(): {name!r} is not the name of a matrix; expected one of {', '.join(names)}.")
    if (expert is not None) != ("X" in axes[1:2]):
        raise InputError(f"low_rank(): name the expert of a matrix of experts, and of no other; got {name!r} with expert={expert}.")
    a, b = jnp.asarray(a), jnp.asarray(b)
    params = lm.stacked().params
    if axes[0] != "L":
        held = params.get(part, {})
        if leaf not in held or layer is not None:
            why = "this model has no such parameter" if leaf not in held else "it stands outside the blocks and has no layers"
            raise InputError(f"low_rank(): {name!r} with layer={layer}: {why}.")
        params = {**params, part: {**held, leaf: held[leaf] + _product(name, held[leaf], a, b, scale)}}
    else:
        params = {**params, "blocks": _blocks(lm.config, params["blocks"], name, a, b, layer, expert, scale)}
    changed = lm.replace(params=params)
    return changed.by_layer() if isinstance(lm.params["blocks"][0], tuple) else changed


def _blocks(
    config: TransformerConfig, stacks: Any, name: str, a: Array, b: Array, layer: Any, expert: int | None, scale: Any
) -> tuple[Any, ...]:
    """The blocks with a matrix of some layers changed."""
    part, leaf = name.split(".")[1:]
    held = [l for group, stack in zip(config.groups, stacks, strict=True) if leaf in stack.get(part, {}) for l in _layers(group)]
    if not held:
        raise InputError(f"low_rank(): {name!r}: this model has no such parameter.")
    layers = np.asarray(held) if layer is None else layer
    _check_layers(name, layers, held, a, b)
    if np.ndim(layers) == 0:
        layers, a, b = jnp.asarray(layers).reshape(1), a[None], b[None]
    out = []
    for group, stack in zip(config.groups, stacks, strict=True):
        weight = stack.get(part, {}).get(leaf)
        if weight is not None:
            # a layer of another group, or out of range where it is traced, is past the end, where nothing is written
            rows = jnp.where(jnp.isin(jnp.asarray(layers), np.asarray(_layers(group))), jnp.asarray(layers) - group.start, len(weight))
            if expert is not None and not 0 <= expert < weight.shape[1]:
                raise InputError(f"low_rank(): expert is {expert}; expected 0 to {weight.shape[1] - 1}.")
            at = weight.at[rows] if expert is None else weight.at[rows, expert]
            one = weight[0] if expert is None else weight[0, 0]
            change = jax.vmap(lambda a, b, one=one: _product(name, one, a, b, scale))(a, b)
            stack = {**stack, part: {**stack[part], leaf: at.add(change, mode="drop")}}
        out.append(stack)
    return tuple(out)


def _layers(group: Group) -> range:
    return range(group.start, group.stop)


def _check_layers(name: str, layers: Any, held: Sequence[int], a: Array, b: Array) -> None:
    """Refuse layers that lack the matrix, and factors that are not one for each."""
    bad = [int(l) for l in np.atleast_1d(np.asarray(layers)) if l not in held] if concrete(layers) else []
    if bad:
        raise InputError(f"low_rank(): layer {bad[0]} has no {name!r}; it is in layers {held[0]} to {held[-1]}.")
    leading = np.shape(layers)
    if (
        len(leading) > 1
        or a.ndim != 2 + len(leading)
        or b.ndim != a.ndim
        or a.shape[: len(leading)] + b.shape[: len(leading)] != 2 * leading
    ):
        wanted = f"a [{leading[0]} I r] and b [{leading[0]} r O]" if leading else "a [I r] and b [r O]"
        raise InputError(
            f"low_rank(): for {f'{leading[0]} layers' if leading else 'one layer'} expected {wanted}; got {list(a.shape)}, {list(b.shape)}."
        )


def _product(name: str, weight: Array, a: Array, b: Array, scale: Any) -> Array:
    """The product, scaled, in the shape of one matrix."""
    inputs = INPUTS.get(name.split(".")[-1], 1)
    rows, columns = math.prod(weight.shape[:inputs]), math.prod(weight.shape[inputs:])
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or (a.shape[0], b.shape[1]) != (rows, columns):
        raise InputError(
            f"low_rank(): {name!r} is a matrix [{rows}, {columns}], so a is [{rows}, r] and b [r, {columns}]; got {list(a.shape)} and "
            f"{list(b.shape)}."
        )
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    product = scale * jnp.matmul(a.astype(wide), b.astype(wide), precision="highest")
    return product.reshape(weight.shape).astype(weight.dtype)
