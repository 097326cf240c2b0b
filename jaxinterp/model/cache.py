"""The key/value cache of a text that is being generated: an explicit pytree, made by `prefill` and handed from `step` to `step`.

Prompts stand in columns with padding on the left, so that the next token of every row takes the same column, and a token's
position is its column less its row's padding. A layer keeps column c in slot c mod S. Layers that see all tokens have a slot
for every column; a layer with a sliding window of W tokens needs W slots, and is then a ring that overwrites what it no longer sees.

N are the key/value heads of all rows, B G in one axis: as a matrix product wants them, so that no rearranged copy is made.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.model.config import TransformerConfig


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "slot", "layer"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Past:
    """What one layer remembers, and how a new token's attention reads it.

    The new token's entry is `put` into the cache first, and attention reads what came of it: nothing else then needs the old
    cache, and a compiled loop writes one entry in place where it would copy the whole cache for every token.

    Attributes:
        k: keys as they enter the scores, of this layer [N S E], or of all layers of its group [L N S E].
        v: values, likewise.
        slot: int32, of the new token.
        layer: int32, this layer's number in its group, or None.
    """

    k: Any
    v: Any
    slot: Any
    layer: Any

    def put(self, k: Float[Array, "B 1 G E"], v: Float[Array, "B 1 G E"]) -> "Past":
        """The past with the new token's key and value in their slot."""
        return dataclasses.replace(self, k=self._put(self.k, k), v=self._put(self.v, v))

    def products(self, q: Float[Array, "B 1 H E"], dtype: Any) -> Float[Array, "B H 1 K"]:
        """Scores of the new token with every slot, before they are scaled."""
        keys = self._read(self.k).astype(q.dtype)
        grouped = q.reshape(keys.shape[0], -1, q.shape[3])
        products = jnp.einsum("NRE,NKE->NRK", grouped, keys, preferred_element_type=dtype)
        return products.reshape(q.shape[0], q.shape[2], 1, -1)

    def weighted(self, pattern: Float[Array, "B H 1 K"], dtype: Any) -> Float[Array, "B 1 H E"]:
        """The values of all slots, weighted."""
        values = self._read(self.v).astype(dtype)
        grouped = pattern.reshape(values.shape[0], -1, pattern.shape[3]).astype(dtype)
        z = jnp.einsum("NRK,NKE->NRE", grouped, values)
        return z.reshape(pattern.shape[0], 1, pattern.shape[1], -1)

    def _put(self, kept: Float[Array, "*L N S E"], new: Float[Array, "B 1 G E"]) -> Array:
        entry = new.reshape(-1, 1, new.shape[3]).astype(kept.dtype)
        if self.layer is None:
            return jax.lax.dynamic_update_slice_in_dim(kept, entry, self.slot, 1)
        zero = jnp.zeros_like(self.layer)
        return jax.lax.dynamic_update_slice(kept, entry[None], (self.layer, zero, self.slot, zero))

    def _read(self, kept: Array) -> Float[Array, "N S E"]:
        return kept if self.layer is None else jax.lax.dynamic_index_in_dim(kept, self.layer, keepdims=False)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "padding", "column", "planned"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every token so far.

    Attributes:
        k, v: for each group of layers [L N S E], or, where weights lie a layer at a time, for each layer [N S E].
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


def columns_of(slots: int, last: Int[Array, ""]) -> Int[Array, "S"]:
    """[S]: the column that each slot holds once column `last` is in; negative where none."""
    return last - (last - jnp.arange(slots, dtype=jnp.int32)) % slots


def fill(made: Float[Array, "*L B P G E"], slots: int, last: Int[Array, ""]) -> Float[Array, "*L N S E"]:
    """A cache from the keys or values of prompts whose last token is in column `last`."""
    columns = jnp.clip(columns_of(slots, last), 0, made.shape[-3] - 1)
    placed = jnp.moveaxis(jnp.take(made, columns, axis=made.ndim - 3), -3, -2)
    return placed.reshape(*placed.shape[:-4], -1, *placed.shape[-2:])


def grown(cache: Cache, config: TransformerConfig, capacity: int, *, ring: bool) -> Cache:
    """The cache with slots for `capacity` columns (static), of which none has been written over yet."""
    by_layer = cache.k[0].ndim == 3
    slots = [slots_of(config, layers, capacity, ring) for layers in caches_of(config, by_layer)]

    def wide(kept: Array, size: int) -> Array:
        return jnp.pad(kept, [(0, size - kept.shape[-2] if axis == kept.ndim - 2 else 0) for axis in range(kept.ndim)])

    k, v = (tuple(wide(kept, size) for kept, size in zip(part, slots, strict=True)) for part in (cache.k, cache.v))
    return dataclasses.replace(cache, k=k, v=v)
