"""Metrics of whole distributions and texts: cross-entropy, KL divergence, the probability of a continuation."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.norm import at_least_float32
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.runs.metrics.base import Metric, register


@register(data_fields=["targets"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class CrossEntropy(Metric):
    """The mean negative log-likelihood of the next token over a prompt's positions; see `cross_entropy`."""

    targets: Any

    def reads(self, tokens: Tokens, config: TransformerConfig | None = None) -> tuple[Any, Any]:
        return jnp.broadcast_to(jnp.arange(tokens.ids.shape[1])[None], tokens.ids.shape), None

    def from_logits(self, selected: Float[Array, "B n k"], tokens: Tokens | None = None) -> Float[Array, "B"]:
        if tokens is None:
            raise InputError("cross_entropy needs the tokens that the logits belong to.")
        ids, mask = jnp.asarray(tokens.ids if self.targets is None else self.targets), jnp.asarray(tokens.mask)
        if self.targets is None:
            ids, real = ids[:, 1:], mask[:, 1:] & mask[:, :-1]
            selected = selected[:, :-1]
        else:
            ids, real = _as_wide(ids, mask.shape[1]), mask
        # not of log_softmax, whose columns would all be written down to pick one
        chosen = jnp.take_along_axis(selected, ids[:, :, None], axis=2)[:, :, 0] - jax.nn.logsumexp(selected, axis=2)
        return -jnp.where(real, chosen, 0).sum(axis=1) / jnp.maximum(real.sum(axis=1), 1)


def _as_wide(ids: Array, width: int) -> Array:
    return jnp.pad(ids, ((0, 0), (0, width - ids.shape[1])))


def cross_entropy(targets: Any = None) -> CrossEntropy:
    """The mean negative log-likelihood of a prompt's own next tokens, in nats a token; 0 for a prompt of one token.

    Args:
        targets: [B P] ids to predict at each position instead of the next token.
    """
    return CrossEntropy(targets)


SAME_RUN = 1e-6
"""KL divergence in nats below which two float32 runs are one run."""


