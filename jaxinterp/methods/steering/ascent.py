"""The ascent of `unsupervised`: how much a step at one layer changes a later one, and steps on the sphere that make it large."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.directions import length
from jaxinterp.model.norm import at_least_float32
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import read_forward
from jaxinterp.runs.decoding import matmul_precision

RATE = 0.3
"""About the angle of the first steps, in radians; it falls to zero along a cosine."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["tokens", "begin", "end", "read", "radius", "power", "root", "unit"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Change:
    """What is made large, as arrays.

    Attributes:
        tokens: the prompts.
        begin: [B P D], the stream leaving the layer in the plain run.
        end: [B P D], that leaving the target.
        read: [B P], the tokens whose change counts.
        radius: of the directions.
        power: p.
        root: q.
        unit: whether values are divided by their length.
    """

    tokens: Tokens
    begin: Any
    end: Any
    read: Any
    radius: Any
    power: Any
    root: Any
    unit: Any

    def of(self, params: Any, direction: Float[Array, "D"], run: Any) -> Float[Array, ""]:
        """The objective of a unit vector, with `run` the model from the layer to the target."""
        moved = run(params, self.tokens, self.begin + (self.radius * direction).astype(self.begin.dtype)[None, None])
        difference = self._scaled(moved) - self._scaled(self.end)
        # what does not count is set to 1 before a power is taken, whose derivative at zero may be infinite
        total = jnp.square(difference).sum(axis=-1)
        counts = self.read & (total > 0)
        summed = jnp.where(counts, jnp.where(counts, total, 1) ** (self.power / 2), 0).sum(axis=1)
        return jnp.where(summed > 0, jnp.where(summed > 0, summed, 1) ** (1 / self.root), 0).mean()

    def _scaled(self, value: Array) -> Array:
        value = at_least_float32(value)
        size = length(value)
        return jnp.where(self.unit, value / jnp.where(size == 0, 1, size), value)


def _between(config: TransformerConfig, layer: int, target: int, remat: bool = False) -> Callable[..., Any]:
    """The model from the stream leaving a layer to that leaving the target."""

    def run(params: Any, tokens: Tokens, resid: Array) -> Any:
        ending = lambda resid, tap: resid  # noqa: E731
        return read_forward(params, tokens, config, ending, start=(layer + 1, resid), stop=target + 1, precision=None, remat=remat)[0]

    return run


@functools.partial(jax.jit, static_argnames=("config", "layer", "target", "precision"))
def plain(
    params: Any, tokens: Tokens, read: Any, *, config: TransformerConfig, layer: int, target: int, precision: str | None
) -> tuple[Float[Array, "B P D"], Float[Array, "B P D"], Float[Array, ""]]:
    """The stream leaving the layer and the target, and its mean norm at the layer over the tokens that count."""
    with matmul_precision(precision):
        begin, _ = read_forward(params, tokens, config, lambda resid, tap: resid, stop=layer + 1, precision=None)
        end = _between(config, layer, target)(params, tokens, begin)
    norms = length(begin)[..., 0]
    return begin, end, jnp.where(read, norms, 0).sum() / read.sum()


@functools.partial(jax.jit, static_argnames=("config", "layer", "target", "precision", "steps", "remat"))
def ascend(
    params: Any, change: Change, before: Float[Array | np.ndarray, "n D"], start: Float[Array, "D"], *, config: TransformerConfig,
    layer: int, target: int, precision: str | None, steps: int, remat: bool,
) -> tuple[Float[Array, "D"], Float[Array, ""], Float[Array, "S"]]:  # fmt: skip
    """The best unit vector orthogonal to those before, its objective, and the objective of each step.

    Args:
        params: the weights.
        change: what is made large.
        before: unit vectors already found, and rows of zeros.
        start: where it begins, of any length.
        config: static, as are the others.
        layer: where directions are added.
        target: whose change is measured.
        precision: of matrix products.
        steps: of the ascent.
        remat: as for `forward`.
    """
    import optax

    run, rows = _between(config, layer, target, remat), jnp.asarray(before)
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE / np.sqrt(config.d_model), steps))
    slope = jax.value_and_grad(lambda u: change.of(params, u, run))

    def free(x: Array) -> Array:
        return x - (rows @ x) @ rows

    def unit(x: Any) -> Array:
        x = free(free(x))  # twice: once leaves rounding of the size of x
        return x / jnp.linalg.norm(x)

    def step(carry: Any, _: None) -> tuple[Any, Array]:
        u, state, best, most = carry
        value, gradient = slope(u)
        value, better = value.astype(most.dtype), value > most
        tangent = free(gradient - (gradient @ u) * u)
        moves, state = optimiser.update(-tangent, state)
        moved = unit(optax.apply_updates(u, moves))
        return (moved, state, jnp.where(better, u, best), jnp.maximum(value, most)), value

    with matmul_precision(precision):
        first, least = unit(start), jnp.full((), -jnp.inf, start.dtype)
        (_, _, best, most), values = jax.lax.scan(step, (first, optimiser.init(first), first, least), length=steps + 1)
    return best, most, values


@functools.partial(jax.jit, static_argnames=("config", "layer", "target", "precision"))
def changes(
    params: Any, change: Change, directions: Float[Array, "R D"], *, config: TransformerConfig, layer: int, target: int,
    precision: str | None,
) -> Float[Array, "R"]:  # fmt: skip
    """The objective of directions of any length."""
    run = _between(config, layer, target)
    with matmul_precision(precision):
        return jax.lax.map(lambda x: change.of(params, x / jnp.linalg.norm(x), run), directions)
