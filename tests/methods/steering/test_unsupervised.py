"""Unsupervised directions: the singular vectors of a linear model, better than random ones in another, and their edits."""

from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.errors import InputError
from jaxinterp.methods.steering.unsupervised import unsupervised
from tests import tiny

LENGTHS = (7, 5)


def model(name: str) -> ji.LanguageModel:
    return ji.LanguageModel(tiny.params(tiny.CONFIGS[name]), tiny.CONFIGS[name])


@pytest.fixture(scope="module")
def found() -> tuple[ji.LanguageModel, Any]:
    """Three directions of a random model, and a hundred random ones."""
    lm = model("llama")
    prompts = tiny.prompts(lm.config, LENGTHS)
    return lm, unsupervised(lm, prompts, layer=0, target=2, radius=1.5, count=3, steps=40, random=100, seed=3)


def change(lm: ji.LanguageModel, edits: Any, target: int, unit: bool, first: int = 1) -> float:
    """The objective, from two plain runs in NumPy."""
    prompts = tiny.prompts(lm.config, LENGTHS)
    stream = [np.asarray(ji.run(lm, prompts, sites=["resid_post"], edits=each)["resid_post"])[target] for each in (edits, [])]
    stream = [x / np.linalg.norm(x, axis=-1, keepdims=True) if unit else x for x in stream]
    rows = [np.sqrt(((stream[0] - stream[1])[row, first:length] ** 2).sum()) for row, length in enumerate(LENGTHS)]
    return float(np.mean(rows))


def test_a_linear_models_directions_are_its_singular_vectors() -> None:
    # without queries attention is a mean, so that what is added to every token goes through W_V and W_O alone
    lm = model("attention")
    params: Any = lm.params
    attention = params["blocks"][0]["attn"]
    lm = lm.replace(params={**params, "blocks": ({**params["blocks"][0], "attn": {**attention, "W_Q": 0 * attention["W_Q"]}},)})
    values = np.repeat(np.asarray(attention["W_V"]), 2, axis=2)
    steps = np.eye(24)[None] + np.einsum("LDHE,LHEF->LDF", values, np.asarray(attention["W_O"]))
    left, size, _ = np.linalg.svd(steps[1] @ steps[2])
    made = unsupervised(lm, tiny.prompts(lm.config, LENGTHS), layer=0, target=2, radius=2.0, count=2, steps=200, random=5)
    expected = 2.0 * size[:2] * np.mean(np.sqrt(np.asarray(LENGTHS) - 1))
    np.testing.assert_allclose(made.objective, expected, rtol=1e-3)
    cosines = (made.values / 2.0) @ left[:, :2]
    np.testing.assert_allclose(np.abs(cosines), np.eye(2), atol=0.05)


def test_found_directions_beat_a_hundred_random_ones(found: tuple[ji.LanguageModel, Any]) -> None:
    _, made = found
    assert made.objective[0] > 1.5 * made.random.max() and len(made.random) == 100
    assert made.objective.min() > made.random.mean()  # the third has the first two taken from it, random ones have not
    assert (np.diff(made.objective) <= 0).all() and made.history.shape == (3, 41)
    np.testing.assert_array_equal(made.history.max(axis=1), made.objective)


def test_directions_are_orthogonal_and_of_the_given_length(found: tuple[ji.LanguageModel, Any]) -> None:
    _, made = found
    np.testing.assert_allclose(made.values @ made.values.T, 1.5**2 * np.eye(3), atol=1e-4)


def test_the_objective_is_what_the_edit_does(found: tuple[ji.LanguageModel, Any]) -> None:
    lm, made = found
    for vector, objective in zip(made, made.objective, strict=True):
        assert change(lm, [vector.add()], 2, unit=False) == pytest.approx(float(objective), rel=1e-4)
    options: Any = {"layer": 0, "radius": 1.5, "count": 1, "steps": 5, "random": 0}
    unit = unsupervised(lm, tiny.prompts(lm.config, LENGTHS), target=2, compare="unit", **options)
    assert change(lm, [unit[0].add()], 2, unit=True) == pytest.approx(float(unit.objective[0]), rel=1e-4)
    last = unsupervised(
        lm, tiny.prompts(lm.config, LENGTHS), layer=0, target=1, radius=1.5, count=1, steps=5, random=0, position=[[-1], [-1]]
    )
    stream = [
        ji.run(lm, tiny.prompts(lm.config, LENGTHS), sites=["resid_post"], edits=edits).at("resid_post", position=-1)[1]
        for edits in ([last[0].add()], [])
    ]
    assert np.linalg.norm(stream[0] - stream[1], axis=1).mean() == pytest.approx(float(last.objective[0]), rel=1e-4)


def test_a_seed_gives_the_same_directions_and_another_does_not(found: tuple[ji.LanguageModel, Any]) -> None:
    lm, made = found
    options: Any = {"layer": 0, "target": 2, "radius": 1.5, "count": 3, "steps": 40, "random": 100}
    again = unsupervised(lm, tiny.prompts(lm.config, LENGTHS), seed=3, **options)
    np.testing.assert_array_equal(again.values, made.values)
    np.testing.assert_array_equal(again.random, made.random)
    other = unsupervised(lm, tiny.prompts(lm.config, LENGTHS), seed=4, **options)
    assert not np.allclose(other.values, made.values, atol=0.1) and not np.array_equal(other.random, made.random)


def test_it_is_shown_and_saved(found: tuple[ji.LanguageModel, Any], tmp_path: Any) -> None:
    from safetensors.numpy import load_file

    _, made = found
    assert load_file(made.save(tmp_path / "found.safetensors"))["values"].shape == (3, 24)
    assert "random, largest" in made.view().labels["series"] and "layer 0 -> 2" in repr(made)
    assert made[0].site == "resid_post" and made[0].layers == (0,) and len(made) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 1, "target": 1}, "the target above"),
        ({"layer": 2}, "layer is 2 and target 3"),
        ({"layer": 0, "count": 25}, "1 to 24"),
        ({"layer": 0, "radius": -1.0}, "radius -1.0"),
        ({"layer": 0, "steps": 0}, "1 step or more"),
        ({"layer": 0, "prompts": [[3]]}, "one token"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    lm = model("llama")
    prompts = options.pop("prompts", tiny.prompts(lm.config, LENGTHS))
    with pytest.raises(InputError, match=said):
        unsupervised(lm, prompts, **options)
