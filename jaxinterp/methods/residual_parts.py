"""The parts of the residual stream, and how much each adds to a metric.

A part is a vector that something adds to the stream: an embedding, what attention or an MLP writes, a bias. With the
denominators of all norms that follow held, logits before the soft cap are a linear function of all parts, so that

    metric = sum over parts of  part . direction of its joint        (`residual_stream`)

Heads, neurons and source positions are read through their own output matrix, one layer at a time, and nothing larger than
the activations themselves is made.
"""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinterp.methods.residual_stream import EMBEDDINGS, Denominators, Values, denominators, directions, norm_parameters, unembedded
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.experts import grouped_linear, route
from jaxinterp.model.norm import align, at_least_float32
from jaxinterp.model.sites import SITES
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace

SUBLAYERS = ("attn", "mlp", "shared")


class Part(NamedTuple):
    """Vectors that are added at a joint: [B n D] or [D], and inside the blocks [L B n D] or [L D]."""

    joint: str
    value: Array


def written(sublayer: str, config: TransformerConfig) -> str:
    """The site of what attention or an MLP writes, before a post-norm and the residual multiplier."""
    name = f"{sublayer}_proj"
    return f"{sublayer}_out" if SITES[name].absent(config) else name


def needed_sites(config: TransformerConfig, by: str) -> tuple[str, ...]:
    """The sites that a decomposition reads."""
    attention = {"head": ("z",), "source": ("pattern", "v")}.get(by, (written("attn", config),))
    mlp = ("mlp_post", "dense_post") if by == "neuron" else (written("mlp", config),)
    experts = ("shared_out", *(("expert_index", "expert_weights") if by == "neuron" or config.mlp_out_bias else ()))
    stream = ("ln1_scale", "ln2_scale") if config.norm_position == "post" else ("ln1_post_scale", "ln2_post_scale")
    wanted = {*EMBEDDINGS, *attention, *mlp, *experts, *stream, "resid_post"}
    return tuple(name for name in SITES if name in wanted and not SITES[name].absent(config))


def values_at(trace: Trace, columns: Int[Array, "B n"]) -> dict[str, Array]:
    """A trace's sites at these token columns in float32 at least: `resid_post` of the last layer, `v` and keys at every position.

    An axis that a lower-case letter stands for was cut to these columns when it was captured.
    """
    out = {}
    for name, value in trace.padded.items():
        axes = dict(trace.axes)[name]
        if name == "resid_post" and "L" in axes:
            value, axes = value[-1], axes[1:]
        axis = max(axes.find("P") if name != "v" else -1, axes.find("Q"))
        if axis >= 0:
            shape = [1] * value.ndim
            shape[axes.index("B")], shape[axis] = columns.shape
            value = jnp.take_along_axis(value, columns.reshape(shape), axis=axis)
        out[name] = at_least_float32(value) if jnp.issubdtype(value.dtype, jnp.floating) else value
    return out


# ----------------------------------------------------------------------------------------------------------- parts


def biases(values: Values, held: Denominators, params: Any, config: TransformerConfig) -> dict[str, Part]:
    """Every bias that is added to the stream, by its parameter's name; those of experts are weighted as their outputs are."""
    out: dict[str, Part] = {}
    if config.o_bias:
        out["attn.b_O"] = Part("attn", jnp.concatenate([group["attn"]["b_O"] for group in params["blocks"]]))
    if config.mlp_out_bias and config.has_mlp:
        out["mlp.b_out"] = Part("mlp", _mlp_bias(values, params, config))
    for name, weights in norm_parameters(params, held.blocks).items():
        if "b" in weights:
            out[f"{name}.b"] = Part(name, weights["b"])
    named = {"embed.ln.b": ("embed.ln", params["embed"].get("ln", {}).get("b"))}
    named["unembed.b_dense"] = ("dense", params.get("unembed", {}).get("b_dense"))
    named["ln_final.b"] = ("ln_final", params.get("ln_final", {}).get("b"))
    out |= {name: Part(joint, value) for name, (joint, value) in named.items() if value is not None}
    return {name: Part(part.joint, at_least_float32(part.value)) for name, part in out.items()}


