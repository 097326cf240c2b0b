"""Identities: what every correct run satisfies, whatever the weights: sums, causality, padding, live edits, a plausible loss."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checkpoints.sanity import final, sanity
from jaxinterp.model import edits
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.norm import Norm
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import at
from jaxinterp.model.sites import SITES, site_names, site_of
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import forward
from jaxinterp.runs.verify.verdict import Check

ROUNDING = {"float64": 1e-10, "float32": 5e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""How far two ways to compute the same may be apart, relative to each token's norm, by dtype."""

LIVE = 1e-7
"""The least change of the outputs, relative to the largest, that an edit must make; a dead one changes no bit."""

PROMPT = 10
"""Tokens of the longer of two prompts."""

HEADS_OF_LAYERS = 3
"""`head_out` is large: it is checked in so many layers."""

Activations = dict[str, np.ndarray]


def identities(lm: LanguageModel) -> Iterator[Check]:
    """Every check, in the order in which they are shown."""
    tokens = _prompts(lm.config, left=False, seed=0)
    seen, layers = _captured(lm, tokens)
    bound = ROUNDING[jnp.dtype(jax.tree.leaves(lm.params)[0].dtype).name]
    mask = np.asarray(tokens.mask)
    yield _finite(lm)
    yield from _stream(lm, seen, mask, bound)
    yield _heads(lm, seen, layers, mask, bound)
    yield from _pattern(lm.config, seen, tokens, bound)
    yield _causality(lm, tokens, bound)
    yield from _padding(lm, tokens, bound)
    yield _live(lm)
    yield _loss(lm)


def _prompts(config: TransformerConfig, left: bool, seed: int, width: int | None = None) -> Tokens:
    """Two prompts of different lengths; `seed` decides what stands in the padding and nothing else."""
    length = min(PROMPT, config.n_ctx)
    lengths, width = (length, max(1, length - 3)), width or length
    real = np.random.default_rng(7).integers(0, config.d_vocab, (2, length))
    ids, mask = np.random.default_rng(seed).integers(0, config.d_vocab, (2, width)), np.zeros((2, width), bool)
    for row, count in enumerate(lengths):
        place = slice(width - count, width) if left else slice(count)
        ids[row, place], mask[row, place] = real[row, :count], True
    return Tokens.from_ids(ids.astype(np.int32), mask)


@functools.partial(jax.jit, static_argnames=("config", "layers"))
def _run(params: Any, tokens: Tokens, config: TransformerConfig, layers: tuple[int, ...]) -> dict[str, jax.Array]:
    requests = dict.fromkeys(site_names(config), at()) | {"head_out": at(layer=list(layers))}
    return dict(forward(params, tokens, config, sites=requests).activations)


