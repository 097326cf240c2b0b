"""What edits do along a direction: pure functions of a value and vectors along its last axis, a position at a time.

Unit vectors u = d / |d| are made in float32 at least, and every function broadcasts: one direction for all positions, or one each.
Along a direction of length zero, which only a traced one can be, nothing changes, and no derivative is NaN.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.model.norm import at_least_float32


def length(x: Float[Array, "*axes D"]) -> Float[Array, "*axes 1"]:
    """The length |x|, its axis kept at size one, in float32 at least; its derivative at zero is zero."""
    square = jnp.square(at_least_float32(x)).sum(axis=-1, keepdims=True)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def unit(direction: Float[Array, "*axes D"]) -> Float[Array, "*axes D"]:
    """The unit vector d / |d|, or zero."""
    size = length(direction)
    return at_least_float32(direction) / jnp.where(size == 0, 1, size)


def along(x: Array, unit_vector: Array) -> Array:
    """The coordinate x . u, its axis kept at size one."""
    return (at_least_float32(x) * unit_vector).sum(axis=-1, keepdims=True)


def shift(x: Array, direction: Array, strength: Array) -> Array:
    """A step: x + s d."""
    return x + (strength * direction).astype(x.dtype)


def shift_relative(x: Array, direction: Array, strength: Array) -> Array:
    """A step in units of the value's norm: x + s |x| u."""
    wide = at_least_float32(x)
    return wide + strength * length(wide) * unit(direction)


def shift_above(x: Array, direction: Array, strength: Array, condition: Array, threshold: Array) -> Array:
    """A step where cos(x, c) > threshold: x + s d there, else x."""
    return jnp.where(cosine(x, condition) > threshold, shift(x, direction, strength), x)


def shift_below(x: Array, direction: Array, strength: Array, condition: Array, threshold: Array) -> Array:
    """A step where cos(x, c) < threshold: x + s d there, else x."""
    return jnp.where(cosine(x, condition) < threshold, shift(x, direction, strength), x)


def cosine(x: Array, direction: Array) -> Array:
    """The cosine cos(x, d), its axis kept at size one; 0 where either is zero."""
    return along(unit(x), unit(direction))


def project_out(x: Array, direction: Array) -> Array:
    """What is orthogonal: x - (x . u) u."""
    u = unit(direction)
    return at_least_float32(x) - along(x, u) * u


def clamp(x: Array, direction: Array, low: Array, high: Array) -> Array:
    """The coordinate clipped: x + (clip(x . u, low, high) - x . u) u."""
    u = unit(direction)
    coordinate = along(x, u)
    return at_least_float32(x) + (jnp.clip(coordinate, low[..., :1], high[..., :1]) - coordinate) * u


def swap(x: Array, a: Array, b: Array) -> Array:
    """The reflection that maps the unit vector of a to that of b; x where they are equal."""
    difference = unit(a) - unit(b)
    square = jnp.square(difference).sum(axis=-1, keepdims=True)
    return at_least_float32(x) - 2 * along(x, difference) * difference / jnp.where(square == 0, 1, square)
