"""The cells of a grid as sums over a site: which of its entries each cell selects, axis by axis.

An exact cell writes the selected entries of a site; a first-order estimate adds up what each of the same entries contributes.
Selections multiply out, so a grid is one small matrix an axis, and all of its cells are one contraction.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinterp.methods.grid import Axis
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.selection import POSITIONAL, axis_of
from jaxinterp.model.sites import Site, site_of
from jaxinterp.model.tokens import Tokens, position_mask


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["over", "fixed", "sets", "mapped"], meta_fields=["site", "over_names", "fixed_names"]
)
@dataclasses.dataclass(frozen=True)
class Selected:
    """What each cell of a grid selects of a site.

    Attributes:
        over: for each axis of the grid [n size] or [n B size], whether its points select the entries of their axis of the site;
            the experts' numbers [n] where entries are those that a token chose; None where the points are the entries in order.
        fixed: for each selection that all cells share [size] or [B size], or [n] experts.
        sets: [m ...] sets of components, over all axes of the site (1 broadcasts), or None.
        mapped: [B P], which positions have a counterpart in the other run, or None for all.
        site: the site.
        over_names: the selector of each axis.
        fixed_names: the selector of each shared selection.
    """

    over: tuple[Any, ...]
    fixed: tuple[Any, ...]
    sets: Any
    mapped: Any
    site: str
    over_names: tuple[str, ...]
    fixed_names: tuple[str, ...]

    @property
    def one_position(self) -> bool:
        """Whether each cell selects one position (else it selects several together)."""
        return "position" in self.over_names

    def letters(self, config: TransformerConfig) -> str:
        """The axes of the site along which cells differ, or select a part."""
        place = site_of(self.site, config)
        kept = {place.axes[axis_of(name, place.axes)] for name in (*self.over_names, *self.fixed_names)} | {"B"}
        if self.sets is not None:
            kept |= {letter for letter, size in zip(place.axes, self.sets.shape[1:], strict=True) if size > 1}
        if self.mapped is not None:
            kept.add("P")
        if self.chooses(config):
            kept |= set("LP")
        return "".join(letter for letter in place.axes if letter in kept)

    def chooses(self, config: TransformerConfig) -> bool:
        """Whether experts are selected at a site whose entries are those that each token chose."""
        return "expert" in (*self.over_names, *self.fixed_names) and "S" in site_of(self.site, config).axes

    def shape(self, config: TransformerConfig, batch: int, positions: int) -> tuple[int, ...]:
        """The site's shape with 1 along the axes that no cell tells apart."""
        place, kept = site_of(self.site, config), self.letters(config)
        return tuple(size if letter in kept else 1 for letter, size in zip(place.axes, place.shape(config, batch, positions), strict=True))

    def positions(self, tokens: Tokens) -> Bool[Array, "B P"]:
        """Which columns the cells' shared selections take."""
        out = jnp.asarray(tokens.mask)
        for name, weights in zip(self.fixed_names, self.fixed, strict=True):
            out = out & jnp.asarray(weights) if name == "position" else out
        return out if self.mapped is None else out & jnp.asarray(self.mapped)

    def without_positions(self) -> "Selected":
        """The same cells of a site whose positions are already summed."""
        rest = [(name, weights) for name, weights in zip(self.fixed_names, self.fixed, strict=True) if name != "position"]
        names, weights = tuple(name for name, _ in rest), tuple(weights for _, weights in rest)
        return dataclasses.replace(self, fixed=weights, fixed_names=names, mapped=None)

    def contract(self, value: Float[Array, "..."], letters: str, config: TransformerConfig, experts: Any = None) -> Float[Array, "... B"]:
        """The sum of a value over what each cell selects.

        Args:
            value: with one axis for each of `letters`, of the site's axes; B among them.
            letters: those axes.
            config: the architecture.
            experts: [L B P S], the experts that entries of an axis S are of, where cells select experts.

        Returns:
            [sets, axes of the grid ..., B].
        """
        axes = site_of(self.site, config).axes
        terms, operands, out = [letters], [value], ""

        def weigh(name: str, weights: Any, new: str) -> str:
            letter = axes[axis_of(name, axes)]
            if weights is None:
                return letter
            weights = jnp.asarray(weights)
            if name == "expert" and letter == "S":
                hit = jnp.asarray(experts)[None] == weights.reshape(-1, 1, 1, 1, 1)
                terms.append(f"{new}LBPS")
                operands.append((hit if new else hit.any(axis=0)).astype(value.dtype))
                return new
            shared = weights.ndim == (2 if new else 1)
            terms.append(f"{new}{letter}" if shared or letter == "B" else f"{new}B{letter}")
            operands.append(weights.astype(value.dtype))
            return new

        if self.sets is not None:
            kept = [letter for letter, size in zip(axes, self.sets.shape[1:], strict=True) if size > 1]
            terms.append("a" + "".join(kept))
            operands.append(
                jnp.asarray(self.sets).reshape(self.sets.shape[0], *(n for n in self.sets.shape[1:] if n > 1)).astype(value.dtype)
            )
            out = "a"
        for number, (name, weights) in enumerate(zip(self.over_names, self.over, strict=True)):
            out += weigh(name, weights, "bcdefgh"[number])
        for name, weights in zip(self.fixed_names, self.fixed, strict=True):
            weigh(name, weights, "")
        if self.mapped is not None:
            terms.append("BP")
            operands.append(jnp.asarray(self.mapped).astype(value.dtype))
        return jnp.einsum(f"{','.join(terms)}->{out}B", *operands, precision="highest")


