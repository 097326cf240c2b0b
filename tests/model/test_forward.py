"""The forward pass on every kind of architecture: shapes, identities, padding, causality, partial runs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.norm import Norm
from jaxinterp.model.sites import site_names, site_of
from jaxinterp.model.tokens import Tokens
from tests.programs import traces
from tests.tiny import CONFIGS, SMALL, params, prompts

ALL = list(CONFIGS)


@functools.cache
def captured(name: str) -> ji.Trace:
    config = CONFIGS[name]
    return _all_sites(params(config), prompts(config), config)


@functools.partial(jax.jit, static_argnames="config")
def _all_sites(weights: Any, tokens: Tokens, config: ji.TransformerConfig) -> ji.Trace:
    return ji.forward(weights, tokens, config, sites=dict.fromkeys(site_names(config)))


@pytest.mark.parametrize("name", ALL)
def test_every_site_has_the_axes_of_the_table(name: str) -> None:
    trace, config = captured(name), CONFIGS[name]
    assert set(trace.activations) == set(site_names(config))
    for site, value in trace.activations.items():
        assert value.shape == site_of(site, config).shape(config, 2, 7), site
        assert jnp.isfinite(value).all(), site


@pytest.mark.parametrize("name", ALL)
def test_residual_identities_hold_in_the_form_of_the_norm_position(name: str) -> None:
    trace, config, weights = captured(name), CONFIGS[name], params(CONFIGS[name])

    def normed(part: str, value: jax.Array) -> jax.Array:
        if config.norm_position != "post":
            return value
        layers = [jax.tree.map(lambda w, l=l: w[l], weights["blocks"][0][part]) for l in range(config.n_layers)]
        norm: Any = Norm(config, (config.d_model,), part)
        return jnp.stack([jnp.asarray(norm.apply({"params": p}, x, ji.Rules())) for p, x in zip(layers, value, strict=True)])

    pre, post, attn = trace["resid_pre"], trace["resid_post"], trace["attn_out"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)
    if config.parallel != "no":
        close(pre + attn + trace["mlp_out"], post)
    elif config.has_mlp:
        close(normed("ln1", pre + attn), trace["resid_mid"])
        close(normed("ln2", trace["resid_mid"] + trace["mlp_out"]), post)
    else:
        close(pre + attn, post)
    close(post[:-1], pre[1:])
    start = trace["embed"] + trace.activations.get("pos_embed", 0)
    if "type_embed" in trace:
        start = start + trace["type_embed"]
    if config.embed_norm == "sum":
        embed_norm: Any = Norm(config, (config.d_model,), "embed")
        start = embed_norm.apply({"params": weights["embed"]["ln"]}, start, ji.Rules())
    close(start, pre[0])


@pytest.mark.parametrize("name", ALL)
def test_heads_sum_to_what_attention_writes_and_pattern_rows_to_one(name: str) -> None:
    trace, config = captured(name), CONFIGS[name]
    total = trace["head_out"].sum(3)
    if config.o_bias:
        total = total + jnp.concatenate([stack["attn"]["b_O"] for stack in params(config)["blocks"]])[:, None, None, :]
    np.testing.assert_allclose(total, trace["attn_proj" if "attn_proj" in trace else "attn_out"], rtol=1e-5, atol=1e-5)
    rows = trace["pattern"].sum(-1) + (trace["sink"] if config.sinks else 0)
    np.testing.assert_allclose(rows, 1, atol=1e-5)
    if config.causal:
        assert not np.triu(np.asarray(trace["pattern"]), 1).any()


@pytest.mark.parametrize("name", ALL)
def test_windows_hide_what_lies_further_back(name: str) -> None:
    config, pattern = CONFIGS[name], np.asarray(captured(name)["pattern"])
    far = np.subtract.outer(np.arange(7), np.arange(7))
    for layer, window in enumerate(config.layer_windows):
        if window:
            assert not pattern[layer][..., far >= window].any()
            assert pattern[layer][..., far == window - 1].all()


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_no_number_at_a_real_token(name: str) -> None:
    """Prompts of 5 and 7 tokens, padded to 9 columns left and right with random ids, against one alone; with an edit at -1."""
    config, weights = CONFIGS[name], params(CONFIGS[name])
    edit = ji.edits.add("resid_pre", np.linspace(-1, 1, config.d_model), layer=0, position=-1)
    run = jax.jit(lambda weights, tokens, edit: ji.forward(weights, tokens, config, sites="all", edits=[edit]))
    alone = run(weights, prompts(config, (5,)), edit)
    longer = {}
    for left in (False, True):
        tokens = prompts(config, (5, 7), 0, 9, left)
        mask = np.asarray(tokens.mask)
        repadded = Tokens.from_ids(np.where(mask, tokens.ids, (tokens.ids + 17) % config.d_vocab), mask)
        first, again = run(weights, tokens, edit), run(weights, repadded, edit)
        for site in alone.activations:
            axes, value = site_of(site, config).axes, np.asarray(first[site])
            np.testing.assert_allclose(_real(value, axes, 0, mask[0]), alone[site], rtol=1e-4, atol=3e-5, err_msg=site)
            for row in (0, 1):
                np.testing.assert_array_equal(
                    _real(value, axes, row, mask[row]), _real(np.asarray(again[site]), axes, row, mask[row]), err_msg=site
                )
            longer.setdefault(site, []).append(_real(value, axes, 1, mask[1]))
    for site, (right, left) in longer.items():
        np.testing.assert_allclose(right, left, rtol=1e-4, atol=3e-5, err_msg=site)


def _real(value: np.ndarray, axes: str, row: int, keep: np.ndarray) -> np.ndarray:
    """One prompt's real tokens."""
    for axis, letter in enumerate(axes):
        value = value.take([row], axis) if letter == "B" else value.compress(keep, axis) if letter in "PQK" else value
    return value


