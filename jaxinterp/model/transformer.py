"""The transformer as a pure function: parameters and tokens go in, logits and every captured intermediate come out.

Read it downwards: `forward` embeds, sends the residual stream through the stacked blocks by one `lax.scan`, and
unembeds. Weights, edits, masks and starting points are arguments; the config and what to capture are static.
"""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.model.attention import places
from jaxinterp.model.block import Block
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.norm import Norm, align, at_least_float32
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import At, check_requests, kept_axes
from jaxinterp.model.sites import SITES, check_site, site_names
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens, check_ids, concrete
from jaxinterp.model.trace import Trace

Params = Mapping[str, Any]
Sites = str | Iterable[str] | Mapping[str, At | None]


def forward(
    params: Params,
    tokens: Tokens | Int[Array | np.ndarray, "B P"],
    config: TransformerConfig,
    *,
    sites: Sites = (),
    edits: Sequence[Edit] = (),
    rules: Rules | None = None,
    start: tuple[Any, Float[Array | np.ndarray, "B P D"]] | None = None,
    stop: int | None = None,
    inputs: Float[Array | np.ndarray, "B P D"] | None = None,
    dtype: Any = None,
    capture_dtype: Any = None,
    precision: str | None = "highest",
) -> Trace:
    """Runs the model. Pure: may be jitted (config, sites, stop and the dtypes static), vmapped, differentiated and sharded.

    Args:
        params: nested dict of arrays, see `parameter_shapes`; any float type.
        tokens: `Tokens`, or ids [B P] without padding.
        config: the architecture.
        sites: names of sites to capture, "all" (every site that is not opt-in), or {name: ji.at(...)} to keep a part.
        edits: interventions, in the order in which they act.
        rules: what the backward pass holds constant.
        start: (layer, resid [B P D]): begin at that layer with this residual stream. A traced layer is allowed (one
            program for all layers; not reverse-differentiable); captured entries below it are then NaN.
        stop: run blocks 0 .. stop-1 and end there, without logits.
        inputs: token embeddings [B P D] instead of those of the ids (as site `embed` holds them).
        dtype: type that the blocks compute in; None is the weights' own. Norms, softmax, rotary angles and logits are
            computed in float32 at least.
        capture_dtype: type of captured values; None keeps each value's own.
        precision: jax matmul precision; "highest" is true float32 on every device (by default GPUs use TF32 and TPUs
            bfloat16), None takes JAX's setting.

    Returns:
        A Trace of logits [B P V] and the captured sites.

    Raises:
        InputError: unknown or absent sites, edits that do not fit, layers or positions out of range, prompts that are
            longer than the context.
    """
    given = tokens if isinstance(tokens, Tokens) else Tokens.from_ids(tokens)
    rules = rules or Rules()
    requests = canonical_sites(sites, config)
    check_run(config, given, requests, edits, rules, start, stop, inputs)
    batch: Tokens = jax.tree.map(jnp.asarray, given.arrays_only())
    compute = jnp.dtype(dtype) if dtype is not None else params["embed"]["W_E"].dtype
    make_tap = functools.partial(Tap, batch, edits=edits, requests=requests, rules=rules, dtype=capture_dtype)
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        outside = make_tap()
        resid = embed(params, batch, config, outside, compute, inputs) if start is None else jnp.asarray(start[1], compute)
        first = 0 if start is None else start[0]
        resid, inside, layers = run_blocks(params["blocks"], resid, batch, config, make_tap, first, stop, edits, requests)
        logits = unembed(params, resid, config, outside) if stop is None else None
    activations = {site: value for site in SITES if (value := (outside.activations | inside).get(site)) is not None}
    axes = tuple((site, kept_axes(SITES[site], requests[site])) for site in activations)
    held = tuple((site, requests[site].layers or layers) for site in activations if SITES[site].per_layer)
    return Trace(logits, activations, given, axes, held)


# ------------------------------------------------------------------------------------------------- the three parts


