"""What holds for every model of the parity table beyond its values: live edits, rules, bfloat16. No torch.

Weights are those of the fixtures, loaded through the checkpoint loader from a folder in HF layout.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.rules import NORMS
from jaxinterp.model.tokens import Tokens
from tests.live import check_live
from tests.parity import fixtures, ours

ROWS = fixtures.names()


@functools.cache
def model(name: str, folder: Path) -> ji.LanguageModel:
    return ours.load_ours(fixtures.load(name).write_folder(folder), "float32")


@pytest.fixture
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ji.LanguageModel:
    return model(request.param, tmp_path_factory.getbasetemp() / request.param)


@pytest.mark.parametrize("lm", ROWS, indirect=True)
def test_every_site_is_live(lm: ji.LanguageModel) -> None:
    ids = np.random.default_rng(3).integers(0, lm.config.d_vocab, (1, 7))
    check_live(lm.config, lm.params, Tokens.from_ids(ids), since=2, options=ours.QUICK)


def outcome(lm: ji.LanguageModel, weights: Any, tokens: Tokens, rules: ji.Rules | None, x: Any = None) -> jax.Array:
    """The model's last value: logits, or the residual stream of an encoder without a head."""
    trace = ji.forward(weights, tokens, lm.config, rules=rules, inputs=x, sites=("resid_post",))
    return trace["resid_post"][-1] if trace.logits is None else trace.logits


@pytest.mark.parametrize("lm", ROWS, indirect=True)
def test_rules_change_gradients_and_no_value(lm: ji.LanguageModel) -> None:
    tokens = Tokens.from_ids(np.random.default_rng(4).integers(0, lm.config.d_vocab, (1, 6)))
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 6, lm.config.d_model)), jnp.float32)
    frozen = ji.Rules(norms=NORMS, pattern=True, mlp="half")

    @functools.partial(jax.jit, compiler_options=ours.QUICK)
    def both(weights: Any, x: jax.Array) -> Any:
        value = lambda rules: lambda x: (lambda out: (jnp.sin(out).sum(), out))(outcome(lm, weights, tokens, rules, x))  # noqa: E731
        return tuple(jax.value_and_grad(value(rules), has_aux=True)(x) for rules in (None, frozen))

    ((_, exact), slope), ((_, ruled), other) = both(lm.params, x)
    # Differentiated, the two are fused differently: rounding. That undifferentiated values keep every bit is in model/test_rules.py.
    np.testing.assert_allclose(exact, ruled, rtol=0, atol=1e-5 * np.abs(exact).max())
    assert np.abs(np.asarray(slope - other)).max() > 1e-3


@pytest.mark.parametrize("lm", ROWS, indirect=True)
def test_bfloat16_logits_are_within_two_percent(lm: ji.LanguageModel) -> None:
    """Weights and computation in bfloat16 against float32: 2e-2 of the logits' norm, the same top token on 95 % of positions.

    With experts, tokens are compared that go to the same ones: a near tie that rounding turns is another function.
    """
    tokens = Tokens.from_ids(np.random.default_rng(6).integers(0, lm.config.d_vocab, (4, 10)))
    sites = ("resid_post", "expert_index") if lm.config.experts else ("resid_post",)
    run = jax.jit(lambda weights: ji.forward(weights, tokens, lm.config, sites=sites), compiler_options=ours.QUICK)
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), lm.params)
    traces = run(jax.tree.map(lambda w: w.astype(jnp.float32), narrow)), run(narrow)
    exact, rounded = (np.asarray(trace["resid_post"][-1] if trace.logits is None else trace.logits, np.float32) for trace in traces)
    if lm.config.experts:
        routes = [np.sort(trace["expert_index"]) for trace in traces]
        alike = (routes[0] == routes[1]).all(axis=(0, -1))
        assert alike.mean() >= 0.8
        exact, rounded = exact[alike], rounded[alike]
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    same = (exact.argmax(-1) == rounded.argmax(-1)).mean()
    assert error <= 2e-2, f"{error:.1e}"
    assert same >= 0.95, f"the top token agrees on {same:.0%}"
