"""The compiled programs of generation: `start_program` runs prompts and chooses their first tokens, `decode_program` goes on.

One `lax.while_loop` makes any number of tokens: how many, at which steps edits act, how tokens are chosen and which end a text
are data, so that a call for one token (streaming) and a call for a thousand are the same program. What is compiled
anew are shapes: of the batch, of the prompts' bucket, of the whole text's, and of the cache, whose slots double as the text grows,
so that attention looks at no more than twice what is used.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinterp.model.cache import Cache, grown
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.decode import prefill, step
from jaxinterp.model.edits import Edit
from jaxinterp.model.selection import At, kept_axes
from jaxinterp.model.sites import site_of
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.sampling import Sampling, choose

NARROWEST = 256
"""Slots of the cache of a short text; then twice as many, and so on."""

PAD = 0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "cache", "ids", "token", "seen", "counts", "done", "settled", "steps", "lengths", "log_probabilities", "scores", "captured",
    ],
    meta_fields=[],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class State:
    """A text on its way.

    Attributes:
        cache: keys and values of all tokens but the newest.
        ids: [B C] int32, prompts and new tokens in their columns.
        token: [B] int32, the newest tokens, which have not been run.
        seen: [B V] bool, tokens of the prompt.
        counts: [B V] int32, how often each token stands in the new text.
        done: [B] bool, rows that have ended.
        settled: [B] bool, rows that had ended before the newest token.
        steps: int32, new tokens that have been run.
        lengths: [B] int32, new tokens of each row.
        log_probabilities: [B N], NaN after a row's end.
        scores: [B N V] that tokens were chosen by, or None.
        captured: what was asked for, by site, in columns of the whole text.
    """

    cache: Cache
    ids: Any
    token: Any
    seen: Any
    counts: Any
    done: Any
    settled: Any
    steps: Any
    lengths: Any
    log_probabilities: Any
    scores: Any
    captured: dict[str, Any]


def matmul_precision(precision: str | None) -> Any:
    """A context of that precision; None is JAX's own setting."""
    return jax.default_matmul_precision(precision) if precision else contextlib.nullcontext()


def width_of(columns: int, capacity: int) -> int:
    """Slots of the cache of a text that has so many columns so far, and `capacity` at the end."""
    width = NARROWEST
    while width < columns:
        width *= 2
    return min(width, capacity)


@functools.partial(
    jax.jit, static_argnames=("config", "capacity", "slots", "room", "ring", "scored", "dtype", "capture_dtype", "precision")
)
def start_program(
    params: Any, tokens: Tokens, sampling: Sampling, stop_ids: Any, requests: dict[str, At], edits: Sequence[Edit],
    config: TransformerConfig, capacity: int, slots: int, room: int, ring: bool, scored: bool, dtype: str | None,
    capture_dtype: str | None, precision: str | None,
) -> State:  # fmt: skip
    """The state after the prompts, each with its first new token.

    Args:
        params: the weights.
        tokens: prompts with padding on the left, in a bucket of columns.
        sampling: how tokens are chosen.
        stop_ids: ids that end a text.
        requests: what to capture.
        edits: those that act on the prompt.
        config: static.
        capacity: columns of the whole text (static).
        slots: columns that the cache has room for (static).
        room: places for new tokens (static).
        ring: whether layers with a sliding window keep no more than it (static).
        scored: whether scores are kept (static).
        dtype: static.
        capture_dtype: static.
        precision: static.
    """
    with matmul_precision(precision):
        logits, cache, found = prefill(params, tokens, config, slots, requests=requests, edits=edits, ring=ring, dtype=dtype)
    batch, columns = tokens.ids.shape
    row = jnp.arange(batch)[:, None]
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    state = State(
        cache=cache,
        ids=jnp.pad(tokens.ids, ((0, 0), (0, capacity - columns))),
        token=jnp.zeros(batch, jnp.int32),
        seen=jnp.zeros(logits.shape, bool).at[row, tokens.ids].max(tokens.mask),
        counts=jnp.zeros(logits.shape, jnp.int32),
        done=jnp.zeros(batch, bool),
        settled=jnp.zeros(batch, bool),
        steps=jnp.zeros((), jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        log_probabilities=jnp.full((batch, room), jnp.nan, wide),
        scores=jnp.zeros((batch, room, logits.shape[1]), wide) if scored else None,
        captured={site: _buffer(value, axes_of(site, requests, config), capacity, capture_dtype) for site, value in found.items()},
    )
    return _chosen(state, logits, sampling, stop_ids)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "precision"), donate_argnames=("state",))
