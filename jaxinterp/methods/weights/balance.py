"""Balanced choices: the same number of heads and neurons of every layer, so that the pruned model's layers share one smaller size."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig

HeadUnit = Literal["head", "kv_head"]


@dataclasses.dataclass(frozen=True)
class Balance:
    """How much is removed of every layer; made by `balance`.

    Attributes:
        config: of the whole model.
        unit: "head": `heads` query heads of every key/value head go; "kv_head": `heads` key/value heads with their query heads.
        heads: how many, 0 for none.
        neurons: how many of every layer, 0 for none.
    """

    config: TransformerConfig
    unit: HeadUnit
    heads: int
    neurons: int

    def choose(self, values: Mapping[str, Float[np.ndarray, "L _"]]) -> dict[str, Bool[np.ndarray, "L _"]]:
        """The least important parts, as the arguments of `prune`: masks [L H] and [L M].

        Args:
            values: "heads" [L H] (of unit "kv_head": [L G]) and "neurons" [L M], the importance of each.
        """
        config, out = self.config, {}
        if self.heads:
            ranks = values["heads"]
            if config.positions == "alibi":
                # a place has one slope in every layer, so all layers lose the same heads
                ranks = np.broadcast_to(ranks.mean(axis=0, keepdims=True), ranks.shape)
            share = config.n_heads // config.n_kv_heads
            if self.unit == "kv_head":
                out["heads"] = np.repeat(_least(ranks, self.heads), share, axis=1)
            else:
                out["heads"] = _least(ranks.reshape(config.n_layers, -1, share), self.heads).reshape(ranks.shape)
        if self.neurons:
            out["neurons"] = _least(values["neurons"], self.neurons)
        return out

    def random(self, seed: Any) -> dict[str, Bool[np.ndarray, "L _"]]:
        """As large a choice that knows nothing."""
        config, random = self.config, np.random.default_rng(seed)
        sizes = {"heads": config.n_kv_heads if self.unit == "kv_head" else config.n_heads, "neurons": config.d_mlp}
        return self.choose({name: random.random((config.n_layers, size)) for name, size in sizes.items()})


def _least(values: Float[np.ndarray, "*axes n"], count: int) -> Bool[np.ndarray, "*axes n"]:
    """The `count` smallest of each row."""
    lost = np.zeros(values.shape, bool)
    np.put_along_axis(lost, np.argsort(values, axis=-1, kind="stable")[..., :count], True, axis=-1)
    return lost


def balance(config: TransformerConfig, heads: float, neurons: float, unit: HeadUnit | None = None) -> Balance:
    """How many parts of every layer given shares are.

    Args:
        config: of the whole model.
        heads: share of the heads, from 0 to below 1.
        neurons: share of the neurons, in the same way.
        unit: as in `Balance`; None is "kv_head" where the share is at least one key/value head, and not all.

    Raises:
        InputError: shares out of range, or too small to remove anything; neurons of a model that has none, or has experts.
    """
    if not (0 <= heads < 1 and 0 <= neurons < 1 and heads + neurons > 0) or unit not in (None, "head", "kv_head"):
        raise InputError(
            f"shrink(): heads is {heads}, neurons {neurons} and unit {unit!r}; expected shares from 0 to below 1, not both 0, and 'head', "
            "'kv_head' or None."
        )
    share, groups = config.n_heads // config.n_kv_heads, config.n_kv_heads
    unit = unit or ("kv_head" if share == 1 or 1 <= round(heads * groups) < groups else "head")
    rows, what = (groups, "key/value heads of each layer") if unit == "kv_head" else (share, "query heads of each key/value head")
    n_heads = min(round(heads * rows), rows - 1)
    if heads and not n_heads:
        raise InputError(f"shrink(): heads={heads} of {rows} {what} is less than one, or all of them; give 0 or another share.")
    if neurons and (config.experts is not None or not config.has_mlp):
        kind = "stand inside experts, which are not ranked" if config.experts is not None else "are none, since it has no MLP"
        raise InputError(f"shrink(): the neurons of this model {kind}; give neurons=0 to remove heads alone.")
    n_neurons = min(round(neurons * config.d_mlp), config.d_mlp - 1)
    if neurons and not n_neurons:
        raise InputError(f"shrink(): neurons={neurons} of {config.d_mlp} neurons of each layer is less than one; give 0 or a larger share.")
    return Balance(config, unit, n_heads, n_neurons)
