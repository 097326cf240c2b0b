"""Shapley values of tokens, from sampled orders: what a token adds, averaged over the company in which it is added."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.baselines import baseline_of
from jaxinterp.methods.attribution.points import Case, check_number, replaced
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.model.language_model import LanguageModel, Prompts


def shapley(
    lm: LanguageModel, prompts: Prompts, metric: Any, *, baseline: Any = "mean", samples: int = 32, seed: int = 0, antithetic: bool = True,
    keep: Any = None, inputs: Any = None, **how: Any,
) -> InputAttribution:  # fmt: skip
    """Shapley values of the tokens, by sampling orders (Shapley 1953; Strumbelj and Kononenko 2014; Castro et al. 2009).

        score_p = mean over orders of  f(tokens up to p in the order) - f(tokens before p in the order)

    The tokens that are not there are at the baseline. Every order's terms telescope, so the scores sum to f(x) - f(baseline)
    whatever the sample; what is uncertain is `spread`, each score's standard error. With as many samples as there are orders
    (24 of four tokens) all orders are taken and the values are exact. Cost: `samples` x (P - 1) + 2 forward passes, batched.
    Misleads: most coalitions are no texts that the model knows, and tokens that need each other share what they do together.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is explained; it need not have a gradient.
        baseline: as for `integrated_gradients`.
        samples: orders; where they are `antithetic`, an even number.
        seed: of the orders; they depend on it and on positions alone, so that prompts of a batch do not change one another.
        antithetic: each order is followed by its reverse, which lowers the error (Mitchell et al. 2022, arXiv:2104.12199); the
            standard error is then that of pairs.
        keep: positions that stay what they are in every coalition.
        inputs: as for `saliency`.
        **how: as for `saliency`.

    Raises:
        InputError: a baseline that does not fit, or fewer than two orders (four antithetic ones).
    """
    check_number("samples", samples, 4 if antithetic else 2, "4 or more orders (2 or more without antithetic)")
    if antithetic and samples % 2:
        raise InputError(f"samples is {samples}; antithetic orders come in pairs, so expected an even number.")
    case = Case.of(lm, prompts, metric, inputs, **how)
    start, name = baseline_of(case, baseline, keep)
    ranks, every = _orders(case, samples, seed, antithetic)
    size = case.shape[1]
    sizes = np.arange(1, size)
    flat = ranks.reshape(-1, *case.shape)

    def kept(rows: np.ndarray) -> np.ndarray:
        inner = rows - 2  # rows 0 and 1 are the baseline and the prompt
        order, k = np.maximum(inner, 0) // max(size - 1, 1), np.maximum(inner, 0) % max(size - 1, 1)
        there = flat[order] < (sizes[k] if size > 1 else np.ones_like(k))[:, None, None]
        return np.where((rows < 2)[:, None, None], (rows == 1)[:, None, None], there)

    values = case.values(lambda rows: replaced(start, case.x, kept(rows)), 2 + len(flat) * (size - 1))
    inner = values[2:].reshape(len(flat), size - 1, case.shape[0])
    ends = np.broadcast_to(values[:2, None], (2, len(flat), case.shape[0]))
    along = np.concatenate([ends[:1].transpose(1, 0, 2), inner, ends[1:].transpose(1, 0, 2)], axis=1)  # [S P+1 B]
    added = np.diff(along, axis=1).transpose(0, 2, 1)  # [S B P] by rank
    terms = np.take_along_axis(added, flat, axis=2)
    return case.result(
        "shapley", "Shapley value: part of the metric's change from the baseline", terms.mean(axis=0), values[1], baseline=values[0],
        total=values[1] - values[0], spread=_spread(terms, every, antithetic),
        orders="all" if every else len(flat), seed=None if every else seed, replaced_by=name,
    )  # fmt: skip


def _orders(case: Case, samples: int, seed: int, antithetic: bool) -> tuple[np.ndarray, bool]:
    """Ranks [S B P] of columns in each order: a prompt's tokens first, 0 .. length - 1, then padding; and whether these are all."""
    lengths, size = case.mask.sum(axis=1), case.shape[1]
    longest = int(lengths.max())
    every = math.factorial(min(longest, 12)) <= samples
    if every:
        keys = np.asarray(list(itertools.permutations(range(longest))), float)
    else:
        draws = samples // 2 if antithetic else samples
        keys = np.asarray(_keys(jax.random.key(seed), draws, longest))
        keys = np.stack([keys, 1 - keys], axis=1).reshape(-1, longest) if antithetic else keys
    positions = np.minimum(np.maximum(np.asarray(case.batch.positions), 0), longest - 1)
    by_column = np.where(case.mask, keys[:, positions], np.inf)
    return by_column.argsort(axis=2, kind="stable").argsort(axis=2, kind="stable").reshape(len(keys), -1, size), every


def _keys(key: jax.Array, draws: int, longest: int) -> jax.Array:
    """Uniform numbers [S P] that depend on the seed, the order and the position alone."""
    rows = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(draws))
    each = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(rows, jnp.arange(longest))
    return jax.vmap(jax.vmap(jax.random.uniform))(each)


def _spread(terms: np.ndarray, every: bool, antithetic: bool) -> np.ndarray:
    """The standard error [B P] of the mean of terms [S B P]."""
    if every:
        return np.zeros(terms.shape[1:])
    draws = terms.reshape(-1, 2, *terms.shape[1:]).mean(axis=1) if antithetic else terms
    return draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
