"""run: one compiled forward pass of a model on prompts, with what was asked for captured.

Prompts are padded to the next bucket of lengths, so that nearby lengths share one program; the trace trims what it
returns. Layers, positions, heads, values and answers are data: 100 runs that differ only in those compile once.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import Heads
from jaxinterp.model.sites import site_of
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.model.transformer import Sites, canonical_sites, check_run
from jaxinterp.runs.plan import check_fits
from jaxinterp.runs.program import bucket, check_dtype, run_program


def run(
    lm: LanguageModel,
    prompts: Prompts,
    sites: Sites = (),
    edits: Sequence[Edit] | Edit = (),
    rules: Rules | None = None,
    *,
    start: tuple[Any, Float[Array | np.ndarray, "B P D"]] | None = None,
    stop: int | None = None,
    inputs: Float[Array | np.ndarray, "B P D"] | None = None,
    bos: str | bool = "model",
    dtype: Any = None,
    capture_dtype: Any = None,
    precision: str | None = "highest",
) -> Trace:
    """Runs a model on prompts; compiled once for a bucket of lengths and a set of sites. Use `ji.forward` inside jit, vmap or grad.

    Args:
        lm: the model.
        prompts: a string, a list of strings, `Tokens`, or ids [B P].
        sites: what to capture: names, "all", or {name: ji.at(...)}.
        edits: interventions, in the order in which they act. A function given to `edits.apply` sees exact lengths, not
            buckets, so each length is then its own program.
        rules: what a backward pass holds constant; no effect on values.
        start: (layer, resid [B P D]): begin there. Any layer is the same program.
        stop: run blocks 0 .. stop-1 only; logits are then None.
        inputs: token embeddings [B P D] instead of those of the ids.
        bos: whether a beginning-of-sequence token is put before strings, see `LanguageModel.to_tokens`.
        dtype: type to compute in (None: the weights' own). "float64" needs JAX's x64 mode.
        capture_dtype: type of captured values.
        precision: matmul precision; "highest" is true float32 everywhere, "default" is the device's fast mode, None JAX's setting.

    Returns:
        A Trace: `.logits` [B P V], `trace["resid_post"]`, `.at(site, position=-1)`, `.top(k)`.

    Raises:
        InputError: see `ji.forward`; also empty prompts, and strings without a tokenizer.
        MemoryPlanError: what was asked for cannot fit in memory; the message says what would.

    Example:
        >>> trace = ji.run(lm, "The capital of France is", sites=["resid_post"])
        >>> trace.top(1)[0][0].token
        ' Paris'
    """
    tokens = lm.to_tokens(prompts, bos=bos)
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    rules = rules or Rules()
    dtype, capture_dtype = check_dtype(dtype), check_dtype(capture_dtype)
    requests = canonical_sites(sites, lm.config)
    check_run(lm.config, tokens, requests, edits, rules, start, stop, inputs)
    size = tokens.ids.shape[1]
    padded = bucket(size, lm.config.n_ctx) if all(edit.broadcasts for edit in edits) else size
    batch = tokens.padded(padded).arrays_only()
    check_fits(lm, *batch.shape, requests, stop, dtype, capture_dtype)
    edits = tuple(pad_edit(edit, size, padded, lm.config) for edit in edits)
    if start is not None:
        start = (np.int32(start[0]), pad_columns(start[1], padded))
    if inputs is not None:
        inputs = pad_columns(inputs, padded)
    trace = run_program(
        lm.params,
        batch,
        requests,
        edits,
        rules,
        start,
        inputs,
        config=lm.config,
        stop=stop,
        dtype=dtype,
        capture_dtype=capture_dtype,
        precision=precision,
    )
    if start is not None:
        trace = _from_layer(trace, int(start[0]), lm.config.n_layers if stop is None else stop)
    return Trace(trace.padded_logits, trace.padded, labelled(trace.padded_tokens, tokens), trace.axes, trace.layers, size, lm.tokenizer)


def pad_edit(edit: Edit, size: int, padded: int, config: TransformerConfig) -> Edit:
    """The edit with values and masks that span `size` positions widened to `padded` columns."""
    if size == padded or not edit.broadcasts:
        return edit
    axes = site_of(edit.site, config).axes
    arguments = tuple(_widen(a, axes[len(axes) - np.ndim(a) :], size, padded) for a in edit.arguments)
    where = edit.where if edit.where is None or isinstance(edit.where, Heads) else _widen(edit.where, axes, size, padded)
    return Edit(
        edit.select,
        where,
        arguments,
        edit.site,
        edit.name,
        edit.function,
        edit.reads,
        edit.mixes,
        edit.broadcasts,
        edit.per_layer,
        edit.when,
    )


def _widen(value: Any, axes: str, size: int, padded: int) -> Any:
    shape = np.shape(value)
    widths = [(0, padded - size if letter in "PQK" and n == size != 1 else 0) for n, letter in zip(shape, axes, strict=False)]
    return (jnp if isinstance(value, jax.Array) else np).pad(value, widths) if any(after for _, after in widths) else value


def pad_columns(value: Any, padded: int) -> Any:
    """A value [B P D] widened with zeros to `padded` columns."""
    return _widen(value, "BPD", value.shape[1], padded)


def _from_layer(trace: Trace, first: int, end: int) -> Trace:
    """The trace of a run that began at a later layer, without the layers that it did not run."""
    padded, layers, axes = dict(trace.padded), dict(trace.layers), dict(trace.axes)
    for site, held in trace.layers:
        run = [slot for slot, layer in enumerate(held) if first <= layer < end]
        if "L" in axes[site] and len(run) < len(held):
            padded[site], layers[site] = padded[site][np.asarray(run, int)], tuple(held[slot] for slot in run)
    return Trace(trace.padded_logits, padded, trace.padded_tokens, trace.axes, tuple(layers.items()))


def labelled(padded: Tokens, given: Tokens) -> Tokens:
    """Padded tokens with the spans, roles and BOS of the given ones."""
    return Tokens(padded.ids, padded.mask, padded.positions, padded.types, given.spans, given.roles, given.bos, padded.planned)