def embed(params: Params, tokens: Tokens, config: TransformerConfig, tap: Tap, dtype: Any, inputs: Any = None) -> Float[Array, "B P D"]:
    """The residual stream before the first block: embedding (or `inputs`), its scale and norm, and learned positions."""
    weights = params["embed"]
    value: Any
    if inputs is not None:
        value = jnp.asarray(inputs, dtype)
    else:
        value = jnp.take(weights["W_E"], tokens.ids, axis=0, mode="clip").astype(dtype)
        value = value if config.embed_scale == 1.0 else value * jnp.asarray(config.embed_scale, dtype)
        if config.embed_norm:
            value = Norm(config, (config.d_model,), "embed").apply({"params": _cast(weights["ln"], dtype)}, value, tap.rules)
    resid = tap("embed", value)
    if config.positions == "learned":
        rows = jnp.maximum(tokens.positions, 0) + config.position_offset
        resid = resid + tap("pos_embed", jnp.take(weights["W_pos"], rows, axis=0, mode="clip").astype(dtype))
    return resid


def unembed(params: Params, resid: Float[Array, "B P D"], config: TransformerConfig, tap: Tap) -> Float[Array, "B P V"] | None:
    """Logits from the last residual stream: final norm, W_U (or W_E transposed), bias, scale and soft cap."""
    if config.final_norm:
        norm, weights = Norm(config, (config.d_model,), "ln_final"), _cast(params.get("ln_final", {}), resid.dtype)
        normed: Any = norm.apply({"params": weights}, resid, tap.rules, lambda scale: tap("ln_final_scale", scale))
        resid = tap("ln_final", normed)
    if config.unembed == "none":
        return None
    wide = jnp.promote_types(resid.dtype, jnp.float32)
    if config.unembed == "tied":
        logits = jnp.einsum("BPD,VD->BPV", resid, params["embed"]["W_E"].astype(resid.dtype), preferred_element_type=wide)
    else:
        logits = jnp.einsum("BPD,DV->BPV", resid, params["unembed"]["W_U"].astype(resid.dtype), preferred_element_type=wide)
    if config.unembed_bias:
        logits = logits + align(at_least_float32(params["unembed"]["b_U"]), logits)
    logits = tap("logits_raw", logits * config.logit_scale if config.logit_scale != 1.0 else logits)
    if config.final_soft_cap is not None:
        logits = config.final_soft_cap * jnp.tanh(logits / config.final_soft_cap)
    return tap("logits", logits)


def run_blocks(
    stacks: Sequence[Params], resid: Float[Array, "B P D"], tokens: Tokens, config: TransformerConfig, make_tap: Any,
    start: Any, stop: int | None, edits: Sequence[Edit], requests: Mapping[str, At],
) -> tuple[Float[Array, "B P D"], dict[str, Array], tuple[int, ...]]:  # fmt: skip
    """The residual stream after blocks start .. stop-1, what was captured with a layer axis, and which layers that is.

    A whole run scans the stacked weights themselves, so that their gradient is stacked too. A part of a run scans layer
    indices and reads one layer's weights at a time: slicing the stack would copy it.
    """
    stack, depth = stacks[0], config.n_layers
    place_of = places(tokens, config, jnp.promote_types(resid.dtype, jnp.float32))
    scanned = [edit.scanned() for edit in edits]
    per_layer = [
        [jnp.asarray(a) for a, s in zip(edit.arguments, flags, strict=True) if s] for edit, flags in zip(edits, scanned, strict=True)
    ]

    def block(layer: Array, resid: Array, weights: Params, slices: Sequence[Sequence[Array]]) -> tuple[Array, dict[str, Array]]:
        arguments = []
        for edit, flags, own in zip(edits, scanned, slices, strict=True):
            rest = iter(own)
            arguments.append([next(rest) if flag else jnp.asarray(a) for a, flag in zip(edit.arguments, flags, strict=True)])
        tap = make_tap(arguments=arguments, layer=layer)
        out: Any = Block(config).apply({"params": _cast(weights, resid.dtype)}, resid, place_of(layer), tap)
        return out

    def block_at(layer: Array, resid: Array) -> tuple[Array, dict[str, Array]]:
        weights, slices = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), (stack, per_layer))
        return block(layer, resid, weights, slices)

    some = {site: request for site, request in requests.items() if request.layers is not None}
    whole = isinstance(start, int) and start == 0 and stop is None
    shapes = jax.eval_shape(block_at, jnp.asarray(0), resid)[1] if some or not isinstance(start, int) else {}
    if not isinstance(start, int):  # a traced layer: every captured site gets a buffer
        some = {site: requests[site] for site in shapes}
    buffers = {site: _buffer(shapes[site], _slots(request, depth)) for site, request in some.items()}

    def step(carry: tuple[Array, dict[str, Array]], xs: Any) -> tuple[tuple[Array, dict[str, Array]], dict[str, Array]]:
        resid, buffers = carry
        resid, activations = block(*_split(xs, resid)) if whole else block_at(xs, resid)
        layer = xs[0] if whole else xs
        buffers = {site: _store(buffer, activations.pop(site), layer, _slots(some[site], depth)) for site, buffer in buffers.items()}
        return (resid, buffers), activations

    if isinstance(start, int):
        layers = range(start, depth if stop is None else stop)
        indices = jnp.arange(layers.start, layers.stop)
        if not layers:
            empty = jax.eval_shape(block_at, jnp.asarray(0), resid)[1]
            return resid, {site: jnp.zeros((0, *shape.shape), shape.dtype) for site, shape in empty.items() if site not in some}, ()
        (resid, buffers), stacked = jax.lax.scan(step, (resid, buffers), (indices, stack, per_layer) if whole else indices)
    else:
        layers = range(depth)
        end = depth if stop is None else stop
        resid, buffers = jax.lax.fori_loop(start, end, lambda layer, carry: step(carry, layer)[0], (resid, buffers))
        stacked = {}
    kept = {site: buffer[0] if isinstance(some[site].layer, int) else buffer[:-1] for site, buffer in buffers.items()}
    return resid, stacked | kept, tuple(layers)


