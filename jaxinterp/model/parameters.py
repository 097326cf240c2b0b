"""The parameters: their names, axes and shapes, how a new model begins, and how they are laid out over a mesh.

A model's parameters are a nested dict of arrays. Every leaf below a group of blocks has a leading layer axis.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.model.attention import places
from jaxinterp.model.block import Block
from jaxinterp.model.config import Group, TransformerConfig
from jaxinterp.model.norm import Norm
from jaxinterp.model.rules import Rules
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens

# Axis letters of every parameter, by its name inside its part; L first for those of a block. Beside the letters of the
# sites: T token type, C width of a projected token embedding, U neurons of the shared expert. With `d_embed`, W_E is [V C].
PARAMETER_AXES = {
    "embed.W_E": "VD", "embed.W_pos": "PD", "embed.W_type": "TD", "embed.W_embed": "CD", "embed.ln.w": "D", "embed.ln.b": "D",
    "ln1.w": "LD", "ln1.b": "LD", "ln1_post.w": "LD", "ln1_post.b": "LD",
    "attn.W_Q": "LDHE", "attn.W_K": "LDGE", "attn.W_V": "LDGE", "attn.W_O": "LHED",
    "attn.b_Q": "LHE", "attn.b_K": "LGE", "attn.b_V": "LGE", "attn.b_O": "LD", "attn.sink": "LH",
    "attn.q_norm.w": "LHE", "attn.k_norm.w": "LGE",
    "ln2.w": "LD", "ln2.b": "LD", "ln2_post.w": "LD", "ln2_post.b": "LD",
    "mlp.W_gate": "LDM", "mlp.W_in": "LDM", "mlp.W_out": "LMD", "mlp.b_gate": "LM", "mlp.b_in": "LM", "mlp.b_out": "LD",
    "experts.W_router": "LDX", "experts.b_router": "LX", "experts.W_gate": "LXDM", "experts.W_in": "LXDM", "experts.W_out": "LXMD",
    "experts.b_gate": "LXM", "experts.b_in": "LXM", "experts.b_out": "LXD",
    "experts.W_shared_gate": "LDU", "experts.W_shared_in": "LDU", "experts.W_shared_out": "LUD", "experts.w_shared": "LD",
    "ln_final.w": "D", "ln_final.b": "D", "unembed.W_U": "DV", "unembed.b_U": "V", "unembed.W_dense": "DD", "unembed.b_dense": "D",
    "unembed.W_embed": "DC", "pooler.W": "DD", "pooler.b": "D",
}  # fmt: skip


def parameter_axes(name: str, config: TransformerConfig) -> str:
    """Axis letters of a parameter: "attn.W_Q" is "LDHE". A query/key norm shared by heads has no head axis."""
    if config.d_embed is not None and name in ("embed.W_E", "unembed.W_U"):
        return {"embed.W_E": "VC", "unembed.W_U": "CV"}[name]
    return "LE" if name in ("attn.q_norm.w", "attn.k_norm.w") and config.qk_norm == "head" else PARAMETER_AXES[name]


def init_params(config: TransformerConfig, key: Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Random parameters of a new model: weights of variance 1 / fan-in, gains at their neutral value, biases zero."""
    keys = iter(jax.random.split(key, 10))
    tokens = Tokens.from_ids(np.zeros((1, 1), np.int32))
    resid = jnp.zeros((1, 1, config.d_model), dtype)
    place = places(tokens, config, jnp.dtype(dtype))(jnp.asarray(0))
    width = config.d_embed or config.d_model

    def stack(group: Group, key: Array) -> dict[str, Any]:
        def one_block(key: Array) -> dict[str, Any]:
            made: Any = Block(config, group.experts).init(key, resid, place, Tap(tokens, config, layer=jnp.asarray(0)))
            return made["params"]

        return jax.vmap(one_block)(jax.random.split(key, group.stop - group.start))

    def norm() -> dict[str, Any]:
        made: Any = Norm(config, (config.d_model,), "ln_final").init(key, resid, Rules())
        return made.get("params", {})

    def normal(*shape: int) -> Array:
        return jax.random.normal(next(keys), shape) / np.sqrt(width if len(shape) > 1 else 1)

    groups = zip(config.groups, jax.random.split(next(keys), len(config.groups)), strict=True)
    params: dict[str, Any] = {
        "embed": {"W_E": normal(config.d_vocab, width)},
        "blocks": tuple(stack(*pair) for pair in groups),
        "unembed": {},
    }
    if config.positions == "learned":
        params["embed"]["W_pos"] = normal(config.n_ctx + config.position_offset, config.d_model)
    if config.n_token_types:
        params["embed"]["W_type"] = normal(config.n_token_types, config.d_model)
    if config.embed_norm != "none":
        params["embed"]["ln"] = norm()
    if config.d_embed is not None:
        params["embed"]["W_embed"] = normal(config.d_embed, config.d_model)
        params["unembed"]["W_embed"] = normal(config.d_model, config.d_embed)
    if config.pooler:
        params["pooler"] = {"W": normal(config.d_model, config.d_model), "b": jnp.zeros(config.d_model)}
    if config.final_dense is not None:
        params["unembed"] |= {"W_dense": normal(config.d_model, config.d_model), "b_dense": jnp.zeros(config.d_model)}
    if config.final_norm:
        params["ln_final"] = norm()
    if config.unembed == "own":
        params["unembed"]["W_U"] = normal(width, config.d_vocab)
    if config.unembed_bias:
        params["unembed"]["b_U"] = jnp.zeros(config.d_vocab)
    return jax.tree.map(lambda w: w.astype(dtype), {name: value for name, value in params.items() if value})


