"""Choosing the next token: penalties, temperature and filters on the logits, then the likeliest token or a draw.

Everything is data, one number a row: greedy decoding and any sampling share one compiled program. In this order:

    bias          logit += bias
    repetition    of tokens in the prompt or the new text: logit / r where positive, logit * r where negative
                  (Keskar et al. 2019, arXiv:1909.05858)
    frequency     logit -= f * (how often the token stands in the new text)
    temperature   logit / T; T = 0 takes the likeliest token
    top-k         the k largest logits stay (ties with the last of them too)
    top-p         the fewest likeliest tokens whose probability reaches p stay (Holtzman et al. 2020, arXiv:1904.09751)
    min-p         tokens with at least min_p times the probability of the likeliest stay (Nguyen et al. 2024, arXiv:2407.01082)

A draw inverts the distribution function over the vocabulary at one uniform number, that of `uniforms`: it depends on the
seed, the row and the step, and on nothing else in the batch.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxinterp.errors import InputError
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.norm import at_least_float32

# name: (lowest, whether it may be reached, highest, what is expected)
RANGES = {
    "temperature": (0.0, True, math.inf, "0 (the likeliest token) or more"),
    "top_k": (0, True, math.inf, "0 (no limit) or more"),
    "top_p": (0.0, False, 1.0, "above 0 and at most 1"),
    "min_p": (0.0, True, 1.0, "from 0 to 1"),
    "repetition_penalty": (0.0, False, math.inf, "above 0 (1 changes nothing)"),
    "frequency_penalty": (-math.inf, False, math.inf, "a finite number (0 changes nothing)"),
}

DEFAULTS: dict[str, Any] = {
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0,
}  # fmt: skip


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "bias", "seed", "row"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How each row's next token is chosen.

    Attributes:
        temperature, top_p, min_p, repetition_penalty, frequency_penalty: [B] float32.
        top_k: [B] int32; 0 is no limit.
        bias: [V] float32, added to the logits, or None.
        seed: [B] uint32.
        row: [B] uint32, the row's number in random keys.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    repetition_penalty: Any
    frequency_penalty: Any
    bias: Any
    seed: Any
    row: Any


def make_sampling(lm: LanguageModel, batch: int, seed: Any, bias: Mapping[Any, float] | Any, **settings: Any) -> Sampling:
    """Settings for `batch` rows, each a number or one for each row.

    Raises:
        InputError: a setting out of its range or for another number of rows; a bias of what is not one token.
    """
    rows = {name: _per_row(name, settings[name], batch) for name in RANGES}
    for name, values in rows.items():
        low, reached, high, expected = RANGES[name]
        good = np.isfinite(values) & ((values >= low) if reached else (values > low)) & (values <= high)
        if not good.all():
            raise InputError(f"{name} is {values[~good][0]:g}; expected {expected}.")
    if (rows["top_k"] != np.floor(rows["top_k"])).any():
        raise InputError(f"top_k is {settings['top_k']}; expected a whole number.")
    seeds = _per_row("seed", seed, batch)
    if (seeds < 0).any() or (seeds != np.floor(seeds)).any():
        raise InputError(f"seed is {seed}; expected whole numbers from 0.")
    number = np.arange(batch) if np.ndim(seed) == 0 else np.zeros(batch)
    made: dict[str, Any] = {name: values.astype(np.int32 if name == "top_k" else np.float32) for name, values in rows.items()}
    made["top_k"] = np.minimum(made["top_k"], lm.config.d_vocab)
    return Sampling(**made, bias=_bias(lm, bias), seed=seeds.astype(np.uint32), row=number.astype(np.uint32))


def _per_row(name: str, value: Any, batch: int) -> np.ndarray:
    values = np.asarray(value, np.float64)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != batch):
        raise InputError(f"{name} has shape {list(values.shape)}; expected a number, or one for each of {batch} prompts.")
    return np.broadcast_to(values, (batch,))


def _bias(lm: LanguageModel, bias: Any) -> np.ndarray | None:
    """[V] from {token or id: value} or an array [V]."""
    size = lm.config.d_vocab
    if bias is None or (isinstance(bias, Mapping) and not bias):
        return None
    if isinstance(bias, Mapping):
        out = np.zeros(size, np.float32)
        for token, value in bias.items():
            index = lm.to_id(token) if isinstance(token, str) else int(token)
            if not 0 <= index < size:
                raise InputError(f"logit_bias: token id {index} is out of range; this model's vocabulary has ids 0 to {size - 1}.")
            out[index] = value
        bias = out
    bias = np.asarray(bias, np.float32)
    if bias.shape != (size,) or np.isnan(bias).any():
        raise InputError(f"logit_bias: expected {{token: value}} or an array [V] = [{size}] of numbers; got shape {list(bias.shape)}.")
    return bias


def choose(
    logits: Float[Array, "B V"], sampling: Sampling, seen: Bool[Array, "B V"], counts: Int[Array, "B V"], step: Int[Array, ""]
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B V"]]:
    """The next token of each row, its log-probability under the model itself, and the scores that it was chosen by.

    Args:
        logits: of the model.
        sampling: settings.
        seen: tokens of the prompt.
        counts: how often each token stands in the new text.
        step: number of the new token.
    """
    logits = at_least_float32(logits)
    scores = penalised(logits, sampling, seen, counts)
    greedy = sampling.temperature == 0

    def sample(scores: Array) -> tuple[Array, Array]:
        warm = scores / jnp.where(greedy, 1, sampling.temperature).astype(scores.dtype)[:, None]
        kept = jnp.where(greedy[:, None], scores, filtered(warm, sampling))
        return jnp.where(greedy, scores.argmax(axis=1), draw(kept, uniforms(sampling, step))).astype(jnp.int32), kept

    chosen, scores = jax.lax.cond(greedy.all(), lambda scores: (scores.argmax(axis=1).astype(jnp.int32), scores), sample, scores)
    own = jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=1)
    return chosen, own, scores


def penalised(logits: Float[Array, "B V"], sampling: Sampling, seen: Bool[Array, "B V"], counts: Int[Array, "B V"]) -> Float[Array, "B V"]:
    """Logits with bias and penalties."""
    if sampling.bias is not None:
        logits = logits + jnp.asarray(sampling.bias, logits.dtype)[None]
    factor, slope = (jnp.asarray(value, logits.dtype)[:, None] for value in (sampling.repetition_penalty, sampling.frequency_penalty))

    def penalise(logits: Array) -> Array:
        repeated = jnp.where(logits > 0, logits / factor, logits * factor)
        return jnp.where(seen | (counts > 0), repeated, logits) - slope * counts.astype(logits.dtype)

    return jax.lax.cond((factor != 1).any() | (slope != 0).any(), penalise, lambda logits: logits, logits)


def filtered(scores: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Scores with -inf where top-k, top-p or min-p leave a token out."""
    order = _order(scores)
    every = lambda kept: kept  # noqa: E731
    kept = jnp.ones(scores.shape, bool)

    def of_top_k(kept: Array) -> Array:
        least = _least(order, jnp.ones(scores.shape, jnp.float32), jnp.asarray(sampling.top_k, jnp.float32))
        return kept & ((order >= least[:, None]) | (sampling.top_k == 0)[:, None])

    def of_top_p(kept: Array) -> Array:
        mass = jnp.where(kept, jnp.exp(scores - scores.max(axis=1, keepdims=True)), 0).astype(jnp.float32)
        least = _least(order, mass, sampling.top_p * mass.sum(axis=1))
        return kept & ((order >= least[:, None]) | (sampling.top_p >= 1)[:, None])

    kept = jax.lax.cond((sampling.top_k > 0).any(), of_top_k, every, kept)
    kept = jax.lax.cond((sampling.top_p < 1).any(), of_top_p, every, kept)
    share = jnp.asarray(sampling.min_p, scores.dtype)[:, None]
    least = jnp.where(share > 0, scores.max(axis=1, keepdims=True) + jnp.log(jnp.where(share > 0, share, 1)), -jnp.inf)
    return jnp.where(kept & (scores >= least), scores, -jnp.inf)


