"""Norms: LayerNorm, RMSNorm and their variants, with the denominator as a site."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.rules import Rules


def at_least_float32(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value in float32, or in its own type where that is wider."""
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def align(parameter: Array, value: Array) -> Array:
    """A parameter with leading axes of size one added, so that its axes meet the last axes of `value`."""
    return parameter.reshape((1,) * (value.ndim - parameter.ndim) + parameter.shape)


class Norm(nn.Module):
    """y = (x - mean) / scale * w + b over the last axes, with scale = sqrt(var + eps); "rms" leaves out the mean.

    Attributes:
        config: the model's config.
        shape: axes of the gain.
        over: how many of the last axes are normed together.
        rule: the name by which `Rules.norms` freezes this norm's denominator.
        bias: whether the norm has a bias where the config says that norms do (query/key norms never do).
    """

    config: TransformerConfig
    shape: tuple[int, ...]
    rule: str
    over: int = 1
    bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "..."], rules: Rules, tap_scale: Callable[[Float[Array, "..."]], Float[Array, "..."]] = lambda scale: scale
    ) -> Float[Array, "..."]:
        """The normed value; `tap_scale` sees the denominator, of x's shape with the normed axes at size one."""
        config = self.config
        if config.norm == "none":
            return x
        axes = tuple(range(-self.over, 0))
        wide = at_least_float32(x)
        if config.norm == "layer":
            wide = wide - wide.mean(axes, keepdims=True)
        scale = jnp.sqrt(jnp.square(wide).mean(axes, keepdims=True) + config.norm_eps)
        y = wide / tap_scale(rules.frozen(self.rule, scale))
        if config.norm_gain != "none":
            gain = at_least_float32(self.param("w", nn.initializers.ones if config.norm_gain == "w" else nn.initializers.zeros, self.shape))
            y = y * align(gain + 1 if config.norm_gain == "1+w" else gain, y)
        if config.norm_bias and self.bias:
            y = y + align(self.param("b", nn.initializers.zeros, self.shape), y)
        return y.astype(x.dtype)