def _captured(lm: LanguageModel, tokens: Tokens) -> tuple[Activations, tuple[int, ...]]:
    """Every site of a run as float64, and the layers of `head_out`."""
    n = lm.config.n_layers
    layers = tuple(sorted({0, n // 2, n - 1}))[:HEADS_OF_LAYERS]
    found = _run(lm.params, tokens.arrays_only(), lm.config, layers)
    return {site: np.asarray(value, np.float64) for site, value in found.items()}, layers


def _apart(a: np.ndarray, b: np.ndarray, mask: np.ndarray, *scale: np.ndarray) -> float:
    """The largest ||a - b|| of a real token, relative to the largest norm of a, b and `scale` at that token."""
    real = np.nonzero(np.broadcast_to(mask, a.shape[:-1]))
    size = np.max([np.linalg.norm(value[real], axis=-1) for value in (a, b, *scale)], axis=0)
    apart = np.linalg.norm(a[real] - b[real], axis=-1) / np.where(size == 0, 1, size)
    return float(apart.max()) if np.isfinite(apart).all() else float("inf")


def _check(name: str, measured: float, bound: float, note: str) -> Check:
    return Check(name, bool(measured <= bound), measured, bound, note)


def _absent(name: str, why: str) -> Check:
    return Check(name, True, None, None, why)


def _finite(lm: LanguageModel) -> Check:
    value = np.asarray(final(lm.params, _prompts(lm.config, left=False, seed=0), lm.config))
    bad = float((~np.isfinite(value)).mean())
    return _check("finite outputs", bad, 0.0, "part of the logits (or last residual stream) that is no finite number")


def _stream(lm: LanguageModel, seen: Activations, mask: np.ndarray, bound: float) -> Iterator[Check]:
    """The residual sums of sites.py, for each norm position."""
    config, name = lm.config, "residual sums"
    pre, post, attn = seen["resid_pre"], seen["resid_post"], seen["attn_out"]
    mlp, mid = seen.get("mlp_out"), seen.get("resid_mid")
    if config.norm_position == "post":
        first = _normed(lm, "ln1", pre + attn)
        worst = _apart(first, post if mid is None else mid, mask)
        if mid is not None and mlp is not None:
            worst = max(worst, _apart(_normed(lm, "ln2", mid + mlp), post, mask))
        yield _check(name, worst, bound, "ln1(resid_pre + attn_out) = resid_mid, ln2(resid_mid + mlp_out) = resid_post")
    elif mid is not None and mlp is not None:
        worst = max(_apart(pre + attn, mid, mask, pre, attn), _apart(mid + mlp, post, mask, mid, mlp))
        yield _check(name, worst, bound, "resid_pre + attn_out = resid_mid, resid_mid + mlp_out = resid_post")
    else:
        total = pre + attn + (0 if mlp is None else mlp)
        yield _check(name, _apart(total, post, mask, pre, attn), bound, "resid_pre + attn_out + mlp_out = resid_post")
    step = _apart(post[:-1], pre[1:], mask) if config.n_layers > 1 else 0.0
    yield _check("layers follow", step, 0.0, "resid_post of a layer = resid_pre of the next, to the bit")


def _normed(lm: LanguageModel, name: str, value: np.ndarray) -> np.ndarray:
    """A norm of every layer applied to [L B P D]."""
    norm, out = Norm(lm.config, (lm.config.d_model,), name), []
    for group, stack in zip(lm.config.groups, lm.params["blocks"], strict=True):
        for layer in range(group.start, group.stop):
            weights = {key: leaf[layer - group.start] for key, leaf in stack.get(name, {}).items()}
            normed: Any = norm.apply({"params": weights}, jnp.asarray(value[layer], jax.tree.leaves(stack)[0].dtype), Rules())
            out.append(np.asarray(normed, np.float64))
    return np.stack(out)


def _heads(lm: LanguageModel, seen: Activations, layers: tuple[int, ...], mask: np.ndarray, bound: float) -> Check:
    total = seen["head_out"].sum(axis=-2)
    if lm.config.o_bias:
        biases = np.concatenate([np.asarray(stack["attn"]["b_O"], np.float64) for stack in lm.params["blocks"]])
        total = total + biases[list(layers), None, None]
    out = seen.get("attn_proj", seen["attn_out"])[list(layers)]
    largest = seen["head_out"][..., np.argmax(np.abs(seen["head_out"]).sum(axis=(0, 1, 2, 4))), :]
    error = _apart(total, out, mask, largest)
    return _check("heads add up", error, bound, f"head_out over heads + b_O = attention's output, layers {', '.join(map(str, layers))}")


def _pattern(config: TransformerConfig, seen: Activations, tokens: Tokens, bound: float) -> Iterator[Check]:
    pattern, mask, positions = seen["pattern"], np.asarray(tokens.mask), np.asarray(tokens.positions)
    total = pattern.sum(axis=-1) + seen.get("sink", 0.0)
    real = np.broadcast_to(mask[None, :, None], total.shape)
    yield _check("pattern rows", float(np.abs(total - 1)[real].max()), bound, "attention weights over keys (and the sink) sum to 1")
    hidden = ~mask[:, None, None, :] | (config.causal & (positions[:, None, None, :] > positions[:, None, :, None]))
    leak = float(np.where(hidden, np.abs(pattern), 0).max())
    yield _check("nothing hidden is seen", leak, 0.0, "attention to padding" + (" and to later tokens" if config.causal else ""))


def _causality(lm: LanguageModel, tokens: Tokens, bound: float) -> Check:
    """The first prompt with its last token changed: a causal model's earlier outputs keep their values, an encoder's do not."""
    ids = np.array(tokens.ids)
    if ids.shape[1] < 2:
        return _absent("causality", "the context is one token")
    ids[0, -1] = (ids[0, -1] + 1) % lm.config.d_vocab
    before, after = (np.asarray(final(lm.params, Tokens.from_ids(i, tokens.mask), lm.config), np.float64)[0] for i in (tokens.ids, ids))
    moved = np.linalg.norm(after - before, axis=-1) / np.linalg.norm(before, axis=-1)
    if not lm.config.causal:
        ok = bool(moved.min() > LIVE)
        return Check("attention both ways", ok, float(moved.min()), None, "the least that outputs move when the last token changes")
    if not moved[-1] > LIVE:
        return Check("causality", False, float(moved[-1]), None, "the outputs of a token do not move when it changes")
    exact = 0.0 if lm.config.experts is None else bound
    return _check("causality", float(moved[:-1].max()), exact, "how far outputs move when a later token changes")


def _padding(lm: LanguageModel, tokens: Tokens, bound: float) -> Iterator[Check]:
    def outputs(left: bool, seed: int, wider: int = 0) -> np.ndarray:
        padded = _prompts(lm.config, left, seed, tokens.ids.shape[1] + wider)
        value = np.asarray(final(lm.params, padded, lm.config), np.float64)
        return value[np.asarray(padded.mask)][None]

    everything, plain = np.ones((1, int(np.asarray(tokens.mask).sum())), bool), outputs(False, 0)
    exact = 0.0 if lm.config.experts is None else bound
    yield _check("ids of padding", _apart(outputs(False, 1), plain, everything), exact, "outputs with other ids in the padding")
    yield _check("padding left", _apart(outputs(True, 2, 2), plain, everything), bound, "outputs with wider padding, on the left")


def _live(lm: LanguageModel) -> Check:
    """A random value is added at one site after another, in the last layer that has it; the outputs must move each time."""
    config, tokens = lm.config, _prompts(lm.config, left=False, seed=0).arrays_only()
    values = {site: _random(site, config, tokens) for site in _editable(config)}
    run = functools.partial(_edited, lm.params, tokens, values, config=config)
    plain, moved = np.asarray(run(dict.fromkeys(values, 0.0)), np.float64), {}
    for chosen in values:
        changed = np.asarray(run({site: float(site == chosen) for site in values}), np.float64)
        moved[chosen] = float(np.abs(changed - plain)[np.asarray(tokens.mask)].max() / np.abs(plain).max())
    dead = [site for site, size in moved.items() if not size > LIVE]
    note = f"not live: {', '.join(dead)}" if dead else f"the least change that an edit makes, at {len(values)} sites"
    return Check("edits are live", not dead, min(moved.values()), None, note)


def _editable(config: TransformerConfig) -> list[str]:
    """Sites with something behind them, in layers that exist."""
    sites = [site for site in site_names(config) if not SITES[site].read_only and site != "pooled"]
    return [site for site in sites if not SITES[site].per_layer or site_of(site, config).layers(config)]


def _random(site: str, config: TransformerConfig, tokens: Tokens) -> np.ndarray:
    """What is added at a site: positive where its values are."""
    place = site_of(site, config)
    value = np.random.default_rng(5).normal(size=place.shape(config, *tokens.ids.shape)[place.per_layer :])
    return np.abs(value) if site.endswith("_scale") or site in ("sink", "expert_weights") else value


@functools.partial(jax.jit, static_argnames="config")
def _edited(params: Any, tokens: Tokens, values: dict[str, Any], switches: dict[str, Any], config: TransformerConfig) -> jax.Array:
    """The outputs with values times switches, which are data, added at every site."""
    dtype = jax.tree.leaves(params)[0].dtype
    last = "logits" if config.unembed != "none" else "ln_final" if config.final_norm else "resid_post"
    made = []
    for site, value in values.items():
        place = site_of(site, config)
        layer = {"layer": place.layers(config)[-1]} if place.per_layer else {}
        made.append(edits.add(site, (jnp.asarray(value) * switches[site]).astype(dtype), **layer))
    value = forward(params, tokens, config, edits=made, sites=(last,))[last]
    return value[-1] if SITES[last].per_layer else value


def _loss(lm: LanguageModel) -> Check:
    found, name = sanity(lm), "plausible loss"
    if found.loss is None:
        return _absent(name, "needs a tokenizer and an unembedding (and a mask token, in an encoder)")
    return Check(name, found.plausible, found.loss, found.bound, f"nats a token on a known sentence; chance is {found.chance:.1f}")