def _mlp_bias(values: Values, params: Any, config: TransformerConfig) -> Array:
    """[L D], or [L B n D] where experts weight it."""
    if config.experts is None:
        return jnp.concatenate([group["mlp"]["b_out"] for group in params["blocks"]])
    out = []
    for _, weights, part in _experts(values, params, config):
        if part is None:
            bias = weights["mlp"]["b_out"][:, None, None, :]
            out.append(jnp.broadcast_to(bias, (bias.shape[0], *values["resid_post"].shape[:2], config.d_model)))
        else:
            index, applied = part
            every = jnp.zeros((*index.shape[:-1], config.experts.n)).astype(applied.dtype)
            every = jnp.put_along_axis(every, index, applied, axis=-1, inplace=False)
            out.append(jnp.einsum("LBnX,LXD->LBnD", every, at_least_float32(weights["experts"]["b_out"])))
    return jnp.concatenate([at_least_float32(piece) for piece in out])


def _experts(values: Values, params: Any, config: TransformerConfig) -> Any:
    """For each group of layers: it, its weights, and (index, applied weights) [L B n S] of its chosen experts, None where it is dense."""
    done = 0
    for group, weights in zip(config.groups, params["blocks"], strict=True):
        part = None
        if group.experts:
            here = slice(done, done + group.stop - group.start)
            done = here.stop
            index = values["expert_index"][here]
            part = (index, jnp.take_along_axis(values["expert_weights"][here], index, axis=-1))
        yield group, weights, part


def streams(values: Values, added: Mapping[str, Part], config: TransformerConfig, by: str) -> dict[str, Part]:
    """What embeddings, attention and MLPs write without their biases, as far as it is not decomposed further."""

    def without(name: str, value: Array) -> Array:
        if name not in added:
            return value
        bias = added[name].value
        return value - (bias[:, None, None, :] if bias.ndim == 2 else align(bias, value))

    out = {name: Part("embed", values[name]) for name in EMBEDDINGS if name in values}
    if config.embed_norm == "token":
        out["embed"] = Part("embed", without("embed.ln.b", values["embed"]))
    if by in ("layer", "neuron"):
        out["attn"] = Part("attn", without("attn.b_O", values[written("attn", config)]))
    if "shared_out" in values:
        layers = jnp.asarray(SITES["shared_out"].layers(config))
        shape = (config.n_layers, *values["shared_out"].shape[1:])
        out["shared"] = Part("mlp", jnp.zeros(shape, values["shared_out"].dtype).at[layers].set(values["shared_out"]))
    if by != "neuron" and config.has_mlp:
        whole = without("mlp.b_out", values[written("mlp", config)])
        out["mlp"] = Part("mlp", whole - out["shared"].value if "shared" in out else whole)
    return out


def read(part: Part, along: Mapping[str, Array]) -> Float[Array, "B *L"]:
    """A part along its joint's direction, summed over the positions that are read: [B], or [B L]."""
    direction = along[part.joint]
    axes = {1: "D", 2: "LD", 3: "BnD", 4: "LBnD"}[part.value.ndim]
    return jnp.einsum(f"{axes},{'LBnD->BL' if direction.ndim == 4 else 'BnD->B'}", part.value, direction)


# ------------------------------------------------------------------------------------- heads, neurons, source positions


def by_head(values: Values, along: Float[Array, "L B n D"], params: Any, config: TransformerConfig) -> Float[Array, "B L H"]:
    """What each head writes, z through its own rows of W_O, along the direction."""

    def layer(xs: tuple[Array, Array, Array]) -> Array:
        z, weight, direction = xs
        return jnp.einsum("BnHE,BnHE->BH", z, jnp.einsum("HED,BnD->BnHE", weight, direction))

    return _each_layer(layer, (values["z"],), along, params, config)


