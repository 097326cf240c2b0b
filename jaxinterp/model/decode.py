"""Decoding: `prefill` runs prompts and keeps their keys and values, `step` runs one more token of each on top of them.

Both are pure functions of parameters, tokens and a cache, with the same sites and edits as `forward`; what a token's
sites hold is what a run of the whole text would give.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.model.attention import PAST, Place, layer_place
from jaxinterp.model.cache import Cache, Past, caches_of, columns_of, fill, slots_of
from jaxinterp.model.config import Group, TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.position import rotary_tables
from jaxinterp.model.selection import At, Rows, gather
from jaxinterp.model.sites import SITES, site_of
from jaxinterp.model.stack import Runner, is_by_layer
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import Params, embed, read_forward, unembed, unembed_at

KEPT = ("k_rot", "v")


def prefill(
    params: Params, tokens: Tokens, config: TransformerConfig, capacity: int, *, requests: Mapping[str, At] | None = None,
    edits: Sequence[Edit] = (), ring: bool = True, dtype: Any = None,
) -> tuple[Float[Array, "B V"], Cache, dict[str, Array]]:  # fmt: skip
    """Logits after the last token of each prompt, the cache of all of them, and what was captured.

    Args:
        params: the weights.
        tokens: prompts that end in one column, with padding on the left; columns after it are ignored.
        config: the architecture, a causal one.
        capacity: columns that the cache has room for (static); see `cache.grown`.
        requests: what to capture, by site.
        edits: interventions.
        ring: whether layers with a sliding window keep no more than it.
        dtype: type to compute in.
    """
    requests = requests or {}
    last = tokens.last
    end = lambda resid, tap: unembed_at(params, resid, config, tap, last[:, None], None)[:, 0]  # noqa: E731
    sites: dict[str, At | None] = {**requests, **dict.fromkeys(KEPT, At())}
    logits, trace = read_forward(params, tokens, config, end, sites=sites, edits=edits, dtype=dtype, precision=None)
    found: dict[str, Any] = dict(trace.padded)
    alone = is_by_layer(params["blocks"])
    kept = {
        site: tuple(
            fill(found[site][part.start] if alone else found[site][part.start : part.stop], slots_of(config, part, capacity, ring), last[0])
            for part in caches_of(config, alone)
        )
        for site in KEPT
    }
    for site in KEPT:
        value = found.pop(site)
        if site in requests:
            found[site] = cut(value, site, requests[site], config, tokens)
    planned = tokens.lengths if tokens.planned is None else tokens.planned
    padding = tokens.mask.argmax(axis=1).astype(jnp.int32)
    cache = Cache(kept["k_rot"], kept["v"], padding, (last[0] + 1).astype(jnp.int32), jnp.asarray(planned, jnp.int32))
    return logits, cache, found


def step(
    params: Params, ids: Int[Array, "B"], cache: Cache, config: TransformerConfig, *, requests: Mapping[str, At] | None = None,
    edits: Sequence[Edit] = (), active: Bool[Array, "n"] | None = None, dtype: Any = None,
) -> tuple[Float[Array, "B V"], Cache, dict[str, Array]]:  # fmt: skip
    """Logits after one more token of every row, the cache with it, and what was captured of it.

    Args:
        params: the weights.
        ids: the new tokens.
        cache: of all tokens before, with room for one more.
        config: the architecture.
        requests: what to capture, by site; positions and keys whole.
        edits: interventions, their negative positions resolved.
        active: which of them act on this token, as data; None is all.
        dtype: type to compute in.
    """
    requests = requests or {}
    dtype = jnp.dtype(dtype) if dtype is not None else params["embed"]["W_E"].dtype
    decoding = _Step(ids, cache, config, requests, edits, active, jnp.promote_types(dtype, jnp.float32))
    outside = decoding.tap()
    resid = embed(params, decoding.token, config, outside, dtype)
    run = decoding.run_layers if is_by_layer(params["blocks"]) else decoding.run_stacks
    resid, kept, inside = run(params["blocks"], resid)
    logits: Any = unembed(params, resid, config, outside)
    found = outside.activations | inside
    out = {site: cut(found[site], site, request, config, decoding.token) for site, request in requests.items()}
    return logits[:, 0], dataclasses.replace(cache, k=kept[0], v=kept[1], column=cache.column + 1), out


def cut(value: Array, name: str, request: At, config: TransformerConfig, tokens: Tokens) -> Array:
    """The requested part of a site's whole value."""
    site = site_of(name, config)
    value = gather(value, site.axes, request.select, tokens)
    if request.layer is None:
        return value
    held = site.layers(config)
    return value[held.index(request.layer)] if isinstance(request.layer, int) else value[np.asarray([held.index(i) for i in request.layer])]