@pytest.mark.parametrize("name", [name for name in ALL if CONFIGS[name].causal])
def test_later_tokens_do_not_reach_earlier_outputs(name: str) -> None:
    """The gradient of the logits up to position 3 is exactly zero in every embedding after it, and not before."""
    config, weights = CONFIGS[name], params(CONFIGS[name])
    tokens = prompts(config)
    inputs = ji.forward(weights, tokens, config, sites="embed", stop=0)["embed"]
    gradient = jax.jit(jax.grad(lambda x: jnp.square(ji.forward(weights, tokens, config, inputs=x).logits[:, :4]).sum()))(inputs)
    assert not np.asarray(gradient[:, 4:]).any()
    assert np.abs(np.asarray(gradient[:, :4])).max(-1).min() > 0


@pytest.mark.parametrize("name", SMALL)
def test_partial_runs_equal_the_whole(name: str) -> None:
    config, weights, whole = CONFIGS[name], params(CONFIGS[name]), captured(name)
    tokens = prompts(config)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)
    stopped = ji.forward(weights, tokens, config, stop=2, sites=("resid_post",))
    assert stopped.logits is None
    assert stopped.layers_of("resid_post") == (0, 1)
    close(stopped["resid_post"], whole["resid_post"][:2])
    later = ji.forward(weights, tokens, config, start=(1, whole["resid_pre"][1]), sites=("z",))
    close(later.logits, whole.logits)
    assert later.layers_of("z") == (1, 2)
    close(later["z"], whole["z"][1:])
    traced = jax.jit(lambda layer, resid: ji.forward(weights, tokens, config, start=(layer, resid), sites=("z",)))
    for layer in (0, 2):
        trace = traced(layer, whole["resid_pre"][layer])
        close(trace.logits, whole.logits)
        close(trace["z"][layer:], whole["z"][layer:])
        assert np.isnan(trace["z"][:layer]).all()
    assert traces(traced) == 1
    close(ji.forward(weights, tokens, config, inputs=whole["embed"]).logits, whole.logits)


