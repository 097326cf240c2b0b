"""The transformer as a pure function: parameters and tokens go in, logits and every captured intermediate come out.

Read it downwards: `forward` embeds, sends the residual stream through the stacked blocks by one `lax.scan`, and
unembeds. Weights, edits, masks and starting points are arguments; the config and what to capture are static.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.mlp import activate
from jaxinterp.model.norm import Norm, align, at_least_float32
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import At, check_requests, kept_axes
from jaxinterp.model.sites import SITES, check_site, site_names, site_of
from jaxinterp.model.stack import cast, run_blocks
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
    remat: bool = False,
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
        remat: what a backward pass through the stack keeps: every intermediate of every block, or (True) only the residual
            stream entering each, running its block once more on the way back: a third more time, and memory that grows with
            D a token and layer instead of everything in the block. The derivatives are the same.

    Returns:
        A Trace of logits [B P V] and the captured sites.

    Raises:
        InputError: unknown or absent sites, edits that do not fit, layers or positions out of range, prompts that are
            longer than the context.
    """
    how: dict[str, Any] = dict(sites=sites, edits=edits, rules=rules, start=start, stop=stop, inputs=inputs, dtype=dtype)
    logits, trace = read_forward(
        params, tokens, config, lambda resid, tap: unembed(params, resid, config, tap) if stop is None else None,
        **how, capture_dtype=capture_dtype, precision=precision, remat=remat,
    )  # fmt: skip
    return dataclasses.replace(trace, padded_logits=logits)


def read_forward(
    params: Params, tokens: Any, config: TransformerConfig, read: Callable[[Any, Tap], Any], *, sites: Sites = (),
    edits: Sequence[Edit] = (), rules: Rules | None = None, start: tuple[Any, Any] | None = None, stop: int | None = None,
    inputs: Any = None, dtype: Any = None, capture_dtype: Any = None, precision: str | None = "highest", remat: bool = False,
) -> tuple[Any, Trace]:  # fmt: skip
    """`forward` with another ending: what `read(resid [B P D], tap)` makes of the last residual stream, and a trace without logits."""
    given = tokens if isinstance(tokens, Tokens) else Tokens.from_ids(tokens)
    rules = rules or Rules()
    requests = canonical_sites(sites, config)
    check_run(config, given, requests, edits, rules, start, stop, inputs)
    batch: Tokens = jax.tree.map(jnp.asarray, given.arrays_only())
    compute = jnp.dtype(dtype) if dtype is not None else params["embed"]["W_E"].dtype
    make_tap = functools.partial(Tap, batch, config, edits=edits, requests=requests, rules=rules, dtype=capture_dtype)
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        outside = make_tap()
        resid = embed(params, batch, config, outside, compute, inputs) if start is None else jnp.asarray(start[1], compute)
        first = 0 if start is None else start[0]
        resid, inside, held = run_blocks(params["blocks"], resid, batch, config, make_tap, first, stop, edits, requests, remat)
        ending = read(resid, outside)
    activations = {site: value for site in SITES if (value := (outside.activations | inside).get(site)) is not None}
    axes = tuple((site, kept_axes(site_of(site, config), requests[site])) for site in activations)
    return ending, Trace(None, activations, given, axes, tuple((site, held[site]) for site in activations if site in held))


# ------------------------------------------------------------------------------------------------- the three parts


def embed(params: Params, tokens: Tokens, config: TransformerConfig, tap: Tap, dtype: Any, inputs: Any = None) -> Float[Array, "B P D"]:
    """The residual stream before the first block: embedding (or `inputs`), learned positions, token types, and their norm."""
    weights, norm = params["embed"], Norm(config, (config.d_model,), "embed")
    value: Any
    if inputs is not None:
        value = jnp.asarray(inputs, dtype)
    else:
        value = jnp.take(weights["W_E"], tokens.ids, axis=0, mode="clip").astype(dtype)
        value = value if config.embed_scale == 1.0 else value * jnp.asarray(config.embed_scale, dtype)
        if config.d_embed is not None:
            value = jnp.einsum("BPC,CD->BPD", value, weights["W_embed"].astype(dtype))
        if config.embed_norm == "token":
            value = norm.apply({"params": cast(weights["ln"], dtype)}, value, tap.rules)
    resid: Any = tap("embed", value)
    if config.positions == "learned":
        rows = jnp.maximum(tokens.positions, 0) + config.position_offset
        resid = resid + tap("pos_embed", jnp.take(weights["W_pos"], rows, axis=0, mode="clip").astype(dtype))
    if config.n_token_types:
        types = jnp.zeros_like(tokens.ids) if tokens.types is None else tokens.types
        resid = resid + tap("type_embed", jnp.take(weights["W_type"], types, axis=0, mode="clip").astype(dtype))
    if config.embed_norm == "sum":
        resid = norm.apply({"params": cast(weights["ln"], dtype)}, resid, tap.rules)
    return resid


