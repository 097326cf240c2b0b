"""Rules change gradients and nothing else; with every nonlinear part frozen the model is affine."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.rules import NORMS
from tests.programs import traces
from tests.tiny import CONFIGS, SMALL, params, prompts

RULES = {
    "norms": ji.Rules(norms=NORMS),
    "pattern": ji.Rules(pattern=True),
    "ratio": ji.Rules(mlp="ratio"),
    "half": ji.Rules(mlp="half"),
}


def logits(config: ji.TransformerConfig, rules: ji.Rules | None, x: jax.Array) -> jax.Array:
    return ji.forward(params(config), prompts(config), config, inputs=x, rules=rules, sites=("resid_post",)).at(
        "resid_post", layer=config.n_layers - 1
    )


@pytest.mark.parametrize("name", SMALL)
def test_no_rule_changes_a_forward_value_and_each_changes_the_gradient(name: str) -> None:
    config = CONFIGS[name]
    x = ji.forward(params(config), prompts(config), config, sites=("embed",), stop=0)["embed"]
    direction = np.random.default_rng(0).normal(size=x.shape)
    both = lambda rules: jax.jit(jax.value_and_grad(lambda x: (logits(config, rules, x) * direction).sum()))(x)  # noqa: E731
    value, exact = both(ji.Rules())
    values = jax.jit(lambda x: [logits(config, rules, x) for rules in (None, *RULES.values())])(x)
    for ruled in values[1:]:
        np.testing.assert_array_equal(ruled, values[0])
    for key, rules in RULES.items():
        ruled, gradient = both(rules)
        np.testing.assert_allclose(ruled, value, rtol=1e-5)
        assert np.abs(np.asarray(gradient - exact)).max() > 1e-3, key


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "neox", "olmo2", "bert", "granite", "bloom", "gptj"])
@pytest.mark.parametrize("mlp", ["ratio", "half"])
def test_a_frozen_model_is_affine(name: str, mlp: Any) -> None:
    """x . gradient + value of the frozen model at zero = value, where the frozen model's value at zero comes from its own linearisation."""
    config = CONFIGS[name]
    x = ji.forward(params(config), prompts(config), config, sites=("embed",), stop=0)["embed"]
    rules = ji.Rules(norms=NORMS, pattern=True, mlp=mlp)
    value, tangent = jax.linearize(lambda x: logits(config, rules, x), x)
    biases = _without_bias(params(config))
    if name in ("llama", "gemma", "olmo2", "granite"):  # no biases: the frozen model is linear
        np.testing.assert_allclose(tangent(x), value, rtol=1e-3, atol=2e-4 * np.abs(value).max())
    else:  # affine: with the biases as inputs too, it is linear in both
        joint = lambda x, scale: ji.forward(  # noqa: E731
            jax.tree.map(lambda w, b: b * scale if b is not None else w, params(config), biases, is_leaf=lambda b: b is None),
            prompts(config), config, inputs=x, rules=rules, sites=("resid_post",),
        ).at("resid_post", layer=config.n_layers - 1)  # fmt: skip
        value, slope = jax.jvp(joint, (x, jnp.ones(())), (x, jnp.ones(())))
        np.testing.assert_allclose(slope, value, rtol=1e-3, atol=2e-4 * np.abs(value).max())


def _without_bias(weights: Any) -> Any:
    """The additive parameters (biases, positions), None elsewhere."""

    def keep(path: Any, leaf: jax.Array) -> jax.Array | None:
        name = path[-1].key
        return leaf if name.startswith("b") or name == "W_pos" else None

    return jax.tree_util.tree_map_with_path(keep, weights)


@pytest.mark.parametrize("name", SMALL)
def test_forward_and_reverse_mode_agree_under_every_rule(name: str) -> None:
    config = CONFIGS[name]
    x = ji.forward(params(config), prompts(config), config, sites=("embed",), stop=0)["embed"]
    random = np.random.default_rng(1)
    step, direction = random.normal(size=x.shape).astype(np.float32), random.normal(size=x.shape).astype(np.float32)
    rules = ji.Rules(norms=("ln1", "qk"), pattern=True, mlp="half")
    f = jax.jit(lambda x: (logits(config, rules, x) * direction).sum())
    forward_mode = jax.jvp(f, (x,), (step,))[1]
    np.testing.assert_allclose(forward_mode, (jax.grad(f)(x) * step).sum(), rtol=2e-3)


def test_detach_is_a_mask_over_layers_or_heads_and_data() -> None:
    config, weights, tokens = CONFIGS["llama"], params(CONFIGS["llama"]), prompts(CONFIGS["llama"])

    @jax.jit
    def gradient(mask: jax.Array) -> jax.Array:
        rules = ji.Rules(detach={"z": mask, "mlp_out": jnp.ones(3, bool)})
        return jax.grad(lambda v: ji.forward(weights, tokens, config, edits=[ji.edits.add("v", v)], rules=rules).logits.sum())(
            jnp.zeros((3, 2, 7, 2, 6))
        )

    heads = np.zeros((3, 4), bool)
    assert np.abs(gradient(heads)).max() > 0
    heads[1] = True
    stopped = np.asarray(gradient(heads))
    assert not stopped[1].any()
    assert np.abs(stopped[0]).max() > 0
    assert traces(gradient) == 1


def with_mlp(rule: str) -> ji.Rules:
    """Rules with an MLP rule that the checked constructor would refuse."""
    rules = ji.Rules()
    object.__setattr__(rules, "mlp", rule)
    return rules


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (ji.Rules(norms=("ln3",)), "Rules.norms"),
        (with_mlp("linear"), "Rules.mlp"),
        (ji.Rules(detach={"pos_embed": True}), "positions are rotary"),
        (ji.Rules(detach={"z": np.ones((3, 5), bool)}), r"Rules.detach\['z'\]"),
    ],
)  # fmt: skip
def test_rules_that_mean_nothing_are_refused(rules: ji.Rules, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        ji.forward(params(CONFIGS["llama"]), prompts(CONFIGS["llama"]), CONFIGS["llama"], rules=rules)
