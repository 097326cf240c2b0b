"""AtP*'s query/key fix: how a query or a key changes its attention is computed exactly, only what follows is linearised.

    query:  sum over keys k of slope[q, k] (pattern[q, k] with the other run's query - pattern[q, k])
    key:    sum over queries q and keys m of slope[q, m] (pattern[q, m] with the other run's key k - pattern[q, m])

with slope the metric's derivative at the pattern. Where a softmax is saturated its own derivative is near zero and plain
attribution patching says nothing; this does. (Kramar et al. 2024, arXiv:2403.00745, section 3.1.) Patterns and scores are the
model's own: the stack runs once more on the base run's residual stream with other queries (or keys). Where single keys change,

    sum over m of slope[q, m] (pattern' - pattern)[q, m] = (p' - p) (slope[q, k] - mean of slope over the other keys)

with p the key's weight before and p' after, and the mean over the other keys (a sink among them, of slope 0) weighted by their
own softmax, found for all keys by a scan from both sides: cost Q K a head, and no difference of nearly equal numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.cells import Selected
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.attention import places
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import read_forward

QUERIES, KEYS = ("q", "q_rot"), ("k", "k_rot")
CAPTURED = ("resid_pre", "scores", "pattern")
"""What the base run must keep."""


def check_exact(site: str, grid: Selected, edits: Sequence[Edit], config: TransformerConfig) -> None:
    """Refuse what the fix is not defined for.

    Raises:
        InputError: a norm over all heads, or edits of the pattern.
    """
    if config.qk_norm == "whole" and site in ("q", "k") and "head" in (*grid.over_names, *grid.fixed_names):
        raise InputError(
            f"softmax='exact': on this model queries and keys are normed over all heads together, so one head's {site} changes the "
            f"others'; use site '{site}_rot', after the norm."
        )
    if any(edit.site in ("pattern", "sink") for edit in edits):
        raise InputError(
            "softmax='exact' cannot be used with edits of pattern or sink, which would not be those of the recomputed softmax."
        )


def recomputed(
    params: Any, tokens: Tokens, config: TransformerConfig, grid: Selected, other: Array, edits: Sequence[Edit],
    base: Mapping[str, Array], precision: str | None,
) -> Callable[[Array], Array]:  # fmt: skip
    """A function from the slope at the pattern [L B H Q K] to the cells' estimates.

    Args:
        params: the weights.
        tokens: prompts of the base run.
        config: the architecture.
        grid: cells over queries or keys.
        other: the other run's values of the site.
        edits: of the base run.
        base: what the base run kept: `CAPTURED`.
        precision: of matrix products.
    """

    def run(site: str, value: Array, want: str, where: Any = None) -> Array:
        """A site of attention on the base run's residual stream, with another value of a site."""
        acting = [*edits, edit_makers.replace("resid_pre", base["resid_pre"]), edit_makers.replace(site, value, where=where)]
        _, trace = read_forward(params, tokens, config, lambda resid, tap: None, sites=(want,), edits=acting, precision=precision)
        return trace.padded[want]

    if grid.site in QUERIES:
        moved = run(grid.site, other, "pattern") - base["pattern"]
        return lambda slope: grid.contract(jnp.einsum("LBHQK,LBHQK->LBQH", slope, moved), "LBPH", config)
    groups = config.n_kv_heads
    if not grid.one_position:
        where = grid.positions(tokens)[None]
        moved = run(grid.site, other, "pattern", where) - base["pattern"]

        def together(slope: Array) -> Array:
            heads = jnp.einsum("LBHQK,LBHQK->LBH", slope, moved)
            return grid.without_positions().contract(heads.reshape(*heads.shape[:2], groups, -1).sum(axis=3), "LBG", config)

        return together
    scores = run(grid.site, other, "scores")
    place_of = places(tokens, config, scores.dtype)
    sinks = jnp.concatenate([stack["attn"]["sink"] for stack in params["blocks"]]) if config.sinks else None

    def alone(slope: Array) -> Array:
        def layer(given: Any) -> Array:
            number, before, after, slopes, sink = given
            change = one_key_at_a_time(before, after, slopes, place_of(number).visible, sink).sum(axis=2)
            return change.reshape(change.shape[0], groups, -1, change.shape[2]).sum(axis=2).swapaxes(1, 2)

        by_layer = jax.lax.map(layer, (jnp.arange(config.n_layers), base["scores"], scores, slope, sinks))
        return grid.contract(by_layer, "LBPG", config)

    return alone


def one_key_at_a_time(
    scores: Float[Array, "B H Q K"], changed: Float[Array, "B H Q K"], slope: Float[Array, "B H Q K"], visible: Bool[Array, "B #H #Q K"],
    sink: Float[Array, "H"] | None,
) -> Float[Array, "B H Q K"]:  # fmt: skip
    """How slope . pattern changes where the score of one key alone becomes that of `changed`, for every key.

    Args:
        scores: of the base run.
        changed: with every key of the other run.
        slope: the derivative at the pattern.
        visible: which keys a query sees.
        sink: the score of each head's sink, or None.
    """
    before, after = (jnp.where(visible, value, -jnp.inf) for value in (scores, changed))
    first: Any = None
    if sink is not None:
        column = (*scores.shape[:3], 1)
        first = (jnp.broadcast_to(sink.astype(scores.dtype)[None, :, None, None], column), jnp.zeros(column, slope.dtype))
    rest, mean = _others(before, slope, first)
    return (_weight(after, rest) - _weight(before, rest)) * (slope - mean)


def _weight(score: Array, rest: Array) -> Array:
    """The softmax weight of a key against the logarithm of the others' total."""
    seen, alone = score > -jnp.inf, rest == -jnp.inf
    return jnp.where(seen, jnp.where(alone, 1, jax.nn.sigmoid(jnp.where(seen & ~alone, score - rest, 0))), 0)


def _others(scores: Array, slope: Array, first: Any) -> tuple[Array, Array]:
    """For each key, of all the others: the logarithm of their total weight, and their mean slope; `first` is one more entry."""
    scores = jnp.broadcast_to(scores, slope.shape)
    entries = (
        (scores, slope) if first is None else tuple(jnp.concatenate(pair, axis=3) for pair in zip(first, (scores, slope), strict=True))
    )
    none = (jnp.full((*slope.shape[:3], 1), -jnp.inf, scores.dtype), jnp.zeros((*slope.shape[:3], 1), slope.dtype))

    def gathered(reverse: bool) -> tuple[Array, Array]:
        """Of the entries before each one (or behind it), all together."""
        total, mean = jax.lax.associative_scan(_join, entries, reverse=reverse, axis=3)
        if reverse:
            return jnp.concatenate([total[..., 1:], none[0]], axis=3), jnp.concatenate([mean[..., 1:], none[1]], axis=3)
        return jnp.concatenate([none[0], total[..., :-1]], axis=3), jnp.concatenate([none[1], mean[..., :-1]], axis=3)

    size = slope.shape[3]
    total, mean = _join(gathered(False), gathered(True))
    return total[..., -size:], mean[..., -size:]


def _join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two sets of keys as one: (logarithm of the total weight, mean slope)."""
    total = jnp.logaddexp(a[0], b[0])
    shares = [jnp.where(part > -jnp.inf, jnp.exp(jnp.where(part > -jnp.inf, part - total, 0)), 0) for part in (a[0], b[0])]
    return total, shares[0] * a[1] + shares[1] * b[1]