def _split(xs: Any, resid: Array) -> tuple[Array, Array, Params, Any]:
    layer, weights, slices = xs
    return layer, resid, weights, slices


def _slots(request: At, depth: int) -> tuple[int, ...]:
    return request.layers if request.layers is not None else tuple(range(depth))


def _buffer(shape: jax.ShapeDtypeStruct, layers: tuple[int, ...]) -> Array:
    """Room for the chosen layers and one slot more, where the others are written and forgotten."""
    missing = jnp.nan if jnp.issubdtype(shape.dtype, jnp.floating) else 0
    return jnp.full((len(layers) + 1, *shape.shape), missing, shape.dtype)


def _store(buffer: Array, value: Array, layer: Array, layers: tuple[int, ...]) -> Array:
    hit = jnp.asarray(layers) == layer
    slot = jnp.where(hit.any(), hit.argmax(), len(layers))
    return jax.lax.dynamic_update_index_in_dim(buffer, value, slot, 0)


def _cast(weights: Params, dtype: Any) -> Params:
    return jax.tree.map(lambda w: w.astype(dtype), weights)


# ---------------------------------------------------------------------------------------------------------- checks


def canonical_sites(sites: Sites, config: TransformerConfig) -> dict[str, At]:
    """What to capture, as {site: At} in the order of the forward pass.

    Raises:
        InputError: a site that does not exist or that this model lacks.
    """
    if isinstance(sites, str):
        sites = site_names(config, opt_in=False) if sites == "all" else (sites,)
    chosen = dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(sites)
    for name in chosen:
        check_site(name, config)
    return {name: chosen[name] or At() for name in SITES if name in chosen}


def check_run(
    config: TransformerConfig, tokens: Tokens, requests: Mapping[str, At], edits: Sequence[Edit], rules: Rules,
    start: tuple[Any, Any] | None, stop: int | None, inputs: Any,
) -> None:  # fmt: skip
    """Refuse arguments of a run that do not fit the model, as far as their values are known.

    Raises:
        InputError: the first thing that does not fit.
    """
    check_ids(tokens, config.d_vocab, config.n_ctx)
    check_requests(requests, config, tokens)
    check_edits(edits, config, tokens)
    rules.check()
    for site in rules.detach:
        check_site(site, config)
    if config.n_token_types:
        raise InputError("Token types are not supported yet: this model has a token type embedding (n_token_types).")
    if stop is not None and not 0 <= stop <= config.n_layers:
        raise InputError(f"stop is {stop}; this model has {config.n_layers} layers, so it must be from 0 to {config.n_layers}.")
    want = (*tokens.ids.shape, config.d_model)
    for name, value in (("start", None if start is None else start[1]), ("inputs", inputs)):
        if value is not None and tuple(value.shape) != want:
            raise InputError(f"{name} must be [B P D] = {list(want)}; got shape {list(value.shape)}.")
    if start is not None and concrete(start[0]) and not 0 <= int(start[0]) <= (config.n_layers if stop is None else stop):
        raise InputError(f"start is layer {int(start[0])}; it must be from 0 to {config.n_layers if stop is None else stop}.")