def select(
    site: Site, axes: Sequence[Axis], sets: Axis | None, at: Mapping[str, Any], mapped: Any, tokens: Tokens, config: TransformerConfig
) -> Selected:
    """The cells of a grid, as `patch` makes them.

    Args:
        site: the site.
        axes: those of the grid.
        sets: sets of components, or None.
        at: selections that all cells share.
        mapped: [B P], positions with a counterpart, or None.
        tokens: the prompts that cells run, padded to their bucket.
        config: the architecture.
    """
    batch, positions = tokens.ids.shape
    sizes = dict(zip(site.axes, site.shape(config, batch, positions), strict=True))

    def chosen(name: str, index: Any) -> np.ndarray:
        letter = site.axes[axis_of(name, site.axes)]
        if name in POSITIONAL:
            return np.asarray(position_mask(index, jnp.asarray(tokens.mask), jnp.asarray(tokens.positions)))
        there = np.asarray(site.layers(config)) if name == "layer" else np.arange(sizes[letter])
        index = np.asarray(index)
        return (index.reshape((-1,) if index.ndim < 2 else index.shape)[..., None] == there).any(axis=-2)

    def points(axis: Axis) -> Any:
        letter = site.axes[axis_of(axis.name, site.axes)]
        if axis.name == "expert" and letter == "S":
            return np.asarray(axis.values)
        whole = site.layers(config) if axis.name == "layer" else tuple(range(sizes[letter]))
        if axis.name not in POSITIONAL and letter != "B" and axis.values == tuple(whole):
            return None
        return np.stack([chosen(axis.name, value) for value in axis.values])

    fixed = {
        name: np.asarray(index).reshape(-1) if name == "expert" and "S" in site.axes else chosen(name, index) for name, index in at.items()
    }
    return Selected(
        over=tuple(points(axis) for axis in axes),
        fixed=tuple(fixed.values()),
        sets=None if sets is None else np.stack(sets.values),
        mapped=mapped,
        site=site.name,
        over_names=tuple(axis.name for axis in axes),
        fixed_names=tuple(fixed),
    )


def beyond(axes: Sequence[Axis], sets: Axis | None, at: Mapping[str, Any], lengths: np.ndarray) -> np.ndarray:
    """[C B]: the prompts that have none of the positions that a cell selects."""

    def lacking(index: Any) -> np.ndarray:
        index = np.asarray(index)
        index = index.reshape(1, -1) if index.ndim < 2 else index
        return ((index >= lengths[:, None]) | (index < -lengths[:, None])).all(axis=1)

    out = np.zeros((*([len(sets.values)] if sets else []), *(len(axis.values) for axis in axes), len(lengths)), bool)
    for number, axis in enumerate(axes):
        if axis.name in POSITIONAL:
            missing = np.stack([lacking(value) for value in axis.values])
            out |= missing.reshape(-1, *(1,) * (len(axes) - 1 - number), len(lengths))
    for name, index in at.items():
        if name in POSITIONAL:
            out |= lacking(index)
    return out.reshape(-1, len(lengths))
