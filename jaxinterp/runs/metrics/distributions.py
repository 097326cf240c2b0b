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
        chosen = jnp.take_along_axis(jax.nn.log_softmax(selected, axis=2), ids[:, :, None], axis=2)[:, :, 0]
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
    """KL(reference || run) at a position; see `kl_divergence`."""

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
        return jnp.broadcast_to(jnp.asarray(tokens.columns(self.position)), (tokens.ids.shape[0], 1)), None

    def from_logits(self, selected: Float[Array, "B n k"], tokens: Tokens | None = None) -> Float[Array, "B"]:
        log_q = jax.nn.log_softmax(selected[:, 0], axis=1)
        if self.reference.shape[-1] != log_q.shape[1] or self.reference.shape[0] not in (1, log_q.shape[0]):
            raise InputError(f"kl_divergence: the reference has logits {list(self.reference.shape)}; this run has {list(log_q.shape)}.")
        log_p = jax.nn.log_softmax(at_least_float32(jnp.asarray(self.reference)), axis=1)
        return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=1)


def kl_divergence(reference: Trace | Any, *, position: Any = -1) -> KLDivergence:
    """KL(reference || run) of the next-token distributions at a position: 0 where they agree, in nats.

    Args:
        reference: the run to compare with, or its logits [B V] at the position. At the reference run itself the gradient
            of this metric is zero.
        position: an int, or [B 1].
    """
    logits: Any = reference
    if isinstance(reference, Trace):
        logits = reference.at("logits", position=np.asarray(position).reshape(-1) if np.ndim(position) == 0 else position)[:, 0]
    if np.ndim(logits) != 2:
        raise InputError(f"kl_divergence: expected a Trace or logits [B V]; got shape {list(np.shape(logits))}.")
    return KLDivergence(logits, np.asarray(position))


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
