"""The one program behind attribution patching: the derivative of a metric towards another run, summed over cells of grids.

    value(share) = base + share (other - base),     estimate of a cell = sum over what it selects of d metric / d share at 0

A share has the axes of its site along which cells differ and 1 elsewhere, so the sum over the others is part of the backward
pass: no full-size gradient is kept or returned. Cost: one forward pass of the other run, and one forward and one backward pass
of the base run, for all sites together.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.methods.attribution.cells import Selected
from jaxinterp.methods.attribution.grad_drop import blocking
from jaxinterp.methods.attribution.query_key import CAPTURED, recomputed
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.rules import Rules, with_derivative_of
from jaxinterp.model.selection import At
from jaxinterp.model.sites import site_of
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.objective import adding, measured, zeros_at

Grids = tuple[Selected, ...]


def toward(value: Array, share: Array, other: Array) -> Array:
    """The value itself, with the derivative of value + share (other - value) at share 0."""
    change = jax.lax.stop_gradient(jnp.where(other == value, 0, other.astype(value.dtype) - value))
    return with_derivative_of(value, value + share.astype(value.dtype) * change)


def sharing(function: Any, grid: Selected, *arrays: Any) -> Edit:
    """An edit of a grid's site by a function of its value and arrays that broadcast against the site's axes."""
    made = edit_makers.add(grid.site, jnp.zeros(()))
    return Edit(made.select, None, arrays, grid.site, function.__name__, function)


@functools.partial(jax.jit, static_argnames=("config", "exact", "both", "precision"))
def attribution_program(
    params: Any, base: Tokens, other: Tokens, align: Any, metric: Any, grids: Grids, base_edits: Sequence[Edit],
    other_edits: Sequence[Edit], rules: Rules, gates: Any, *, config: TransformerConfig, exact: tuple[str, ...], both: bool,
    precision: str | None,
) -> tuple[dict[str, Array], Array, Array]:  # fmt: skip
    """Estimates {site: [cells ... B]}, the metric of the base run [B] and of the other run [B].

    Args:
        params: the weights.
        base: prompts that cells would run.
        other: prompts whose values they would write, of the same padded length.
        align: [B P], the column of the other prompt whose values each base column takes; None: the same one.
        metric: a bound metric.
        grids: the cells of each site.
        base_edits: edits of the base run.
        other_edits: edits of the other run.
        rules: of the backward pass.
        gates: [n L], n backward passes, each with the gradient through layers with a 0 blocked; estimates are then sums of
            absolute values over those with a 1 in the last column, [n L+1]. None: one backward pass, signed estimates.
        config: the architecture.
        exact: sites of queries or keys whose softmax is recomputed.
        both: take the mean of the slopes at both runs.
        precision: of matrix products.
    """
    wanted = {grid.site: At() for grid in grids}
    extra = {name: At() for name in CAPTURED} if exact else {}
    how: dict[str, Any] = {"config": config, "precision": precision, "exact": exact}
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        beside, far = measured(params, other, config, metric, sites=wanted, edits=other_edits, precision=precision)
        theirs = {site: aligned(far.padded[site], site_of(site, config).axes, align) for site in wanted}
        kept = extra | (wanted if both else {}) | ({"expert_index": At()} if any(grid.chooses(config) for grid in grids) else {})
        found, values, ours = _side(params, base, metric, grids, theirs, base_edits, rules, gates, kept, **how)
        if both:
            back, beside, _ = _side(params, other, metric, grids, ours, other_edits, rules, gates, extra, **how)
            sign = -1 if gates is None else 1
            found = jax.tree.map(lambda a, b: (a + sign * b) / 2, found, back)
    return found, values, beside


def _side(
    params: Any, tokens: Tokens, metric: Any, grids: Grids, targets: Mapping[str, Array], edits: Sequence[Edit], rules: Rules, gates: Any,
    kept: dict[str, At], *, config: TransformerConfig, precision: str | None, exact: tuple[str, ...],
) -> tuple[dict[str, Array], Array, dict[str, Array]]:  # fmt: skip
    """Estimates from the slopes at one run, its metric, and what it captured."""
    batch, positions = tokens.ids.shape
    plain = [grid for grid in grids if grid.site not in exact]
    wide = jnp.promote_types(params["embed"]["W_E"].dtype, jnp.float32)
    zeros = {grid.site: jnp.zeros(grid.shape(config, batch, positions), wide) for grid in plain}
    patterns = zeros_at(("pattern",), config, batch, positions, wide) if exact else {}

    def total(given: Any, gate: Any) -> tuple[Array, Any]:
        shares, offsets = given
        acting = [*edits, *(sharing(toward, grid, shares[grid.site], targets[grid.site]) for grid in plain), *adding(offsets)]
        acting += [] if gate is None else blocking(gate, config)
        values, trace = measured(params, tokens, config, metric, sites=kept, edits=acting, rules=rules, precision=precision)
        return values.sum(), (values, trace.padded)

    def slopes(gate: Any) -> tuple[Any, Any]:
        return jax.grad(total, has_aux=True)((zeros, patterns), gate)

    def estimates(slope: Any, captured: Mapping[str, Array], moved: Mapping[str, Any]) -> dict[str, Array]:
        shares, offsets = slope
        out = {}
        for grid in grids:
            if grid.site in moved:
                out[grid.site] = moved[grid.site](offsets["pattern"])
            else:
                letters = grid.letters(config)
                value = shares[grid.site].reshape(
                    [n for letter, n in zip(site_of(grid.site, config).axes, zeros[grid.site].shape, strict=True) if letter in letters]
                )
                out[grid.site] = grid.contract(value, letters, config, captured.get("expert_index"))
        return out

    def changes(captured: Mapping[str, Array]) -> dict[str, Any]:
        return {
            grid.site: recomputed(params, tokens, config, grid, targets[grid.site], edits, captured, precision)
            for grid in grids
            if grid.site in exact
        }

    if gates is None:
        slope, (values, captured) = slopes(None)
        return estimates(slope, captured, changes(captured)), values, captured
    slope, (values, captured) = jax.vmap(slopes, out_axes=(0, None))(gates[:, :-1])
    moved = changes(captured)
    each = jax.vmap(lambda one: estimates(one, captured, moved))(slope)
    return {site: jnp.einsum("n...,n->...", abs(value), gates[:, -1]) for site, value in each.items()}, values, captured


def aligned(value: Float[Array, "..."], axes: str, align: Any) -> Array:
    """A captured value with its positions in the order of the base prompts'."""
    if align is None or "P" not in axes:
        return value
    shape = [1] * value.ndim
    shape[axes.index("B")], shape[axes.index("P")] = align.shape
    return jnp.take_along_axis(value, jnp.asarray(align).reshape(shape), axis=axes.index("P"))
