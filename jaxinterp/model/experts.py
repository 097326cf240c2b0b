"""Mixture of experts: a router chooses S of X experts for each token, and their outputs are summed by its weights.

No token is dropped and no expert runs on tokens that did not choose it. Tokens are sorted by expert into blocks of equal
size, each block wholly one expert's (the last of each is filled up with zeros), and a scan multiplies each block by its
expert's weights: about (1 + half a block an expert) times the operations that the routing needs, and exact.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.mlp import neurons
from jaxinterp.model.norm import align, at_least_float32
from jaxinterp.model.tap import Tap


@functools.partial(jax.tree_util.register_dataclass, data_fields=["slot", "expert", "used"], meta_fields=["block"])
@dataclasses.dataclass(frozen=True)
class Routing:
    """Where each of A (token, expert) assignments stands among N blocks of `block` rows.

    Attributes:
        slot: [A] int, the row of each assignment.
        expert: [N] int, the expert of each block.
        used: [N] bool, whether any assignment stands in the block.
        block: rows of a block.
    """

    slot: Int[Array, "A"]
    expert: Int[Array, "N"]
    used: Bool[Array, "N"]
    block: int


def route(index: Int[Array, "A"], n_experts: int) -> Routing:
    """The blocks for assignments of `index` experts; their number depends on shapes alone."""
    count = index.shape[0]
    # a block costs a copy of its matrix, worth about 24 rows: few blocks against few rows of zeros
    block = 4
    while block < min(count / (2 * n_experts), 256):
        block *= 2
    total = (count + min(n_experts, count) * (block - 1)) // block
    sizes = jnp.zeros(n_experts, jnp.int32).at[index].add(1)
    ends = jnp.cumsum(-(-sizes // block))
    order = jnp.argsort(index, stable=True)
    rank = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32)) - (jnp.cumsum(sizes) - sizes)[index]
    first = ends - -(-sizes // block)
    blocks = jnp.arange(total)
    expert = jnp.minimum(jnp.searchsorted(ends, blocks, side="right"), n_experts - 1)
    return Routing(first[index] * block + rank, expert, blocks < ends[-1], block)


def grouped_linear(x: Float[Array, "A I"], weight: Float[Array, "X I O"], routing: Routing) -> Float[Array, "A O"]:
    """Each assignment's row times its own expert's matrix."""
    rows = jnp.zeros((routing.used.shape[0] * routing.block, x.shape[1]), x.dtype).at[routing.slot].set(x)
    out = _multiply(rows.reshape(-1, routing.block, x.shape[1]), weight, routing.expert, routing.used)
    return out.reshape(-1, weight.shape[2])[routing.slot]


def _scan(rows: Float[Array, "N A I"], weight: Float[Array, "X I O"], expert: Int[Array, "N"], used: Bool[Array, "N"]) -> Array:
    """Each used block times the matrix of its expert [N A O], one after the other; unused blocks give zeros."""

    # a backward pass looks the matrix up again: kept, there would be one for each block
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def product(rows: Array, expert: Array, used: Array) -> Array:
        multiply = lambda: jnp.einsum("AI,IO->AO", rows, jax.lax.dynamic_index_in_dim(weight, expert, keepdims=False))  # noqa: E731
        return jax.lax.cond(used, multiply, lambda: jnp.zeros((rows.shape[0], weight.shape[2]), rows.dtype))

    return jax.lax.scan(lambda carry, block: (carry, product(*block)), None, (rows, expert, used))[1]


_multiply = jax.custom_jvp(_scan)


@functools.partial(_multiply.defjvp, symbolic_zeros=True)
def _multiply_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    """The product's derivative; transposing the scan would add to the gradient of all experts at every step, so for them it is
    taken of all blocks at once, and what is transposed adds each block to its own expert only.
    """
    rows, weight, expert, used = primals
    d_rows, d_weight = (None if isinstance(tangent, SymbolicZero) else tangent for tangent in tangents[:2])
    out = _multiply(rows, weight, expert, used)
    change = jnp.zeros_like(out) if d_rows is None else _scan(d_rows, weight, expert, used)
    return out, change if d_weight is None else change + jnp.einsum("NAI,NIO->NAO", rows, d_weight[expert])


class MixtureOfExperts(nn.Module):
    """sum over the chosen experts e of weight_e * MLP_e(x), plus the shared expert where there is one.

    Attributes:
        config: the model's config.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B P D"], tap: Tap) -> Float[Array, "B P D"]:
        """What the experts write [B P D], from `mlp_in` [B P D]."""
        config, (batch, positions, _) = self.config, x.shape
        experts = config.experts
        assert experts is not None
        weights, index = self._choose(x, tap)
        routing = route(index.reshape(-1), experts.n)
        shape = (batch, positions, experts.per_token)

        def linear(name: str, value: Float[Array, "B P S I"], width: int, bias: bool) -> Float[Array, "B P S O"]:
            inner = value.shape[-1]
            weight = self.param(f"W_{name}", nn.initializers.lecun_normal(1, 2, 0), (experts.n, inner, width))
            out = grouped_linear(value.reshape(-1, inner), weight, routing).reshape(*shape, width)
            return out + self.param(f"b_{name}", nn.initializers.zeros, (experts.n, width))[index] if bias else out

        each = jnp.broadcast_to(x[:, :, None, :], (*shape, x.shape[-1]))
        pre = tap("mlp_pre", linear("gate" if config.gated else "in", each, experts.d_expert, config.mlp_in_bias))
        up = tap("mlp_up", linear("in", each, experts.d_expert, config.mlp_in_bias)) if config.gated else None
        post = tap("mlp_post", neurons(config, pre, up, tap.rules.mlp))
        weights = tap.rules.gate(weights).astype(x.dtype)
        out = jnp.einsum("BPSD,BPS->BPD", linear("out", post, config.d_model, config.mlp_out_bias), weights)
        return out + tap("shared_out", self._shared(x, tap)) if experts.d_shared else out

    def _choose(self, x: Float[Array, "B P D"], tap: Tap) -> tuple[Float[Array, "B P S"], Int[Array, "B P S"]]:
        """The weights and the numbers of each token's experts."""
        experts = self.config.experts
        assert experts is not None
        router = self.param("W_router", nn.initializers.lecun_normal(), (x.shape[-1], experts.n))
        logits = jnp.einsum("BPD,DX->BPX", x, router, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
        if experts.router_bias:
            logits = logits + align(self.param("b_router", nn.initializers.zeros, (experts.n,)), logits)
        logits = at_least_float32(tap("router_logits", logits))
        # the softmax over the chosen alone is that over all, scaled to sum to 1
        best, index = jax.lax.top_k(logits if experts.normalise else jax.nn.softmax(logits, axis=-1), experts.per_token)
        best = jax.nn.softmax(best, axis=-1) if experts.normalise else best
        weights = jnp.put_along_axis(jnp.zeros_like(logits), index, best, axis=-1, inplace=False)
        best, index = jax.lax.top_k(tap("expert_weights", weights), experts.per_token)
        tap.chosen = tap("expert_index", index)
        return best, index

    def _shared(self, x: Float[Array, "B P D"], tap: Tap) -> Float[Array, "B P D"]:
        """The expert that every token goes to, behind its gate where it has one."""
        config, experts = self.config, self.config.experts
        assert experts is not None

        def linear(name: str, value: Float[Array, "B P I"], width: int) -> Float[Array, "B P O"]:
            return jnp.einsum(
                "BPI,IO->BPO", value, self.param(f"W_shared_{name}", nn.initializers.lecun_normal(), (value.shape[-1], width))
            )

        up = linear("in", x, experts.d_shared) if config.gated else None
        pre = linear("gate" if config.gated else "in", x, experts.d_shared)
        out = linear("out", neurons(config, pre, up, tap.rules.mlp), config.d_model)
        if experts.shared_gate:
            gate = jnp.einsum("BPD,D->BP", x, self.param("w_shared", nn.initializers.zeros, (x.shape[-1],)))
            out = out * tap.rules.gate(jax.nn.sigmoid(gate))[:, :, None]
        return out