def by_layer(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with each layer's weights apart instead of in stacks: `params["blocks"]` is a tuple of layers for each group.

    On CPU a decoded token then reads each weight where it lies, where a scan over a stack copies a layer at a time. These are
    copies: drop the stacked parameters to hold the weights once. `run`, `forward`, `generate`, `stream` and `score` take
    either; what starts at a layer that is data (sweeps, `start=`) takes stacks. `stacked` is the way back.
    """
    groups = [tuple(_layer(group, index) for index in range(len(jax.tree.leaves(group)[0]))) for group in params["blocks"]]
    return {**params, "blocks": tuple(groups)}


@jax.jit
def _layer(stack: Any, index: Any) -> Any:
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, index, keepdims=False), stack)


def stacked(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters laid out `by_layer` as stacks again; stacked ones as they are."""
    if not isinstance(params["blocks"][0], tuple):
        return dict(params)
    return {**params, "blocks": tuple(jax.tree.map(lambda *layers: jnp.stack(layers), *group) for group in params["blocks"])}


def parameter_shapes(config: TransformerConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The tree of `init_params` as shapes and types, without making it."""
    return jax.eval_shape(lambda key: init_params(config, key, dtype), jax.random.key(0))


def partition_specs(config: TransformerConfig, mesh_axes: Mapping[str, str | tuple[str, ...]]) -> dict[str, Any]:
    """How to lay parameters out over a mesh: a `PartitionSpec` for each, from axis letters to mesh axes.

    `partition_specs(config, {"H": "heads", "G": "heads", "M": "heads"})` splits attention by heads and the MLP by neurons;
    a letter that is not named is not split. Sizes must divide: leave out "G" where there are too few key/value heads.
    The mesh's axes must be of type `Auto`, so that the compiler places what lies between.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> jax.P:
        keys = [str(entry.key) for entry in path if hasattr(entry, "key")]
        name = ".".join(keys[1:] if keys[0] == "blocks" else keys)
        return jax.P(*(mesh_axes.get(letter) for letter in parameter_axes(name, config)))

    return jax.tree_util.tree_map_with_path(spec, parameter_shapes(config))
