"""Attribution from the gradient at the run itself: saliency, gradient x input, SmoothGrad, VarGrad and AttnLRP.

One forward and one backward pass (for the smoothed ones, one of both a sample). A gradient says what an infinitesimal
change does: where the metric saturates it is small whatever causes it, and where it is noisy the next embedding's differs.
"""

import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.baselines import vocabulary
from jaxinterp.methods.attribution.points import Case, check_number
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules

Of = Literal["gradient_x_input", "gradient"]


def saliency(lm: LanguageModel, prompts: Prompts, metric: Any, *, inputs: Any = None, **how: Any) -> InputAttribution:
    """The norm of the metric's gradient at each token's embedding (Simonyan et al. 2013, arXiv:1312.6034).

        score_p = || d metric / d x_p ||_2

    Unsigned: how fast the metric can be changed there, not in which direction the token pushes it, and in units of the metric
    for each unit of embedding. Cost: one forward and one backward pass. Misleads where the metric saturates.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is explained, such as `ji.metrics.logit_difference(" Mary", " John")`.
        inputs: embeddings [B P D] that are explained instead of the ids' own.
        **how: bos, dtype and precision, as for `run`.

    Raises:
        InputError: prompts that `run` refuses; a metric without a gradient there (rank; KL divergence to this very run).

    Example:
        >>> ji.attribution.saliency(lm, "The capital of France is", ji.metrics.logit_difference(" Paris", " Rome")).scores.shape
        (1, 5)
    """
    case = Case.of(lm, prompts, metric, inputs, **how)
    values, slope = _slope(case, Rules())
    scores = np.sqrt((slope.astype(np.float64) ** 2).sum(axis=-1))
    return case.result("saliency", "norm of the gradient", scores, values, signed=False)


def gradient_x_input(
    lm: LanguageModel, prompts: Prompts, metric: Any, *, rules: Rules | None = None, inputs: Any = None, **how: Any
) -> InputAttribution:
    """The gradient at each token's embedding times the embedding (Shrikumar et al. 2016, arXiv:1605.01713).

        score_p = x_p . d metric / d x_p

    The first-order guess of what the metric loses when the token's embedding becomes zero. `total` is the metric, so `error`
    is the metric that this guess expects at zero embeddings; under `Rules.affine()` it is exactly that of the frozen model
    (biases and positions), zero to rounding in a model without them. Cost: one forward and one backward pass. Misleads:
    the models' first norm makes the metric nearly blind to the length of the embeddings, so that the scores of an exact
    gradient nearly cancel and their sum says nothing.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: as for `saliency`.
        rules: what the backward pass holds constant; `Rules.affine()` makes the model affine.
        inputs: as for `saliency`.
        **how: as for `saliency`.
    """
    case = Case.of(lm, prompts, metric, inputs, **how)
    return _times_input(case, rules or Rules(), "gradient_x_input", "gradient x input", None if rules is None else repr(rules))


def relevance_propagation(lm: LanguageModel, prompts: Prompts, metric: Any, *, inputs: Any = None, **how: Any) -> InputAttribution:
    """Layer-wise relevance propagation by the AttnLRP rules (Achtibat et al. 2024, arXiv:2402.05602).

        score_p = x_p . d metric / d x_p,  the gradient taken under `Rules.attn_lrp()`

    Relevance passes norms as if their denominators were constants, a gate and its partner take half each, and so do both
    factors of attention's products; softmax keeps its own gradient. Conservation: scores sum to the metric, up to what the
    softmax and biases (and learned positions) absorb; `error` is that part, and it is the number to look at first. Cost: one
    forward and one backward pass. Misleads as every first-order method does, less for the cancelled norms and gates.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: as for `saliency`; relevance starts from its own value, so a logit or a difference of logits is meant.
        inputs: as for `saliency`.
        **how: as for `saliency`.
    """
    case = Case.of(lm, prompts, metric, inputs, **how)
    return _times_input(case, Rules.attn_lrp(), "relevance_propagation", "relevance (AttnLRP)", "AttnLRP")


def smoothgrad(
    lm: LanguageModel, prompts: Prompts, metric: Any, *, of: Of = "gradient_x_input", samples: int = 32, noise: float = 0.1, seed: int = 0,
    given: Any = None, inputs: Any = None, **how: Any,
) -> InputAttribution:  # fmt: skip
    """The mean of an attribution over noisy copies of the embeddings (Smilkov et al. 2017, arXiv:1706.03825).

        score_p = sum over D of mean over samples of (x + e)_p * d metric / d x_p at x + e      (`of="gradient_x_input"`)
        score_p = || mean over samples of d metric / d x_p at x + e ||_2, unsigned               (`of="gradient"`)

    Cost: one forward and one backward pass a sample, batched. Misleads: it explains a smoothed model, and with noise that is
    large beside the distances between embeddings another one; try several `noise`.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: as for `saliency`.
        of: what is averaged.
        samples: how many noisy copies.
        noise: the noise's standard deviation, as a share of that of all entries of the embedding matrix around their mean.
        seed: of the noise; it depends on the sample and the token's position only, so prompts and padding do not change it.
        given: noise [n B P D] or [n P D] (in units of the embeddings) used instead of `samples`, `noise` and `seed`.
        inputs: as for `saliency`.
        **how: as for `saliency`.

    Raises:
        InputError: as for `saliency`; also fewer than one sample, or noise that does not fit.
    """
    case = Case.of(lm, prompts, metric, inputs, **how)
    values, mean, _, made = _moments(case, of, samples, noise, seed, given)
    scores = mean.sum(axis=-1) if of == "gradient_x_input" else np.sqrt((mean**2).sum(axis=-1))
    unit = "gradient x input, mean over noise" if of == "gradient_x_input" else "norm of the mean gradient over noise"
    return case.result("smoothgrad", unit, scores, values, signed=of == "gradient_x_input", **made)


