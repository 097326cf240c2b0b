"""Linear fits to activations: directions that tell two classes of examples apart, and the one along which examples are largest.

    logistic       min over (w, b) of  sum weight (log(1 + exp(w . x + b)) - y (w . x + b)) + ridge / 2 (|w|^2 + b^2)
    discriminant   w = S^-1 (m+ - m-), S = (1 - g) C + g tr(C) / D I, C the covariance within the classes
    first_axis     max over |w| = 1 of sum (w . x)^2

Pure functions. The classifiers solve as many equations as there are examples or features, whichever are fewer; a weight of zero
leaves an example out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NEWTON_STEPS = 20
CONVERGED = 1e-3
"""Size of a Newton step, as a share of the coefficients', after which there is no other: what is missing is about its square."""

KRYLOV_STEPS = 64
EXHAUSTED = 1e-5
"""Share of a vector that is new, up to which that is rounding."""


def logistic(x: Float[Array, "N D"], y: Float[Array, "N"], weight: Float[Array, "N"], strength: Any) -> tuple[Array, Array]:
    """Direction and bias of an L2-regularised logistic regression, by Newton's steps.

    Args:
        x: examples, about centred.
        y: 1 for those of the class, 0 for the others.
        weight: 1 for those that are fitted to, 0 for the others.
        strength: of the penalty a fitted example, for features scaled to a mean square of 1 a coordinate.
    """
    scale = jnp.sqrt((weight[:, None] * x**2).sum() / (weight.sum() * x.shape[1]))
    scale = jnp.where(scale == 0, 1, scale)
    z = jnp.concatenate([x / scale, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
    newton = _newton_features if z.shape[1] < z.shape[0] else _newton_examples
    whole = newton(z, y, weight, strength * weight.sum())
    return whole[:-1] / scale, whole[-1]


def _newton_examples(z: Array, y: Array, weight: Array, ridge: Array) -> Array:
    """One coefficient an example: the direction is a combination z^T a of them, so N equations are solved."""
    kernel = jnp.einsum("ND,MD->NM", z, z, precision="highest")

    def step(a: Array) -> Array:
        # stationary where ridge a = weight (y - sigmoid(K a)); the curvature is weight p (1 - p)
        p = jax.nn.sigmoid(kernel @ a)
        residual = weight * (y - p) - ridge * a
        curvature = weight * p * (1 - p)
        return jnp.linalg.solve(ridge * jnp.eye(len(a), dtype=a.dtype) + curvature[:, None] * kernel, residual)

    return _newton(step, jnp.zeros(z.shape[0], z.dtype)) @ z


def _newton_features(z: Array, y: Array, weight: Array, ridge: Array) -> Array:
    """One coefficient a feature: the same steps, as D equations."""

    def step(w: Array) -> Array:
        p = jax.nn.sigmoid(z @ w)
        slope = (weight * (y - p)) @ z - ridge * w
        curvature = jnp.einsum("ND,NE->DE", (weight * p * (1 - p))[:, None] * z, z, precision="highest")
        return jax.scipy.linalg.solve(ridge * jnp.eye(len(w), dtype=w.dtype) + curvature, slope, assume_a="pos")

    return _newton(step, jnp.zeros(z.shape[1], z.dtype))


def _newton(step: Callable[[Array], Array], start: Array) -> Array:
    """Newton's steps until they are rounding, NEWTON_STEPS at most."""

    def moves(state: tuple[Array, Array, Array]) -> Array:
        number, now, change = state
        return (number < NEWTON_STEPS) & (jnp.abs(change).max() > CONVERGED * jnp.abs(now).max())

    def move(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, now, _ = state
        change = step(now)
        return number + 1, now + change, change

    return jax.lax.while_loop(moves, move, (jnp.asarray(0), start, jnp.ones_like(start)))[1]


def discriminant(x: Float[Array, "N D"], y: Float[Array, "N"], weight: Float[Array, "N"], shrinkage: Any) -> Array:
    """The direction of Fisher's linear discriminant, its covariance shrunk towards a multiple of the identity.

    Args:
        x: examples.
        y: as for `logistic`.
        weight: as for `logistic`.
        shrinkage: g, over 0 and up to 1; negative is the estimate of Ledoit and Wolf (2004), which is the best one for a large sample.
    """
    means = [(weight * side) @ x / (weight * side).sum() for side in (y, 1 - y)]
    within = weight[:, None] * (x - y[:, None] * means[0][None] - (1 - y)[:, None] * means[1][None])
    number, difference = weight.sum(), means[0] - means[1]
    size = jnp.sqrt(jnp.square(within).sum() / (number * x.shape[1]))  # the root of tr(C) / D
    z = within / jnp.where(size == 0, 1, size)
    gram = jnp.einsum("ND,MD->NM" if len(z) <= z.shape[1] else "ND,NE->DE", z, z, precision="highest") / number
    g = jnp.clip(jnp.where(shrinkage < 0, _ledoit_wolf(z, gram, number), shrinkage), 1e-6, 1)
    if len(z) > z.shape[1]:
        return jax.scipy.linalg.solve((1 - g) * gram + g * jnp.eye(len(gram), dtype=z.dtype), difference, assume_a="pos")
    # (g I + (1 - g) Z^T Z / n)^-1 d by the N x N matrix Z Z^T / n
    inner = jax.scipy.linalg.solve(g * jnp.eye(len(gram), dtype=z.dtype) + (1 - g) * gram, z @ difference, assume_a="pos")
    return (difference - (1 - g) / number * (inner @ z)) / g


def _ledoit_wolf(z: Array, gram: Array, number: Array) -> Array:
    """The share of the identity that makes the shrunk covariance closest to the true one; rows of z are scaled to tr(C) = D.

    With C = Z^T Z / n: g = min(1, b / d), d = |C - I|^2 and b = sum over rows |z z^T - C|^2 / n^2, in squared entries.
    """
    square = jnp.square(gram).sum()  # |C|^2, from either product
    rows = jnp.square(jnp.square(z).sum(axis=1)).sum()
    distance = square - z.shape[1]
    return jnp.clip((rows - number * square) / number**2 / jnp.where(distance > 0, distance, 1), 0, 1)


def first_axis(x: Float[Array, "N D"]) -> Float[Array, "D"]:
    """The unit vector along which the sum of squares of x is largest (its first right singular vector), of either sign.

    Lanczos' method with every vector made orthogonal to all before it: exact within rounding where D or N is under KRYLOV_STEPS, and
    otherwise as good as the first singular value is apart from the second; no D x D or N x N matrix is made.
    """
    steps = min(KRYLOV_STEPS, *x.shape)

    def normalised(v: Array) -> Array:
        size = jnp.linalg.norm(v)
        return v / jnp.where(size == 0, 1, size)

    def step(state: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
        basis, v = state
        basis = basis.at[row].set(v)
        new = (x @ v) @ x
        rest = new - (basis @ new) @ basis
        rest = rest - (basis @ rest) @ basis  # once more for what rounding left
        # nothing new: the basis holds all that x reaches from where it began, and only rounding is left
        new_part = jnp.linalg.norm(rest) > EXHAUSTED * jnp.linalg.norm(new)
        return (basis, jnp.where(new_part, normalised(rest), 0)), None

    # from the sum of all rows, where most of the answer is, and a little of everything
    random = jax.random.normal(jax.random.key(0), (x.shape[0],), x.dtype) @ x
    begin = normalised(normalised(x.sum(axis=0)) + 0.1 * normalised(random))
    (basis, _), _ = jax.lax.scan(step, (jnp.zeros((steps, x.shape[1]), x.dtype), begin), jnp.arange(steps))
    projected = x @ basis.T
    return normalised(jnp.linalg.eigh(projected.T @ projected)[1][:, -1] @ basis)
