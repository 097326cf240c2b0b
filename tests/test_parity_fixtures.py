"""Every site of every model against the committed outputs of transformers, without torch."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxinterp.model.sites import site_names
from tests.parity import fixtures, ours
from tests.parity.compare import at_tokens, error
from tests.parity.measure import FLOAT32_BOUND, FLOAT64_BOUND


def _errors(mine: ours.Arrays, reference: ours.Arrays, fixture: fixtures.Fixture, *, gradient: bool = False) -> dict[str, float]:
    cut = fixture.cut(mine, gradient=gradient)
    return {site: error(cut[site], reference[site], gradient=gradient) for site in reference}


@pytest.mark.parametrize("name", fixtures.names())
def test_every_site_equals_transformers(name: str, tmp_path: Path) -> None:
    fixture = fixtures.load(name)
    values, gradients = fixture.reference()
    fixture.write_folder(tmp_path)
    with jax.enable_x64(True):
        lm = ours.load_ours(tmp_path, "float64")
        assert set(values) == set(site_names(lm.config))
        assert set(gradients) == set(values) - set(fixtures.NO_GRADIENT)
        seen, slopes = ours.values_and_gradients(lm, fixture.batch, quick=True)
        exact = _errors(seen, values, fixture)
        slopes = _errors(slopes, gradients, fixture, gradient=True)
    rounded = _errors(ours.values(ours.load_ours(tmp_path, "float32"), fixture.batch, quick=True), values, fixture)
    assert {site: size for site, size in exact.items() if not size <= FLOAT64_BOUND} == {}
    assert {site: size for site, size in slopes.items() if not size <= FLOAT64_BOUND} == {}
    assert {site: size for site, size in rounded.items() if not size <= FLOAT32_BOUND} == {}


def test_two_matrices_swapped_are_found_where_they_act(tmp_path: Path) -> None:
    """The shapes of gate and up projection fit each other: only the values show a swap, first at the site it enters."""
    fixture = fixtures.load("llama_mqa_one_layer")
    reference, _ = fixture.reference()
    file = fixture.write_folder(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    gate, up = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    save_file(tensors, file, metadata={"format": "pt"})
    lm = ours.load_ours(tmp_path, "float32")
    wrong = _errors(ours.values(lm, fixture.batch, quick=True), reference, fixture)
    assert next(site for site in site_names(lm.config) if wrong[site] > FLOAT32_BOUND) == "mlp_pre"
    assert all(wrong[site] > 0.1 for site in ("mlp_pre", "mlp_up", "mlp_post", "mlp_out", "logits"))


def test_an_error_that_token_0_hides_is_found() -> None:
    """Token 0 has a hundred times the others' norm: an error over all tokens would be 2e-6, the others are off by 2e-4."""
    rng = np.random.default_rng(0)
    mask = np.ones((1, 6), bool)
    reference = rng.standard_normal((2, 1, 6, 8))
    reference[:, :, 0] *= 100
    wrong = reference.copy()
    wrong[:, :, 1:] *= 1 + 2e-4
    tokens = np.nonzero(mask)
    measured = error(at_tokens("resid_post", wrong, mask, tokens), at_tokens("resid_post", reference, mask, tokens))
    assert measured == pytest.approx(2e-4, rel=1e-6)


def test_scores_are_compared_up_to_a_constant_a_row_and_real_keys_only() -> None:
    rng = np.random.default_rng(0)
    mask = np.array([[False, True, True, True]])
    reference = rng.standard_normal((1, 1, 2, 4, 4))
    shifted = reference + rng.standard_normal((1, 1, 2, 4, 1))
    shifted[..., 0] = np.nan  # the key is padding
    tokens = np.nonzero(mask)
    assert error(at_tokens("scores", shifted, mask, tokens), at_tokens("scores", reference, mask, tokens)) < 1e-14
    assert error(at_tokens("pattern", shifted, mask, tokens), at_tokens("pattern", reference, mask, tokens)) > 0.1
    reference[..., 2] += 1e-3
    assert error(at_tokens("scores", shifted, mask, tokens), at_tokens("scores", reference, mask, tokens)) > 1e-4


def test_fixtures_hold_no_weights_and_stay_small() -> None:
    assert sum(file.stat().st_size for file in fixtures.FOLDER.iterdir()) < 6 * 2**20
    for name in fixtures.names():
        assert not set(fixtures.load(name).shapes) & set(load_file(fixtures.FOLDER / f"{name}.safetensors"))
