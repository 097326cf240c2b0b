"""activations: captured sites of any number of texts, in order, in flat memory and few programs."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.rules import Rules
from jaxinterp.model.sites import SITES
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.model.transformer import Sites, canonical_sites, check_run
from jaxinterp.runs.plan import check_fits
from jaxinterp.runs.program import bucket, check_dtype, run_program

WINDOW = 8  # batches read ahead, so that texts of like length share a batch


def activations(
    lm: LanguageModel,
    texts: Iterable[Any],
    sites: Sites,
    *,
    batch_size: int = 8,
    logits: bool = False,
    edits: Sequence[Edit] = (),
    max_length: int | None = None,
    bos: str | bool = "model",
    dtype: Any = None,
    capture_dtype: Any = None,
    precision: str | None = "highest",
) -> Iterator[Trace]:
    """One Trace a text (a batch of one), in the order of the texts, for any number of them.

    Texts are read `8 * batch_size` at a time, run together with others of like length, and handed back in order; a batch
    always has `batch_size` rows, so there is one program for each bucket of lengths. Arrays are NumPy arrays of one text.

    Args:
        lm: the model.
        texts: any iterable of strings or of lists of ids; it may be endless.
        sites: what to capture, as for `run`; parts by position, head ... are the same for every text.
        batch_size: prompts run at once.
        logits: whether to compute logits too.
        edits: interventions, as for `run`; without per-prompt parts.
        max_length: texts are cut to this many tokens; None refuses those longer than the context.
        bos: as for `run`.
        dtype: as for `run`.
        capture_dtype: as for `run`.
        precision: as for `run`.

    Raises:
        InputError: as `run`, naming the text by its number; also a batch_size below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1.")
    if isinstance(texts, str):
        raise InputError("activations() takes an iterable of texts; put a single one in a list.")
    if any(not edit.broadcasts for edit in edits):
        raise InputError(
            "activations() takes edits whose values broadcast; functions see padding here, so use run() for edits.apply and edits.rewire."
        )
    dtype, capture_dtype = check_dtype(dtype), check_dtype(capture_dtype)
    requests = canonical_sites(sites, lm.config)
    batched = [
        site for site, request in requests.items() if "batch" in request.select or any(np.ndim(i) == 2 for i in request.select.values())
    ]
    if batched:
        raise InputError(f"activations(): sites[{batched[0]!r}] selects per prompt; select the same part of every text.")
    stop = (
        None
        if logits or any(not SITES[site].per_layer and site not in ("embed", "pos_embed", "type_embed") for site in requests)
        else lm.config.n_layers
    )
    numbered = enumerate(texts)
    while window := list(itertools.islice(numbered, WINDOW * batch_size)):
        rows = [_row(lm, number, text, bos, max_length) for number, text in window]
        out: dict[int, Trace] = {}
        for group in _batches([len(row) for row in rows], lm.config.n_ctx, batch_size):
            tokens = _tokens([rows[i] for i in group], batch_size, lm.config.n_ctx)
            check_run(lm.config, tokens, requests, edits, Rules(), None, stop, None)
            check_fits(lm, *tokens.shape, requests, stop, dtype, capture_dtype)
            trace = run_program(
                lm.params,
                tokens,
                requests,
                tuple(edits),
                Rules(),
                None,
                None,
                config=lm.config,
                stop=stop,
                dtype=dtype,
                capture_dtype=capture_dtype,
                precision=precision,
            )
            out |= _split(jax.device_get(trace), group, rows, lm.tokenizer, logits)
        yield from (out[i] for i in range(len(rows)))


def _row(lm: LanguageModel, number: int, text: Any, bos: str | bool, max_length: int | None) -> list[int]:
    try:
        ids = np.asarray(lm.to_tokens(text, bos=bos).ids)[0].tolist()
    except InputError as error:
        raise InputError(f"Text {number}: {error}") from None
    ids = ids if max_length is None else ids[:max_length]
    if len(ids) > lm.config.n_ctx:
        raise InputError(f"Text {number} has {len(ids)} tokens; this model's context is {lm.config.n_ctx}. Give max_length to cut texts.")
    return ids


def _batches(lengths: Sequence[int], context: int, batch_size: int) -> Iterator[list[int]]:
    """Groups of at most `batch_size` texts whose lengths share a bucket."""
    order = sorted(range(len(lengths)), key=lambda i: bucket(lengths[i], context))
    for _, same in itertools.groupby(order, key=lambda i: bucket(lengths[i], context)):
        group = list(same)
        yield from (group[i : i + batch_size] for i in range(0, len(group), batch_size))


def _tokens(rows: Sequence[Sequence[int]], batch_size: int, context: int) -> Tokens:
    """A full batch: the rows, then the first row again in the places left over."""
    width = bucket(max(len(row) for row in rows), context)
    ids, mask = np.zeros((batch_size, width), np.int32), np.zeros((batch_size, width), bool)
    for i in range(batch_size):
        row = rows[i] if i < len(rows) else rows[0]
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return Tokens.from_ids(ids, mask)


def _split(trace: Trace, group: Sequence[int], rows: Sequence[Sequence[int]], tokenizer: Any, logits: bool) -> dict[int, Trace]:
    """The traces of single texts, as copies that do not keep the batch alive."""
    axes = dict(trace.axes)
    out = {}
    for row, number in enumerate(group):
        length = len(rows[number])
        padded = {site: _one(value, axes[site], row, length) for site, value in trace.padded.items()}
        values = None if trace.padded_logits is None or not logits else _one(trace.padded_logits, "BPV", row, length)
        tokens = Tokens.from_ids(np.asarray([rows[number]], np.int32))
        out[number] = Trace(values, padded, tokens, trace.axes, trace.layers, length, tokenizer)
    return out


def _one(value: Any, axes: str, row: int, length: int) -> np.ndarray:
    cut = tuple(slice(row, row + 1) if letter == "B" else slice(length) if letter in "PQK" else slice(None) for letter in axes)
    return np.array(np.asarray(value)[cut])
