"""Attention, a head at a time: every step from the normed residual stream to what the heads write is a site.

Key/value heads keep their own axis: query head h = g * (H/G) + r reads key/value head g, so grouped-query attention
runs on axes B P G R E without repeating keys or values.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.model.cache import Past
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.norm import Norm, align, at_least_float32
from jaxinterp.model.position import alibi_slopes, rotary_tables, rotate
from jaxinterp.model.rules import clip
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens

PAST = "past"
"""Under which name a block hands back the cache with its new token, beside the sites that were captured."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["k", "v", "before_k", "before_v", "changed", "own", "same", "column"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Pack:
    """Changed tokens of many runs in one sequence, a block of W of them: W rows of one token each, which attend within their own run.

    A token sees a key of its own run where that key changed too, and the base run's where it did not. W tokens fall into N
    lanes of W / N tokens, each of one prompt. M tokens of the sequence stand before the block: a run may reach into it.

    Attributes:
        k, v: keys (rotated) and values of each lane's prompt in the base run.
        before_k, before_v: those of the M tokens before the block.
        changed: whether a key of the token's own run changed.
        own: where that key stands among the M + W tokens.
        same: which of the M + W tokens are of the token's own run.
        column: the column of each of the M + W tokens in its prompt.
    """

    k: Float[Array, "N K G E"]
    v: Float[Array, "N K G E"]
    before_k: Float[Array, "M G E"]
    before_v: Float[Array, "M G E"]
    changed: Bool[Array, "W K"]
    own: Int[Array, "W K"]
    same: Bool[Array, "W M+W"]
    column: Int[Array, "M+W"]

    def products(self, q: Float[Array, "W 1 H E"], k: Float[Array, "W 1 G E"], dtype: Any) -> Float[Array, "W H 1 K"]:
        """Scores of every token with every key of its run, before they are scaled."""
        product = functools.partial(jnp.einsum, preferred_element_type=dtype)
        lanes = _grouped(q[:, 0], k.shape[2]).reshape(self.k.shape[0], -1, k.shape[2], q.shape[2] // k.shape[2], q.shape[3])
        base = product("NWGRE,NKGE->NWGRK", lanes, self.k.astype(k.dtype)).reshape(q.shape[0], q.shape[2], -1)
        mine = jnp.concatenate([self.before_k.astype(k.dtype), k[:, 0]])
        packed = product("WGRE,JGE->WGRJ", _grouped(q[:, 0], k.shape[2]), mine).reshape(q.shape[0], q.shape[2], -1)
        found = jnp.take_along_axis(packed, self.own[:, None, :], axis=2)
        return jnp.where(self.changed[:, None, :], found, base)[:, :, None, :]

    def weighted(self, pattern: Float[Array, "W H 1 K"], v: Float[Array, "W 1 G E"]) -> Float[Array, "W 1 H E"]:
        """The values of a token's run, weighted."""
        weights = _grouped(pattern[:, :, 0].astype(v.dtype), v.shape[2])
        kept = jnp.where(self.changed[:, None, None, :], 0, weights)
        lanes = kept.reshape(self.k.shape[0], -1, *kept.shape[1:])
        base = jnp.einsum("NWGRK,NKGE->NWGRE", lanes, self.v.astype(v.dtype)).reshape(*kept.shape[:3], -1)
        mine = jnp.concatenate([self.before_v.astype(v.dtype), v[:, 0]])
        packed = jnp.where(self.same[:, None, None, :], jnp.take(weights, self.column, axis=3), 0)
        own = jnp.einsum("WGRJ,JGE->WGRE", packed, mine)
        return (base + own).reshape(pattern.shape[0], 1, pattern.shape[1], -1)


def _grouped(x: Float[Array, "W H n"], groups: int) -> Float[Array, "W G R n"]:
    return x.reshape(x.shape[0], groups, -1, x.shape[2])


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["queries", "keys", "allowed", "rotary", "rotary_index", "window", "scale", "pack"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Place:
    """Where the tokens stand: what attention needs to know beside their values.

    Attributes:
        queries: [B Q] int32, each query's position in its prompt.
        keys: [B K] int32, each key's.
        allowed: [B 1 Q K] bool, which keys a query may see before any window.
        rotary: [R 2 B P F] cosines and sines of each rotary setting, or None.
        rotary_index: this layer's entry of `rotary`, or None where all layers share one.
        window: tokens back that this layer's queries see, 0 for all, or None where no layer has a window.
        scale: this layer's factor on q k.
        pack: keys and values that stand elsewhere: rows of one token (B are then the rows) that attend within their own run, or
            the past of the text that is being generated; None: the queries' own.
    """

    queries: Int[Array, "B Q"]
    keys: Int[Array, "B K"]
    allowed: Bool[Array, "B 1 Q K"]
    rotary: Float[Array, "R 2 b P F"] | None
    rotary_index: Int[Array, ""] | None
    window: Int[Array, ""] | None
    scale: Float[Array, ""] | float
    pack: Pack | Past | None = None

    @property
    def table(self) -> Float[Array, "2 b P F"] | None:
        """This layer's cosines and sines."""
        if self.rotary is None:
            return None
        return self.rotary[0] if self.rotary_index is None else self.rotary[self.rotary_index]

    @property
    def behind(self) -> Int[Array, "B 1 Q K"]:
        """How many tokens a key stands before a query; negative where it stands after it."""
        return self.queries[:, None, :, None] - self.keys[:, None, None, :]

    @property
    def visible(self) -> Bool[Array, "B 1 Q K"]:
        """Which keys this layer's queries see; none for a query that is padding."""
        return self.allowed if self.window is None else self.allowed & ((self.window == 0) | (jnp.abs(self.behind) < self.window))


def places(tokens: Tokens, config: TransformerConfig, dtype: Any) -> Callable[[Int[Array, ""]], Place]:
    """A function of the layer that says where tokens stand there; what all layers share is computed once."""
    mask, positions = jnp.asarray(tokens.mask), jnp.asarray(tokens.positions)
    allowed = mask[:, None, :, None] & mask[:, None, None, :]
    if config.causal:
        allowed = allowed & (positions[:, None, None, :] <= positions[:, None, :, None])
    lengths = mask.sum(axis=1) if tokens.planned is None else jnp.asarray(tokens.planned)
    rotary = rotary_tables(config, positions, lengths, dtype) if config.positions == "rotary" else None
    return lambda layer: layer_place(config, layer, dtype, queries=positions, keys=positions, allowed=allowed, rotary=rotary)


def layer_place(config: TransformerConfig, layer: Int[Array, ""], dtype: Any, *, rotary: Any, **shared: Any) -> Place:
    """The place of a layer: what all layers share, and this layer's own rotation, window and scale."""
    scales = set(config.layer_scales)
    index = None
    if rotary is not None and set(config.layer_rotary) != {0}:
        index = jnp.asarray(np.asarray(config.layer_rotary) % len(rotary))[layer]
    return Place(
        rotary=rotary,
        rotary_index=index,
        window=jnp.asarray(config.layer_windows)[layer] if any(config.layer_windows) else None,
        scale=config.layer_scales[0] if len(scales) == 1 else jnp.asarray(config.layer_scales, dtype)[layer],
        **shared,
    )


def softmax(
    scores: Float[Array, "B H Q K"], visible: Bool[Array, "B #H Q K"], sink: Float[Array, "H"] | None
) -> tuple[Float[Array, "B H Q K"], Float[Array, "B H Q"] | None]:
    """Attention weights over visible keys, as if there were no sink, and the weight that the sink takes from them.

    A row without a visible key is zero; a score of -inf hides its key. The double `where` keeps NaN out of gradients.
    """
    scores = at_least_float32(scores)
    seen = visible & (scores > -jnp.inf)
    safe = jnp.where(seen, scores, 0)
    top = jax.lax.stop_gradient(jnp.where(seen, scores, -jnp.inf).max(axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.where(seen, jnp.exp(safe - top), 0)
    total = weights.sum(axis=-1, keepdims=True)
    some = total > 0
    pattern = weights / jnp.where(some, total, 1)
    if sink is None:
        return pattern, None
    log_total = jnp.where(some, jnp.log(jnp.where(some, total, 1)) + top, 0)[..., 0]
    taken = jnp.where(some[..., 0], jax.nn.sigmoid(at_least_float32(sink)[None, :, None] - log_total), 1)
    return pattern, jnp.where(visible.any(axis=-1), taken, 0)


class Attention(nn.Module):
    """z = softmax(scale q k + mask) v and its projection back: what attention writes, before any post-norm.

    Attributes:
        config: the model's config.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"], place: Place, tap: Tap) -> Float[Array, "B P D"]:
        """What the heads write [B P D], from `attn_in` [B P D]."""
        q, k, v = self._project(x, tap)
        q, k = tap("q_rot", self._turn(q, "q_norm", place, tap)), tap("k_rot", self._turn(k, "k_norm", place, tap))
        if isinstance(place.pack, Past):
            place = dataclasses.replace(place, pack=place.pack.put(k, v))
            tap.activations[PAST] = place.pack
        left, right = tap.rules.factors(q, k)
        scores = tap("scores", self._scores(left, right, place))
        pattern = tap("pattern", self._pattern(scores, place, tap))
        pattern, v = (pattern, v) if tap.rules.pattern else tap.rules.factors(pattern, v)
        return self._write(tap("z", _weighted(pattern, v, place)), tap)

    def _project(self, x: Float[Array, "B P D"], tap: Tap) -> tuple[Array, Array, Array]:
        config = self.config
        heads = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
        biased = {"q": config.q_bias, "k": config.k_bias, "v": config.v_bias}
        out = []
        for name, n in heads.items():
            weight = self.param(f"W_{name.upper()}", nn.initializers.lecun_normal(0, (1, 2)), (config.d_model, n, config.d_head))
            value = jnp.einsum("BPD,DHE->BPHE", x, weight)
            if biased[name]:
                value = value + align(self.param(f"b_{name.upper()}", nn.initializers.zeros, (n, config.d_head)), value)
            if config.qk_norm == "none" or name == "v":
                value = self._clip(value, tap)
            out.append(tap(name, value))
        return out[0], out[1], out[2]

    def _clip(self, x: Float[Array, "B P N E"], tap: Tap) -> Float[Array, "B P N E"]:
        return x if self.config.qkv_clip is None else clip(x, self.config.qkv_clip, linear=tap.rules.pattern)

    def _turn(self, x: Float[Array, "B P N E"], name: str, place: Place, tap: Tap) -> Float[Array, "B P N E"]:
        """Queries or keys, normed and rotated as the config says."""
        config = self.config
        if config.qk_norm != "none":
            shape = (config.d_head,) if config.qk_norm == "head" else (x.shape[2], config.d_head)
            x = self._clip(Norm(config, shape, "qk", over=2 if config.qk_norm == "whole" else 1, bias=False, name=name)(x, tap.rules), tap)
        table = place.table
        return x if table is None else rotate(x, table, config.rotary[0])

    def _scores(self, q: Float[Array, "B Q H E"], k: Float[Array, "B k G E"], place: Place) -> Float[Array, "B H Q K"]:
        config = self.config
        wide = jnp.promote_types(q.dtype, jnp.float32)
        scores = _products(q, k, place, wide) * jnp.asarray(place.scale, wide)
        if config.positions == "alibi":
            slopes = jnp.asarray(config.alibi_slopes or alibi_slopes(config.n_heads), wide)
            scores = scores - slopes[None, :, None, None] * (place.behind if config.causal else jnp.abs(place.behind))
        if config.score_soft_cap is not None:
            scores = config.score_soft_cap * jnp.tanh(scores / config.score_soft_cap)
        return scores

    def _pattern(self, scores: Float[Array, "B H Q K"], place: Place, tap: Tap) -> Float[Array, "B H Q K"]:
        sink = self.param("sink", nn.initializers.zeros, (self.config.n_heads,)) if self.config.sinks else None
        pattern, taken = softmax(scores, place.visible, sink)
        if tap.rules.pattern:
            pattern = jax.lax.stop_gradient(pattern)
            taken = None if taken is None else jax.lax.stop_gradient(taken)
        return pattern if taken is None else pattern * (1 - tap("sink", taken))[..., None]

    def _write(self, z: Float[Array, "B P H E"], tap: Tap) -> Float[Array, "B P D"]:
        config = self.config
        weight = self.param("W_O", nn.initializers.lecun_normal((0, 1), 2), (config.n_heads, config.d_head, config.d_model))
        if tap.touches("head_out"):
            out = tap("head_out", jnp.einsum("BPHE,HED->BPHD", z, weight)).sum(axis=2)
        else:
            out = z.reshape(*z.shape[:2], -1) @ weight.reshape(-1, config.d_model)
        if config.o_bias:
            out = out + align(self.param("b_O", nn.initializers.zeros, (config.d_model,)), out)
        return out


def _products(q: Float[Array, "B Q H E"], k: Float[Array, "B k G E"], place: Place, dtype: Any) -> Float[Array, "B H Q K"]:
    """Products q . k of every query and the keys that it may see, before they are scaled."""
    if isinstance(place.pack, Past):
        return place.pack.products(q, dtype)
    if place.pack is not None:
        return place.pack.products(q, k, dtype)
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    products = jnp.einsum("BQGRE,BKGE->BGRQK", grouped, k, preferred_element_type=dtype)
    return products.reshape(q.shape[0], q.shape[2], q.shape[1], k.shape[1])


def _weighted(pattern: Float[Array, "B H Q K"], v: Float[Array, "B k G E"], place: Place) -> Float[Array, "B Q H E"]:
    """The values that every query sees, weighted."""
    if isinstance(place.pack, Past):
        return place.pack.weighted(pattern, v.dtype)
    if place.pack is not None:
        return place.pack.weighted(pattern, v)
    batch, heads, queries, keys = pattern.shape
    grouped = pattern.reshape(batch, v.shape[2], heads // v.shape[2], queries, keys)
    z = jnp.einsum("BGRQK,BKGE->BQGRE", grouped.astype(v.dtype), v)
    return z.reshape(batch, queries, heads, v.shape[3])
