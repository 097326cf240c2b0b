"""Structured pruning: heads and neurons taken out of the weights, so that the model is smaller, faster and otherwise the same.

    prune(lm, heads=S, neurons=T)(x)  =  lm(x) with z = 0 at the heads S and mlp_post = 0 at the neurons T

Exact, to rounding: a head writes z W_O and a neuron a W_out, so a part that is zeroed is the same as its weights being gone, and
what stands in a layer that lost less than others is filled up with parts that write zero (see `pruned_layout`). Biases after the
sum (`b_O`, `b_out`) stay. Removing heads and neurons in this way: Michel et al. 2019, arXiv:1905.10650.

Cost: a copy of the blocks' weights that remain. Nothing gets smaller where some layer keeps all its heads or neurons, since all
layers share one size: remove as many from every layer, as `shrink` does. Misleads like any zero ablation: a part that matters little
alone may matter together with others, and the loss on the texts that it was ranked on says little about other texts.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.methods.weights.pruned_layout import FILLER, Names, Neurons, Pruning, pruned_layout
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.parameters import parameter_axes


def prune(lm: LanguageModel, *, heads: Names = None, neurons: Neurons = None) -> LanguageModel:
    """The model without some of its heads and neurons: smaller, and equal to the model in which they are zeroed.

    It runs, generates, saves and is edited like any other. Its heads and neurons have new numbers: `pruned_layout` with the same
    arguments says which old one stands where. A filler's `z` is not zero, its W_O is.

    Args:
        lm: the model, with weights in stacks or by layer.
        heads: query heads to remove: "23.3 29.1", (layer, head) pairs, `ji.heads(...)`, or a mask [L H].
        neurons: neurons to remove: a mask [L M] ([L X M] where every layer has experts), or {layer: indices}, with
            {(layer, expert): indices} in layers of experts.

    Returns:
        A LanguageModel with a config of its own, its weights laid out as they were given. A key/value head goes when all its query
        heads do. With ALiBi a place holds the same head in every layer, so a head goes where all layers lose it. A shared expert
        stays whole.

    Raises:
        InputError: see `pruned_layout`.

    Warns:
        UserWarning: no size of the model changed.

    Example:
        >>> third = [(layer, head) for layer in range(30) for head in (2, 5, 8)]
        >>> ji.weights.prune(lm, heads=third)
        LanguageModel(30 layers, d_model 576, 6 heads, 127,879,488 parameters)
    """
    layout = pruned_layout(lm.config, heads, neurons)
    if layout.after == lm.config:
        warnings.warn("prune(): the model is not smaller, since some layer keeps all its heads and neurons.", stacklevel=2)
    apart = isinstance(lm.params["blocks"][0], tuple)
    pruned = lm.replace(params=_pruned(lm.stacked().params, layout), config=layout.after)
    return pruned.by_layer() if apart else pruned


def _pruned(params: Any, layout: Pruning) -> dict[str, Any]:
    """The parameters of what remains."""
    groups = zip(params["blocks"], layout.before.groups, strict=True)
    blocks = []
    for stack, group in groups:
        span = slice(group.start, group.stop)
        places = {"H": layout.heads[span], "G": layout.kv_heads[span], "M": jnp.stack(layout.neurons[span])}
        blocks.append(_placed(stack, places, layout.before))
    return {**params, "blocks": tuple(blocks)}


def _placed(stack: Mapping[str, Any], places: Mapping[str, Any], config: TransformerConfig) -> Any:
    """One stack of blocks with its heads and neurons in their new places."""

    def leaf(path: tuple[Any, ...], weight: Array) -> Array:
        axes = parameter_axes(".".join(str(entry.key) for entry in path), config)
        letter = next((letter for letter in axes if letter in places), None)
        if letter is None:
            return weight
        place = jnp.asarray(places[letter])
        return _picked(weight, place, axes.index(letter) - place.ndim + 1)

    return jax.tree_util.tree_map_with_path(leaf, stack)


@functools.partial(jax.jit, static_argnames=("axis",))
def _picked(weight: Float[Array, "L ..."], places: Int[Array, "L ... n"], axis: int) -> Float[Array, "L ..."]:
    """The entries that stand at places, zeros at fillers, along an axis counted after the leading axes of `places`."""

    def pick(weight: Array, places: Array) -> Array:
        size = weight.shape[axis]
        return jnp.take(weight, jnp.where(places == FILLER, size, places), axis=axis, mode="fill", fill_value=0)

    for _ in range(places.ndim - 1):
        pick = jax.vmap(pick)
    return pick(weight, places)
