"""score: log-probabilities of given continuations, all their tokens in one pass.

    log P(continuation | prompt) = sum over its tokens t of log P(t | everything before)

Cost: one forward pass of prompt and continuation together, unembedded at the continuation only.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import check_run, read_forward, unembed_at
from jaxinterp.runs.decoding import matmul_precision
from jaxinterp.runs.program import bucket, check_dtype
from jaxinterp.runs.run import pad_edit
from jaxinterp.runs.writing import check_model


@functools.partial(jax.tree_util.register_dataclass, data_fields=["log_probabilities", "ids", "lengths", "tokens"], meta_fields=["strings"])
@dataclasses.dataclass(frozen=True)
class Score:
    """How likely given continuations are.

    Attributes:
        log_probabilities: [B N], of each token of the continuation in nats; NaN after its end.
        ids: [B N] int32, those tokens; 0 after its end.
        lengths: [B] int32, how many tokens it has.
        tokens: prompts and continuations.
        strings: display strings of each row's tokens; () without a tokenizer.
    """

    log_probabilities: Any
    ids: Any
    lengths: Any
    tokens: Tokens
    strings: tuple[tuple[str, ...], ...] = ()

    @property
    def total(self) -> np.ndarray:
        """[B]: the log-probability of each whole continuation."""
        return np.nansum(np.asarray(self.log_probabilities), axis=1)

    @property
    def mean(self) -> np.ndarray:
        """[B]: the mean over a continuation's tokens, for continuations of different lengths."""
        return self.total / np.asarray(self.lengths)

    def __repr__(self) -> str:
        return f"Score({len(self.lengths)} continuations: {', '.join(f'{total:.3f}' for total in self.total[:6])})"


def score(
    lm: LanguageModel,
    prompts: Prompts,
    continuations: str | Sequence[Any],
    *,
    edits: Sequence[Edit] | Edit = (),
    bos: str | bool = "model",
    dtype: Any = None,
    precision: str | None = "highest",
) -> Score:
    """Log-probabilities of continuations of prompts, token by token, in one pass.

    Texts are tokenised together, prompt and continuation as one, since tokens("to ") + tokens("Mary") is not tokens("to Mary");
    a token that reaches into the continuation counts to it.

    Args:
        lm: a causal model.
        prompts: one, for every continuation, or one for each: strings; or ids and `Tokens`, with continuations of ids.
        continuations: one, or one for each prompt: strings with their leading space, or lists of ids.
        edits: interventions, as for `run`; positions count prompt and continuation together.
        bos: as for `run`.
        dtype: as for `run`.
        precision: as for `run`.

    Returns:
        A Score: `.log_probabilities` [B N], `.total` [B], `.mean` [B].

    Raises:
        InputError: counts that do not match, an empty continuation, a text over the context.

    Example:
        >>> ji.score(lm, "The capital of France is", [" Paris", " London"]).total.argmax()
        0
    """
    check_model(lm)
    dtype = check_dtype(dtype)
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    tokens, lengths = joined(lm, prompts, continuations, bos)
    check_run(lm.config, tokens, {}, edits, Rules(), None, None, None)
    size, widest = tokens.ids.shape[1], int(lengths.max())
    padded = bucket(size, lm.config.n_ctx) if all(edit.broadcasts for edit in edits) else size
    room = bucket(widest, size)
    last = np.asarray(tokens.last)
    # the column before each token of the continuation, from its first; entries beyond its end stay at its last
    columns = np.minimum(last[:, None] - lengths[:, None] + np.arange(room)[None], last[:, None] - 1)
    edits = tuple(pad_edit(edit, size, padded, lm.config) for edit in edits)
    found = _program(
        lm.params, tokens.padded(padded).arrays_only(), columns.astype(np.int32), edits, config=lm.config, dtype=dtype, precision=precision
    )
    there = np.arange(widest)[None] < lengths[:, None]
    ids = np.where(there, np.take_along_axis(np.asarray(tokens.ids), columns[:, :widest] + 1, axis=1), 0)
    strings = () if lm.tokenizer is None else tuple(
        tuple(lm.to_strings(row[:length])) for row, length in zip(ids, lengths, strict=True)
    )  # fmt: skip
    return Score(np.where(there, np.asarray(found)[:, :widest], np.nan), ids.astype(np.int32), lengths, tokens, strings)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "precision"))