def by_source(
    values: Values, along: Float[Array, "L B n D"], params: Any, config: TransformerConfig, tokens: Tokens
) -> Float[Array, "B L H K"]:
    """What each head moves from each position: its weight there times the value there, through W_O, along the direction.

    Keys are positions of each prompt; those that it does not have are NaN.
    """

    def layer(xs: tuple[Array, Array, Array, Array]) -> Array:
        pattern, v, weight, direction = xs
        turned = jnp.einsum("HED,BnD->BnHE", weight, direction)
        turned = turned.reshape(*turned.shape[:2], v.shape[2], -1, v.shape[3])
        moved = jnp.einsum("BnGRE,BKGE->BGRnK", turned, v).reshape(pattern.shape)
        return jnp.einsum("BHnK,BHnK->BHK", pattern, moved)

    found = _each_layer(layer, (values["pattern"], values["v"]), along, params, config)
    positions = jnp.arange(tokens.ids.shape[1])
    found = jnp.take_along_axis(found, tokens.columns(positions)[:, None, None, :], axis=-1)
    return jnp.where((positions[None] < tokens.lengths[:, None])[:, None, None], found, jnp.nan)


def _each_layer(layer: Any, sites: tuple[Array, ...], along: Array, params: Any, config: TransformerConfig) -> Array:
    """A function of one layer's sites, W_O and direction, layer after layer: [B L ...]."""
    out = []
    for group, weights in zip(config.groups, params["blocks"], strict=True):
        here = slice(group.start, group.stop)
        out.append(jax.lax.map(layer, (*(site[here] for site in sites), weights["attn"]["W_O"], along[here])))
    return jnp.moveaxis(jnp.concatenate(out), 0, 1)


def by_neuron(values: Values, along: Float[Array, "L B n D"], params: Any, config: TransformerConfig) -> Float[Array, "B L *M"]:
    """Each neuron's activation times its row of W_out, along the direction: [B L M], with experts [B L X M].

    A dense layer among layers of experts has expert 0 alone; what a model does not have is NaN.
    """

    def dense(xs: tuple[Array, Array, Array]) -> Array:
        post, weight, direction = xs
        return jnp.einsum("BnM,BnM->BM", post, jnp.einsum("MD,BnD->BnM", weight, direction))

    if config.experts is None:
        return jnp.moveaxis(jax.lax.map(dense, (values["mlp_post"], params["blocks"][0]["mlp"]["W_out"], along)), 0, 1)
    width = max(config.experts.d_expert, 0 if all(config.expert_layers) else config.d_mlp)
    fill = functools.partial(jnp.pad, constant_values=jnp.nan)
    out, plain, routed = [], 0, 0
    for group, weights, part in _experts(values, params, config):
        direction, depth = along[group.start : group.stop], group.stop - group.start
        if part is None:
            one = jax.lax.map(dense, (values["dense_post"][plain : plain + depth], weights["mlp"]["W_out"], direction))
            out.append(fill(one[:, :, None, :], ((0, 0), (0, 0), (0, config.experts.n - 1), (0, width - one.shape[-1]))))
            plain += depth
        else:
            post = values["mlp_post"][routed : routed + depth]
            each = jax.lax.map(functools.partial(_chosen, n=config.experts.n), (post, *part, weights["experts"]["W_out"], direction))
            out.append(fill(each, ((0, 0), (0, 0), (0, 0), (0, width - each.shape[-1]))))
            routed += depth
    return jnp.moveaxis(jnp.concatenate(out), 0, 1)


def _chosen(xs: tuple[Array, Array, Array, Array, Array], n: int) -> Float[Array, "B X M"]:
    """The neurons of the chosen experts, by expert; 0 for those not chosen."""
    post, index, applied, weight, direction = xs
    routing = route(index.reshape(-1), n)
    rows = post.reshape(-1, post.shape[-1])
    cotangent = (direction[:, :, None, :] * applied[..., None]).reshape(-1, direction.shape[-1])
    (turned,) = jax.vjp(lambda rows: grouped_linear(rows, at_least_float32(weight), routing), rows)[1](cotangent)
    parts = (turned * rows).reshape(post.shape)
    batch = jnp.arange(post.shape[0])[:, None, None]
    return jnp.zeros((post.shape[0], n, post.shape[-1]), parts.dtype).at[batch, index].add(parts)


