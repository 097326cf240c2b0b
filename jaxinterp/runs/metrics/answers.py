"""Metrics of one answer, or of an answer against another: logit difference, probabilities, rank."""

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.metrics.base import Answer, Metric, answer_ids, checked, is_text, register, resolve

SATURATED = 1e-3
"""A probability this near 0 or 1 is warned of where its gradient is taken."""


@register(data_fields=["answer", "other", "position"], meta_fields=["reduce"])
@dataclasses.dataclass(frozen=True)
class TokenMetric(Metric):
    """A metric of one answer, or of an answer against another, at one position.

    Attributes:
        answer: string(s) or ids.
        other: string(s) or ids, or None.
        position: int or [B 1].
        reduce: (logits [B n k or V], column [B] of the answer or None) -> [B], see the factories below.
    """

    answer: Any
    other: Any
    position: Any
    reduce: str

    @property
    def bound(self) -> bool:
        return not (is_text(self.answer) or is_text(self.other))

    def bind(self, lm: Any, tokens: Tokens | None = None) -> Any:
        return dataclasses.replace(self, answer=resolve(self.answer, lm), other=resolve(self.other, lm))

    def check_slope(self, values: np.ndarray | None) -> None:
        if self.reduce == "rank":
            raise InputError("rank counts tokens, so its gradient is zero everywhere: use logit_difference or log_probability.")
        if self.reduce == "probability" and values is not None:
            flat = [row for row, value in enumerate(np.asarray(values)) if not SATURATED < value < 1 - SATURATED]
            if flat:
                shown = ", ".join(f"{values[row]:.2g} (prompt {row})" for row in flat[:3])
                warnings.warn(
                    f"A probability of {shown} is saturated: its gradient is near zero, whatever causes it. Use log_probability or "
                    "logit_difference.",
                    stacklevel=3,
                )

    def reads(self, tokens: Tokens, config: TransformerConfig | None = None) -> tuple[Any, Any]:
        batch = tokens.ids.shape[0]
        columns = jnp.broadcast_to(jnp.asarray(tokens.columns(self.position)), (batch, 1))
        if self.reduce != "difference":
            return columns, None
        return columns, jnp.stack(
            [answer_ids(self.answer, batch, "logit_difference"), answer_ids(self.other, batch, "logit_difference")], axis=1
        )

    def from_logits(self, selected: Float[Array, "B n k"], tokens: Tokens | None = None) -> Float[Array, "B"]:
        logits = selected[:, 0]
        if self.reduce == "difference":
            return logits[:, 0] - logits[:, 1]
        answer = answer_ids(self.answer, logits.shape[0], self.reduce)[:, None]
        if self.reduce == "rank":
            return (logits > jnp.take_along_axis(logits, answer, axis=1)).sum(axis=1).astype(logits.dtype)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=1), answer, axis=1)[:, 0]
        return jnp.exp(chosen) if self.reduce == "probability" else chosen


def logit_difference(answer: Answer, other: Answer, *, position: Any = -1) -> TokenMetric:
    """logit(answer) - logit(other) at a position, in nats.

    Args:
        answer: a string of exactly one token (mind the leading space), one for each prompt, or ids.
        other: likewise.
        position: an int, or [B 1]; the default is each prompt's last real token.
    """
    return TokenMetric(checked(answer), checked(other), np.asarray(position), "difference")


def log_probability(answer: Answer, *, position: Any = -1) -> TokenMetric:
    """The log-probability of a token, at most 0, in nats; arguments as for `logit_difference`."""
    return TokenMetric(checked(answer), None, np.asarray(position), "log_probability")


def probability(answer: Answer, *, position: Any = -1) -> TokenMetric:
    """The probability of a token, from 0 to 1; its gradient vanishes as it saturates, where `log_probability` does not."""
    return TokenMetric(checked(answer), None, np.asarray(position), "probability")


def rank(answer: Answer, *, position: Any = -1) -> TokenMetric:
    """How many tokens have a larger logit: 0 is the top prediction. Has no gradient."""
    return TokenMetric(checked(answer), None, np.asarray(position), "rank")