def test_parts_of_sites_are_selected_inside_the_block() -> None:
    config, whole = CONFIGS["llama"], captured("llama")
    sites = {
        "z": ji.at(position=-1, head=[3, 1], layer=[0, 2]),
        "k": ji.at(head=1, position=[[1, 2], [3, 4]]),
        "pattern": ji.at(query=-1, key=[0, -1]),
        "mlp_post": ji.at(neuron=[4, 7], layer=1),
        "logits": ji.at(position=-2),
    }
    trace = jax.jit(lambda weights, sites: ji.forward(weights, prompts(config), config, sites=sites))(params(config), sites)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(trace["z"], np.asarray(whole["z"])[[0, 2]][:, :, -1][:, :, [3, 1]])
    keys = np.asarray(whole["k"])
    close(trace["k"], np.stack([keys[:, 0, [1, 2], 1], keys[:, 1, [3, 4], 1]], axis=1))
    close(trace["pattern"], np.asarray(whole["pattern"])[:, :, :, -1][..., [0, -1]])
    close(trace["mlp_post"], np.asarray(whole["mlp_post"])[1][..., [4, 7]])
    close(trace["logits"], whole["logits"][:, -2])
    assert trace.layers_of("z") == (0, 2)
    assert dict(trace.axes)["z"] == "LBhE"


@pytest.mark.parametrize(("compute", "capture"), [("bfloat16", "float32"), ("float16", None), (None, "bfloat16")])
def test_dtypes_of_weights_compute_and_capture_are_separate(compute: str | None, capture: str | None) -> None:
    config, exact = CONFIGS["llama"], captured("llama")
    trace = ji.forward(params(config), prompts(config), config, sites=("resid_post", "z"), dtype=compute, capture_dtype=capture)
    assert trace["z"].dtype == jnp.dtype(capture or compute)
    assert trace.logits.dtype == jnp.float32
    error = np.linalg.norm(np.asarray(trace.logits - exact.logits)) / np.linalg.norm(exact.logits)
    assert error < (0.05 if compute == "bfloat16" else 0.01)
    assert compute is None or error > 0


def test_weights_in_bfloat16_compute_in_bfloat16_and_give_float32_logits() -> None:
    config = CONFIGS["gemma"]
    trace = ji.forward(params(config, jnp.bfloat16), prompts(config), config, sites=("resid_post", "pattern"))
    assert trace["resid_post"].dtype == jnp.bfloat16
    assert trace.logits.dtype == trace["pattern"].dtype == jnp.float32


def test_stacked_checkpoints_run_under_vmap_as_one_by_one() -> None:
    config = CONFIGS["qwen3"]
    models = [ji.LanguageModel(params(config, seed=seed), config) for seed in range(3)]
    stacked = ji.stack(models)
    tokens = prompts(config)
    together = jax.vmap(lambda weights: ji.forward(weights, tokens, config, sites=("z",)))(stacked.params)
    for row, model in enumerate(models):
        alone = ji.forward(model.params, tokens, config, sites=("z",))
        np.testing.assert_allclose(together.logits[row], alone.logits, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(together.padded["z"][row], alone["z"], rtol=1e-4, atol=2e-5)
    with pytest.raises(ji.InputError, match="configs differ"):
        ji.stack([models[0], ji.LanguageModel(params(CONFIGS["llama"]), CONFIGS["llama"])])


@pytest.mark.parametrize("layers", [(-1, -1, -1), (0, -1, 0)])
def test_layers_without_rotation_do_not_rotate(layers: tuple[int, ...]) -> None:
    config = CONFIGS["one"].replace(n_layers=3, rotary_layers=layers)
    trace = _all_sites(params(config), prompts(config), config)
    rotated = jnp.abs(trace["q_rot"] - trace["q"]).max((1, 2, 3, 4)) > 1e-2
    assert rotated.tolist() == [index >= 0 for index in layers]