def _order(scores: Float[Array, "B V"]) -> UInt[Array, "B V"]:
    """Whole numbers in the order of the scores (in float32)."""
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _least(order: UInt[Array, "B V"], weights: Float[Array, "B V"], wanted: Float[Array, "B"]) -> UInt[Array, "B"]:
    """The largest number such that the weights of what is not below it reach what is wanted: found bit by bit, without sorting."""

    def with_bit(number: Array, found: Array) -> Array:
        tried = found | (jnp.uint32(1) << (31 - number).astype(jnp.uint32))
        reached = jnp.where(order >= tried[:, None], weights, 0).sum(axis=1) >= wanted
        return jnp.where(reached, tried, found)

    return jax.lax.fori_loop(0, 32, with_bit, jnp.zeros(order.shape[0], jnp.uint32))


def uniforms(sampling: Sampling, step: Int[Array, ""]) -> Float[Array, "B"]:
    """[B]: one number in [0, 1) for each row, from jax.random.key(seed) folded by (row, step)."""

    def one(seed: Array, row: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), step)
        return jax.random.uniform(key, dtype=jnp.float32)

    return jax.vmap(one)(jnp.asarray(sampling.seed), jnp.asarray(sampling.row))


def draw(scores: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """The first token at which the distribution function of softmax(scores) exceeds a uniform number."""
    mass = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    below = jnp.cumsum(mass, axis=1)
    total = below[:, -1:]
    reached = (mass > 0) & (below > uniform.astype(scores.dtype)[:, None] * total)
    # where rounding puts the number at the total itself, no token exceeds it
    return jnp.where(reached.any(axis=1), reached.argmax(axis=1), mass.argmax(axis=1)).astype(jnp.int32)


def stop_ids_of(lm: LanguageModel, stop_tokens: Sequence[int | str] | None) -> np.ndarray:
    """Ids that end a text, filled up with -1 to a multiple of 8; None takes the tokenizer's end-of-sequence token, where there is one.

    Raises:
        InputError: a name that is not one token, or an id out of range.
    """
    if stop_tokens is None:
        own = lm.tokenizer.eos_id if lm.tokenizer is not None else None
        return _filled_up([] if own is None else [own])
    ids = [lm.to_id(token) if isinstance(token, str) else int(token) for token in stop_tokens]
    for index in ids:
        if not 0 <= index < lm.config.d_vocab:
            raise InputError(f"stop_tokens: id {index} is out of range; this model's vocabulary has ids 0 to {lm.config.d_vocab - 1}.")
    return _filled_up(ids)


def _filled_up(ids: list[int]) -> np.ndarray:
    return np.asarray([*ids, *[-1] * (-len(ids) % 8 or (8 if not ids else 0))], np.int32)
