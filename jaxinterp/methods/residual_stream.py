"""The end of the residual stream as a linear map: from where something is added to it, to logits, with every norm's denominator held.

A joint is a place where vectors are added to the stream: "embed" (embeddings), "attn" and "mlp" (what a sublayer writes, before
what follows it in its layer), or where a norm or a dense layer adds its bias ("embed.ln", "ln1_post", "ln1" ... "dense",
"ln_final"). `tail` is the model from the joints on, without attention and MLPs; its transpose, `directions`, is along which
direction each joint is read. Both cost a few norms a layer.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.mlp import activate
from jaxinterp.model.norm import Norm, align, at_least_float32
from jaxinterp.model.rules import Rules
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import unembed

Values = Mapping[str, Array]
EMBEDDINGS = ("embed", "pos_embed", "type_embed")
INSIDE = ("attn", "mlp", "ln1_post", "ln2_post", "ln1", "ln2")  # joints of every layer


class Denominators(NamedTuple):
    """What is held: of norms in the blocks {name: [L B n 1]}; of the embedding's norm and the final one [B n 1]; and the
    ratio activation(x) / x of a dense layer before the final norm [B n D].
    """

    blocks: dict[str, Array]
    embed: Any
    dense: Any
    final: Any


def denominators(values: Values, params: Any, config: TransformerConfig) -> Denominators:
    """Those of a run, from its sites at the positions that are read; an edit after the last block is not seen."""
    blocks = {name.removesuffix("_scale"): value for name, value in values.items() if name.endswith("_scale")}
    weights, resid, embed, dense, final = params.get("unembed", {}), values["resid_post"], None, None, None
    if config.embed_norm == "sum":
        embed = _denominator(sum(values[name] for name in EMBEDDINGS if name in values), params["embed"]["ln"], config)
    if config.final_dense is not None:
        before = jnp.einsum("BnD,DO->BnO", resid, at_least_float32(weights["W_dense"]))
        before = before + align(at_least_float32(weights["b_dense"]), before)
        hold = functools.partial(activate, config.final_dense, rule="ratio")
        resid, dense = jax.jvp(lambda x: hold(x, x), (before,), (jnp.ones_like(before),))
    if config.final_norm:
        final = _denominator(resid, params.get("ln_final", {}), config)
    return Denominators(blocks, embed, dense, final)


def _denominator(x: Any, weights: Any, config: TransformerConfig) -> Array | None:
    seen: list[Array] = []
    Norm(config, (config.d_model,), "").apply({"params": weights}, x, Rules(), lambda scale: seen.append(scale) or scale)
    return seen[0] if seen else None


def _normed(x: Array, weights: Any, scale: Array, config: TransformerConfig) -> Array:
    """A norm without its bias, its denominator held: a linear map."""
    out: Any = Norm(config, (config.d_model,), "", bias=False).apply({"params": weights}, x, Rules(), lambda _: scale)
    return out


def tail(
    at: Mapping[str, Array], held: Denominators, params: Any, config: TransformerConfig, words: Int[Array, "B k"] | None
) -> Float[Array, "B n k"]:
    """Logits before the soft cap of what is added at each joint [B n D], inside the blocks [L B n D]; linear, without a constant."""
    x: Any = at["embed"]
    if config.embed_norm == "sum":
        x = _normed(x, params["embed"]["ln"], held.embed, config)
    x = x + at.get("embed.ln", 0.0)
    layers = ({joint: at[joint] for joint in INSIDE if joint in at}, held.blocks, norm_parameters(params, held.blocks))
    x, _ = jax.lax.scan(functools.partial(_block, config=config), x, layers, config.n_layers)
    if config.final_dense is not None:
        x = held.dense * (jnp.einsum("BnD,DO->BnO", x, at_least_float32(params["unembed"]["W_dense"])) + at["dense"])
    if config.final_norm:
        x = _normed(x, params.get("ln_final", {}), held.final, config) + at.get("ln_final", 0.0)
    plain = config.replace(final_dense=None, final_norm=False, pooler=False, unembed_bias=False, final_soft_cap=None)
    return unembedded(params, x, plain, words)


def _block(x: Array, layer: tuple[Values, Values, Mapping[str, Any]], config: TransformerConfig) -> tuple[Array, None]:
    """One layer of the tail: what is added, through post-norms and multiplier, and the norms of a post-norm stream."""
    at, held, gains = layer
    for sublayer, norm in (("attn", "ln1"), ("mlp", "ln2")) if config.has_mlp else (("attn", "ln1"),):
        added = at[sublayer]
        if f"{norm}_post" in held:
            added = _normed(added, gains[f"{norm}_post"], held[f"{norm}_post"], config) + at.get(f"{norm}_post", 0.0)
        x = x + added * config.residual_multiplier
        if norm in held:
            x = _normed(x, gains[norm], held[norm], config) + at.get(norm, 0.0)
    return x, None


def norm_parameters(params: Any, names: Iterable[str]) -> dict[str, dict[str, Array]]:
    """Gains and biases of these norms, of all layers [L D]."""
    found: dict[str, dict[str, Array]] = {}
    for name in names:
        groups = [group.get(name, {}) for group in params["blocks"]]
        found[name] = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)
    return found


def unembedded(params: Any, x: Array, config: TransformerConfig, words: Any) -> Array:
    """Logits [B n k] of a stream [B n D], at these columns of the vocabulary [B k] (None is all)."""
    batch = jnp.zeros(x.shape[:2], jnp.int32)
    out: Any = unembed(params, x, config, Tap(Tokens(batch, batch == 0, batch), config), words)
    return out


def directions(
    slope: Float[Array, "B n k"], joints: set[str], held: Denominators, params: Any, config: TransformerConfig, words: Any
) -> dict[str, Array]:
    """For each joint the direction [B n D], inside the blocks [L B n D], along which what is added there is read.

    Args:
        slope: derivative of the metric to the logits that it reads.
        joints: where parts are added.
        held: the denominators.
        params: the weights.
        config: the architecture.
        words: [B k], the columns of the vocabulary that are read; None is all.
    """
    one = (*slope.shape[:2], config.d_model)
    zeros = {joint: jnp.zeros((config.n_layers, *one) if joint in INSIDE else one, slope.dtype) for joint in joints}
    return jax.vjp(lambda at: tail(at, held, params, config, words), zeros)[1](slope)[0]
