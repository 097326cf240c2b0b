"""Scores of an explanation itself: does the metric change as the scores say it should?

Comprehensiveness and sufficiency take away, or leave, the tokens with the largest scores; infidelity compares sums of scores
with what taking tokens away really does; max-sensitivity asks how far scores move when the embeddings hardly do. Tokens are
taken away by replacing their embeddings, so every figure depends on the replacement, which the result names.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.baselines import baseline_of, vocabulary
from jaxinterp.methods.attribution.points import Case, check_number, replaced
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.model.language_model import LanguageModel, Prompts

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of DeYoung et al. 2020


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "curve", "spread"], meta_fields=["name", "shares", "how"])
@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """How well an explanation does, prompt by prompt.

    Attributes:
        values: [B], the score.
        curve: [B n], at each share of tokens; None where the score has no shares.
        spread: [B], the standard error, where the score comes from samples; else None.
        name: which score.
        shares: the shares of tokens.
        how: how it was made.
    """

    values: Any
    curve: Any
    spread: Any
    name: str
    shares: tuple[float, ...] = ()
    how: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        made = ", ".join(f"{key}={value}" for key, value in self.how)
        return f"Faithfulness({self.name} {float(np.mean(self.values)):.4g}, mean of {len(self.values)} prompts; {made})"


def comprehensiveness(
    lm: LanguageModel, attribution: InputAttribution, metric: Any, *, shares: Sequence[float] = SHARES, baseline: Any = "mean", **how: Any
) -> Faithfulness:
    """What the metric loses without the tokens that an explanation ranks first (DeYoung et al. 2020, arXiv:1911.03429).

        curve = f(x) - f(x with the k tokens of largest scores at the baseline),  k = ceil(share x length);  value = mean over shares

    High is good. Signed scores rank by value (largest positive first), unsigned ones by size. Cost: one forward pass a share and
    one more. Misleads: replaced tokens make texts that the model never saw, so it rewards whatever breaks the text; compare with
    the same number for random scores.

    Args:
        lm: the model.
        attribution: the explanation.
        metric: what it explains.
        shares: of each prompt's tokens, from 0 (excluded) to 1.
        baseline: what replaces a token's embedding; as for `integrated_gradients`.
        **how: dtype and precision, as for `run`.
    """
    return _without(lm, attribution, metric, shares, baseline, "comprehensiveness", how)


def sufficiency(
    lm: LanguageModel, attribution: InputAttribution, metric: Any, *, shares: Sequence[float] = SHARES, baseline: Any = "mean", **how: Any
) -> Faithfulness:
    """What the metric loses with only the tokens that an explanation ranks first (DeYoung et al. 2020, arXiv:1911.03429).

        curve = f(x) - f(x with all but the k tokens of largest scores at the baseline);  value = mean over shares

    Low is good. Arguments, cost and cautions as for `comprehensiveness`.
    """
    return _without(lm, attribution, metric, shares, baseline, "sufficiency", how)


def infidelity(
    lm: LanguageModel, attribution: InputAttribution, metric: Any, *, samples: int = 64, share: float = 0.2, normalise: bool = True,
    baseline: Any = "mean", seed: int = 0, **how: Any,
) -> Faithfulness:  # fmt: skip
    """How far sums of scores are from what taking the tokens away does (Yeh et al. 2019, arXiv:1901.09392).

        mean over random sets S of  (b sum over S of scores - (f(x) - f(x with S at the baseline)))^2

    Low is good; in squared units of the metric. A score is meant as a part of the metric (gradient x input, integrated gradients,
    Shapley), so a perturbation is a set of tokens replaced. With `normalise`, b is the factor that makes the error least, as in
    the paper; else 1. Cost: `samples` + 1 forward passes, batched. Misleads: it rewards being right about random sets, most of
    which make no text.

    Args:
        lm: the model.
        attribution: the explanation; scores without a number (NaN) count as 0.
        metric: what it explains.
        samples: random sets.
        share: the probability that a token is in a set.
        normalise: scale the scores first.
        baseline: as for `comprehensiveness`.
        seed: of the sets; they depend on it and on positions alone.
        **how: as for `comprehensiveness`.
    """
    check_number("samples", samples, 2, "two or more")
    if not 0 < share < 1:
        raise InputError(f"share is {share!r}; expected a probability between 0 and 1.")
    case = Case.of(lm, attribution.tokens, metric, **how)
    start, name = baseline_of(case, baseline)
    taken = _sets(case, samples, share, seed)
    values = case.values(lambda rows: replaced(start, case.x, ~taken[rows]), samples + 1)
    change = values[-1][None] - values[:-1]  # [S B]
    guess = np.einsum("SBP,BP->SB", taken[:-1].astype(float), _padded(attribution, case))
    square = (guess**2).mean(axis=0)
    factor = np.where(square > 0, (guess * change).mean(axis=0) / np.where(square > 0, square, 1), 0) if normalise else 1.0
    each = (factor * guess - change) ** 2
    made = {"replaced_by": name, "samples": samples, "share": share, "normalise": normalise, "seed": seed}
    return Faithfulness(each.mean(axis=0), None, each.std(axis=0, ddof=1) / np.sqrt(samples), "infidelity", how=_made(attribution, made))


def max_sensitivity(
    explain: Callable[..., InputAttribution], lm: LanguageModel, prompts: Prompts, metric: Any, *, radius: float = 0.1, samples: int = 10,
    seed: int = 0,
) -> Faithfulness:  # fmt: skip
    """How far scores move when the embeddings move a little (Yeh et al. 2019, arXiv:1901.09392).

        max over samples of  || scores(x + e) - scores(x) ||_2 / || scores(x) ||_2,   entries of e uniform in [-r, r]

    Low is good, and constant scores do best: read it beside `infidelity`. Cost: `samples` + 1 explanations.

    Args:
        explain: (lm, prompts, metric, inputs=embeddings [B P D]) -> InputAttribution, such as `ji.attribution.saliency`.
        lm: the model.
        prompts: as for `run`.
        metric: what is explained.
        radius: r, as a share of the standard deviation of all entries of the embedding matrix around their mean.
        samples: how many perturbations.
        seed: of the perturbations; they depend on it, the sample and the position alone.
    """
    check_number("samples", samples, 1, "one or more")
    check_number("radius", radius, 0, "a share of the embeddings' standard deviation, 0 or more")
    first = explain(lm, prompts, metric)
    case = Case.of(lm, first.tokens, metric)
    size = first.tokens.ids.shape[1]
    reach = radius * vocabulary(lm.params, config=lm.config, **case.types)[1]
    scores = np.nan_to_num(np.asarray(first.scores))
    norm = np.sqrt((scores**2).sum(axis=1))
    most = np.zeros(len(norm))
    for sample in range(samples):
        noise = _uniform(jax.random.key(seed), sample, jnp.maximum(jnp.asarray(case.batch.positions), 0), reach, case.x.shape[2])
        moved = explain(lm, first.tokens, metric, inputs=(case.x + noise.astype(case.x.dtype))[:, :size])
        distance = np.sqrt(((np.nan_to_num(np.asarray(moved.scores)) - scores) ** 2).sum(axis=1))
        most = np.maximum(most, distance / np.where(norm > 0, norm, 1))
    made = {"radius": f"{radius:g} of the embeddings' standard deviation", "samples": samples, "seed": seed}
    return Faithfulness(most, None, None, "max_sensitivity", how=_made(first, made))


# --------------------------------------------------------------------------------------------------------------- parts


def _without(
    lm: LanguageModel, attribution: InputAttribution, metric: Any, shares: Sequence[float], baseline: Any, name: str, how: dict[str, Any]
) -> Faithfulness:
    if not len(shares) or not all(0 < share <= 1 for share in shares):
        raise InputError(f"shares is {list(shares)}; expected shares of the tokens, above 0 and at most 1.")
    case = Case.of(lm, attribution.tokens, metric, **how)
    start, replaced_by = baseline_of(case, baseline)
    lengths = case.mask.sum(axis=1)
    order = np.where(case.mask, -_padded(attribution, case), np.inf).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    counts = np.ceil(np.asarray(shares)[:, None] * lengths - 1e-9).astype(int)  # [n B]
    first = order[None] < counts[:, :, None]
    keep = ~first if name == "comprehensiveness" else first
    keep = np.concatenate([keep, np.ones((1, *case.shape), bool)])
    values = case.values(lambda rows: replaced(start, case.x, keep[rows]), len(keep))
    curve = (values[-1][None] - values[:-1]).T
    return Faithfulness(curve.mean(axis=1), curve, None, name, tuple(shares), _made(attribution, {"replaced_by": replaced_by}))


def _padded(attribution: InputAttribution, case: Case) -> np.ndarray:
    """Scores [B P] on the padded columns; 0 where there is no number."""
    scores = np.nan_to_num(np.asarray(attribution.scores, np.float64))
    return np.pad(scores, [(0, 0), (0, case.shape[1] - scores.shape[1])])


def _sets(case: Case, samples: int, share: float, seed: int) -> np.ndarray:
    """Random sets of tokens [S+1 B P], the last one empty."""
    longest = int(case.mask.sum(axis=1).max())
    draws = np.asarray(_uniform_sets(jax.random.key(seed), jnp.arange(samples), jnp.arange(longest))) < share
    positions = np.clip(np.asarray(case.batch.positions), 0, longest - 1)
    taken = draws[:, positions] & case.mask[None]
    return np.concatenate([taken, np.zeros((1, *case.shape), bool)])


@jax.jit
def _uniform_sets(key: Array, samples: Int[Array, "S"], positions: Int[Array, "P"]) -> Float[Array, "S P"]:
    one = lambda sample, position: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, sample), position))  # noqa: E731
    return jax.vmap(lambda sample: jax.vmap(lambda position: one(sample, position))(positions))(samples)


@functools.partial(jax.jit, static_argnames="d_model")
def _uniform(key: Array, sample: Any, positions: Int[Array, "B P"], reach: Float[Array, ""], d_model: int) -> Float[Array, "B P D"]:
    one = lambda position: jax.random.uniform(  # noqa: E731
        jax.random.fold_in(jax.random.fold_in(key, sample), position), (d_model,), minval=-1.0, maxval=1.0
    )
    return reach * jax.vmap(jax.vmap(one))(positions)


def _made(attribution: InputAttribution, made: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return (("method", attribution.method), *((key, str(value)) for key, value in made.items()))
