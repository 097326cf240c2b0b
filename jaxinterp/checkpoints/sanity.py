"""The cheap check of a loaded model: finite logits, and a loss on a known sentence that is better than chance."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import CheckpointError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.selection import at
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import forward

SENTENCE = "The capital of France is Paris, and the sun rises in the east and sets in the west."
MASKED = "the"
"""The word that a masked language model is asked for, where it stands in the sentence."""

BETTER_THAN_CHANCE = 0.9
"""The mean loss must be below this part of log(vocabulary). A broken model is confidently wrong and above it."""


@dataclasses.dataclass(frozen=True)
class Sanity:
    """What the cheap check found.

    Attributes:
        finite: whether every output at every token is a finite number.
        loss: mean -log p of the sentence's tokens, in nats; None without a tokenizer or an unembedding.
        chance: log of the vocabulary's size: the loss of a model that knows nothing.
    """

    finite: bool
    loss: float | None
    chance: float

    @property
    def bound(self) -> float:
        """What the loss must be below."""
        return BETTER_THAN_CHANCE * self.chance

    @property
    def plausible(self) -> bool:
        return self.loss is None or self.loss < self.bound


def sanity(lm: LanguageModel) -> Sanity:
    """Runs the model once on the sentence (on a few ids where there is no tokenizer)."""
    config, chance = lm.config, math.log(lm.config.d_vocab)
    if lm.tokenizer is None:
        ids = np.random.default_rng(0).integers(0, config.d_vocab, (1, min(8, config.n_ctx)))
        return Sanity(bool(np.isfinite(final(lm.params, Tokens.from_ids(ids), config)).all()), None, chance)
    tokens = lm.to_tokens(SENTENCE)
    tokens = tokens.padded(min(tokens.shape[1], config.n_ctx))
    ids = np.asarray(tokens.ids)
    hidden = _masked(lm, ids[0]) if not config.causal else None
    if hidden is not None:
        ids = np.where(hidden, lm.tokenizer.token_id(lm.tokenizer.special_tokens["mask_token"]), ids)
    out = np.asarray(final(lm.params, Tokens.from_ids(ids), config), np.float64)
    finite = bool(np.isfinite(out).all())
    if config.unembed == "none" or not finite or (not config.causal and hidden is None) or ids.shape[1] < 2:
        return Sanity(finite, None, chance)
    top = out.max(-1, keepdims=True)
    logs = out - top - np.log(np.exp(out - top).sum(-1, keepdims=True))
    if hidden is not None:
        return Sanity(finite, float(-logs[0, hidden, np.asarray(tokens.ids)[0, hidden]].mean()), chance)
    return Sanity(finite, float(-np.take_along_axis(logs[:, :-1], ids[:, 1:, None], -1).mean()), chance)


def check_sane(lm: LanguageModel, what: str) -> None:
    """Refuse a model whose outputs are not finite or whose loss is no better than chance.

    Raises:
        CheckpointError: saying which.
    """
    found = sanity(lm)
    if not found.finite:
        raise CheckpointError(f"{what} gives logits that are not finite numbers: its weights are damaged, or too large for their dtype.")
    if not found.plausible:
        raise CheckpointError(
            f"{what} predicts {SENTENCE!r} with a loss of {found.loss:.2f} nats a token, where chance is {found.chance:.2f}: "
            "it is not trained, or weights are damaged or swapped. `jaxinterp verify` says more."
        )


def _masked(lm: LanguageModel, ids: np.ndarray) -> np.ndarray | None:
    """Where the masked word stands, for tokenizers that have a mask token."""
    special: Any = getattr(lm.tokenizer, "special_tokens", {})
    words = {lm.tokenizer.token_id(word) for word in (MASKED, "\u0120" + MASKED)} - {None}
    found = np.isin(ids, list(words))
    return found if "mask_token" in special and found.any() else None


def final(params: Any, tokens: Tokens, config: TransformerConfig) -> Any:
    """Logits [B P V], or the last residual stream [B P D] of a model without an unembedding; compiled."""
    return _final(params, tokens.arrays_only(), config)


@functools.partial(jax.jit, static_argnames="config")
def _final(params: Any, tokens: Tokens, config: TransformerConfig) -> jax.Array:
    trace = forward(params, tokens, config, sites=() if config.unembed != "none" else {"resid_post": at(layer=[config.n_layers - 1])})
    return trace.logits if trace.logits is not None else jnp.asarray(trace["resid_post"])[-1]