# --------------------------------------------------------------------------------------------------------- program


@functools.partial(jax.jit, static_argnames=("config", "by", "precision"))
def attribute(
    params: Any, metric: Any, trace: Trace, scale: Any, config: TransformerConfig, by: str, precision: str | None
) -> tuple[Array, dict[str, Array], Array, Array]:
    """The parts asked for [B ...], the others {name: [B] or [B L]}, the metric [B], and the largest slope of the metric.

    Args:
        params: the weights.
        metric: a bound metric of logits.
        trace: of the sites of `needed_sites`, as `values_at` reads them.
        scale: None, denominators of the final norm [B n 1], or a trace of another run whose denominators are held.
        config: the architecture.
        by: what to decompose into: "layer", "head", "neuron" or "source".
        precision: of matrix products.
    """
    tokens = trace.padded_tokens
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        columns, words = reads(metric, tokens, config)
        values, raw = values_at(trace, columns), config.replace(final_soft_cap=None, pooler=False)
        logits = at_least_float32(unembedded(params, values["resid_post"], raw, words))
        total, pull = jax.vjp(lambda logits: metric.from_logits(logits, tokens), logits)
        (slope,) = pull(jnp.ones_like(total))
        held = _held(denominators(values, params, config), scale, metric, params, config)
        added = biases(values, held, params, config)
        parts = streams(values, added, config, by) | added
        along = directions(slope, {part.joint for part in parts.values()} | {"embed", "attn", "mlp"}, held, params, config, words)
        others = {name: read(part, along) for name, part in parts.items()}
        if config.unembed_bias:
            bias = at_least_float32(params["unembed"]["b_U"]) * config.logit_scale
            others["unembed.b_U"] = jnp.einsum("BnV,V->B", slope, bias) if words is None else jnp.einsum("BnV,BV->B", slope, bias[words])
        if "shared" in others:
            others["shared"] = jnp.where(jnp.asarray(config.expert_layers)[None], others["shared"], jnp.nan)
        if by == "layer":
            asked = jnp.stack([others.pop(name) for name in SUBLAYERS if name in others], axis=-1)
        elif by == "head":
            asked = by_head(values, along["attn"], params, config)
        elif by == "neuron":
            asked = by_neuron(values, along["mlp"], params, config)
        else:
            asked = by_source(values, along["attn"], params, config, tokens)
        return asked, others, total, jnp.abs(slope).max()


def reads(metric: Any, tokens: Tokens, config: TransformerConfig) -> tuple[Array, Array | None]:
    """The columns of tokens [B n] and of the vocabulary [B k] (None is all) that a metric reads."""
    columns, words = metric.reads(tokens, config)
    batch = tokens.ids.shape[0]
    columns = jnp.broadcast_to(jnp.asarray(columns), (batch, columns.shape[1]))
    return columns, None if words is None else jnp.broadcast_to(jnp.asarray(words), (batch, words.shape[-1]))


def _held(own: Denominators, scale: Any, metric: Any, params: Any, config: TransformerConfig) -> Denominators:
    """The denominators that are held: a run's own, but another's for the norms that the residual stream itself goes through."""
    if scale is None:
        return own
    if not isinstance(scale, Trace):
        return own._replace(final=at_least_float32(jnp.asarray(scale)))
    values = values_at(scale, reads(metric, scale.padded_tokens, config)[0])
    other = denominators(values, params, config.replace(embed_norm="none"))
    stream = {name: value for name, value in other.blocks.items() if name in ("ln1", "ln2")}
    return own._replace(blocks=own.blocks | stream, final=other.final)
