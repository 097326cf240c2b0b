"""Rules change gradients, each its own way, in every mode of differentiation; with every nonlinear part frozen the model is affine."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.rules import NORMS
from tests.programs import traces
from tests.tiny import CONFIGS, params, prompts

RULES = {
    "none": ji.Rules(),
    "norms": ji.Rules(norms=NORMS),
    "pattern": ji.Rules(pattern=True),
    "ratio": ji.Rules(mlp="ratio"),
    "half": ji.Rules(mlp="half"),
    "products": ji.Rules(products="half"),
    "no MLPs": ji.Rules(detach={"mlp_out": True}),
    "no attention": ji.Rules(detach={"attn_out": True}),
    "affine": ji.Rules.affine(),
    "AttnLRP": ji.Rules.attn_lrp(),
}


def logits(config: ji.TransformerConfig, rules: ji.Rules | None, x: jax.Array) -> jax.Array:
    return ji.forward(params(config), prompts(config), config, inputs=x, rules=rules, sites=("resid_post",)).at(
        "resid_post", layer=config.n_layers - 1
    )


@pytest.mark.parametrize("name", ["gemma", "neox", "bert"])
@pytest.mark.parametrize("mlp", ["half"])  # that it is under "ratio": tests/test_gradient_rows.py, of every family
def test_a_frozen_model_is_affine(name: str, mlp: Any) -> None:
    """x . gradient + value of the frozen model at zero = value, where the frozen model's value at zero comes from its own linearisation."""
    config = CONFIGS[name]
    x = ji.forward(params(config), prompts(config), config, sites=("embed",), stop=0)["embed"]
    rules = ji.Rules(norms=NORMS, pattern=True, mlp=mlp)
    value, tangent = jax.linearize(lambda x: logits(config, rules, x), x)
    biases = _without_bias(params(config))
    if name == "gemma":  # no biases: the frozen model is linear
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


@pytest.mark.parametrize("name", ["gemma", "oss"])
def test_forward_reverse_and_linearize_agree_under_every_rule(name: str) -> None:
    config = CONFIGS[name]
    with jax.enable_x64(True):
        weights, tokens = params(config, jnp.float64), prompts(config, (5,))
        random = np.random.default_rng(1)
        x, step, direction = (jnp.asarray(random.normal(size=(1, 5, config.d_model))) for _ in range(3))

        def value(x: jax.Array, rules: ji.Rules) -> jax.Array:
            return (ji.forward(weights, tokens, config, inputs=x, rules=rules, sites=("resid_post",))["resid_post"][-1] * direction).sum()

        @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def slopes(x: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
            out = {}
            for key, rules in RULES.items():
                f = functools.partial(value, rules=rules)
                out[key] = (jax.jvp(f, (x,), (step,))[1], (jax.grad(f)(x) * step).sum(), jax.linearize(f, x)[1](step))
            return out

        found = slopes(x)
    for key, (ahead, back, linear) in found.items():
        np.testing.assert_allclose([back, linear], [ahead] * 2, rtol=1e-10, err_msg=key)
    assert len({round(float(ahead), 9) for ahead, _, _ in found.values()}) == len(RULES)


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


def with_field(name: str, rule: str) -> ji.Rules:
    """Rules with a value that the checked constructor would refuse."""
    rules = ji.Rules()
    object.__setattr__(rules, name, rule)
    return rules


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (ji.Rules(norms=("ln3",)), "Rules.norms"),
        (with_field("products", "both"), "Rules.products"),
        (with_field("mlp", "linear"), "Rules.mlp"),
        (ji.Rules(detach={"pos_embed": True}), "positions are rotary"),
        (ji.Rules(detach={"z": np.ones((3, 5), bool)}), r"Rules.detach\['z'\]"),
    ],
)  # fmt: skip
def test_rules_that_mean_nothing_are_refused(rules: ji.Rules, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        ji.forward(params(CONFIGS["llama"]), prompts(CONFIGS["llama"]), CONFIGS["llama"], rules=rules)
