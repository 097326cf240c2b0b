"""The MLP of a block, plain or gated, a neuron at a time."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.norm import align, at_least_float32
from jaxinterp.model.rules import clip, constant_ratio, with_derivative_of
from jaxinterp.model.tap import Tap

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "solu": lambda x: x * jax.nn.softmax(at_least_float32(x), axis=-1).astype(x.dtype),
}
# activation(x) / x as x goes to 0; for solu it is the softmax itself, which the rule takes from the ratio elsewhere.
RATIO_AT_ZERO = {"relu": 0.0, "relu2": 0.0, "gelu": 0.5, "gelu_tanh": 0.5, "quick_gelu": 0.5, "silu": 0.5}


def activate(name: str, pre: Float[Array, "*B M"], source: Float[Array, "*B M"], rule: str) -> Float[Array, "*B M"]:
    """activation(pre); unless the rule is "exact", its gradient goes to `source` (pre, before a clamp) by a constant ratio."""
    active = ACTIVATIONS[name](pre)
    if rule == "exact":
        return active
    at_zero = RATIO_AT_ZERO.get(name)
    limit = jax.nn.softmax(at_least_float32(pre), axis=-1).astype(pre.dtype) if at_zero is None else jnp.asarray(at_zero, pre.dtype)
    return constant_ratio(active, source, limit)


def neurons(config: TransformerConfig, pre: Float[Array, "*B M"], up: Float[Array, "*B M"] | None, rule: str) -> Float[Array, "*B M"]:
    """Neuron activations; the rule changes only what passes back through them."""
    clamped = pre
    if config.mlp_clamp is not None:
        clamped = jnp.minimum(pre, config.mlp_clamp)
        up = None if up is None else clip(up, config.mlp_clamp, linear=rule != "exact")
    active = activate(config.activation, clamped, pre, rule)
    if up is None:
        return active
    up = up + config.mlp_up_offset
    if rule == "exact":
        return active * up
    frozen_active, frozen_up = jax.lax.stop_gradient((active, up))
    through_up = frozen_active * up
    return with_derivative_of(active * up, through_up if rule == "ratio" else 0.5 * (through_up + active * frozen_up))


class MLP(nn.Module):
    """W_out (activation(x W_gate) * (x W_in)), or W_out activation(x W_in) where there is no gate.

    Attributes:
        config: the model's config.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"], tap: Tap) -> Float[Array, "B P D"]:
        """What the neurons write [B P D], from `mlp_in` [B P D]."""
        config = self.config
        width, bias, name = config.d_mlp, config.mlp_in_bias, "dense" if config.experts else "mlp"
        pre = tap(f"{name}_pre", self._linear("gate" if config.gated else "in", x, width, bias))
        up = tap(f"{name}_up", self._linear("in", x, width, bias)) if config.gated else None
        post = tap(f"{name}_post", neurons(config, pre, up, tap.rules.mlp))
        return self._linear("out", post, config.d_model, config.mlp_out_bias)

    def _linear(self, name: str, x: Float[Array, "B P I"], width: int, bias: bool) -> Float[Array, "B P O"]:
        out = jnp.einsum("BPI,IO->BPO", x, self.param(f"W_{name}", nn.initializers.lecun_normal(), (x.shape[-1], width)))
        return out + align(self.param(f"b_{name}", nn.initializers.zeros, (width,)), out) if bias else out
