"""generate and stream: new tokens after prompts, with a key/value cache, under edits, with captured sites of every token.

A token costs one pass of one token: its projections, MLP and unembedding, and attention over the tokens before it. What is
generated is what runs of the whole text without a cache would give: each prompt alone or in a batch of any lengths.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxinterp.errors import InputError
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.transformer import Sites
from jaxinterp.runs.generation import Generation
from jaxinterp.runs.writing import Writing

BETWEEN_CHECKS = 16
"""Tokens that are made between two looks for stop strings."""


def generate(
    lm: LanguageModel,
    prompts: Prompts,
    max_new_tokens: int,
    *,
    edits: Sequence[Edit] | Edit = (),
    sites: Sites = (),
    temperature: Any = 0.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    repetition_penalty: Any = 1.0,
    frequency_penalty: Any = 0.0,
    logit_bias: Mapping[Any, float] | Any = None,
    seed: Any = 0,
    stop: str | Sequence[str] = (),
    stop_tokens: Sequence[int | str] | None = None,
    scores: bool = False,
    bos: str | bool = "model",
    dtype: Any = None,
    capture_dtype: Any = None,
    precision: str | None = "highest",
) -> Generation:
    """New tokens after each prompt, greedily or by sampling; compiled once for a bucket of shapes, never for a token.

    Cost: one forward pass of the prompts, and one of a single token a row for each new token. On CPU a model whose weights lie
    a layer at a time decodes faster: `lm = lm.by_layer()`.

    Args:
        lm: a causal model.
        prompts: a string, a list of strings, `Tokens` (of `lm.chat`, for instance), or ids [B P]; of any lengths.
        max_new_tokens: tokens after which a text ends.
        edits: interventions, in the order in which they act; an edit's `when` says on which tokens: "all", "prompt", "new", or
            a set of steps (0 is the first new token). Positions count a text's tokens from its beginning, new ones after
            the prompt's; negative ones count from the end of the prompt. An edit that acts on new tokens may not hold a
            value for each position or mix positions.
        sites: what to capture of every token, as for `run`; parts by position are taken from the trace. "logits" are the
            logits of every token.
        temperature: 0 takes the likeliest token, 1 samples the model's distribution.
        top_k: only the k likeliest tokens; 0 is no limit.
        top_p: only the likeliest tokens that together reach this probability.
        min_p: only tokens of at least this part of the likeliest one's probability.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that the text holds.
        frequency_penalty: is subtracted from a token's logit for each time that the new text holds it.
        logit_bias: {token or id: what is added to its logit}, or an array [V]; -inf forbids a token.
        seed: a number: row b then draws from jax.random.key(seed) folded by (b, step); or one for each prompt: each row then
            draws as if it were alone. The same draws come whatever else is in the batch. Settings from temperature to
            seed are numbers, or [B].
        stop: strings that end a text; it is cut before them.
        stop_tokens: ids or tokens that end a text; None is the tokenizer's end-of-sequence token, () none.
        scores: whether to keep what each token was chosen by, [B N V].
        bos: as for `run`.
        dtype: as for `run`.
        capture_dtype: as for `run`.
        precision: as for `run`.

    Returns:
        A Generation: `.text`, `.ids` [B N], `.log_probabilities` [B N], `.tokens` (prompts and new tokens), `.trace`, `.scores`.

    Raises:
        InputError: a model that is not causal or has no unembedding, prompts and new tokens over the context, settings out of
            range, edits or sites that do not fit.
        MemoryPlanError: cache and captured sites cannot fit in memory.

    Example:
        >>> ji.generate(lm, "The capital of France is", 2).text[0]
        ' Paris.'
    """
    writing = Writing(
        lm, prompts, max_new_tokens, edits=edits, sites=sites, logit_bias=logit_bias, seed=seed, stop=stop, stop_tokens=stop_tokens,
        scores=scores, bos=bos, dtype=dtype, capture_dtype=capture_dtype, precision=precision, temperature=temperature, top_k=top_k,
        top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, frequency_penalty=frequency_penalty,
    )  # fmt: skip
    while writing.more:
        writing.advance(BETWEEN_CHECKS if writing.stops else max_new_tokens)
    return writing.result()


def stream(lm: LanguageModel, prompt: Prompts, max_new_tokens: int, **settings: Any) -> "TextStream":
    """The new text of one prompt in pieces, as its tokens come; `result()` is then what `generate` returns.

    A piece holds whole characters, and nothing that may turn out to begin a stop string.

    Args:
        lm: a causal model with a tokenizer.
        prompt: one prompt, as for `generate`.
        max_new_tokens: as for `generate`.
        **settings: as for `generate`.

    Raises:
        InputError: as `generate`; also several prompts, or a model without a tokenizer.

    Example:
        >>> "".join(ji.stream(lm, "The capital of France is", 2))
        ' Paris.'
    """
    writing = Writing(lm, prompt, max_new_tokens, **settings)
    if writing.batch != 1:
        raise InputError(f"stream() writes one text; got {writing.batch} prompts. Use generate() for a batch.")
    if lm.tokenizer is None:
        raise InputError("This model has no tokenizer, so there is no text to stream: use generate() for ids.")
    return TextStream(writing)


class TextStream(Iterator[str]):
    """Pieces of a text that is being written; see `stream`."""

    def __init__(self, writing: Writing) -> None:
        self._writing, self._given = writing, 0

    def __next__(self) -> str:
        while self._writing.more:
            self._writing.advance(1)
            words, ids = self._writing.wording[0], self._writing.new_ids(0)
            whole = words.certain(ids) if self._writing.more else words.text(ids)
            piece, self._given = whole[self._given :], max(self._given, len(whole))
            if piece:
                return piece
        raise StopIteration

    def result(self) -> Generation:
        """What has been written, as `generate` gives it; what is left of the text is written first."""
        while self._writing.more:
            self._writing.advance(BETWEEN_CHECKS)
        return self._writing.result()
