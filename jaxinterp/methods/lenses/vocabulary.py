"""What a model's unembedding says of many vectors, in chunks of the vocabulary: exact, by running sums.

No more than vectors x chunk logits exist at once. A chunk is the model's own unembedding with a part of W_U's columns, so every
choice of an architecture (dense layer, norm, projection, bias, scale, soft cap) is the model's.
"""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.methods.residual_stream import unembedded
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.norm import at_least_float32
from jaxinterp.model.tokens import Tokens

LOWEST = -1e30


class Sums(NamedTuple):
    """Running sums over the columns seen so far, relative to the largest logit `top` of each distribution.

    Attributes:
        top: [...] the largest logit.
        mass: [...] sum of exp(logit - top).
        mean: [...] sum of exp(logit - top) (logit - top).
    """

    top: Array
    mass: Array
    mean: Array

    def add(self, logits: Float[Array, "... C"], fresh: Array) -> tuple["Sums", Array]:
        """The sums with a chunk more, and the chunk's exp(logit - top), 0 where a column was seen before."""
        top = jnp.maximum(self.top, jnp.where(fresh, logits, LOWEST).max(axis=-1))
        weight = jnp.where(fresh, jnp.exp(logits - top[..., None]), 0)
        kept, shift = jnp.exp(self.top - top), self.top - top
        mean = kept * (self.mean + self.mass * shift) + (weight * (logits - top[..., None])).sum(axis=-1)
        return Sums(top, kept * self.mass + weight.sum(axis=-1), mean), weight

    @property
    def entropy(self) -> Array:
        return jnp.log(self.mass) - self.mean / self.mass


@functools.partial(jax.jit, static_argnames=("axes", "config", "k", "chunk", "precision"))
def read_vectors(
    params: Any, value: Array, final: Float[Array, "B P D"], tokens: Tokens, position: Int[Array, "b n"], slots: Int[Array, "l"],
    ids: Int[Array, "B T"], *, axes: str, config: TransformerConfig, k: int, chunk: int, precision: str | None,
) -> dict[str, Array]:  # fmt: skip
    """Everything that the lens reads, on the site's axes with B first, without D.

    Args:
        params: the weights.
        value: the site, on `axes`; a lower-case p is an axis that was cut to the positions already.
        final: the last residual stream, cut likewise.
        tokens: the prompts.
        position: the positions.
        slots: which entries of the layer axis.
        ids: the chosen tokens.
        axes: the site's axes.
        config: the architecture.
        k: how many of the likeliest tokens.
        chunk: columns of the vocabulary at once.
        precision: of matrix products.
    """
    if "P" in axes:
        columns = tokens.columns(position)
        place = [1] * value.ndim
        place[axes.index("B")], place[axes.index("P")] = columns.shape
        value = jnp.take_along_axis(value, columns.reshape(place), axis=axes.index("P"))
        final = jnp.take_along_axis(final, columns[:, :, None], axis=1)
    value = value[slots] if "L" in axes else value
    axes = axes.upper()
    more = [letter for letter in axes if letter not in "BPD"]
    rows = jnp.einsum(f"{axes}->{''.join(more)}BPD", at_least_float32(value))
    shape = rows.shape[: len(more)]
    sets, ends, plain = rows.reshape(-1, *rows.shape[-3:]), at_least_float32(final)[None], config.replace(pooler=False)
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        found = _in_chunks(params, sets, ends, ids, plain, k, chunk)
    order = "B" + axes.replace("B", "").replace("D", "")
    return {
        name: jnp.einsum(f"{''.join(more)}BP...->{order}...", out.reshape(*shape, *out.shape[1:])) for name, out in found.items()
    }  # fmt: skip


def _in_chunks(
    params: Any, rows: Float[Array, "R B n D"], final: Float[Array, "1 B n D"], ids: Int[Array, "B T"], config: TransformerConfig, k: int,
    chunk: int,
) -> dict[str, Array]:  # fmt: skip
    """The read-off of R sets of vectors, and how far each is from that of the last residual stream, chunk by chunk."""

    def logits_of(some: Any, vectors: Array, words: Array | None = None) -> Array:
        out = unembedded(some, vectors.reshape(-1, *vectors.shape[2:]), config, words)
        return out.reshape(*vectors.shape[:3], -1)

    wanted = ids[None, :, None, :, None]
    chosen = logits_of(params, rows, jnp.tile(ids, (rows.shape[0], 1)))

    def step(carry: Any, number: Array) -> tuple[Any, None]:
        ours, theirs, cross, (best, best_ids), above = carry
        start = jnp.minimum(number * chunk, config.d_vocab - chunk)
        words = (start + jnp.arange(chunk)).reshape(1, 1, 1, -1)
        fresh, some = words >= number * chunk, _columns(params, start, chunk, config)
        logits = logits_of(some, rows)
        sums, _ = ours.add(logits, fresh)
        goal, weight = theirs.add(logits_of(some, final), fresh)
        moved = (weight * (logits - sums.top[..., None])).sum(axis=-1)
        cross = jnp.exp(theirs.top - goal.top) * (cross + theirs.mass * (ours.top - sums.top)) + moved
        top, where = jax.lax.top_k(jnp.where(fresh, logits, -jnp.inf), min(k, chunk))
        top, order = jax.lax.top_k(jnp.concatenate([best, top], axis=-1), k)
        top_ids = jnp.take_along_axis(jnp.concatenate([best_ids, start + where], axis=-1), order, axis=-1)
        larger = (logits[..., None, :] > chosen[..., None]) & fresh[..., None, :] & (words[..., None, :] != wanted)
        return (sums, goal, cross, (top, top_ids), above + larger.sum(axis=-1)), None

    zero, none = jnp.zeros(rows.shape[:3], rows.dtype), jnp.zeros(final.shape[:3], rows.dtype)
    best = jnp.full((*zero.shape, k), -jnp.inf, rows.dtype), jnp.full((*zero.shape, k), -1)
    begin = (Sums(zero + LOWEST, zero, zero), Sums(none + LOWEST, none, none), zero, best, jnp.zeros(chosen.shape, int))
    (ours, theirs, cross, (top, top_ids), above), _ = jax.lax.scan(step, begin, jnp.arange(-(-config.d_vocab // chunk)))
    log_total = (jnp.log(ours.mass) + ours.top)[..., None]
    kl = jnp.log(ours.mass) - cross / theirs.mass - theirs.entropy
    return {
        "top_ids": top_ids, "top_probabilities": jnp.exp(top - log_total), "entropy": ours.entropy, "kl": jnp.maximum(kl, 0),
        "logits": chosen, "log_probabilities": chosen - log_total, "ranks": above,
    }  # fmt: skip


def _columns(params: Any, start: Array, chunk: int, config: TransformerConfig) -> dict[str, Any]:
    """The parameters with a part of the vocabulary: the model's own unembedding then computes these columns."""
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=chunk)
    some = dict(params)
    if config.unembed == "tied":
        some["embed"] = {"W_E": cut(params["embed"]["W_E"], axis=0)}
    own = {name: cut(params["unembed"][name], axis=axis) for name, axis in (("W_U", 1), ("b_U", 0)) if name in params.get("unembed", {})}
    return some | {"unembed": dict(params.get("unembed", {})) | own}
