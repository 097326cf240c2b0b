"""Directions fitted to a contrast: at every layer at once, with their accuracy on texts held out, as a SteeringVector.

Accuracy is that of the direction alone, by cross-validation: fitted again without a fold, its threshold half way between the projected
means of the texts it was fitted to, it calls each text of the fold positive or not; the mean over both classes, so that 0.5 is chance.
Where both sets are of one size, the texts of a pair are in one fold. All folds are fitted at once, all layers by one compiled program.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.steering.contrast import Contrast
from jaxinterp.methods.steering.vector import SteeringVector, make_vector
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import site_of
from jaxinterp.runs.progress import Progress

Fit = Callable[..., Array]
"""fit(x [N F], y [N] 1 for positive, weight [N] 1 for those to fit to, *options) -> a direction [F] towards the positive ones."""

FOLDS = 5
"""Of cross-validation, where there are as many texts."""

ROUNDING = 1e-6
"""Share of the site's norm up to which a difference of two sets is rounding."""


def fitted(
    lm: LanguageModel, contrast: Contrast, fit: Fit, options: tuple[Any, ...] = (), *, scaled: bool, folds: int | None, seed: int,
    least: int = 1, how: tuple[tuple[str, str], ...] = (),
) -> SteeringVector:  # fmt: skip
    """The directions of a fit at every layer of a contrast.

    Args:
        lm: the model.
        contrast: two sets of texts.
        fit: a module-level function, see `Fit`; compiled once.
        options: numbers that it takes.
        scaled: whether each direction u is scaled to the projection of the mean difference on it, |d . u| u / |u|: a direction without a
            length of its own is then as long as the part of the mean difference that it explains.
        folds: of cross-validation; None is 5, or as many as there are texts.
        seed: of the folds.
        least: texts of each kind that a fit needs.
        how: further entries of `how`.

    Raises:
        InputError: more folds than texts, or two sets that do not differ at a layer.
    """
    name = dict(contrast.how)["method"]
    tests = _folds(contrast, folds, seed, least, name)
    difference = _mean_difference(contrast)
    same = np.linalg.norm(difference, axis=1) <= ROUNDING * contrast.norms
    if same.any():
        raise InputError(
            f"{name}(): both sets are the same at layer {contrast.layers[int(same.argmax())]} of {contrast.site!r} at the tokens read: "
            "leave that layer out, or read tokens that differ or that come after those that do."
        )
    weights = np.concatenate([np.ones((1, len(contrast.positive)), bool), ~tests])
    values, right = _each_layer(contrast, weights, options, fit, name)
    if scaled:
        unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(values.dtype).tiny)
        values = unit * np.abs((difference * unit).sum(axis=1, keepdims=True))
    shape = site_of(contrast.site, lm.config).shape(lm.config, 1, 1)[3:]
    made = (*contrast.how, *how, ("folds", str(len(tests))), ("seed", str(seed)))
    return make_vector(
        lm, contrast.site, contrast.layers, values.reshape(len(values), *shape), norms=contrast.norms,
        accuracy=_accuracy(right[:, 1:], tests, contrast.positive), how=made,
    )  # fmt: skip


def _mean_difference(contrast: Contrast) -> Float[np.ndarray, "L F"]:
    return contrast.values[:, contrast.positive].mean(axis=1) - contrast.values[:, ~contrast.positive].mean(axis=1)


def _folds(contrast: Contrast, folds: int | None, seed: int, least: int, name: str) -> Bool[np.ndarray, "K N"]:
    """Which texts each fold holds out; no fold where too few would be left to fit to."""
    sizes = [int(contrast.positive.sum()), int((~contrast.positive).sum())]
    smallest = min(sizes)
    if folds is not None and folds != 0 and (not 2 <= folds <= smallest or smallest - -(-smallest // folds) < least):
        raise InputError(
            f"{name}(): {folds} folds of {sizes[0]} positive and {sizes[1]} negative texts do not leave {least} of each: expected "
            "2 folds or more and as many texts of each kind, or folds=0 for no accuracy."
        )
    number = min(FOLDS, smallest) if folds is None else folds
    if number < 2 or smallest - -(-smallest // number) < least:
        return np.zeros((0, sum(sizes)), bool)
    random = np.random.default_rng(seed)
    first = random.permutation(np.arange(sizes[0]) % number)
    second = first if contrast.paired else random.permutation(np.arange(sizes[1]) % number)
    return np.concatenate([first, second])[None] == np.arange(number)[:, None]


def _accuracy(right: Bool[np.ndarray, "L K N"], tests: Bool[np.ndarray, "K N"], positive: Bool[np.ndarray, "N"]) -> np.ndarray:
    """[L]: over both classes, the mean share of texts told apart by the directions that did not see them; NaN without folds."""
    if not len(tests):
        return np.full(len(right), np.nan, np.float32)
    seen: Any = (right & tests[None]).any(axis=1)  # each text is held out once
    return ((seen[:, positive].mean(axis=1) + seen[:, ~positive].mean(axis=1)) / 2).astype(np.float32)


def _each_layer(
    contrast: Contrast, weights: Bool[np.ndarray, "R N"], options: tuple[Any, ...], fit: Fit, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """[L F], the directions, and [L R N], which texts each weighting's direction calls right.

    One program, called a layer at a time: a fit may hold matrices of N x N or F x F.
    """
    found = []
    with Progress(name, len(contrast.layers), "layers") as progress, jax.default_matmul_precision("highest"):
        for x in contrast.values:
            found.append(jax.device_get(_program(x, contrast.positive, weights, options, fit=fit)))
            progress.advance(1)
    return np.stack([direction for direction, _ in found]), np.stack([right for _, right in found])


@functools.partial(jax.jit, static_argnames=("fit",))
def _program(
    x: Float[Array, "N F"], positive: Bool[Array, "N"], weights: Bool[Array, "R N"], options: tuple[Any, ...], *, fit: Fit
) -> tuple[Float[Array, "F"], Bool[Array, "R N"]]:
    """The direction of the first weighting, and which texts each weighting's direction calls by their own class."""
    y = positive.astype(x.dtype)

    def of(weight: Array) -> tuple[Array, Array]:
        direction = fit(x, y, weight, *options)
        along = x @ direction
        middle = sum((along * weight * side).sum() / (weight * side).sum() for side in (y, 1 - y)) / 2
        return direction, (along > middle) == positive

    directions, right = jax.vmap(of)(weights.astype(x.dtype))
    return directions[0], right