class _Step:
    """One token of every row on its way through the blocks."""

    def __init__(
        self, ids: Array, cache: Cache, config: TransformerConfig, requests: Mapping[str, At], edits: Sequence[Edit], active: Any,
        wide: Any,
    ) -> None:  # fmt: skip
        self.config, self.cache, self.wide = config, cache, wide
        position = (cache.column - cache.padding)[:, None]
        self.token = Tokens(ids[:, None], jnp.ones(position.shape, bool), position, planned=cache.planned)
        self.rotary = rotary_tables(config, position, cache.planned, wide) if config.positions == "rotary" else None
        slots = max(kept.shape[-2] for kept in cache.k)
        keys, seen = self._keys(slots)
        rows = Rows(self.token, self.token, Tokens(jnp.zeros_like(keys), seen, keys))
        make = functools.partial(Tap, self.token, config, edits=edits, rows=rows, active=active)
        self.tap = functools.partial(make, requests={site: At() for site in requests if not SITES[site].per_layer})
        inside = functools.partial(make, requests={site: At() for site in requests if SITES[site].per_layer})
        self._runner = Runner(config, inside, lambda layer: self._place(layer, slots, None), edits)

    def run_stacks(self, stacks: Sequence[Any], resid: Array) -> tuple[Array, tuple[Any, Any], dict[str, Array]]:
        """The residual stream after all blocks, keys and values with the new token's, and what was captured: a scan a group."""
        kept: tuple[list[Array], list[Array]] = ([], [])
        pieces: dict[str, list[Array]] = {}
        for number, (group, stack) in enumerate(zip(self.config.groups, stacks, strict=True)):
            one = functools.partial(self._scanned, group)
            carry = (resid, self.cache.k[number], self.cache.v[number])
            xs = (jnp.arange(group.stop - group.start, dtype=jnp.int32), stack, self._runner.own_arguments(group))
            (resid, k, v), captured = jax.lax.scan(one, carry, xs)
            kept[0].append(k)
            kept[1].append(v)
            for site, value in captured.items():
                pieces.setdefault(site, []).append(value)
        return resid, (tuple(kept[0]), tuple(kept[1])), {site: jnp.concatenate(values) for site, values in pieces.items()}

    def _scanned(self, group: Group, carry: tuple[Array, Array, Array], xs: Any) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
        (resid, k, v), (number, weights, own) = carry, xs
        resid, captured, k, v = self._block(group, number + group.start, resid, weights, own, (k, v), number)
        return (resid, k, v), captured

    def run_layers(self, stacks: Sequence[Any], resid: Array) -> tuple[Array, tuple[Any, Any], dict[str, Array]]:
        """The same, a layer after the other."""
        kept: tuple[list[Array], list[Array]] = ([], [])
        pieces: dict[str, list[Array]] = {}
        for group, layers in zip(self.config.groups, stacks, strict=True):
            for layer, weights in enumerate(layers, group.start):
                before = (self.cache.k[layer], self.cache.v[layer])
                resid, captured, k, v = self._block(group, jnp.asarray(layer), resid, weights, self._runner.own_at(layer), before, None)
                kept[0].append(k)
                kept[1].append(v)
                for site, value in captured.items():
                    pieces.setdefault(site, []).append(value)
        return resid, (tuple(kept[0]), tuple(kept[1])), {site: jnp.stack(values) for site, values in pieces.items()}

    def _block(
        self, group: Group, layer: Array, resid: Array, weights: Any, own: Any, kept: tuple[Array, Array], number: Array | None
    ) -> tuple[Array, dict[str, Any], Array, Array]:
        """The residual stream after a block, what was captured, and the keys and values that are kept, with the new token's."""
        slots = kept[0].shape[-2]
        place = self._place(layer, slots, Past(kept[0], kept[1], self.cache.column % slots, number))
        resid, found = self._runner.block(group, layer, resid, weights, own, place)
        past: Any = found.pop(PAST)
        return resid, found, past.k, past.v

    def _keys(self, slots: int) -> tuple[Int[Array, "B K"], Bool[Array, "B K"]]:
        """The position that each slot holds, and whether it holds any."""
        keys = columns_of(slots, self.cache.column)[None] - self.cache.padding[:, None]
        return keys, keys >= 0

    def _place(self, layer: Array, slots: int, past: Past | None) -> Place:
        keys, seen = self._keys(slots)
        shared = {"queries": self.token.positions, "keys": keys, "allowed": seen[:, None, None, :], "rotary": self.rotary}
        return layer_place(self.config, layer, self.wide, pack=past, **shared)