@register(data_fields=["reference", "position"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class KLDivergence(Metric):
    """The mean of KL(reference || run) over positions; see `kl_divergence`.

    Attributes:
        reference: logits [B V] at one position, [B n V] at several, [B P V] at all.
        position: int, [n] or [B n]; None is every real position.
    """

    reference: Any
    position: Any

    def check_slope(self, values: np.ndarray | None) -> None:
        same = [] if values is None else np.flatnonzero(np.asarray(values) < SAME_RUN)
        if len(same):
            raise InputError(
                f"kl_divergence to the run itself (prompt {same[0]}) is at its minimum, where its gradient is zero and attributions are "
                "noise: take the gradient at another run (the corrupt prompt, an edited run), or use another metric."
            )

    def reads(self, tokens: Tokens, config: TransformerConfig | None = None) -> tuple[Any, Any]:
        if self.position is None:
            return jnp.broadcast_to(jnp.arange(tokens.ids.shape[1])[None], tokens.ids.shape), None
        columns = jnp.asarray(tokens.columns(self.position))
        return jnp.broadcast_to(columns, (tokens.ids.shape[0], columns.shape[1])), None

    def from_logits(self, selected: Float[Array, "B n k"], tokens: Tokens | None = None) -> Float[Array, "B"]:
        batch, count, vocabulary = selected.shape
        reference = jnp.asarray(self.reference)
        if reference.shape[-1] != vocabulary or reference.shape[0] not in (1, batch):
            raise InputError(f"kl_divergence: the reference has logits {list(reference.shape)}; this run has {[batch, vocabulary]}.")
        if self.position is not None:
            reference = reference.reshape(reference.shape[0], -1, vocabulary)
            if reference.shape[1] != count:
                raise InputError(f"kl_divergence: the reference has logits of {reference.shape[1]} positions; {count} are compared.")
            return divergence(reference, selected).mean(axis=1)
        if tokens is None:
            raise InputError("kl_divergence over all positions needs the tokens that the logits belong to.")
        real = jnp.asarray(tokens.mask)
        each = divergence(_with_columns(reference, count), selected)
        return jnp.where(real, each, 0).sum(axis=1) / real.sum(axis=1)


def divergence(reference: Float[Array, "*axes V"], logits: Float[Array, "*more V"]) -> Float[Array, "*out"]:
    """KL(reference || run) of the distributions of two arrays of logits, in nats; leading axes of size 1 broadcast."""
    log_p, log_q = (jax.nn.log_softmax(at_least_float32(jnp.asarray(given)), axis=-1) for given in (reference, logits))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def _with_columns(reference: Array, width: int) -> Array:
    """Logits [B P V] of the same prompts with as many columns of padding as the run has."""
    return jnp.pad(reference, ((0, 0), (0, max(width - reference.shape[1], 0)), (0, 0)))[:, :width]


def kl_divergence(reference: Trace | Any, *, position: Any = -1) -> KLDivergence:
    """KL(reference || run) of the next-token distributions at a position, or its mean over several: 0 where they agree, in nats.

    Args:
        reference: the run to compare with, or its logits: [B V] at one position, [B n V] at several, [B P V] at all. At the
            reference run itself the gradient of this metric is zero.
        position: an int, [n] or [B n]; "all" is every real token of each prompt. Then both runs are of the same prompts, and
            the metric reads the whole vocabulary at each of their tokens.
    """
    logits: Any = reference
    if isinstance(position, str):
        if position != "all":
            raise InputError(f"kl_divergence: position is {position!r}; expected an int, [n], [B n] or 'all'.")
        logits = reference.padded_logits if isinstance(reference, Trace) else reference
        if np.ndim(logits) != 3:
            raise InputError(f"kl_divergence: at all positions, expected a Trace or logits [B P V]; got shape {list(np.shape(logits))}.")
        return KLDivergence(logits, None)
    position = np.asarray(position)
    if isinstance(reference, Trace):
        logits = reference.at("logits", position=position)
    if np.ndim(logits) != 2 and (np.ndim(logits) != 3 or position.ndim == 0):
        raise InputError(f"kl_divergence: expected a Trace or logits [B V]; got shape {list(np.shape(logits))}.")
    return KLDivergence(logits, position)


@register(data_fields=["counts"], meta_fields=["texts", "width"])
@dataclasses.dataclass(frozen=True)
class ContinuationLogProbability(Metric):
    """The log-probability of the text that ends each prompt; see `continuation_log_probability`."""

    counts: Any
    texts: tuple[str, ...]
    width: int

    @property
    def bound(self) -> bool:
        return self.counts is not None

    @property
    def _steps(self) -> np.ndarray:
        """[n]: how far from the end the continuation's tokens are, the longest continuation's first one first."""
        return np.arange(self.width, 0, -1)

    def bind(self, lm: Any, tokens: Tokens | None = None) -> Any:
        if tokens is None:
            raise InputError("continuation_log_probability must be bound with the tokens: metric.bind(lm, tokens).")
        tokenizer = lm.tokenizer if isinstance(lm, LanguageModel) else lm
        texts = self.texts * (tokens.ids.shape[0] if len(self.texts) == 1 else 1)
        if len(texts) != tokens.ids.shape[0]:
            raise InputError(f"continuation_log_probability: {len(texts)} texts for {tokens.ids.shape[0]} prompts.")
        counts = [
            _ending(tokenizer, np.asarray(ids)[np.asarray(mask)].tolist(), text)
            for ids, mask, text in zip(tokens.ids, tokens.mask, texts, strict=True)
        ]
        return dataclasses.replace(self, counts=np.asarray(counts, np.int32), texts=(), width=max(counts))

    def reads(self, tokens: Tokens, config: TransformerConfig | None = None) -> tuple[Any, Any]:
        return jnp.asarray(tokens.columns(-1 - self._steps)), None

    def from_logits(self, selected: Float[Array, "B n k"], tokens: Tokens | None = None) -> Float[Array, "B"]:
        if tokens is None:
            raise InputError("continuation_log_probability needs the tokens that the logits belong to.")
        targets = jnp.take_along_axis(jnp.asarray(tokens.ids), jnp.asarray(tokens.columns(-self._steps)), axis=1)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(selected, axis=2), targets[:, :, None], axis=2)[:, :, 0]
        return jnp.where(self._steps[None] <= jnp.asarray(self.counts)[:, None], chosen, 0).sum(axis=1)


def _ending(tokenizer: Any, ids: list[int], text: str) -> int:
    """How many of the last tokens are `text`."""
    for n in range(1, len(ids)):
        tail = tokenizer.decode(ids[-n:])
        if tail == text:
            return n
        if len(tail) > len(text) + 8:
            break
    raise InputError(
        f"continuation_log_probability: the prompt {tokenizer.decode(ids)!r} does not end with {text!r} on a token boundary, "
        "after at least one token. Pass prompts that already hold the continuation; tokens are those of the joint text."
    )


def continuation_log_probability(texts: str | Sequence[str]) -> ContinuationLogProbability:
    """The log-probability of the text that ends each prompt, summed over its tokens, in nats.

    The prompts hold the continuation already, so it is scored on the tokens of the joint text.

    Args:
        texts: the ending of each prompt, or one for all.
    """
    texts = (texts,) if isinstance(texts, str) else tuple(texts)
    if any(not text for text in texts):
        raise InputError("continuation_log_probability: a continuation is empty.")
    if any(text != text.rstrip(" ") for text in texts):
        warnings.warn(
            "A continuation ends with a space, which most tokenizers join to the next word: its score is that of an unusual token.",
            stacklevel=2,
        )
    return ContinuationLogProbability(None, texts, 0)
