"""One generation at work: its checked arguments, its state on the device, and what the host knows of each row."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import InputError, MemoryPlanError
from jaxinterp.model.cache import cache_bytes
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.position import BY_LENGTH
from jaxinterp.model.selection import POSITIONAL, At, axis_of, check_requests
from jaxinterp.model.sites import SITES, site_of
from jaxinterp.model.stack import is_by_layer
from jaxinterp.model.tokens import Tokens, check_ids
from jaxinterp.model.trace import Trace
from jaxinterp.model.transformer import Sites, canonical_sites
from jaxinterp.runs.decoding import State, axes_of, decode_program, grow_program, start_program, width_of
from jaxinterp.runs.generation import Generation, How
from jaxinterp.runs.kept import code_of
from jaxinterp.runs.moments import aligned, moments
from jaxinterp.runs.plan import free_memory, nbytes
from jaxinterp.runs.program import bucket, check_dtype
from jaxinterp.runs.provenance import fingerprint, fingerprint_of_weights
from jaxinterp.runs.run import pad_edit
from jaxinterp.runs.sampling import DEFAULTS, make_sampling, stop_ids_of
from jaxinterp.runs.wording import Wording

FEWEST = 64
"""Columns of the shortest text that programs are compiled for: all shorter ones share them."""

SHORTEST = 8
"""Columns of the shortest prompt, in the same way."""


class Writing:
    """One call: checked arguments, the state on the device, and what the host knows of each row."""

    def __init__(
        self, lm: LanguageModel, prompts: Prompts, max_new_tokens: int, *, edits: Any = (), sites: Sites = (), logit_bias: Any = None,
        seed: Any = 0, stop: Any = (), stop_tokens: Any = None, scores: bool = False, bos: str | bool = "model", dtype: Any = None,
        capture_dtype: Any = None, precision: str | None = "highest", **settings: Any,
    ) -> None:  # fmt: skip
        check_model(lm)
        given = lm.to_tokens(prompts, bos=bos)
        check_ids(given, lm.config.d_vocab, lm.config.n_ctx)
        self.lm, self.limit = lm, max_new_tokens
        self.prompts = aligned(given)
        self.batch, self.columns = self.prompts.shape
        self._check_length()
        self.stops = self._stop_strings(stop)
        self._stop_ids = stop_ids_of(lm, stop_tokens)
        settings = DEFAULTS | settings
        if set(settings) != set(DEFAULTS):
            unknown = min(set(settings) - set(DEFAULTS))
            raise InputError(f"stream(): unknown setting {unknown!r}; expected {', '.join(DEFAULTS)} or another argument of generate().")
        self._sampling = make_sampling(lm, self.batch, seed, logit_bias, **settings)
        edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
        self._moments = moments(edits, given, max_new_tokens, lm.config)
        self._requests = _check_requests(canonical_sites(sites, lm.config), lm.config, given)
        self._types = {"dtype": check_dtype(dtype), "precision": precision}
        self._capture, self._scored = check_dtype(capture_dtype), scores
        self._shapes(edits)
        self._check_fits()
        own = [index for index in self._stop_ids.tolist() if index >= 0]
        rows = [np.asarray(ids)[np.asarray(mask)].tolist() for ids, mask in zip(self.prompts.ids, self.prompts.mask, strict=True)]
        self.wording = [] if lm.tokenizer is None else [Wording(lm.tokenizer, row, self.stops, own) for row in rows]
        self._ends: list[int | None] = [None] * self.batch
        self._checked = 0
        self._state: Any = None
        self._how = self._made_with(edits, settings, seed, logit_bias)

    def _stop_strings(self, stop: str | Sequence[str]) -> tuple[str, ...]:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if any(not isinstance(text, str) or not text for text in stops):
            raise InputError(f"stop is {stop!r}; expected one or more strings that are not empty.")
        if stops and self.lm.tokenizer is None:
            raise InputError("This model has no tokenizer, so there is no text in which to look for stop strings: use stop_tokens.")
        return stops

    def _check_length(self) -> None:
        if self.limit < 1:
            raise InputError(f"max_new_tokens is {self.limit}; expected at least 1.")
        if self.columns + self.limit > self.lm.config.n_ctx:
            raise InputError(
                f"A prompt of {self.columns} tokens and {self.limit} new ones are {self.columns + self.limit}; this model's context is "
                f"{self.lm.config.n_ctx}. Ask for at most {max(self.lm.config.n_ctx - self.columns, 0)} new tokens, or shorten the prompt."
            )

    def _shapes(self, edits: Sequence[Edit]) -> None:
        """The shapes that programs are compiled for."""
        context = self.lm.config.n_ctx
        bucketed = all(edit.broadcasts for edit in self._moments.prompt)
        self._width = bucket(max(self.columns, SHORTEST), context) if bucketed else self.columns
        self._capacity = bucket(max(self.columns + self.limit + 1, FEWEST), context + 1)
        self._room = bucket(max(self.limit + 1, FEWEST), context + 1)
        touched = {*self._requests, *(edit.site for edit in edits), *(name for edit in edits for name in edit.reads)}
        self._ring = not any("K" in SITES[site].axes for site in touched)
        self._slots = width_of(self.columns + 1, self._capacity)

    @property
    def planned(self) -> dict[str, int]:
        """Bytes of the cache, of captured sites and of scores."""
        config = self.lm.config
        item = jnp.dtype(self._types["dtype"] or self.lm.params["embed"]["W_E"].dtype).itemsize
        kept = jnp.dtype(self._capture).itemsize if self._capture else item
        layers = is_by_layer(self.lm.params["blocks"])
        size = functools.partial(cache_bytes, config, self.batch, itemsize=item, by_layer=layers, ring=self._ring)
        slots = [width_of(self.columns + 1, self._capacity)]
        while slots[-1] < self._capacity:
            slots.append(width_of(slots[-1] + 1, self._capacity))
        parts = {"the cache": sum(map(size, slots[-2:]))}  # while it grows, the one before is there too
        parts |= {site: kept * _size(site, request, config, self.batch, self._capacity) for site, request in self._requests.items()}
        return parts | ({"scores": self.batch * self._room * config.d_vocab * max(item, 4)} if self._scored else {})

    def _check_fits(self) -> None:
        planned = self.planned
        needed = sum(planned.values())
        free, device = free_memory()
        if free is None or needed <= free:
            return
        largest = sorted(planned.items(), key=lambda part: -part[1])[:3]
        raise MemoryPlanError(
            f"This generation needs {nbytes(needed)} beyond the weights ({', '.join(f'{name} {nbytes(size)}' for name, size in largest)}), "
            f"but {nbytes(free)} is free on {device}: take fewer prompts, new tokens or sites."
        )

    @property
    def _until(self) -> int:
        """New tokens that must be run: the last one only where its sites are wanted."""
        return self.limit if self._requests else self.limit - 1

    @property
    def more(self) -> bool:
        """Whether tokens are still to come."""
        if self._state is None:
            return True
        over = self._state.settled if self._requests else self._state.done
        return int(self._state.steps) < self._until and not bool(np.asarray(over).all())

    def advance(self, tokens: int) -> None:
        """Makes that many more tokens, or as many as are left."""
        if self._state is None:
            self._state = self._start()
            tokens -= 1
        while tokens > 0 and self.more:
            tokens -= self._decode(tokens)
        self._look_for_stops()

    def _start(self) -> State:
        lm, config = self.lm, self.lm.config
        planned = np.asarray(self.prompts.lengths + self.limit, np.int32)
        tokens = dataclasses.replace(self.prompts.padded(self._width).arrays_only(), planned=planned)
        edits = tuple(pad_edit(edit, self.columns, self._width, config) for edit in self._moments.prompt)
        return start_program(
            lm.params, tokens, self._sampling, self._stop_ids, self._requests, edits, config=config, capacity=self._capacity,
            slots=self._slots, room=self._room, ring=self._ring, scored=self._scored, capture_dtype=self._capture, **self._types,
        )  # fmt: skip

    def _decode(self, tokens: int) -> int:
        """Runs at most so many tokens, as far as the cache has room; how many."""
        steps = int(self._state.steps)
        slots = width_of(self.columns + steps + 1, self._capacity)
        if slots > self._slots:
            cache = grow_program(self._state.cache, config=self.lm.config, slots=slots, ring=self._ring)
            self._state, self._slots = dataclasses.replace(self._state, cache=cache), slots
        until = min(steps + tokens, self._until, slots - self.columns)
        acts = np.zeros((len(self._moments.new), self._room), bool)
        acts[:, : self.limit] = self._moments.acts
        self._state = decode_program(
            self.lm.params, self._state, self._sampling, self._stop_ids, self._requests, self._moments.new, acts, np.int32(until),
            config=self.lm.config, **self._types,
        )  # fmt: skip
        return max(int(self._state.steps) - steps, 1)

    def _look_for_stops(self) -> None:
        """Ends rows whose text holds a stop string."""
        if not self.stops:
            return
        for row, wording in enumerate(self.wording):
            if self._ends[row] is None:
                self._ends[row] = wording.end(self.new_ids(row), self._checked)
        self._checked = int(self._state.steps) + 1
        over = np.asarray([end is not None for end in self._ends])
        if over.any():
            self._state = dataclasses.replace(self._state, done=np.asarray(self._state.done) | over)

    def _lengths(self) -> np.ndarray:
        lengths = np.minimum(np.asarray(self._state.lengths), self.limit)
        return np.asarray([length if end is None else end for length, end in zip(lengths, self._ends, strict=True)], np.int32)

    def new_ids(self, row: int) -> list[int]:
        """The new tokens of a row so far."""
        begin = self.columns
        return np.asarray(self._state.ids)[row, begin : begin + int(self._lengths()[row])].tolist()

    def result(self) -> Generation:
        """What has been made."""
        state, lengths = self._state, self._lengths()
        count = int(lengths.max())
        there = np.arange(count)[None] < lengths[:, None]
        whole = np.asarray(state.ids)
        ids = np.where(there, whole[:, self.columns : self.columns + count], 0)
        mask = np.concatenate([np.asarray(self.prompts.mask), there], axis=1)
        wide = np.zeros(whole.shape, bool)
        wide[:, : mask.shape[1]] = mask
        by_length = any(setting.scaling and setting.scaling.kind in BY_LENGTH for setting in self.lm.config.rotary)
        planned = np.asarray(self.prompts.lengths + self.limit, np.int32) if by_length else None
        padded = dataclasses.replace(Tokens.from_ids(np.where(wide, whole, 0), wide, bos=self.prompts.bos), planned=planned)
        padded = dataclasses.replace(padded, spans=self.prompts.spans, roles=self.prompts.roles)
        stopping = set(self._stop_ids.tolist())
        ended = tuple(
            "stop string" if end is not None else "stop token" if int(row[length - 1]) in stopping else "length"
            for row, length, end in zip(ids, lengths, self._ends, strict=True)
        )
        rows = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        strings = tuple(tuple(self.lm.to_strings(np.asarray(row))) for row in rows) if self.wording else ()
        log_probabilities = np.where(there, np.asarray(state.log_probabilities)[:, :count], np.nan)
        return Generation(
            ids, lengths, log_probabilities, padded.padded(mask.shape[1]), self._trace(padded, mask.shape[1]),
            None if state.scores is None else state.scores[:, :count],
            tuple(wording.text(row) for wording, row in zip(self.wording, rows, strict=False)), ended, strings, self._how,
        )  # fmt: skip

    def _trace(self, tokens: Tokens, size: int) -> Trace | None:
        if not self._requests:
            return None
        config, captured = self.lm.config, {site: self._state.captured[site] for site in self._requests}
        axes = tuple((site, axes_of(site, self._requests, config)) for site in captured)
        layers = tuple(
            (site, self._requests[site].layers or site_of(site, config).layers(config)) for site in captured if SITES[site].per_layer
        )
        logits = captured["logits"] if self._requests.get("logits") == At() else None
        return Trace(logits, captured, tokens, axes, layers, size, self.lm.tokenizer)

    def _made_with(self, edits: Sequence[Edit], settings: Mapping[str, Any], seed: Any, bias: Any) -> How:
        made = {"weights": fingerprint_of_weights(self.lm.params), "tokens": fingerprint((self.prompts.ids, self.prompts.mask))}
        made["bos"] = self.prompts.bos
        made["edits"] = fingerprint((tuple(edits), [code_of(edit.function) for edit in edits])) if edits else "none"
        made |= {name: str(value) for name, value in settings.items()}
        made |= {"seed": str(seed), "logit_bias": "none" if bias is None else fingerprint(self._sampling.bias)}
        return (*made.items(), ("max_new_tokens", str(self.limit)), ("stop", repr(self.stops)), ("jax", jax.__version__))


def check_model(lm: LanguageModel) -> None:
    """Refuse a model that cannot continue a text.

    Raises:
        InputError: saying why.
    """
    if not lm.config.causal:
        raise InputError("This model is an encoder: its tokens see what follows them, so it cannot generate text; use a causal model.")
    if lm.config.unembed == "none":
        raise InputError("This model has no unembedding, so it gives no next token: load the checkpoint with its language-model head.")


def _check_requests(requests: dict[str, At], config: Any, tokens: Tokens) -> dict[str, At]:
    for site, request in requests.items():
        placed = [name for name in POSITIONAL if name in request.select]
        if placed:
            raise InputError(
                f"sites[{site!r}]: every token is captured here; take a {placed[0]} from the result's trace.at({site!r}, ...)."
            )
    check_requests(requests, config, tokens)
    return requests


def _size(name: str, request: At, config: Any, batch: int, capacity: int) -> int:
    """How many numbers a capture of the whole text holds."""
    site = site_of(name, config)
    shape = list(site.shape(config, batch, capacity))
    if request.layers is not None:
        shape[0] = len(request.layers)
    for selector, index in request.select.items():
        shape[axis_of(selector, site.axes)] = np.shape(index)[-1] if np.ndim(index) else 1
    return int(np.prod(shape))