def _program(
    params: Any, tokens: Tokens, columns: Any, edits: Sequence[Edit], config: Any, dtype: str | None, precision: str | None
) -> Float[Array, "B N"]:
    """The log-probability of the token after each column."""
    read = lambda resid, tap: unembed_at(params, resid, config, tap, jnp.asarray(columns), None)  # noqa: E731
    with matmul_precision(precision):
        logits, _ = read_forward(params, tokens, config, read, edits=edits, dtype=dtype, precision=None)
    targets = jnp.take_along_axis(tokens.ids, columns + 1, axis=1)
    return jnp.take_along_axis(logits, targets[:, :, None], axis=2)[:, :, 0] - jax.nn.logsumexp(logits, axis=2)


def joined(
    lm: LanguageModel, prompts: Any, continuations: Any, bos: str | bool, what: str = "score()"
) -> tuple[Tokens, Int[np.ndarray, "B"]]:
    """Prompts with their continuations, as tokens of the joint text, and how many of those are the continuation's.

    Args:
        lm: the model.
        prompts: strings or ids; one for all continuations, or one each.
        continuations: likewise.
        bos: as for `run`.
        what: the caller's name, for messages.

    Raises:
        InputError: strings beside ids, unequal numbers, something empty, or a token that lies on both sides.
    """
    after = [continuations] if isinstance(continuations, str) else list(continuations)
    if not after:
        raise InputError(f"{what}: there is no continuation; expected a string, a list of strings, or lists of ids.")
    text = isinstance(prompts, str) or (isinstance(prompts, list | tuple) and all(isinstance(prompt, str) for prompt in prompts))
    if text != all(isinstance(each, str) for each in after):
        raise InputError(f"{what}: prompts and continuations must both be strings, or both ids.")
    if text:
        before = [prompts] if isinstance(prompts, str) else list(prompts)
        pairs = _paired(before, after, what)
        _check_texts(pairs, what)
        tokens = lm.to_tokens([prompt + each for prompt, each in pairs], bos=bos)
        return tokens, np.asarray([_count(lm, prompt, each, what) for prompt, each in pairs], np.int32)
    given = lm.to_tokens(prompts)
    rows = [np.asarray(ids)[np.asarray(mask)].tolist() for ids, mask in zip(given.ids, given.mask, strict=True)]
    if all(np.ndim(each) == 0 for each in after):
        after = [after]
    pairs = _paired(rows, [[int(index) for index in np.asarray(each)] for each in after], what)
    if any(not each for _, each in pairs):
        raise InputError(f"{what}: a continuation is empty; expected one or more tokens.")
    width = max(len(prompt) + len(each) for prompt, each in pairs)
    ids, mask = np.zeros((len(pairs), width), np.int32), np.zeros((len(pairs), width), bool)
    for row, (prompt, each) in enumerate(pairs):
        ids[row, : len(prompt) + len(each)], mask[row, : len(prompt) + len(each)] = prompt + each, True
    return Tokens.from_ids(ids, mask, bos=given.bos), np.asarray([len(each) for _, each in pairs], np.int32)


def _paired(before: list[Any], after: list[Any], what: str) -> list[tuple[Any, Any]]:
    if len(before) != len(after) and 1 not in (len(before), len(after)):
        raise InputError(f"{what}: {len(after)} continuations for {len(before)} prompts; expected one for each, or one of either.")
    size = max(len(before), len(after))
    return list(zip(before * (size if len(before) == 1 else 1), after * (size if len(after) == 1 else 1), strict=True))


def _check_texts(pairs: Sequence[tuple[str, str]], what: str) -> None:
    if any(not prompt or not each for prompt, each in pairs):
        raise InputError(f"{what}: a prompt or a continuation is empty; expected one or more tokens of each.")
    if any(prompt.endswith(" ") or each.endswith(" ") for prompt, each in pairs):
        warnings.warn(
            "A prompt or a continuation ends with a space, which most tokenizers join to the next word: put the space before the word.",
            stacklevel=4,
        )


def _count(lm: LanguageModel, prompt: str, each: str, what: str) -> int:
    """Tokens of the joint text that reach into the continuation."""
    offsets = lm._tokenizer.encode_with_offsets(prompt + each)[1]
    count = sum(end > len(prompt) for _, end in offsets)
    if count == len(offsets):
        raise InputError(f"{what}: the first token of {prompt + each!r} reaches into the continuation, so nothing stands before it.")
    return count
