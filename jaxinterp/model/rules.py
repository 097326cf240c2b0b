"""Rules: which parts of the backward pass are held constant. They never change a forward value.

Freezing a part replaces the model, backward only, by one that is linear in that part's input. With every norm scale and
the pattern frozen and the MLP treated by "ratio" or "half", the whole model is affine in its input embeddings.
Logit attribution, attribution patching's fixes, RelP and attribution graphs are this one forward pass under other rules.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.errors import InputError

NORMS = ("embed", "ln1", "ln2", "ln_final", "qk", "post")
MLP_RULES = ("exact", "ratio", "half")
PRODUCT_RULES = ("exact", "half")
_NO_SITES: dict[str, Any] = {}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["detach"], meta_fields=["norms", "pattern", "mlp", "products"])
@dataclasses.dataclass(frozen=True)
class Rules:
    """How the backward pass treats the model's nonlinear parts; `Rules()` is the exact gradient.

    Attributes:
        norms: norms whose denominator is held constant, of "embed", "ln1", "ln2", "ln_final", "qk" (query/key norms)
            and "post" (norms after a sublayer).
        pattern: whether the attention weights (and the sink's) are held constant, and with them the clipping of values.
        mlp: "exact"; "ratio" holds activation(x) / x constant, and with it the gate of a gated MLP, so that gradient
            passes through the linear factor alone; "half" holds the same ratio and shares the product of a gated MLP
            equally between both factors. (RelP, Jafari et al. 2025, arXiv:2508.21258; AttnLRP, Achtibat et al. 2024,
            arXiv:2402.05602). Both hold the weights of experts and the gate of a shared one.
        detach: {site: mask} of sites that pass no gradient to what they were computed from; a mask over [L] or [L H],
            or True for all. Masks are data: changing them compiles nothing. {"mlp_out": True} stops the gradient at MLPs,
            {"attn_out": True} at attention.
        products: "exact"; "half" shares the gradient of attention's two products, q k and pattern v (where the pattern is not
            held), equally between their factors, so that x . gradient of a product is the product and not twice it (the
            uniform rule of AttnLRP).

    Two sets of rules have names: `Rules.affine()` holds everything nonlinear, `Rules.attn_lrp()` is AttnLRP.
    """

    norms: tuple[str, ...] = ()
    pattern: bool = False
    mlp: Literal["exact", "ratio", "half"] = "exact"
    detach: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _NO_SITES)
    products: Literal["exact", "half"] = "exact"

    @classmethod
    def affine(cls, mlp: Literal["ratio", "half"] = "ratio") -> "Rules":
        """Everything nonlinear is held: the model is then affine in its input embeddings; with "half" these are RelP's rules."""
        return cls(norms=NORMS, pattern=True, mlp=mlp)

    @classmethod
    def attn_lrp(cls) -> "Rules":
        """AttnLRP (Achtibat et al. 2024, arXiv:2402.05602): norms held, gates and attention's products shared equally."""
        return cls(norms=NORMS, mlp="half", products="half")

    def check(self) -> None:
        """Refuse names that mean nothing.

        Raises:
            InputError: a norm or an MLP rule that does not exist.
        """
        unknown = [name for name in self.norms if name not in NORMS]
        if isinstance(self.norms, str) or unknown:
            raise InputError(f"Rules.norms is {self.norms!r}; expected a tuple of {', '.join(map(repr, NORMS))}.")
        if self.mlp not in MLP_RULES:
            raise InputError(f"Rules.mlp is {self.mlp!r}; expected one of {', '.join(map(repr, MLP_RULES))}.")
        if self.products not in PRODUCT_RULES:
            raise InputError(f"Rules.products is {self.products!r}; expected one of {', '.join(map(repr, PRODUCT_RULES))}.")

    def frozen(self, norm: str, scale: Float[Array, "..."]) -> Float[Array, "..."]:
        """The denominator of a norm, held constant where the rules say so."""
        return jax.lax.stop_gradient(scale) if norm in self.norms else scale

    def gate(self, weights: Array) -> Array:
        """The weights of experts, held constant where the MLP's gates are."""
        return weights if self.mlp == "exact" else jax.lax.stop_gradient(weights)

    def factors(self, *factors: Array) -> tuple[Array, ...]:
        """The factors of a product in attention, each with the share of its gradient that the rules give it."""
        return factors if self.products == "exact" else tuple(with_derivative_of(x, 0.5 * x) for x in factors)


@jax.custom_jvp
def with_derivative_of(value: Array, stand_in: Array) -> Array:
    """The value of the first argument with the derivative of the second."""
    return value


@with_derivative_of.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[1]


def constant_ratio(value: Array, source: Array, at_zero: Array) -> Array:
    """`value` as if it were `source` times a constant ratio: d value / d source = value / source, `at_zero` at 0."""
    nonzero = jnp.where(source == 0, 1, source)
    ratio = jax.lax.stop_gradient(jnp.where(source == 0, at_zero, value / nonzero))
    return with_derivative_of(value, ratio * source)


def clip(x: Array, limit: float, *, linear: bool) -> Array:
    """A value clipped to [-limit, limit]; `linear` holds the ratio clipped / x constant, so that the gradient sees a linear map."""
    clipped = jnp.clip(x, -limit, limit)
    return constant_ratio(clipped, x, jnp.ones((), x.dtype)) if linear else clipped
