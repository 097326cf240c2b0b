"""What a metric is: the contract that engines rely on, reading a trace, and resolving answers."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, single_token
from jaxinterp.model.norm import at_least_float32
from jaxinterp.model.selection import At
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace

Answer = str | Sequence[str] | int | Any
register = functools.partial(functools.partial, jax.tree_util.register_dataclass)


@runtime_checkable
class MetricLike(Protocol):
    """What engines ask of a metric.

    `reads` says which positions and columns; `from_logits` makes [B] from logits [B n k] at those; `sites` are captures
    that it needs besides. `tokens` is passed for metrics whose targets are the prompt's own tokens.
    """

    @property
    def sites(self) -> Mapping[str, At]: ...
    def reads(self, tokens: Tokens, config: TransformerConfig | None = None) -> tuple[Any, Any]: ...
    def from_logits(self, selected: Float[Array, "B n k"], tokens: Tokens | None = None) -> Float[Array, "B"]: ...
    def bind(self, lm: Any, tokens: Tokens | None = None) -> Any: ...
    def check_slope(self, values: np.ndarray | None) -> None: ...
    def __call__(self, trace: Trace) -> Float[Array, "B"]: ...


class Metric:
    """The common part: reading a trace, and binding strings. Subclasses are frozen dataclasses registered as pytrees."""

    @property
    def sites(self) -> Mapping[str, At]:
        """Captures that the metric needs besides logits."""
        return {}

    @property
    def bound(self) -> bool:
        """Whether every answer is an array."""
        return True

    def reads(self, tokens: Tokens, config: TransformerConfig | None = None) -> tuple[Any, Any]:
        """The columns [B n] of the tokens whose logits are read, and the vocabulary columns [B k], or None for all."""
        raise TypeError(f"{type(self).__name__} does not say what it reads.")

    def from_logits(self, selected: Float[Array, "B n k"], tokens: Tokens | None = None) -> Float[Array, "B"]:
        """The metric [B] from the logits at what `reads` names."""
        raise TypeError(f"{type(self).__name__} is not read from logits.")

    def bind(self, lm: Any, tokens: Tokens | None = None) -> Any:
        """The same metric with strings resolved by a model's (or a bare) tokenizer.

        Raises:
            InputError: a string is not a single token.
        """
        return self

    def check_slope(self, values: np.ndarray | None) -> None:
        """Refuse a metric whose gradient says nothing: before a run (None), and at the values [B] that a run gave.

        Raises:
            InputError: saying why, and what to use instead.
        """

    def __call__(self, trace: Trace) -> Float[Array, "B"]:
        """The metric of each prompt of a run.

        Raises:
            InputError: the run has no logits, or string answers could not be bound.
        """
        metric = self
        if not metric.bound:
            if trace.tokenizer is None:
                raise InputError(
                    "This metric's answers are strings: bind them first with metric.bind(lm). "
                    "A trace of ji.forward has no tokenizer to do it with."
                )
            metric = metric.bind(trace.tokenizer, trace.tokens)
        return evaluate(metric, bare(trace))

    def _read(self, trace: Trace) -> Float[Array, "B"]:
        if trace.padded_logits is None:
            raise InputError(
                "This run has no logits to read a metric from: it stopped before the unembedding (stop=), or the model has none."
            )
        tokens = trace.padded_tokens
        columns, vocabulary = self.reads(tokens)
        return self.from_logits(select_logits(trace.padded_logits, columns, vocabulary), tokens)


def bare(trace: Trace) -> Trace:
    """The arrays of a trace without its tokenizer and trimming, so that nearby prompts share a program."""
    return Trace(trace.padded_logits, trace.padded, trace.padded_tokens.arrays_only(), trace.axes, trace.layers)


@jax.jit
def evaluate(metric: Any, trace: Trace) -> Array:
    """The metric of a trace, compiled: answers and positions are arguments."""
    return metric._read(trace)


def select_logits(logits: Float[Array, "B P V"], columns: Any, vocabulary: Any) -> Float[Array, "B n k"]:
    """Logits at token columns [B n] and vocabulary columns [B k] (None is all), in float32 at least."""
    batch = jnp.arange(logits.shape[0])[:, None]
    rows = at_least_float32(logits[batch, jnp.broadcast_to(columns, (logits.shape[0], columns.shape[1]))])
    if vocabulary is None:
        return rows
    return jnp.take_along_axis(rows, jnp.broadcast_to(vocabulary, (rows.shape[0], vocabulary.shape[-1]))[:, None, :], axis=2)


def is_text(answer: Any) -> bool:
    """Whether an answer is a string, or one for each prompt."""
    return isinstance(answer, str) or (isinstance(answer, list | tuple) and any(isinstance(item, str) for item in answer))


def resolve(answer: Any, lm: Any) -> Any:
    """Ids from strings (one for all prompts, or one each); ids are returned as they are."""
    if not is_text(answer):
        return answer
    tokenizer = lm.tokenizer if isinstance(lm, LanguageModel) else lm
    if tokenizer is None:
        raise InputError("This model has no tokenizer, so answers must be token ids.")
    if isinstance(answer, str):
        return np.asarray(single_token(tokenizer, answer), np.int32)
    return np.asarray([single_token(tokenizer, item) for item in answer], np.int32)


def answer_ids(answer: Any, batch: int, name: str) -> Array:
    """An answer as [B] ids."""
    ids = jnp.asarray(answer)
    if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.ndim > 1 or (ids.ndim == 1 and ids.shape[0] != batch):
        raise InputError(
            f"{name}: answers must be one token id, or one for each of the {batch} prompts; got {ids.dtype} of shape {list(ids.shape)}."
        )
    return jnp.broadcast_to(ids, (batch,))


def checked(answer: Answer) -> Any:
    """An answer as strings or as an array of ids."""
    return answer if is_text(answer) or isinstance(answer, jax.Array) else np.asarray(answer)
