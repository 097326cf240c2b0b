"""Metrics of anything: a coordinate of a site, or any pure function of logits."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.norm import at_least_float32
from jaxinterp.model.selection import At, at
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.runs.metrics.base import Metric, is_text, register, resolve


@register(data_fields=["direction", "position"], meta_fields=["site", "layer"])
@dataclasses.dataclass(frozen=True)
class Projection(Metric):
    """A site's coordinate along a direction; see `projection`."""

    direction: Any
    position: Any
    site: str
    layer: int | None

    @property
    def sites(self) -> Mapping[str, At]:
        return {self.site: at(layer=self.layer, position=self.position)}

    def _read(self, trace: Trace) -> Float[Array, "B"]:
        if self.site not in trace:
            raise InputError(
                f"projection needs site {self.site!r}, which this run did not capture: add it to sites (metric.sites says which part)."
            )
        axes = dict(trace.axes)[self.site]
        select = ({"position": self.position} if "P" in axes else {}) | (
            {"layer": self.layer} if "L" in axes and self.layer is not None else {}
        )
        value, direction = trace.at(self.site, **select) if select else trace.padded[self.site], jnp.asarray(self.direction)
        batch = trace.padded_tokens.ids.shape[0]
        if value.size != batch * direction.size:
            shape = list(value.shape)
            raise InputError(
                f"projection on {self.site!r}: a direction of {direction.size} numbers does not meet values {shape}; name the layer?"
            )
        return jnp.einsum("BD,D->B", at_least_float32(value.reshape(batch, -1)), at_least_float32(direction))


def projection(site: str, direction: Any, *, layer: int | None = None, position: Any = -1) -> Projection:
    """The coordinate of a site along a direction at a position: x . direction, not normalised.

    Args:
        site: a site with axes ... B P D (or P M); the run must capture it (`metric.sites` says what).
        direction: [D].
        layer: which layer, for a site inside the blocks.
        position: an int, or [B 1].
    """
    return Projection(
        direction if isinstance(direction, jax.Array) else np.asarray(direction, np.float32), np.asarray(position), site, layer
    )


@register(data_fields=["arrays", "position", "columns"], meta_fields=["function"])
@dataclasses.dataclass(frozen=True)
class Custom(Metric):
    """Any pure function of logits; see `custom`."""

    arrays: tuple[Any, ...]
    position: Any
    columns: Any
    function: Callable[..., Array]

    @property
    def bound(self) -> bool:
        return not is_text(self.columns)

    def bind(self, lm: Any, tokens: Tokens | None = None) -> Any:
        return dataclasses.replace(self, columns=resolve(self.columns, lm))

    def reads(self, tokens: Tokens, config: TransformerConfig | None = None) -> tuple[Any, Any]:
        batch = tokens.ids.shape[0]
        columns = jnp.asarray(tokens.columns(self.position))
        vocabulary = None if self.columns is None else jnp.asarray(self.columns)
        if vocabulary is not None:
            vocabulary = jnp.broadcast_to(vocabulary if vocabulary.ndim == 2 else vocabulary.reshape(1, -1), (batch, vocabulary.shape[-1]))
        return jnp.broadcast_to(columns, (batch, columns.shape[1])), vocabulary

    def from_logits(self, selected: Float[Array, "B n k"], tokens: Tokens | None = None) -> Float[Array, "B"]:
        out = self.function(selected, *self.arrays)
        if out.shape != selected.shape[:1]:
            raise InputError(
                f"custom metric: the function returned shape {list(out.shape)}; expected one number a prompt, [{selected.shape[0]}]."
            )
        return out


def custom(function: Callable[..., Array], *arrays: Any, position: Any = -1, columns: Any = None) -> Custom:
    """Any pure function of the logits at some positions: function(logits [B n k], *arrays) -> [B].

    Args:
        function: compiled once a function, so pass a module-level one.
        *arrays: passed on to it as data.
        position: an int, [n] or [B n]: which positions it sees.
        columns: which vocabulary columns it sees: strings, ids [k] or [B k]; None is all.
    """
    return Custom(arrays, np.asarray(position), columns if columns is None or is_text(columns) else np.asarray(columns), function)
