"""Mixture of experts: a layer of `model/experts.py` beside every expert on every token, and beside the routed operations alone.

One layer of 16 experts of 1024 neurons, 2 a token, 512 features, float32. "Routed operations" are plain products of as many rows
with one expert's matrices: the same multiplications without routing, in the order that a machine likes best.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.context import Context, Measurement, Suite
from benchmarks.harness import Contender, race, timed
from benchmarks.runs import agree
from jaxinterp.model.config import Experts, Rotary, TransformerConfig
from jaxinterp.model.experts import MixtureOfExperts
from jaxinterp.model.parameters import parameter_shapes
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens

EXPERTS = Experts(n=16, per_token=2, d_expert=1024)
CONFIG = TransformerConfig(
    n_layers=1, d_model=512, n_heads=8, d_head=64, n_kv_heads=8, d_vocab=8, n_ctx=4096, d_mlp=0, experts=EXPERTS, rotary=(Rotary(64),)
)  # fmt: skip
TOKENS = (16, 256, 1024)
BARS: dict[int, tuple[float | None, float | None]] = {16: (None, None), 256: (0.5, None), 1024: (0.35, 2.0)}
"""Most that a layer may take, of the time of every expert on every token and of the routed operations."""

Weights = dict[str, jax.Array]


def weights(seed: int = 0) -> Weights:
    """Random weights of one layer."""
    random, shapes = np.random.default_rng(seed), parameter_shapes(CONFIG)["blocks"][0]["experts"]
    return {name: jnp.asarray(random.normal(size=leaf.shape[1:]) / np.sqrt(leaf.shape[-2]), jnp.float32) for name, leaf in shapes.items()}


def layer(params: Weights, x: jax.Array) -> jax.Array:
    """What the layer writes [B P D]."""
    tap = Tap(Tokens.from_ids(np.zeros(x.shape[:2], np.int32)), CONFIG, layer=jnp.asarray(0))
    out: Any = MixtureOfExperts(CONFIG).apply({"params": params}, x, tap)
    return out


def dense(params: Weights, x: jax.Array) -> jax.Array:
    """The same by running every expert on every token."""
    chances = jax.nn.softmax(x @ params["W_router"], axis=-1)
    best, index = jax.lax.top_k(chances, EXPERTS.per_token)
    chosen = jnp.put_along_axis(jnp.zeros_like(chances), index, best / best.sum(-1, keepdims=True), axis=-1, inplace=False)
    hidden = jax.nn.silu(jnp.einsum("BPD,XDM->XBPM", x, params["W_gate"])) * jnp.einsum("BPD,XDM->XBPM", x, params["W_in"])
    return jnp.einsum("XBPD,BPX->BPD", jnp.einsum("XBPM,XMD->XBPD", hidden, params["W_out"]), chosen)


def routed(params: Weights, x: jax.Array) -> jax.Array:
    """As many rows as there are assignments through one expert."""
    rows = jnp.repeat(x, EXPERTS.per_token, axis=1)
    return (jax.nn.silu(rows @ params["W_gate"][0]) * (rows @ params["W_in"][0])) @ params["W_out"][0]


def compare(ctx: Context, tokens: int) -> None:
    """The three on one prompt, forwards and with the gradient of the input."""
    params, x = weights(), jnp.asarray(np.random.default_rng(1).normal(size=(1, tokens, CONFIG.d_model)), jnp.float32)
    functions: dict[str, Callable[..., jax.Array]] = {"experts": layer, "dense": dense, "routed": routed}
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    agree(f"{tokens} tokens: experts", compiled["experts"](params, x), compiled["dense"](params, x))
    slopes = {name: jax.jit(jax.grad(lambda x, p, f=function: jnp.square(f(p, x)).sum())) for name, function in functions.items()}
    contenders = [Contender(name, timed(functools.partial(work, params, x))) for name, work in compiled.items()]
    contenders += [Contender(f"{name}, gradient", timed(functools.partial(work, x, params))) for name, work in slopes.items()]
    times, (of_dense, of_routed) = race(contenders, ctx.rounds), BARS[tokens]
    ctx.report.race(f"{tokens} tokens", times)
    ctx.report.ratio(f"{tokens} tokens: experts / dense", times, "experts", "dense", of_dense)
    ctx.report.ratio(f"{tokens} tokens: experts / routed operations", times, "experts", "routed", of_routed)
    ctx.report.ratio(f"{tokens} tokens: gradient, experts / dense", times, "experts, gradient", "dense, gradient")
    ctx.report.ratio(f"{tokens} tokens: gradient, experts / routed operations", times, "experts, gradient", "routed, gradient")


SUITE = Suite(
    "Mixture of experts: 16 experts of 1024 neurons, 2 a token, 512 features, float32",
    {f"experts-{tokens}": Measurement(functools.partial(compare, tokens=tokens), f"one layer at {tokens} tokens") for tokens in TOKENS},
)
