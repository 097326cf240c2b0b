"""Operations along a direction: each is its formula in NumPy, and none has a NaN for a value or a slope."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model import directions
from tests.tiny import CONFIGS, params, prompts


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def along(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    return (x * u).sum(axis=-1, keepdims=True)


def reflected(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    w = unit(unit(a) - unit(b))
    return x - 2 * along(x, w) * w


def size(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1, keepdims=True)


# each operation, and its formula of x, d, c and three numbers
OPERATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "shift": (lambda x, d, c, s, t: directions.shift(x, d, s), lambda x, d, c, s, t: x + s * d),
    "shift_relative": (lambda x, d, c, s, t: directions.shift_relative(x, d, s), lambda x, d, c, s, t: x + s * size(x) * unit(d)),
    "shift_above": (
        lambda x, d, c, s, t: directions.shift_above(x, d, s, c, t),
        lambda x, d, c, s, t: np.where(along(unit(x), unit(c)) > t, x + s * d, x),
    ),
    "shift_below": (
        lambda x, d, c, s, t: directions.shift_below(x, d, s, c, t),
        lambda x, d, c, s, t: np.where(along(unit(x), unit(c)) < t, x + s * d, x),
    ),
    "project_out": (lambda x, d, c, s, t: directions.project_out(x, d), lambda x, d, c, s, t: x - along(x, unit(d)) * unit(d)),
    "clamp": (
        lambda x, d, c, s, t: directions.clamp(x, d, -s, t),
        lambda x, d, c, s, t: x + (np.clip(along(x, unit(d)), -s, t) - along(x, unit(d))) * unit(d),
    ),
    "swap": (lambda x, d, c, s, t: directions.swap(x, d, c), lambda x, d, c, s, t: reflected(x, d, c)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_its_formula(name: str, rng: np.random.Generator) -> None:
    ours, formula = OPERATIONS[name]
    x, d, c = rng.normal(size=(2, 40, 8)), rng.normal(size=(1, 1, 8)), rng.normal(size=(1, 1, 8))
    s, t = np.full((1, 1, 1), 1.7), np.full((1, 1, 1), 0.1)
    given = [jnp.asarray(value, jnp.float32) for value in (x, d, c, s, t)]
    np.testing.assert_allclose(ours(*given), formula(x, d, c, s, t), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_value_or_a_direction_of_zero_has_no_nan_forward_or_backward(name: str) -> None:
    ours, some = OPERATIONS[name][0], jnp.ones((1, 1, 8))
    numbers = (jnp.full((1, 1, 1), 1.7), jnp.full((1, 1, 1), 0.1))
    for x, d, c in ((0 * some, some, -some), (some, 0 * some, some), (some, some, 0 * some), (0 * some, 0 * some, 0 * some)):
        value, slopes = jax.value_and_grad(lambda x, d, c: ours(x, d, c, *numbers).sum(), (0, 1, 2))(x, d, c)
        assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_array_equal(ours(some, 0 * some, 0 * some, *numbers), some)  # nothing to move along


def test_a_direction_survives_a_mask_over_d_model() -> None:
    config = CONFIGS["llama"]
    tokens, d, where = prompts(config), np.arange(1.0, 25.0), np.zeros((3, 2, 7, 24), bool)
    where[0, :, :, :5] = True
    base = np.asarray(ji.forward(params(config), tokens, config, sites=("resid_pre",))["resid_pre"])[0]
    edit = ji.edits.project_out("resid_pre", d, where=where)
    found = np.asarray(ji.forward(params(config), tokens, config, sites=("resid_pre",), edits=[edit])["resid_pre"])[0]
    want = base - along(base, unit(d)) * unit(d)
    np.testing.assert_allclose(found[..., :5], want[..., :5], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[..., 5:], base[..., 5:])


@pytest.mark.parametrize(
    "edit", (ji.edits.steer("resid_post", np.ones(24), 0.5), ji.edits.steer("resid_post", np.ones(24), 0.5, relative=True))
)
def test_a_step_keeps_the_values_type(edit: ji.edits.Edit) -> None:
    config = CONFIGS["llama"]
    trace = ji.forward(params(config, jnp.bfloat16), prompts(config), config, sites=("resid_post",), edits=[edit])
    assert trace["resid_post"].dtype == jnp.bfloat16 and np.isfinite(np.asarray(trace["resid_post"], np.float32)).all()


def test_a_step_is_add_and_its_condition_is_a_cosine() -> None:
    config = CONFIGS["gpt2"]
    tokens, d, c = prompts(config), np.linspace(-1, 1, 24), np.sin(np.arange(24.0))

    def post(*edits: ji.edits.Edit) -> np.ndarray:
        return np.asarray(ji.forward(params(config), tokens, config, sites=("resid_post",), edits=edits)["resid_post"])

    plain = post()
    steered = post(ji.edits.steer("resid_post", d, 2.0, layer=1))
    np.testing.assert_allclose(steered, post(ji.edits.add("resid_post", 2 * d, layer=1)), rtol=1e-5, atol=1e-5)
    cosine = along(unit(plain[1]), unit(c))[..., 0]
    threshold = float(np.median(cosine))
    for below in (False, True):
        chosen = post(ji.edits.steer_if("resid_post", d, 2.0, c, threshold, below=below, layer=1))[1]
        moved = np.abs(chosen - plain[1]).max(axis=-1) > 1e-4
        np.testing.assert_array_equal(moved, cosine < threshold if below else cosine > threshold)
    with pytest.raises(ji.InputError, match=r"steer_if\(\): a direction has norm zero"):
        ji.edits.steer_if("resid_post", d, 1.0, np.zeros(24), 0.0)
