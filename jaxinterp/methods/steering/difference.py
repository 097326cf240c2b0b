"""mean_difference: the direction from the mean activation of one set of texts to that of another (ActAdd, CAA).

    v_l = mean over positive texts of x_l - mean over negative texts of x_l;        x_l: see `contrast`

With many pairs that differ in the answer alone, read at the answer, this is contrastive activation addition (CAA, Rimsky et al. 2023,
arXiv:2312.06681). One text of each kind is let through: a pair of one is what activation addition is (ActAdd, Turner et al. 2023,
arXiv:2308.10248; it adds the difference position by position to the first tokens of a prompt, where one direction is read here), though
nothing then tells what was meant from all else that differs, and no accuracy can be given. It is the step that moves the one mean onto
the other at strength 1. Cost: one forward pass a text. Misleads where the sets differ in something else as well (topic, length, last
token): the direction holds all of it. The held-out accuracy says whether texts are told apart, not whether adding the direction does
what was meant: judge that by what the model writes.
"""

from typing import Any

from jaxtyping import Array

from jaxinterp.methods.steering.contrast import read_contrast
from jaxinterp.methods.steering.fitting import fitted
from jaxinterp.methods.steering.vector import SteeringVector
from jaxinterp.model.language_model import LanguageModel


def mean_difference(
    lm: LanguageModel, positive: Any, negative: Any, *, site: str = "resid_post", layers: Any = None, position: Any = -1,
    folds: int | None = None, seed: int = 0, bos: str | bool = "model", precision: str | None = "highest",
) -> SteeringVector:  # fmt: skip
    """The mean activation of positive texts less that of negative ones, at every layer.

    Equation, sources, cost and when it misleads: see the module.

    Args:
        lm: the model.
        positive: texts that the direction points to: strings, `Tokens`, ids [B P], or (prompt, answer) tuples.
        negative: texts that it points away from; as many (text i of both are then a pair, and held out together) or not.
        site: a site of the blocks with axes L B P and features, such as "resid_post", "z" or "mlp_out".
        layers: a layer, some, or None for all.
        position: the token that is read, an int; several, [n] or [B n], are averaged; "answer" is all tokens of the answer, "all" every
            token but the first; {"positive": ..., "negative": ...} is one for each set.
        folds: of the cross-validation that `accuracy` comes from; None is 5, fewer where there are fewer texts; 0 is none.
        seed: of the folds.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A SteeringVector of [N D] directions (or [N H E] ... by site), in the site's own units.

    Raises:
        InputError: no texts, positions that a text does not have, a site without features, or sets that are the same at a layer.

    Example:
        >>> vector = ji.steering.mean_difference(lm, ["I love this", "What a joy"], ["I hate this", "What a bore"])
        >>> edits = [vector.add(2.0, layer=12)]
    """
    contrast = read_contrast(
        lm, positive, negative, method="mean_difference", site=site, layers=layers, position=position, bos=bos, precision=precision
    )
    return fitted(lm, contrast, difference_of_means, scaled=False, folds=folds, seed=seed)


def difference_of_means(x: Array, y: Array, weight: Array) -> Array:
    """A `Fit`: the positive mean less the negative one."""
    share = [weight * side / (weight * side).sum() for side in (y, 1 - y)]
    return ((share[0] - share[1])[:, None] * x).sum(axis=0)
