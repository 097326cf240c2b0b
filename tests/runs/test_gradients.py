"""ji.gradients: what it returns, through edits and under rules, for one prompt or many, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

METRIC = ji.metrics.logit_difference(3, 5)
SITES = {"resid_pre": None, "z": ji.at(position=-1, head=[1, 3], layer=[0, 2]), "k": ji.at(layer=1), "logits": None}


@pytest.fixture(scope="module")
def lm() -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIGS["llama"]), CONFIGS["llama"])


def near(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_parts_edits_rules_batches_and_remat(lm: ji.LanguageModel) -> None:
    tokens = prompts(lm.config, (5, 7))
    edits = [ji.edits.scale("mlp_out", 0.5, layer=1), ji.edits.add("resid_mid", np.ones(24), layer=0, position=1)]
    rules = ji.Rules(norms=("ln1",))
    found = ji.gradients(lm, tokens, METRIC, SITES, edits, rules)
    near(found.values, METRIC(ji.run(lm, tokens, edits=edits)))
    assert {site: value.shape for site, value in found.gradients.items()} == {
        "resid_pre": (3, 2, 7, 24), "z": (2, 2, 2, 6), "k": (2, 7, 2, 6), "logits": (2, 7, 50),
    }  # fmt: skip
    near(found.trace["resid_pre"], ji.run(lm, tokens, ["resid_pre"], edits=edits)["resid_pre"])
    assert np.abs(np.asarray(found["logits"])).sum() == 4  # two logits of each prompt, one with each sign
    whole = ji.gradients(lm, tokens, METRIC, ["z", "k"], edits, rules)
    near(found["z"], whole.at("z", position=-1, layer=[0, 2], head=[1, 3]))
    near(found["k"], whole["k"][1])
    again = ji.gradients(lm, tokens, METRIC, ["z", "k"], edits, rules, remat=True)
    near(again["z"], whole["z"])
    exact = ji.gradients(lm, tokens, METRIC, ["z"], edits)
    assert np.abs(np.asarray(exact["z"] - whole["z"])).max() > 1e-3
    for row, length in enumerate((5, 7)):
        alone = ji.gradients(lm, np.asarray(tokens.ids)[row : row + 1, :length], METRIC, ["z"], edits, rules)
        near(alone["z"][:, 0], whole["z"][:, row, :length])
        assert not np.asarray(whole["z"])[:, row, length:].any()


def test_parameters_and_inputs_are_differentiated_as_forward_does(lm: ji.LanguageModel) -> None:
    ids = np.asarray(prompts(lm.config, (4, 4)).ids)
    x = np.random.default_rng(0).normal(size=(2, 4, 24)).astype(np.float32)
    found = ji.gradients(lm, ids, METRIC, ["embed"], parameters=["blocks.attn.W_Q", "unembed.W_U"], inputs=x)

    def value(weights: Any, x: jax.Array) -> jax.Array:
        return METRIC(ji.forward(weights, ids, lm.config, inputs=x)).sum()

    by_weight, by_input = jax.jit(jax.grad(value, argnums=(0, 1)))(lm.params, jnp.asarray(x))
    near(found["embed"], by_input)
    near(found.parameters["blocks.attn.W_Q"], by_weight["blocks"][0]["attn"]["W_Q"])
    near(found.parameters["unembed.W_U"], by_weight["unembed"]["W_U"])


def test_second_derivatives_and_forward_mode_go_through_forward(lm: ji.LanguageModel) -> None:
    ids = np.asarray(prompts(lm.config, (4,)).ids)
    with jax.enable_x64(True):
        weights = params(lm.config, jnp.float64)

        def value(strength: jax.Array) -> jax.Array:
            return METRIC(ji.forward(weights, ids, lm.config, edits=[ji.edits.scale("z", strength, layer=1)]))[0]

        slope = jax.jit(jax.grad(value))
        bend, ahead = jax.jit(lambda s: (jax.hessian(value)(s), jax.linearize(value, s)[1](jnp.ones(()))))(jnp.asarray(1.0))
        np.testing.assert_allclose(ahead, slope(jnp.asarray(1.0)), rtol=1e-9)
        np.testing.assert_allclose(bend, (slope(1.0 + 1e-5) - slope(1.0 - 1e-5)) / 2e-5, rtol=1e-6)


def test_other_prompts_answers_and_layers_compile_nothing(lm: ji.LanguageModel) -> None:
    edit = lambda layer: [ji.edits.scale("z", 0.5, layer=layer)]  # noqa: E731
    jax.block_until_ready(ji.gradients(lm, prompts(lm.config, (6, 6)), METRIC, ["z"], edit(0)))
    with compiled() as programs:
        jax.block_until_ready(ji.gradients(lm, prompts(lm.config, (5, 6), seed=3), ji.metrics.logit_difference(8, 1), ["z"], edit(2)))
    assert not programs


def test_a_metric_of_a_site_and_a_saved_result(lm: ji.LanguageModel, tmp_path: Any) -> None:
    from safetensors import safe_open

    ids = np.asarray(prompts(lm.config, (4,)).ids)
    direction = np.random.default_rng(1).normal(size=24).astype(np.float32)
    found = ji.gradients(lm, ids, ji.metrics.projection("resid_post", direction, layer=1, position=2), ["resid_post"])
    want = np.zeros((3, 1, 4, 24), np.float32)
    want[1, 0, 2] = direction
    near(found["resid_post"][1:], want[1:])
    assert np.abs(found["resid_post"][0]).max() > 0.1
    with safe_open(found.save(tmp_path / "g.safetensors"), "numpy") as file:
        near(file.get_tensor("gradient.resid_post"), found["resid_post"])
        near(file.get_tensor("value.resid_post"), found.trace["resid_post"])


def test_what_has_no_gradient_is_refused(lm: ji.LanguageModel) -> None:
    ids = np.asarray(prompts(lm.config, (4,)).ids)
    for metric, message in (
        (ji.metrics.rank(3), "rank counts tokens"),
        (ji.metrics.kl_divergence(ji.run(lm, ids)), "to the run itself"),
    ):
        with pytest.raises(ji.InputError, match=message):
            ji.gradients(lm, ids, metric, ["z"])
    other = (ids + 1) % 50
    assert np.abs(ji.gradients(lm, other, ji.metrics.kl_divergence(ji.run(lm, ids)), ["z"])["z"]).max() > 1e-4
    best = int(np.asarray(ji.run(lm, ids).logits)[0, -1].argmin())
    with pytest.warns(UserWarning, match="saturated"):
        ji.gradients(lm, ids, ji.metrics.probability(best), ["z"])
    with pytest.raises(ji.InputError, match=r"no parameter 'W_Q'.*blocks\.attn\.W_Q"):
        ji.gradients(lm, ids, METRIC, ["z"], parameters=["W_Q"])
    with pytest.raises(ji.InputError, match="no site 'zz'"):
        ji.gradients(lm, ids, METRIC, ["zz"])
    moe = ji.LanguageModel(params(CONFIGS["moe"]), CONFIGS["moe"])
    with pytest.raises(ji.InputError, match="'expert_index' has no gradient"):
        ji.gradients(moe, ids, METRIC, ["expert_index"])


def test_weights_a_layer_at_a_time_have_gradients_and_are_refused_where_stacks_are_needed(lm: ji.LanguageModel) -> None:
    ids = np.asarray(prompts(lm.config, (4,)).ids)
    apart = lm.by_layer()
    near(ji.gradients(apart, ids, METRIC, ["z"])["z"], ji.gradients(lm, ids, METRIC, ["z"])["z"])
    for call in (
        lambda: ji.direct_logit_attribution(apart, ids, METRIC),
        lambda: ji.attribution_patch(apart, ids, (ids + 1) % 50, METRIC, "z"),
        lambda: ji.patch(apart, ids, (ids + 1) % 50, METRIC, "z"),
    ):
        with pytest.raises(ji.InputError, match=r"pass lm\.stacked\(\)"):
            call()


def test_a_gradient_too_large_for_memory_is_refused(lm: ji.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxinterp.runs import plan

    monkeypatch.setattr(plan, "free_memory", lambda: (40_000, "a small device"))
    with pytest.raises(ji.MemoryPlanError, match=r"for the way back.*take \d of the 8 prompts at a time; remat=True"):
        ji.gradients(lm, prompts(lm.config, (6,) * 8), METRIC, ["z"])


@pytest.mark.weights
@pytest.mark.parametrize("remat", [False, True])
def test_memory_is_planned_within_a_fifth(smollm2: ji.LanguageModel, remat: bool) -> None:
    batch, metric = np.random.default_rng(0).integers(0, 49152, (4, 24)), METRIC
    planned, measured = (ji.plan(smollm2, batch, ["resid_pre", "z"], metric=metric, remat=remat, compile=c) for c in (False, True))
    assert abs(planned.needed / measured.needed - 1) < 0.2
