"""Directions of linear classifiers: logistic regression, Fisher's discriminant, and any probe's weights.

    logistic       v_l ~ w of the L2-regularised regression of the label on x_l
    discriminant   v_l ~ S_l^-1 (mean of x+ - mean of x-), S_l the covariance within the classes, shrunk towards a multiple of I
    both           v_l = (d . u) u, u = w / |w|, d the mean difference

A classifier's weights say which direction tells the classes apart best, discounting where both vary; a step along them need not be
what the model itself does between the classes, and steering with them is often weaker than with the mean difference at equal length.
They have no natural size for a step (a classifier's weights grow as its penalty falls), so each is given the length of the mean
difference along it: at strength 1 a text moves as far along u as the classes are apart, and strengths compare across methods.
Cost: one forward pass a text, and as many equations a layer as there are texts or features, whichever are fewer. Misleads as the mean
difference does, and with few texts: in hundreds of dimensions a handful is always told apart, so look at `accuracy`, which is held out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxinterp.errors import InputError
from jaxinterp.methods import linear
from jaxinterp.methods.steering.contrast import read_contrast
from jaxinterp.methods.steering.fitting import fitted
from jaxinterp.methods.steering.vector import SteeringVector, check_layers, check_steerable, make_vector
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.runs.provenance import fingerprint_of_weights


def logistic(
    lm: LanguageModel, positive: Any, negative: Any, *, site: str = "resid_post", layers: Any = None, position: Any = -1,
    penalty: float = 1e-2, folds: int | None = None, seed: int = 0, bos: str | bool = "model", precision: str | None = "highest",
) -> SteeringVector:  # fmt: skip
    """The weights of a logistic regression that tells positive texts from negative ones, at every layer.

    Equation, scale, cost and when it misleads: see the module.

    Args:
        lm: the model.
        positive: texts of the class, two or more; as for `mean_difference`.
        negative: texts that are not, two or more; pairs are not needed.
        site: as for `mean_difference`.
        layers: as for `mean_difference`.
        position: as for `mean_difference`.
        penalty: of the squared weights, a text, for features scaled to a mean square of 1 a coordinate.
        folds: as for `mean_difference`.
        seed: of the folds.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A SteeringVector towards the positive texts.

    Raises:
        InputError: fewer than two texts of a class, a penalty that is not over 0, and as for `mean_difference`.

    Example:
        >>> ji.steering.logistic(lm, [" happy", " glad", " merry"], [" sad", " grim", " glum"]).values.shape
        (30, 576)
    """
    if not 0 < penalty < np.inf:
        raise InputError(f"logistic(): the penalty is {penalty}; expected a number over 0, since separable texts have no solution without.")
    contrast = read_contrast(
        lm, positive, negative, method="logistic", site=site, layers=layers, position=position, bos=bos, precision=precision, least=2
    )
    how = (("penalty", str(penalty)),)
    return fitted(lm, contrast, logistic_weights, (penalty,), scaled=True, folds=folds, seed=seed, how=how)


def discriminant(
    lm: LanguageModel, positive: Any, negative: Any, *, site: str = "resid_post", layers: Any = None, position: Any = -1,
    shrinkage: float | None = None, folds: int | None = None, seed: int = 0, bos: str | bool = "model", precision: str | None = "highest",
) -> SteeringVector:  # fmt: skip
    """Fisher's linear discriminant between positive and negative texts, at every layer.

    Equation, scale, cost and when it misleads: see the module.

    Args:
        lm: the model.
        positive: texts of the class, two or more; as for `mean_difference`.
        negative: texts that are not, two or more; pairs are not needed.
        site: as for `mean_difference`.
        layers: as for `mean_difference`.
        position: as for `mean_difference`.
        shrinkage: the share of the identity in the covariance, over 0 and up to 1 (the mean difference); None is the estimate of Ledoit
            and Wolf (2004, Journal of Multivariate Analysis 88), at each layer its own.
        folds: as for `mean_difference`.
        seed: of the folds.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A SteeringVector towards the positive texts.

    Raises:
        InputError: fewer than two texts of a class, a shrinkage out of range, and as for `mean_difference`.

    Example:
        >>> ji.steering.discriminant(lm, [" happy", " glad", " merry"], [" sad", " grim", " glum"]).values.shape
        (30, 576)
    """
    if shrinkage is not None and not 0 < shrinkage <= 1:
        raise InputError(f"discriminant(): shrinkage is {shrinkage}; expected a share over 0 and up to 1, or None for an estimate.")
    contrast = read_contrast(
        lm, positive, negative, method="discriminant", site=site, layers=layers, position=position, bos=bos, precision=precision, least=2
    )
    how = (("shrinkage", "Ledoit and Wolf" if shrinkage is None else str(shrinkage)),)
    options = (-1.0 if shrinkage is None else shrinkage,)
    return fitted(lm, contrast, linear.discriminant, options, scaled=True, folds=folds, seed=seed, least=2, how=how)


def from_probe(
    lm: LanguageModel, weights: Any, *, site: str = "resid_post", layers: int | Sequence[int], bias: Any = None, norms: Any = None,
    accuracy: Any = None, how: Sequence[tuple[str, str]] = (),
) -> SteeringVector:  # fmt: skip
    """Any directions as a SteeringVector: a probe's weights, an unembedding column, a dictionary's feature, another result's directions.

    They keep their length: `vector.unit()` has length one, and `add(..., relative=True)` steps in units of the value's own norm.

    Args:
        lm: the model that they are of.
        weights: [N D], a direction for each layer, or [D], the same for all; at sites with heads [N H E] or [H E].
        site: a site of the blocks with axes L B P and features.
        layers: which layers, in the order of `weights`.
        bias: a number or [N], the probe's; w . x + b = 0 is then where it decides, at the coordinate -b / |w| along the unit vector. It
            is kept in `how` and changes nothing else.
        norms: [N], the site's usual norm, if known.
        accuracy: [N], of the probe on held-out examples, if known.
        how: where they come from, as (name, text) pairs; a "method" stands for the "probe" that is assumed.

    Returns:
        A SteeringVector.

    Raises:
        InputError: shapes that do not fit, numbers that are not finite, or a direction of length zero.

    Example:
        >>> found = ji.concept_sensitivity(lm, prompts, metric, [" happy", " glad"], [" sad", " grim"])
        >>> vector = ji.steering.from_probe(lm, found.directions, layers=found.layers, accuracy=found.accuracy)
    """
    width = len(check_steerable(site, lm.config).axes) - 3
    # in the order given, which is that of the weights
    chosen = check_layers(layers, lm.config) if isinstance(layers, int | np.integer) else tuple(int(layer) for layer in layers)
    values = np.asarray(weights)
    if values.dtype.kind not in "fiu":
        raise InputError(f"from_probe(): weights are of type {values.dtype}; expected numbers.")
    values = np.broadcast_to(values[None], (len(chosen), *values.shape)) if values.ndim == width else values
    made = [("method", "probe"), ("site", site), ("weights", fingerprint_of_weights(lm.params))]
    if bias is not None:
        known = np.broadcast_to(np.asarray(bias, float), (len(chosen),)) if np.ndim(bias) == 0 else np.asarray(bias, float)
        if known.shape != (len(chosen),) or not np.isfinite(known).all():
            raise InputError(
                f"from_probe(): bias has shape {list(np.shape(bias))}; expected a finite number for each of {len(chosen)} layers."
            )
        made.append(("bias", " ".join(f"{one:.9g}" for one in known)))
    return make_vector(lm, site, chosen, values, norms=norms, accuracy=accuracy, how=tuple((dict(made) | dict(how)).items()))


def logistic_weights(x: Array, y: Array, weight: Array, penalty: Array) -> Array:
    """A `Fit`: the weights of a logistic regression on centred examples."""
    centred = x - ((weight @ x) / weight.sum())[None]
    return linear.logistic(centred, y, weight, penalty)[0]
