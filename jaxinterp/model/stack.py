"""The stack of blocks: one `lax.scan` a group of layers, with edits and captures inside it.

A group that runs whole scans its stacked weights themselves, so that their gradient is stacked too. A part of one scans
layer indices and reads one layer's weights at a time, since slicing the stack would copy it. A run that begins at a traced
layer is a loop with a dynamic start. Captures of all layers come out of the scan; captures of some, and those of a loop,
are written into buffers that the loop carries. Weights that lie a layer at a time (`parameters.by_layer`) run one after the other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.model.attention import Place, places
from jaxinterp.model.block import Block
from jaxinterp.model.config import Group, TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.selection import At
from jaxinterp.model.sites import SITES, site_of
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens

Captured = dict[str, Any]
Params = Mapping[str, Any]


def run_blocks(
    stacks: Sequence[Any], resid: Float[Array, "B P D"], tokens: Tokens, config: TransformerConfig, make_tap: Callable[..., Tap],
    start: Any, stop: int | None, edits: Sequence[Edit], requests: Mapping[str, At], remat: bool = False,
) -> tuple[Float[Array, "B P D"], Captured, dict[str, tuple[int, ...]]]:  # fmt: skip
    """The residual stream after blocks start .. stop-1, what was captured inside them, and the layers of each capture.

    Args:
        stacks: `params["blocks"]`, one a group: arrays with a layer axis, or a tuple of layers.
        resid: [B P D], entering block `start`.
        tokens: the prompts.
        config: the architecture.
        make_tap: a tap from `arguments` and `layer`.
        start: the first layer, an int or traced.
        stop: the layer to end before; None is all.
        edits: those of the whole run.
        requests: what to capture, by site.
        remat: whether a backward pass runs each block once more instead of keeping what is in it.
    """
    end = config.n_layers if stop is None else stop
    dynamic = not isinstance(start, int)
    requests = {site: request for site, request in requests.items() if SITES[site].per_layer}
    slots = {site: request.layers or site_of(site, config).layers(config) for site, request in requests.items()}
    buffered = [site for site, request in requests.items() if dynamic or request.layers is not None]
    if dynamic and is_by_layer(stacks):
        raise InputError("Weights that lie a layer at a time run from layer 0 or a fixed one: start from the stacked model instead.")
    runner = Runner(config, make_tap, places(tokens, config, jnp.promote_types(resid.dtype, jnp.float32)), edits)
    buffers: Captured = {}
    pieces: dict[str, list[Array]] = {site: [] for site in requests if site not in buffered}
    for group, stack in zip(config.groups, stacks, strict=True):
        layers = range(0) if dynamic else range(max(start, group.start), max(min(end, group.stop), start, group.start))
        shapes = {} if layers and not buffered else runner.shapes(group, stack, resid)
        buffers |= {site: _buffer(shapes[site], len(slots[site])) for site in buffered if site in shapes and site not in buffers}
        if dynamic:
            step = _stepper(runner, group, stack, slots, whole=False)
            first, last = jnp.maximum(start, group.start), min(end, group.stop)
            resid, buffers = jax.lax.fori_loop(first, last, lambda layer, carry, step=step: step(carry, layer)[0], (resid, buffers))
            continue
        whole = len(layers) == group.stop - group.start
        if layers:
            one_by_one = isinstance(stack, tuple)
            step = _stepper(runner, group, stack, slots, whole or one_by_one)
            step = jax.checkpoint(step) if remat else step
            if one_by_one:
                each = [(jnp.asarray(layer), stack[layer - group.start], runner.own_at(layer)) for layer in layers]
                (resid, buffers), captured = _one_by_one(step, (resid, buffers), each)
            else:
                indices = jnp.arange(layers.start, layers.stop)
                xs = (indices, stack, runner.own_arguments(group)) if whole else indices
                (resid, buffers), captured = jax.lax.scan(step, (resid, buffers), xs)
        else:
            captured = {site: jnp.zeros((0, *shape.shape), shape.dtype) for site, shape in shapes.items() if site in pieces}
        for site, value in captured.items():
            pieces[site].append(value)
    out = {site: values[0] if len(values) == 1 else jnp.concatenate(values) for site, values in pieces.items()}
    out |= {site: buffer[0] if isinstance(requests[site].layer, int) else buffer[:-1] for site, buffer in buffers.items()}
    held = {site: slots[site] if site in buffered else tuple(layer for layer in slots[site] if start <= layer < end) for site in requests}
    return resid, out, held


def is_by_layer(stacks: Sequence[Any]) -> bool:
    """Whether weights lie a layer at a time instead of in stacks."""
    return isinstance(stacks[0], tuple)


def check_stacked(params: Params, what: str) -> None:
    """Refuse weights that lie a layer at a time where stacks are needed.

    Raises:
        InputError: saying how to get stacks.
    """
    if is_by_layer(params["blocks"]):
        raise InputError(f"{what} takes weights in stacks, and these lie a layer at a time: pass lm.stacked().")


def _one_by_one(step: Callable[..., Any], carry: Any, xs: Sequence[Any]) -> tuple[Any, Captured]:
    """`lax.scan` as a Python loop."""
    outs = []
    for x in xs:
        carry, out = step(carry, x)
        outs.append(out)
    return carry, jax.tree.map(lambda *values: jnp.stack(values), *outs)


def _stepper(runner: "Runner", group: Group, stack: Any, slots: Mapping[str, tuple[int, ...]], whole: bool) -> Callable[..., Any]:
    """One step of a scan or loop: a block, with its captures stored in the buffers or handed out."""

    def step(carry: tuple[Array, Captured], xs: Any) -> tuple[tuple[Array, Captured], Captured]:
        resid, buffers = carry
        if whole:
            layer, weights, arguments = xs
            resid, captured = runner.block(group, layer, resid, weights, arguments)
        else:
            layer = xs
            resid, captured = runner.block_at(group, layer, resid, stack)
        stored = {site: _store(buffers[site], captured.pop(site), layer, slots[site]) for site in list(captured) if site in buffers}
        return (resid, buffers | stored), captured

    return step


class Runner:
    """Runs one block with its own layer's weights, place and edit arrays.

    Attributes:
        own: for each edit those of its arrays that hold one entry a layer.
    """

    def __init__(
        self, config: TransformerConfig, make_tap: Callable[..., Tap], place_of: Callable[[Any], Place], edits: Sequence[Edit]
    ) -> None:
        self._config, self._make_tap, self._place_of, self._edits = config, make_tap, place_of, edits
        self._scanned = [edit.scanned(config) for edit in edits]
        self.own = [
            [_every_layer(jnp.asarray(a), edit, config) for a, flag in zip(edit.arguments, flags, strict=True) if flag]
            for edit, flags in zip(edits, self._scanned, strict=True)
        ]

    def own_arguments(self, group: Group) -> list[list[Array]]:
        """Edit arrays that hold one entry a layer, cut to a group."""
        if group.stop - group.start == self._config.n_layers:
            return self.own
        return jax.tree.map(lambda a: a[group.start : group.stop], self.own)

    def own_at(self, layer: int) -> list[list[Array]]:
        """The same, cut to one layer."""
        return jax.tree.map(lambda a: a[layer], self.own)

    def block(
        self, group: Group, layer: Array, resid: Array, weights: Params, own: Sequence[Sequence[Array]], place: Place | None = None
    ) -> tuple[Array, Captured]:
        """One block from its layer's weights and edit arrays, and its place where the caller knows better."""
        arguments = []
        for edit, flags, slices in zip(self._edits, self._scanned, own, strict=True):
            rest = iter(slices)
            arguments.append([next(rest) if flag else jnp.asarray(a) for a, flag in zip(edit.arguments, flags, strict=True)])
        tap = self._make_tap(arguments=arguments, layer=layer)
        place = place or self._place_of(layer)
        out: Any = Block(self._config, group.experts).apply({"params": cast(weights, resid.dtype)}, resid, place, tap)
        return out

    def block_at(self, group: Group, layer: Array, resid: Array, stack: Any) -> tuple[Array, Captured]:
        """One block, its weights read from the group's stack."""
        read = lambda w, index: jax.lax.dynamic_index_in_dim(w, index, keepdims=False)  # noqa: E731
        weights = stack[0] if isinstance(stack, tuple) else jax.tree.map(lambda w: read(w, layer - group.start), stack)
        own = jax.tree.map(lambda a: read(a, layer), self.own)
        return self.block(group, layer, resid, weights, own)

    def shapes(self, group: Group, stack: Any, resid: Array) -> dict[str, Any]:
        """Shapes of what a block of the group captures."""
        return jax.eval_shape(lambda stack, resid: self.block_at(group, jnp.asarray(group.start), resid, stack)[1], stack, resid)


def _every_layer(value: Array, edit: Edit, config: TransformerConfig) -> Array:
    """An edit's array with an entry for every layer of the model, also those that lack the site."""
    layers = site_of(edit.site, config).layers(config)
    if value.shape[0] != len(layers) or len(layers) == config.n_layers:
        return value
    return jnp.zeros((config.n_layers, *value.shape[1:]), value.dtype).at[jnp.asarray(layers)].set(value)


def _buffer(shape: jax.ShapeDtypeStruct, layers: int) -> Array:
    """Room for the chosen layers and one slot more, where the others are written and forgotten."""
    missing = jnp.nan if jnp.issubdtype(shape.dtype, jnp.floating) else 0
    return jnp.full((layers + 1, *shape.shape), missing, shape.dtype)


def _store(buffer: Array, value: Array, layer: Array, layers: tuple[int, ...]) -> Array:
    hit = jnp.asarray(layers) == layer
    slot = jnp.where(hit.any(), hit.argmax(), len(layers))
    return jax.lax.dynamic_update_index_in_dim(buffer, value, slot, 0)


def cast(weights: Params, dtype: Any) -> Any:
    """Weights in the type that a block computes in."""
    return jax.tree.map(lambda w: w.astype(dtype), weights)
