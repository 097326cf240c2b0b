"""Low-rank changes of single matrices, against NumPy. Adapters in files: tests/checkpoints/test_adapters.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import InputError
from jaxinterp.methods.weights.low_rank import low_rank
from jaxinterp.model.language_model import LanguageModel
from tests import tiny

LM = LanguageModel(params=tiny.params(tiny.CONFIGS["llama"]), config=tiny.CONFIGS["llama"])
MIXED = LanguageModel(params=tiny.params(tiny.CONFIGS["mixed"]), config=tiny.CONFIGS["mixed"])


def factors(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [("attn.W_Q", 24, 24), ("attn.W_V", 24, 12), ("attn.W_O", 24, 24), ("mlp.W_out", 20, 24), ("mlp.W_gate", 24, 20)],
)
def test_a_product_is_added_to_one_layers_matrix(name: str, rows: int, columns: int) -> None:
    part, leaf = name.split(".")
    a, b = factors(rows, 2), factors(2, columns)
    changed = low_rank(LM, f"blocks.{name}", a, b, layer=1, scale=0.5)
    old, new = (np.asarray(lm.params["blocks"][0][part][leaf]) for lm in (LM, changed))
    np.testing.assert_allclose((new - old)[1].reshape(rows, columns), 0.5 * a @ b, atol=2e-6)
    np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])
    assert changed.params["embed"] is LM.params["embed"]


def test_several_layers_groups_experts_and_matrices_outside_the_blocks() -> None:
    a, b = factors(3, 24, 2), factors(3, 2, 24)
    every = low_rank(MIXED, "blocks.attn.W_Q", a, b)
    some = low_rank(low_rank(MIXED, "blocks.attn.W_Q", a[[2, 0]], b[[2, 0]], layer=[2, 0]), "blocks.attn.W_Q", a[1], b[1], layer=1)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), every.params, some.params)
    expert = low_rank(MIXED, "blocks.experts.W_out", factors(10, 1), factors(1, 24), layer=2, expert=3)
    change = np.asarray(expert.params["blocks"][1]["experts"]["W_out"] - MIXED.params["blocks"][1]["experts"]["W_out"])
    np.testing.assert_allclose(change[1, 3], factors(10, 1) @ factors(1, 24), atol=2e-6)
    assert np.count_nonzero(np.abs(change).sum(axis=(2, 3))) == 1
    unembed = low_rank(LM, "unembed.W_U", factors(24, 1), factors(1, 50))
    np.testing.assert_allclose(unembed.params["unembed"]["W_U"] - LM.params["unembed"]["W_U"], factors(24, 1) @ factors(1, 50), atol=2e-6)


def test_it_is_pure_in_factors_layer_and_scale() -> None:
    a, b = factors(24, 1), factors(1, 24)

    def change(layer: Any, scale: Any) -> Any:
        return low_rank(MIXED, "blocks.attn.W_O", a, b, layer=layer, scale=scale).params

    grid = jax.jit(jax.vmap(change))(jnp.arange(4), jnp.ones(4))
    for layer in range(3):
        wanted = change(layer, 1.0)
        jax.tree.map(lambda x, y, layer=layer: np.testing.assert_allclose(x[layer] if x.ndim > y.ndim else x, y, atol=1e-6), grid, wanted)
    # a layer out of range selects nothing where it is traced
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[3] if x.ndim > y.ndim else x, y), grid, MIXED.params)
    slope = jax.grad(lambda scale: change(1, scale)["blocks"][1]["attn"]["W_O"].sum())(0.3)
    np.testing.assert_allclose(slope, (a @ b).sum(), rtol=1e-4)


def test_weights_by_layer_stay_by_layer() -> None:
    a, b = factors(24, 1), factors(1, 24)
    changed = low_rank(LM.by_layer(), "blocks.attn.W_O", a, b, layer=1)
    jax.tree.map(np.testing.assert_array_equal, changed.params, low_rank(LM, "blocks.attn.W_O", a, b, layer=1).by_layer().params)


@pytest.mark.parametrize(
    ("message", "how"),
    [
        ("not the name of a matrix; expected one of embed.W_E", {"name": "blocks.ln1.w"}),
        ("not the name of a matrix", {"name": "attn.W_Q"}),
        ("no such parameter", {"name": "blocks.experts.W_router", "layer": 0}),
        ("layer 3 has no 'blocks.attn.W_Q'; it is in layers 0 to 2", {"layer": 3}),
        ("layer -1 has no", {"layer": -1}),
        (r"for one layer expected a \[I r\]", {"layer": 0, "a": factors(1, 24, 2), "b": factors(1, 2, 24)}),
        (r"for 3 layers expected a \[3 I r\]", {}),
        (r"is a matrix \[24, 24\]", {"layer": 0, "a": factors(23, 2)}),
        ("name the expert of a matrix of experts, and of no other", {"layer": 0, "expert": 1}),
        ("outside the blocks and has no layers", {"name": "unembed.W_U", "layer": 0}),
        ("no such parameter", {"name": "embed.W_pos"}),
    ],
)
def test_what_does_not_fit_is_refused(message: str, how: dict[str, Any]) -> None:
    given: dict[str, Any] = {"name": "blocks.attn.W_Q", "a": factors(24, 2), "b": factors(2, 24)} | how
    with pytest.raises(InputError, match=message):
        low_rank(LM, **given)
