"""Where what is left of a model stands once heads and neurons are removed: one uniform layout for layers that lose unlike parts.

Layers are stacked and scanned, so all of them have one number of key/value heads G', of query heads for each R', and of
neurons M'. A layer's remaining parts are put into these places in order; what is left over is a filler, with all its weights
zero. G' and R' are those with the fewest parameters that hold every layer, where a key/value head may stand several times when
its query heads do not fit behind one (for R' = 1, once for each query head).
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.results import frame
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.parameters import parameter_shapes
from jaxinterp.model.position import alibi_slopes
from jaxinterp.model.selection import Heads
from jaxinterp.model.selection import heads as named_heads

Names = str | Iterable[tuple[int, int]] | Heads | Bool[np.ndarray | jax.Array, "L H"] | None
Neurons = Bool[np.ndarray | jax.Array, "..."] | Mapping[Any, Any] | None

FILLER = -1


@functools.partial(jax.tree_util.register_dataclass, data_fields=["heads", "kv_heads", "neurons"], meta_fields=["before", "after"])
@dataclasses.dataclass(frozen=True)
class Pruning:
    """What stands where in a pruned model, by the numbers that parts had before; -1 is a filler whose weights are all zero.

    Attributes:
        heads: [L H'] int, the old query head at each place. New head h reads the new key/value head h // (H' / G').
        kv_heads: [L G'] int, the old key/value head; several times where its query heads are spread over copies of it.
        neurons: for each layer, [M'] int, the old neuron at each place; [X M'] in a layer of experts, [0] without an MLP.
        before: the config of the whole model.
        after: that of the pruned one.
    """

    heads: Any
    kv_heads: Any
    neurons: tuple[Any, ...]
    before: TransformerConfig
    after: TransformerConfig

    @property
    def parameters(self) -> tuple[int, int]:
        """How many parameters the model has, before and after."""
        return _count(self.before), _count(self.after)

    @property
    def fillers(self) -> dict[str, int]:
        """How many places hold nothing: "heads", "kv_heads" and "neurons" of all layers."""
        neurons = sum(int((np.asarray(layer) == FILLER).sum()) for layer in self.neurons)
        return {name: int((np.asarray(getattr(self, name)) == FILLER).sum()) for name in ("heads", "kv_heads")} | {"neurons": neurons}

    @property
    def removed_heads(self) -> Bool[np.ndarray, "L H"]:
        """Which query heads the model lost."""
        return _missing(np.asarray(self.heads), self.before.n_heads)

    @property
    def removed_neurons(self) -> tuple[np.ndarray, ...]:
        """For each layer, which neurons it lost: [M] bool, or [X M] in a layer of experts."""
        return tuple(_missing(np.asarray(layer), size[-1]) for layer, size in zip(self.neurons, _widths(self.before), strict=True))

    def ablation(self) -> list[Edit]:
        """Edits of the whole model that zero what was removed: a run under them is the pruned model's run."""
        config, edits = self.before, []
        if self.removed_heads.any():
            edits.append(edit_makers.zero("z", where=self.removed_heads[:, None, None, :]))
        kinds = config.expert_layers
        dense = [lost for lost, experts in zip(self.removed_neurons, kinds, strict=True) if not experts]
        if any(lost.any() for lost in dense):
            edits.append(edit_makers.zero("dense_post" if any(kinds) else "mlp_post", where=np.stack(dense)[:, None, None, :]))
        inside = [lost for lost, experts in zip(self.removed_neurons, kinds, strict=True) if experts]
        if any(lost.any() for lost in inside):
            read = ("mlp_post", "expert_index")
            edits.append(edit_makers.rewire(read, "mlp_post", _without, np.stack(inside), per_layer=True))
        return edits

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each place of a query head: layer, head, kv_head, and the old head and key/value head."""
        heads, share = np.asarray(self.heads), self.after.n_heads // self.after.n_kv_heads
        layer, head = np.indices(heads.shape).reshape(2, -1)
        old = np.asarray(self.kv_heads)[layer, head // share]
        columns = {"layer": layer, "head": head, "kv_head": head // share, "old_head": heads.reshape(-1), "old_kv_head": old}
        return frame(columns)

    def __repr__(self) -> str:
        sizes = [f"{c.n_heads} heads on {c.n_kv_heads}, {_width(c)} neurons" for c in (self.before, self.after)]
        before, after = self.parameters
        held = ", ".join(f"{count} {name}" for name, count in self.fillers.items() if count)
        return f"Pruning({sizes[0]} -> {sizes[1]} a layer; {before:,} -> {after:,} parameters; fillers: {held or 'none'})"


def pruned_layout(config: TransformerConfig, heads: Names = None, neurons: Neurons = None) -> Pruning:
    """Where the rest of a model stands once some of its heads and neurons are removed, and how large it then is.

    Args:
        config: of the whole model.
        heads: query heads to remove: "23.3 29.1", (layer, head) pairs, `ji.heads(...)`, or a mask [L H].
        neurons: neurons to remove: a mask [L M] ([L X M] where every layer has experts), or {layer: indices}, with
            {(layer, expert): indices} in layers of experts.

    Returns:
        A Pruning.

    Raises:
        InputError: neither was given, a part that does not exist, or one that a model of this kind cannot lose: heads where a norm
            goes over all of q (qk_norm="whole"), neurons that a softmax mixes (activation="solu").

    Example:
        >>> ji.weights.pruned_layout(lm.config, heads=[(layer, head) for layer in range(30) for head in (2, 5, 8)]).after.n_heads
        6
    """
    if heads is None and neurons is None:
        raise InputError("Pruning needs heads=, neurons= or both: say what to remove.")
    lost, without = removed_heads(config, heads), removed_neurons(config, neurons)
    placed, kv_heads, common = _head_places(~lost, config)
    changes: dict[str, Any] = {"n_heads": placed.shape[1], "n_kv_heads": kv_heads.shape[1]}
    if config.positions == "alibi" and common != tuple(range(config.n_heads)):
        slopes = config.alibi_slopes or alibi_slopes(config.n_heads)
        changes["alibi_slopes"] = tuple(0.0 if head == FILLER else float(slopes[head]) for head in common)
    left, kinds = [~rows for rows in without], config.expert_layers
    widths = {}
    for experts in set(kinds):
        most = max(int(rows.sum(axis=-1).max()) for rows, kind in zip(left, kinds, strict=True) if kind == experts)
        widths[experts] = max(most, 1) if config.d_mlp or experts else 0
    places = tuple(_in_order(rows, widths[kind]) for rows, kind in zip(left, kinds, strict=True))
    if False in widths:
        changes["d_mlp"] = widths[False]
    if config.experts is not None and True in widths:
        changes["experts"] = dataclasses.replace(config.experts, d_expert=widths[True])
    return Pruning(placed, kv_heads, places, config, config.replace(**changes))


def _without(value: Float[Array, "B P S M"], index: Int[Array, "B P S"], lost: Bool[Array, "X M"]) -> Float[Array, "B P S M"]:
    """Neurons of the chosen experts, those that each expert lost at zero."""
    return jnp.where(lost[index], 0, value)


# ----------------------------------------------------------------------------------------------------- what is removed


def removed_heads(config: TransformerConfig, heads: Names) -> Bool[np.ndarray, "L H"]:
    """A mask of the query heads to remove.

    Raises:
        InputError: a head that does not exist, or a model that cannot lose heads.
    """
    lost = np.zeros((config.n_layers, config.n_heads), bool)
    if heads is None:
        return lost
    if isinstance(heads, np.ndarray | jax.Array) and heads.dtype == bool:
        if heads.shape != lost.shape:
            raise InputError(f"A mask of heads has shape {list(heads.shape)}; expected [L H] = {list(lost.shape)}.")
        lost = np.array(heads)
    else:
        named = heads if isinstance(heads, Heads) else named_heads(heads)
        layer, head = np.asarray(named.layer), np.asarray(named.head)
        bad = np.flatnonzero((layer < 0) | (layer >= config.n_layers) | (head < 0) | (head >= config.n_heads))
        if len(bad):
            raise InputError(
                f"Head {layer[bad[0]]}.{head[bad[0]]} does not exist: this model has layers 0 to {config.n_layers - 1} and heads 0 to "
                f"{config.n_heads - 1}."
            )
        lost[layer, head] = True
    if lost.any() and config.qk_norm == "whole":
        raise InputError(
            "Heads of this model cannot be removed: its query and key norms go over all heads at once (qk_norm='whole'), so every head "
            "depends on every other; ablate them with ji.edits.zero, or prune neurons only."
        )
    return lost


def removed_neurons(config: TransformerConfig, neurons: Neurons) -> tuple[np.ndarray, ...]:
    """For each layer a mask of the neurons to remove: [M], [X M] in a layer of experts, [0] without an MLP.

    Raises:
        InputError: a neuron that does not exist, or a model that cannot lose neurons.
    """
    lost = tuple(np.zeros(size, bool) for size in _widths(config))
    if neurons is None:
        return lost
    if not config.has_mlp:
        raise InputError("This model has no neurons to remove: its blocks have attention only.")
    if isinstance(neurons, Mapping):
        lost = _from_mapping(config, neurons, lost)
    else:
        mask = np.asarray(neurons)
        kinds = set(config.expert_layers)
        shape = (config.n_layers, *lost[0].shape)
        if mask.dtype != bool or len(kinds) > 1 or mask.shape != shape:
            wanted = (
                "{layer: indices} and {(layer, expert): indices}, since some layers have experts and others none"
                if len(kinds) > 1
                else f"a boolean mask {'[L X M]' if True in kinds else '[L M]'} = {list(shape)}, or a mapping"
            )
            raise InputError(f"neurons is {mask.dtype} of shape {list(mask.shape)}; expected {wanted}.")
        lost = tuple(np.array(mask))
    if config.activation == "solu" and any(rows.any() for rows in lost):
        raise InputError(
            "Neurons of this model cannot be removed: its activation (solu) is a softmax over all neurons of a layer, so each depends on "
            "every other; ablate them with ji.edits.zero('mlp_post', ...)."
        )
    return lost


def _from_mapping(config: TransformerConfig, neurons: Mapping[Any, Any], lost: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    for key, indices in neurons.items():
        layer, *expert = key if isinstance(key, tuple) else (key,)
        if not 0 <= layer < config.n_layers:
            raise InputError(f"neurons: layer {layer} does not exist; this model has layers 0 to {config.n_layers - 1}.")
        rows, index = lost[layer], np.asarray(indices).reshape(-1)
        if len(expert) != rows.ndim - 1 or (expert and not 0 <= expert[0] < len(rows)):
            wanted = f"(layer, expert) with experts 0 to {len(rows) - 1}" if rows.ndim == 2 else "the layer alone, since it has no experts"
            raise InputError(f"neurons: the key {key!r} does not fit layer {layer}; expected {wanted}.")
        if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= rows.shape[-1]):
            raise InputError(f"neurons: at {key!r}, expected whole numbers from 0 to {rows.shape[-1] - 1}, the neurons of that layer.")
        rows[(*expert, index.astype(int))] = True
    return lost


# ------------------------------------------------------------------------------------------------------------- places


def _head_places(
    kept: Bool[np.ndarray, "L H"], config: TransformerConfig
) -> tuple[Int[np.ndarray, "L h"], Int[np.ndarray, "L g"], tuple[int, ...]]:
    """The old query head of each place, the old key/value head of each place, and the first layer's heads before ALiBi's fillers."""
    groups = config.n_kv_heads
    # with ALiBi a place has one slope in every layer, so it holds one head of every layer
    held = np.broadcast_to(kept.any(axis=0), kept.shape) if config.positions == "alibi" else kept
    remaining = held.reshape(len(held), groups, -1)
    counts = remaining.sum(axis=2)
    choices = []
    for share in range(1, max(1, counts.max()) + 1):
        needed = max(1, int((-(-counts // share)).sum(axis=1).max()))
        choices.append((needed * (share + 1), needed, share))
    _, needed, share = min(choices)
    heads, kv_heads = np.full((len(held), needed, share), FILLER), np.full((len(held), needed), FILLER)
    for layer, rows in enumerate(remaining):
        place = 0
        for group, row in enumerate(rows):
            mine = group * rows.shape[1] + np.flatnonzero(row)
            for begin in range(0, len(mine), share):
                part = mine[begin : begin + share]
                heads[layer, place, : len(part)], kv_heads[layer, place] = part, group
                place += 1
    common = tuple(heads[0].reshape(-1).tolist())
    # a filler's number, -1, finds the column that is added at the end
    there = np.pad(kept, [(0, 0), (0, 1)])[np.arange(len(held))[:, None, None], heads]
    return np.where(there, heads, FILLER).reshape(len(held), -1), np.where(there.any(axis=2), kv_heads, FILLER), common


def _in_order(kept: Bool[np.ndarray, "*X M"], width: int) -> Int[np.ndarray, "*X m"]:
    """The numbers of what is kept, in order, and fillers."""
    order = np.argsort(~kept, axis=-1, kind="stable")[..., :width]
    return np.where(np.take_along_axis(kept, order, axis=-1), order, FILLER)


def _missing(places: Int[np.ndarray, "*X m"], size: int) -> Bool[np.ndarray, "*X M"]:
    """Which old numbers stand at no place."""
    return ~(places[..., None] == np.arange(size)).any(axis=-2)


def _widths(config: TransformerConfig) -> list[tuple[int, ...]]:
    """For each layer the shape of its neurons."""
    experts = config.experts
    return [(experts.n, experts.d_expert) if here and experts else (config.d_mlp,) for here in config.expert_layers]


def _width(config: TransformerConfig) -> int:
    return config.axis_sizes["M"]


@functools.lru_cache
def _count(config: TransformerConfig) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(parameter_shapes(config)))
