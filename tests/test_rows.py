"""What holds for every model of the parity table beyond its values: live edits, bfloat16. No torch.

Weights are those of the fixtures, loaded through the checkpoint loader from a folder in HF layout.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
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


@pytest.mark.parametrize("lm", ROWS, indirect=True)
def test_bfloat16_logits_are_within_two_percent(lm: ji.LanguageModel) -> None:
    """Weights and computation in bfloat16 against float32: 2e-2 of the logits' norm, the same top token on 95 % of positions.

    With experts, tokens are compared that go to the same ones: a near tie that rounding turns is another function.
    """
    tokens = Tokens.from_ids(np.random.default_rng(6).integers(0, lm.config.d_vocab, (4, 10)))
    sites = ("resid_post", "expert_index") if lm.config.experts else ("resid_post",)
    run = jax.jit(lambda weights: ji.forward(weights, tokens, lm.config, sites=sites), compiler_options=ours.QUICK)
    narrow = jax.tree.map(lambda w: np.asarray(w).astype(jnp.bfloat16), lm.params)
    traces = run(jax.tree.map(lambda w: w.astype(np.float32), narrow)), run(narrow)
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