def unembed_at(
    params: Params, resid: Float[Array, "B P D"], config: TransformerConfig, tap: Tap, columns: Int[Array, "B n"],
    vocabulary: Int[Array, "B k"] | None,
) -> Float[Array, "B n k"]:  # fmt: skip
    """Logits in float32 at least, at these token columns and vocabulary columns (None is all), computing no others where it can."""
    row = jnp.arange(resid.shape[0])[:, None]
    columns = jnp.broadcast_to(columns, (resid.shape[0], columns.shape[1]))
    words = None if vocabulary is None else jnp.broadcast_to(vocabulary, (resid.shape[0], vocabulary.shape[-1]))
    whole = any(tap.touches(site) for site in ("logits_raw", "logits"))
    narrow = not whole and not config.pooler and not any(tap.touches(site) for site in ("ln_final_scale", "ln_final"))
    logits: Any = unembed(params, resid[row, columns] if narrow else resid, config, tap, None if whole else words)
    if logits is None:
        raise InputError("This metric reads logits, and this model has no unembedding: measure a projection instead.")
    logits = logits if narrow else logits[row, columns]
    return at_least_float32(jnp.take_along_axis(logits, words[:, None, :], axis=2) if whole and words is not None else logits)


def unembed(
    params: Params, resid: Float[Array, "B P D"], config: TransformerConfig, tap: Tap, columns: Int[Array, "B k"] | None = None
) -> Float[Array, "B P k"] | None:
    """Logits from the last residual stream: dense layer, final norm, W_U (or W_E transposed), bias, scale and soft cap.

    With `columns`, only these columns of the vocabulary are computed, for each prompt its own.
    """
    dtype, wide = resid.dtype, jnp.promote_types(resid.dtype, jnp.float32)
    weights = cast(params.get("unembed", {}), dtype)
    if config.pooler:
        first = jnp.einsum("BD,DO->BO", resid[jnp.arange(resid.shape[0]), tap.first_columns], params["pooler"]["W"].astype(dtype))
        tap("pooled", jnp.tanh(first + align(params["pooler"]["b"].astype(dtype), first)))
    if config.final_dense is not None:
        resid = jnp.einsum("BPD,DO->BPO", resid, weights["W_dense"])
        dense = resid + align(weights["b_dense"], resid)
        resid = activate(config.final_dense, dense, dense, tap.rules.mlp)
    if config.final_norm:
        norm, gains = Norm(config, (config.d_model,), "ln_final"), cast(params.get("ln_final", {}), dtype)
        normed: Any = norm.apply({"params": gains}, resid, tap.rules, lambda scale: tap("ln_final_scale", scale))
        resid = tap("ln_final", normed)
    if config.unembed == "none":
        return None
    if config.d_embed is not None:
        resid = jnp.einsum("BPD,DC->BPC", resid, weights["W_embed"])
    tied = config.unembed == "tied"
    matrix = params["embed"]["W_E"].astype(dtype) if tied else weights["W_U"]
    if columns is None:
        logits = jnp.einsum("BPD,VD->BPV" if tied else "BPD,DV->BPV", resid, matrix, preferred_element_type=wide)
    else:
        chosen = matrix[columns] if tied else jnp.moveaxis(matrix[:, columns], 0, -1)
        logits = jnp.einsum("BPD,BVD->BPV", resid, chosen, preferred_element_type=wide)
    if config.unembed_bias:
        bias = at_least_float32(params["unembed"]["b_U"])
        logits = logits + (align(bias, logits) if columns is None else bias[columns][:, None, :])
    logits = tap("logits_raw", logits * config.logit_scale if config.logit_scale != 1.0 else logits)
    if config.final_soft_cap is not None:
        logits = config.final_soft_cap * jnp.tanh(logits / config.final_soft_cap)
    return tap("logits", logits)


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
    if stop is not None and not 0 <= stop <= config.n_layers:
        raise InputError(f"stop is {stop}; this model has {config.n_layers} layers, so it must be from 0 to {config.n_layers}.")
    want = (*tokens.ids.shape, config.d_model)
    for name, value in (("start", None if start is None else start[1]), ("inputs", inputs)):
        if value is not None and tuple(value.shape) != want:
            raise InputError(f"{name} must be [B P D] = {list(want)}; got shape {list(value.shape)}.")
    if start is not None and concrete(start[0]) and not 0 <= int(start[0]) <= (config.n_layers if stop is None else stop):
        raise InputError(f"start is layer {int(start[0])}; it must be from 0 to {config.n_layers if stop is None else stop}.")