def decode_program(
    params: Any, state: State, sampling: Sampling, stop_ids: Any, requests: dict[str, At], edits: Sequence[Edit], acts: Any, until: Any,
    config: TransformerConfig, dtype: str | None, precision: str | None,
) -> State:  # fmt: skip
    """The state after `until` new tokens have been run, or as many as there were before every row ended.

    Args:
        params: the weights.
        state: of before, its cache with room for `until` tokens; its buffers are written over.
        sampling: how tokens are chosen.
        stop_ids: ids that end a text.
        requests: what to capture.
        edits: those that act on new tokens.
        acts: [n N], at which new tokens each of them acts.
        until: as data.
        config: static.
        dtype: static.
        precision: static.
    """

    def body(state: State) -> State:
        column = state.cache.column
        logits, cache, found = step(
            params, state.token, state.cache, config, requests=requests, edits=edits,
            active=jax.lax.dynamic_index_in_dim(acts, state.steps, 1, keepdims=False), dtype=dtype,
        )  # fmt: skip
        captured = {site: _stored(state.captured[site], value, axes_of(site, requests, config), column) for site, value in found.items()}
        state = dataclasses.replace(state, cache=cache, captured=captured, steps=state.steps + 1)
        return _chosen(state, logits, sampling, stop_ids)

    def more(state: State) -> Array:
        return (state.steps < until) & ~(state.settled if requests else state.done).all()

    with matmul_precision(precision):
        return jax.lax.while_loop(more, body, state)


@functools.partial(jax.jit, static_argnames=("config", "slots", "ring"))
def grow_program(cache: Cache, config: TransformerConfig, slots: int, ring: bool) -> Cache:
    """The cache with more slots."""
    return grown(cache, config, slots, ring=ring)


def _chosen(state: State, logits: Array, sampling: Sampling, stop_ids: Any) -> State:
    """The state with the next token of each row that has not ended."""
    number, going = state.steps, ~state.done
    token, own, scores = choose(logits, sampling, state.seen, state.counts, number)
    token = jnp.where(going, token, PAD)
    row = jnp.arange(len(token))
    kept = state.scores
    return dataclasses.replace(
        state,
        ids=jax.lax.dynamic_update_index_in_dim(state.ids, token, state.cache.column, 1),
        token=token,
        counts=state.counts.at[row, token].add(going.astype(jnp.int32)),
        done=state.done | (token[:, None] == jnp.asarray(stop_ids)[None]).any(axis=1),
        settled=state.done,
        lengths=state.lengths + going.astype(jnp.int32),
        log_probabilities=jax.lax.dynamic_update_index_in_dim(
            state.log_probabilities, jnp.where(going, own, jnp.nan).astype(state.log_probabilities.dtype), number, 1
        ),
        scores=kept if kept is None else jax.lax.dynamic_update_index_in_dim(kept, scores.astype(kept.dtype), number, 1),
    )


def axes_of(site: str, requests: Mapping[str, At], config: TransformerConfig) -> str:
    """Axes of a captured site."""
    return kept_axes(site_of(site, config), requests[site])


def _along(axes: str) -> int:
    """The axis of a captured value along which new tokens follow one another."""
    return axes.index("P" if "P" in axes else "Q")


def _buffer(value: Array, axes: str, capacity: int, dtype: str | None) -> Array:
    """A prompt's captured value with room for the whole text."""
    value = value if dtype is None or not jnp.issubdtype(value.dtype, jnp.floating) else value.astype(dtype)
    return jnp.pad(value, [(0, capacity - size if letter in "PQK" else 0) for size, letter in zip(value.shape, axes, strict=True)])


def _stored(buffer: Array, value: Array, axes: str, column: Array) -> Array:
    """The buffer with the captured value of a new token."""
    widths = [(0, full - size if letter == "K" else 0) for full, size, letter in zip(buffer.shape, value.shape, axes, strict=True)]
    return jax.lax.dynamic_update_slice_in_dim(buffer, jnp.pad(value, widths).astype(buffer.dtype), column, _along(axes))
