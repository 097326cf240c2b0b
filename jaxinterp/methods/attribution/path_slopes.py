"""The programs behind integrals along paths of runs: slopes at many points of a path, summed with their weights over cells.

Two kinds of path. Of activations: one layer's site goes from the base run's values to the other run's, all of its nodes together.
Of inputs: the token embeddings go from one prompt's to another's. Points are one batched run, in chunks that fit memory.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.methods.attribution.cells import Selected
from jaxinterp.methods.attribution.slopes import sharing
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import At
from jaxinterp.model.sites import site_of
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import Params, read_forward
from jaxinterp.runs.objective import measured

STATIC = ("config", "precision")


def along(value: Array, share: Array, amount: Array, here: Array, other: Array) -> Array:
    """The value plus (amount + share) (other - value) in the layer where `here` is 1, the change held constant."""
    change = jax.lax.stop_gradient(jnp.where(other == value, 0, other.astype(value.dtype) - value))
    return value + (here * (amount + share)).astype(value.dtype) * change


def shifted(value: Array, share: Array, change: Array) -> Array:
    """The value plus share times change."""
    return value + (share * change).astype(value.dtype)


@functools.partial(jax.jit, static_argnames=STATIC)
def activation_path(
    params: Params, tokens: Tokens, metric: Any, grid: Selected, other: Array, edits: Sequence[Edit], rules: Rules,
    layers: Int[Array, "n"], amounts: Float[Array, "n"], weights: Float[Array, "n"], *, config: TransformerConfig, precision: str | None,
) -> tuple[Array, Float[Array, "n B"], Float[Array, "n B"]]:  # fmt: skip
    """Weighted sums of slopes over points of paths of activations, [layers, the site's axes with 1 where no cell differs].

    Args:
        params: the weights.
        tokens: the base prompts.
        metric: a bound metric.
        grid: the cells of the site.
        other: the other run's values.
        edits: of the base run.
        rules: of the backward pass.
        layers: the path's layer at each point, as a number among those that have the site.
        amounts: how far along the path each point is, 0 to 1.
        weights: of each point in the sum.
        config: the architecture.
        precision: of matrix products.

    Returns:
        The sums, the metric at each point, and its slope along the path there.
    """
    place = site_of(grid.site, config)
    shape = grid.shape(config, *tokens.ids.shape)
    depth = depth_of(grid, config)

    def point(layer: Array, amount: Array) -> tuple[Array, Array, Array]:
        here = (jnp.arange(depth) == layer).astype(jnp.float32)
        here = here.reshape(-1, *(1,) * (len(place.axes) - 1)) if place.per_layer else here.reshape((1,) * len(place.axes))

        def total(share: Array) -> tuple[Array, Array]:
            edit = sharing(along, grid, share, amount.reshape((1,) * len(place.inner_axes)), here, other)
            values, _ = measured(params, tokens, config, metric, edits=[*edits, edit], rules=rules, precision=precision)
            return values.sum(), values

        inner = shape[1:] if place.per_layer else shape
        slope, values = jax.grad(total, has_aux=True)(jnp.zeros(inner, amounts.dtype))
        return slope, values, slope.sum(axis=[i for i, letter in enumerate(place.inner_axes) if letter != "B"])

    slopes, values, along_path = jax.vmap(point)(layers, amounts)
    chosen = (jnp.arange(depth)[:, None] == layers[None]) * weights[None]
    return jnp.einsum("ln,n...->l...", chosen, slopes), values, along_path


def depth_of(grid: Selected, config: TransformerConfig) -> int:
    """How many layers have the grid's site; 1 at a site outside the blocks."""
    place = site_of(grid.site, config)
    return len(place.layers(config)) if place.per_layer else 1


@functools.partial(jax.jit, static_argnames=(*STATIC, "kind"))
def input_path(
    params: Params, tokens: Tokens, metric: Any, grids: tuple[Selected, ...], changes: dict[str, Array], start: Float[Array, "B P D"],
    end: Float[Array, "B P D"], edits: Sequence[Edit], rules: Rules, amounts: Float[Array, "n"], weights: Float[Array, "n"], *,
    config: TransformerConfig, precision: str | None, kind: str,
) -> tuple[dict[str, Array], Float[Array, "n B"], Float[Array, "n B"]]:  # fmt: skip
    """Weighted sums {site: [the site's axes with 1 where no cell differs]} of slopes over points of a path of inputs.

    Args:
        params: the weights.
        tokens: the prompts.
        metric: a bound metric.
        grids: the cells of each site.
        changes: what slopes are multiplied by where `kind` is "given", by site.
        start: embeddings where the path begins.
        end: embeddings where it ends.
        edits: of every run.
        rules: of the backward pass.
        amounts: how far along the path each point is.
        weights: of each point in the sum.
        config: the architecture.
        precision: of matrix products.
        kind: what a slope is multiplied by: "given" changes, the "tangent" d activation / d amount of the path, or "one".

    Returns:
        The sums, the metric at each point, and its slope along the path there.
    """
    batch, positions = tokens.ids.shape
    zeros = {grid.site: jnp.zeros(grid.shape(config, batch, positions), amounts.dtype) for grid in grids}
    change = end - start

    def captured(x: Array) -> dict[str, Array]:
        wanted = {grid.site: At() for grid in grids}
        _, trace = read_forward(params, tokens, config, lambda resid, tap: None, sites=wanted, edits=edits, inputs=x, precision=precision)
        return trace.padded

    def point(amount: Array) -> tuple[dict[str, Array], Array, Array]:
        x = start + amount.astype(start.dtype) * change
        by = changes
        if kind == "tangent":
            by = jax.jvp(captured, (x,), (change,))[1]
        elif kind == "one":
            by = {grid.site: jnp.ones((1,) * len(site_of(grid.site, config).inner_axes), amounts.dtype) for grid in grids}

        def total(shares: dict[str, Array], ahead: Array) -> tuple[Array, Array]:
            acting = [*edits, *(sharing(shifted, grid, shares[grid.site], by[grid.site]) for grid in grids)]
            moved = x + ahead[:, None, None].astype(x.dtype) * change
            values, _ = measured(params, tokens, config, metric, edits=acting, rules=rules, inputs=moved, precision=precision)
            return values.sum(), values

        (slopes, ahead), values = jax.grad(total, argnums=(0, 1), has_aux=True)(zeros, jnp.zeros(batch, amounts.dtype))
        return slopes, values, ahead

    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        slopes, values, along_path = jax.vmap(point)(amounts)
        return jax.tree.map(lambda each: jnp.einsum("n,n...->...", weights, each), slopes), values, along_path


@functools.partial(jax.jit, static_argnames=("config",))
def cells_of(grid: Selected, value: Array, *, config: TransformerConfig) -> Array:
    """[cells ... B]: a value with the site's axes, 1 where no cell differs, summed over what each cell selects."""
    letters = grid.letters(config)
    axes = site_of(grid.site, config).axes
    return grid.contract(value.reshape([n for letter, n in zip(axes, value.shape, strict=True) if letter in letters]), letters, config)


@functools.partial(jax.jit, static_argnames=("config", "sites", "precision"))
def values_at(
    params: Params, tokens: Tokens, metric: Any, edits: Sequence[Edit], *, config: TransformerConfig, sites: tuple[str, ...],
    precision: str | None,
) -> tuple[dict[str, Array], Float[Array, "B"]]:  # fmt: skip
    """{site: values of a run} and the metric of that run [B]."""
    values, trace = measured(params, tokens, config, metric, sites=sites, edits=edits, precision=precision)
    return {site: trace.padded[site] for site in sites}, values


def summed(program: Callable[..., Any], points: Sequence[np.ndarray], weights: np.ndarray, size: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """What a program gives for many points, in chunks of one size: sums of the first output, the others one after the other.

    Args:
        program: called with arrays [size] of points and weights.
        points: arrays [n].
        weights: [n].
        size: points at once; the last chunk is filled with points of weight 0.
    """
    n, total, rest = len(weights), None, []
    for first in range(0, n, size):
        rows = np.minimum(np.arange(first, first + size), n - 1)
        part = np.where(np.arange(first, first + size) < n, weights[rows], 0)
        sums, *others = program(*(array[rows] for array in points), part.astype(weights.dtype))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        rest.append([np.asarray(other)[: n - first] for other in others])
    values, slopes = (np.concatenate(parts) for parts in zip(*rest, strict=True))
    return total, values, slopes