def vargrad(
    lm: LanguageModel, prompts: Prompts, metric: Any, *, of: Of = "gradient_x_input", samples: int = 32, noise: float = 0.1, seed: int = 0,
    given: Any = None, inputs: Any = None, **how: Any,
) -> InputAttribution:  # fmt: skip
    """The variance of an attribution over noisy copies of the embeddings (Adebayo et al. 2018, arXiv:1810.03292).

        score_p = sum over D of the variance over samples (divided by their number) of the attribution's entries

    Unsigned: where the attribution is unstable, in squared units. Arguments, cost and errors as for `smoothgrad`.
    """
    case = Case.of(lm, prompts, metric, inputs, **how)
    values, _, variance, made = _moments(case, of, samples, noise, seed, given)
    return case.result("vargrad", f"variance of {of.replace('_', ' ')} over noise", variance.sum(axis=-1), values, signed=False, **made)


def _slope(case: Case, rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """The metric [B] and its gradient [B P D] at the run itself, checked."""
    case.metric.check_slope(None)
    _, values, slopes = next(case.slopes(lambda rows: case.x[None], 1, rules))
    case.metric.check_slope(values[0])
    return values[0], np.asarray(slopes[0])


def _times_input(case: Case, rules: Rules, method: str, unit: str, named: str | None) -> InputAttribution:
    values, slope = _slope(case, rules)
    scores = (slope.astype(np.float64) * np.asarray(case.x)).sum(axis=-1)
    return case.result(method, unit, scores, values, total=values, rules=named)


def _moments(
    case: Case, of: str, samples: int, noise: float, seed: int, given: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """The metric [B] of the run itself; mean and variance over noise [B P D] of the gradient, or of gradient x input; how."""
    if of not in ("gradient_x_input", "gradient"):
        raise InputError(f"of is {of!r}; expected 'gradient_x_input' or 'gradient'.")
    values, _ = _slope(case, Rules())
    if given is None:
        check_number("samples", samples, 1, "one or more")
        check_number("noise", noise, 0, "a share of the embeddings' standard deviation, 0 or more")
        draw = _drawn(case, noise, seed)
        made: dict[str, Any] = {"samples": samples, "noise": f"{noise:g} of the embeddings' standard deviation", "seed": seed}
    else:
        draw, samples = _checked(case, given)
        made = {"samples": samples, "noise": "given"}
    mean = np.zeros(case.x.shape)
    square = np.zeros(case.x.shape)
    for points, slopes in _noisy(case, draw, samples):
        each = np.asarray(slopes * points if of == "gradient_x_input" else slopes, np.float64)
        mean += each.sum(axis=0) / samples
        square += (each**2).sum(axis=0) / samples
    return values, mean, np.maximum(square - mean**2, 0), {"of": of, **made}


def _noisy(case: Case, draw: Any, samples: int) -> Iterator[tuple[Array, Array]]:
    """Noisy embeddings and the slopes there, chunk by chunk."""
    for rows, _, slopes in case.slopes(lambda rows: case.x[None] + draw(rows), samples):
        yield case.x[None] + draw(rows), slopes


def _drawn(case: Case, noise: float, seed: int) -> Any:
    """A function from samples' indices to their noise [n B P D]."""
    deviation = noise * vocabulary(case.lm.params, config=case.lm.config, **case.types)[1]
    positions = jnp.maximum(jnp.asarray(case.batch.positions), 0)
    return lambda rows: normal_noise(jax.random.key(seed), jnp.asarray(rows), positions, deviation, case.x.shape[2]).astype(case.x.dtype)


def _checked(case: Case, given: Any) -> tuple[Any, int]:
    """Given noise as a function from indices, and how much there is."""
    given = np.asarray(given)
    batch, size = case.tokens.ids.shape
    given = given[:, None] if given.ndim == 3 else given
    if given.ndim != 4 or given.shape[2:] != (size, case.lm.config.d_model) or given.shape[1] not in (1, batch) or not len(given):
        want = [batch, size, case.lm.config.d_model]
        raise InputError(f"given: expected noise [n B P D] or [n P D] with [B P D] = {want}; got shape {list(given.shape)}.")
    wide = np.pad(given, [(0, 0), (0, 0), (0, case.shape[1] - size), (0, 0)]).astype(case.x.dtype)
    return lambda rows: jnp.asarray(wide[rows]), len(given)


@functools.partial(jax.jit, static_argnames="d_model")
def normal_noise(
    key: Array, samples: Int[Array, "n"], positions: Int[Array, "B P"], deviation: Float[Array, ""], d_model: int
) -> Float[Array, "n B P D"]:
    """Normal noise that depends on the seed, the sample and the token's position alone."""

    def one(sample: Array, position: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, sample), position), (d_model,))

    return deviation * jax.vmap(lambda sample: jax.vmap(jax.vmap(lambda position: one(sample, position)))(positions))(samples)
