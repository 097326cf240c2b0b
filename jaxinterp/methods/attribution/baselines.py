"""Baselines: the embeddings that stand for "nothing there", which an attribution holds a prompt against.

A score is a difference from the baseline, so it answers "why this and not that". Zero, mean and pad vectors are far from
every text that a model was trained on; another prompt (the corrupt one of a pair) is not, and asks a sharper question.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.points import STATIC, Case, embeddings
from jaxinterp.methods.pairs import check_pairs
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.tokens import Tokens, check_positions, position_mask
from jaxinterp.model.transformer import Params, forward
from jaxinterp.runs.run import pad_columns

NAMED = ("zero", "mean", "pad")


def baseline_of(case: Case, baseline: Any, keep: Any = None) -> tuple[Float[Array, "B P D"], str]:
    """A baseline's embeddings, padded as the prompts are, and its name.

    Args:
        case: what is explained.
        baseline: "zero"; "mean", of all tokens' embeddings; "pad", the padding token's embedding; the id of a token; other
            prompts, each as long as the one that it stands for; or embeddings [D], [P D] or [B P D].
        keep: positions that stay what they are, such as 0; their scores are zero. None keeps none.

    Raises:
        InputError: a baseline that does not fit the prompts.
    """
    value, name = _value(case, baseline)
    value = jnp.broadcast_to(value, case.x.shape).astype(case.x.dtype)
    if keep is None:
        return value, name
    check_positions(keep, case.tokens, "keep")
    kept = position_mask(keep, jnp.asarray(case.batch.mask), jnp.asarray(case.batch.positions))
    return jnp.where(kept[..., None], case.x, value), f"{name}, positions {np.asarray(keep).tolist()} kept"


def _value(case: Case, baseline: Any) -> tuple[Any, str]:
    lm, config = case.lm, case.lm.config
    if isinstance(baseline, str) and baseline == "zero":
        return jnp.zeros_like(case.x), "zero"
    if isinstance(baseline, str) and baseline == "mean":
        return vocabulary(lm.params, config=config, **case.types)[0], "mean"
    if isinstance(baseline, str) and baseline == "pad":
        pad = None if lm.tokenizer is None else lm.tokenizer.pad_id
        if pad is None:
            raise InputError("baseline='pad': this model has no padding token; give a token's id instead, such as baseline=0.")
        return _token(case, pad), f"pad ({lm.to_strings(pad)!r})"
    if isinstance(baseline, int | np.integer) and not isinstance(baseline, bool):
        return _token(case, int(baseline)), f"token {int(baseline)}"
    if isinstance(baseline, jax.Array | np.ndarray) and jnp.issubdtype(baseline.dtype, jnp.floating):
        return _given(case, baseline), "given embeddings"
    return _prompts(case, baseline), "given prompts"


def _token(case: Case, token: int) -> Any:
    if not 0 <= token < case.lm.config.d_vocab:
        raise InputError(f"baseline is token {token}; this model's vocabulary has ids 0 to {case.lm.config.d_vocab - 1}.")
    one = Tokens.from_ids(np.full((1, 1), token, np.int32))
    return embeddings(case.lm.params, one, config=case.lm.config, **case.types)


def _given(case: Case, value: Any) -> Any:
    batch, size = case.tokens.ids.shape
    full = (batch, size, case.lm.config.d_model)
    shape = (1,) * (3 - np.ndim(value)) + np.shape(value)
    if np.ndim(value) > 3 or any(got not in (1, want) for got, want in zip(shape, full, strict=True)) or shape[2] != full[2]:
        raise InputError(f"baseline: expected embeddings [D], [P D] or [B P D] = {list(full)}; got shape {list(np.shape(value))}.")
    value = jnp.broadcast_to(jnp.asarray(value).reshape(shape), full)
    return pad_columns(value, case.shape[1])


def _prompts(case: Case, prompts: Any) -> Any:
    """Embeddings of other prompts, one for each; their tokens stand in the same columns."""
    tokens = case.lm.to_tokens(prompts, bos=case.bos)
    check_pairs(case.tokens, tokens, hint=": a baseline prompt has as many tokens as the prompt that it stands for")
    padded = tokens.padded(case.shape[1]).arrays_only()
    if (np.asarray(padded.mask) != case.mask).any():
        raise InputError("baseline: its prompts are padded on another side than the prompts that are explained; pad both alike.")
    return embeddings(case.lm.params, padded, config=case.lm.config, **case.types)


@functools.partial(jax.jit, static_argnames=STATIC)
def vocabulary(
    params: Params, config: TransformerConfig, dtype: str | None, precision: str | None
) -> tuple[Float[Array, "1 1 D"], Float[Array, ""]]:
    """The mean embedding of all tokens, and the standard deviation of all entries around it."""
    every = forward(
        params, Tokens.from_ids(jnp.arange(config.d_vocab)[:, None]), config, sites=("embed",), stop=0, dtype=dtype, precision=precision
    )["embed"]
    mean = every.mean(axis=0, keepdims=True)
    return mean, jnp.sqrt(((every - mean) ** 2).mean())
