"""Gradients of every model of the parity table: finite differences, causality, and rules under which the model is affine. No torch.

Finite differences of all 57 models run with `make parity`; a few kinds, and the rules of all, by default.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.mlp import ACTIVATIONS
from jaxinterp.model.sites import SITES, site_names
from jaxinterp.runs.objective import adding, measured, named_parameters, zeros_at
from tests.parity import fixtures, ours

ROWS = fixtures.names()
QUICK = ("llama", "gpt2", "gemma2", "bert", "gpt_oss")
STEP = 3e-6
SOME = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.parity) for name in ROWS]


def loaded(name: str, folder: Path, dtype: str) -> tuple[ji.LanguageModel, ji.Tokens]:
    """A model of the table, and two prompts of unequal length."""
    lm = ours.load_ours(fixtures.load(name).write_folder(folder), dtype)
    ids = np.random.default_rng(4).integers(0, lm.config.d_vocab, (2, 5))
    return lm, ji.Tokens.from_ids(ids, np.array([[True] * 5, [True] * 4 + [False]]))


def wavy(logits: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.sin(logits[:, 0]) @ weights


def curved(config: ji.TransformerConfig) -> Any:
    """A metric of the position before the last that is not linear in the logits (or, without logits, one of the last stream)."""
    if config.unembed == "none":
        return ji.metrics.projection("resid_post", _direction(config.d_model), layer=config.n_layers - 1, position=-2)
    return ji.metrics.custom(wavy, _direction(config.d_vocab), position=-2)


def _direction(size: int) -> np.ndarray:
    return np.random.default_rng(8).normal(size=size)


@pytest.mark.parametrize("name", SOME)
def test_gradients_are_finite_differences_at_every_site_and_zero_where_causality_says_so(name: str, tmp_path: Path) -> None:
    with jax.enable_x64(True):
        lm, tokens = loaded(name, tmp_path, "float64")
        config, metric = lm.config, curved(lm.config)
        sites = [site for site in site_names(config) if not SITES[site].read_only]
        found = ji.gradients(lm, tokens, metric, sites)

        @functools.partial(jax.jit, compiler_options=ours.QUICK)
        def value(zeros: Any) -> jax.Array:
            return measured(lm.params, tokens, config, metric, edits=adding(zeros))[0].sum()

        batch, positions = tokens.ids.shape
        zeros = zeros_at(sites, config, batch, positions, jnp.float64)
        for site in sites:
            slope, random = np.asarray(found[site]), np.random.default_rng(len(site))
            step = np.abs(random.normal(size=slope.shape)) * np.where(slope < 0, -1.0, 1.0)  # no cancellation: all parts count
            at = {i: float(value(zeros | {site: jnp.asarray(i * STEP * step)})) for i in (-2, -1, 1, 2)}
            slope_along = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * STEP)  # of fourth order: some post-norms are steep
            np.testing.assert_allclose(slope_along, float((slope * step).sum()), rtol=1e-6, atol=1e-8, err_msg=site)
            axes = SITES[site].axes.replace("Q", "P")
            if config.causal and "P" in axes and config.unembed != "none":
                after = np.moveaxis(slope, axes.index("P"), 0)
                after = np.moveaxis(after, axes.index("B") + (axes.index("P") > axes.index("B")), 1)
                assert not after[4:, 0].any(), f"{site}: a gradient after the position that is read"
                assert not after[3:, 1].any(), f"{site}: a gradient after the position that is read"
                assert np.abs(after[:4]).max() > 0 or not slope.any(), site


@pytest.mark.parametrize("name", ROWS)
def test_a_model_under_affine_rules_is_affine_and_no_rule_changes_a_bit(name: str, tmp_path: Path) -> None:
    """Under the rules, inputs and additive parameters times their gradients add up to the value; forward, they are not there."""
    with jax.enable_x64(True):
        lm, tokens = loaded(name, tmp_path, "float64")
        config = lm.config
        site, size = ("logits_raw", config.d_vocab) if config.unembed != "none" else ("resid_post", config.d_model)
        layer = None if site == "logits_raw" else config.n_layers - 1
        metric = ji.metrics.projection(site, _direction(size), position=-2, layer=layer)
        additive = [name for name in named_parameters(lm.params) if _adds(name, config)]
        sites = {"embed": None} | ({"mlp_post": None, "mlp_pre": None} if config.mlp_up_offset else {})
        found = ji.gradients(lm, tokens, metric, sites, rules=ji.Rules.affine(), parameters=additive)
        total = float((found["embed"] * found.trace["embed"]).sum())
        total += sum(float((found.parameters[name] * named_parameters(lm.params)[name]).sum()) for name in additive)
        if config.mlp_up_offset:
            pre = found.trace["mlp_pre"] if config.mlp_clamp is None else jnp.minimum(found.trace["mlp_pre"], config.mlp_clamp)
            total += float((found["mlp_post"] * ACTIVATIONS[config.activation](pre) * config.mlp_up_offset).sum())
        rules = (None, ji.Rules.affine(), ji.Rules.attn_lrp())

        @functools.partial(jax.jit, compiler_options=ours.QUICK)
        def run(weights: Any) -> list[jax.Array]:
            return [ji.forward(weights, tokens, config, rules=rule, sites=("resid_post",))["resid_post"] for rule in rules]

        plain, *ruled = run(lm.params)
        for values in ruled:
            np.testing.assert_array_equal(values, plain)
        np.testing.assert_allclose(total, float(found.values.sum()), rtol=1e-9, atol=1e-9 * np.abs(np.asarray(found.values)).max())


def _adds(name: str, config: ji.TransformerConfig) -> bool:
    """Whether a parameter is added to what the embedding gave: a bias, or learned positions and token types."""
    last = name.split(".")[-1]
    return (last.startswith("b") or last in ("W_pos", "W_type")) and not (name == "embed.ln.b" and config.embed_norm == "token")
