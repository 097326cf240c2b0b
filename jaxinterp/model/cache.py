"""The key/value cache of a text that is being generated: an explicit pytree, made by `prefill` and handed from `step` to `step`.

Prompts stand in columns with padding on the left, so that the next token of every row takes the same column, and a token's
position is its column less its row's padding. A layer keeps column c in slot c mod S. Layers that see all tokens have a slot
for every column; a layer with a sliding window of W tokens needs W slots, and is then a ring that overwrites what it no longer sees.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.model.config import TransformerConfig


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "slot"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Past:
    """What one layer remembers, as a new token's attention sees it; the token's own key and value take their slot.

    Attributes:
        k: [B G K E], keys as they enter the scores.
        v: [B G K E], values.
        slot: int32, of the new token.
    """

    k: Any
    v: Any
    slot: Any

    def products(self, q: Float[Array, "B 1 H E"], k: Float[Array, "B 1 G E"], dtype: Any) -> Float[Array, "B H 1 K"]:
        """Scores of the new token with every slot, before they are scaled."""
        keys = put(self.k.astype(k.dtype), k, self.slot)
        grouped = q.reshape(q.shape[0], k.shape[2], -1, q.shape[3])
        products = jnp.einsum("BGRE,BGKE->BGRK", grouped, keys, preferred_element_type=dtype)
        return products.reshape(q.shape[0], q.shape[2], 1, -1)

    def weighted(self, pattern: Float[Array, "B H 1 K"], v: Float[Array, "B 1 G E"]) -> Float[Array, "B 1 H E"]:
        """The values of all slots, weighted."""
        values = put(self.v.astype(v.dtype), v, self.slot)
        grouped = pattern.reshape(pattern.shape[0], v.shape[2], -1, pattern.shape[3]).astype(v.dtype)
        z = jnp.einsum("BGRK,BGKE->BGRE", grouped, values)
        return z.reshape(pattern.shape[0], 1, pattern.shape[1], -1)


def put(kept: Float[Array, "B G K E"], new: Float[Array, "B 1 G E"], slot: Int[Array, ""]) -> Float[Array, "B G K E"]:
    """What is kept, with a new token's entry in its slot."""
    return jax.lax.dynamic_update_slice_in_dim(kept, jnp.moveaxis(new, 1, 2).astype(kept.dtype), slot, 2)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "padding", "column", "planned"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every token so far.

    Attributes:
        k, v: for each group of layers [L B G S E], or, where weights lie a layer at a time, for each layer [B G S E].
        padding: [B] int32, columns of padding on the left of each row.
        column: int32, where the next token goes.
        planned: [B] int32, tokens that each row is planned to have (see `Tokens.planned`).
    """

    k: tuple[Any, ...]
    v: tuple[Any, ...]
    padding: Any
    column: Any
    planned: Any

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(kept.nbytes for kept in (*self.k, *self.v))


def slots_of(config: TransformerConfig, layers: range, capacity: int, ring: bool) -> int:
    """Slots that layers with one cache need for texts of `capacity` columns."""
    windows = config.layer_windows[layers.start : layers.stop]
    return min(capacity, max(windows)) if ring and all(windows) else capacity


def cache_bytes(config: TransformerConfig, batch: int, capacity: int, itemsize: int, *, by_layer: bool, ring: bool = True) -> int:
    """Bytes of the keys and values of `batch` texts of `capacity` columns."""
    slots = sum(len(layers) * slots_of(config, layers, capacity, ring) for layers in caches_of(config, by_layer))
    return 2 * slots * batch * config.n_kv_heads * config.d_head * itemsize


def caches_of(config: TransformerConfig, by_layer: bool) -> list[range]:
    """The layers that share one array of a cache."""
    if by_layer:
        return [range(layer, layer + 1) for layer in range(config.n_layers)]
    return [range(group.start, group.stop) for group in config.groups]


def columns_of(slots: int, width: int, last: Int[Array, ""]) -> Int[Array, "K"]:
    """[K]: the column that each of the first `width` slots holds once column `last` is in; negative where none."""
    return last - (last - jnp.arange(width, dtype=jnp.int32)) % slots


def fill(made: Float[Array, "*L B P G E"], slots: int, last: Int[Array, ""]) -> Float[Array, "*L B G S E"]:
    """A cache [... S ...] from the keys or values of prompts whose last token is in column `last`."""
    columns = jnp.clip(columns_of(slots, slots, last), 0, made.shape[-3] - 1)
    return jnp.moveaxis(jnp.take(made, columns, axis=made.ndim - 3), -3, -2)
