"""principal: the direction along which pairs of texts differ most, by principal component analysis (RepE).

    v_l = s u_l,   u_l = argmax over |u| = 1 of sum over pairs (u . (x+_l - x-_l))^2;       s: most pairs have u . x+ > u . x-

Representation engineering (Zou et al. 2023, arXiv:2310.01405) takes the differences of pairs in random order and centres them; the
order is random so that their mean, which is what is looked for, is not what centring removes. The sum above is what that tends to
with more and more orders: uncentred differences, or the texts themselves centred within their pair, as conditional activation
steering does (Lee et al. 2024, arXiv:2409.05907). Differences that are centred in one order (what the package repeng does unless told
otherwise) lose their common part, and show how pairs differ from one another. Compared with the mean difference it weighs pairs by how
far apart they are. Cost: one forward pass a text, and one singular vector a layer. Misleads where a few pairs
are far longer than the others, or differ most in something else: the first component is then that, whatever the labels say.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinterp.methods import linear
from jaxinterp.methods.steering.contrast import read_contrast
from jaxinterp.methods.steering.fitting import fitted
from jaxinterp.methods.steering.vector import SteeringVector
from jaxinterp.model.language_model import LanguageModel


def principal(
    lm: LanguageModel, positive: Any, negative: Any, *, site: str = "resid_post", layers: Any = None, position: Any = -1,
    folds: int | None = None, seed: int = 0, bos: str | bool = "model", precision: str | None = "highest",
) -> SteeringVector:  # fmt: skip
    """The first principal component of the differences of pairs of texts, at every layer.

    Equation, sources, cost and when it misleads: see the module. A component has no length of its own, so it is given that of the
    mean difference along it: strength 1 moves the one mean onto the other as far as they differ along the component.

    Args:
        lm: the model.
        positive: texts that the direction points to, two or more; as for `mean_difference`.
        negative: as many others: text i of both is a pair.
        site: as for `mean_difference`.
        layers: as for `mean_difference`.
        position: as for `mean_difference`.
        folds: as for `mean_difference`; pairs are held out together.
        seed: of the folds.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A SteeringVector; its sign is that of most pairs.

    Raises:
        InputError: fewer than two pairs, sets of two sizes, and as for `mean_difference`.

    Example:
        >>> ji.steering.principal(lm, ["I love this", "What a joy"], ["I hate this", "What a bore"]).values.shape
        (30, 576)
    """
    contrast = read_contrast(
        lm, positive, negative, method="principal", site=site, layers=layers, position=position, bos=bos, precision=precision, least=2,
        pairs=True,
    )  # fmt: skip
    return fitted(lm, contrast, first_component, scaled=True, folds=folds, seed=seed, least=2)


def first_component(x: Array, y: Array, weight: Array) -> Array:
    """A `Fit` of pairs: the first half of the examples is positive, the second holds their counterparts in order."""
    pairs = len(x) // 2
    chosen = weight[:pairs]
    differences = chosen[:, None] * (x[:pairs] - x[pairs:])
    direction = linear.first_axis(differences)
    votes = (chosen * jnp.sign(differences @ direction)).sum()
    mean = (differences @ direction).sum()
    return direction * jnp.where(votes == 0, jnp.where(mean < 0, -1, 1), jnp.sign(votes))
