"""Conditions: a gate is a cosine of each prompt's own mean activation, and its threshold is found on prompts it was not made from."""

from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.steering import conditions
from jaxinterp.methods.steering.conditions import best_threshold, cosines, gate
from jaxinterp.methods.steering.difference import mean_difference
from jaxinterp.methods.steering.vector import make_vector
from tests.tiny import CONFIGS, params, prompts

CONFIG = CONFIGS["gpt2"]


@pytest.fixture(scope="module")
def lm() -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIG), CONFIG)


def kind(first: int, seed: int, count: int = 12) -> np.ndarray:
    """[B 6]: prompts of random tokens, of which most are a kind's own."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 50, (count, 6))
    return np.where(random.random(ids.shape) < 0.7, first + ids % 3, ids)


@pytest.fixture(scope="module")
def condition(lm: ji.LanguageModel) -> Any:
    return mean_difference(lm, kind(5, 0), kind(30, 1), position="all")


def test_a_gate_is_the_cosine_of_each_prompts_own_run(lm: ji.LanguageModel, condition: Any) -> None:
    tokens = prompts(CONFIG, (7, 4, 5), seed=6)
    trace = ji.run(lm, tokens, sites=("resid_post",))
    means = np.stack([np.asarray(trace["resid_post"])[:, row, 1:length].mean(axis=1) for row, length in enumerate((7, 4, 5))], axis=1)
    unit = condition.unit().values
    want = np.einsum("LBD,LD->LB", means / np.linalg.norm(means, axis=2, keepdims=True), unit)
    np.testing.assert_allclose(cosines(lm, tokens, condition), want, atol=1e-5)
    np.testing.assert_allclose(cosines(lm, tokens, condition.at([2, 0])), want[[2, 0]], atol=1e-5)  # in the order of the vector
    last = np.asarray(trace.at("resid_post", position=-1))
    at_end = np.einsum("LBD,LD->LB", last / np.linalg.norm(last, axis=2, keepdims=True), unit)
    np.testing.assert_allclose(cosines(lm, tokens, condition, position=-1), at_end, atol=1e-5)
    threshold = float(np.median(want[1]) + 1e-4)
    chosen = gate(lm, tokens, condition, threshold, layer=1)
    assert chosen.dtype == bool and chosen.tolist() == (want[1] > threshold).tolist() and chosen.sum() == 1
    np.testing.assert_array_equal(gate(lm, tokens, condition, threshold, layer=1, below=True), ~chosen)


def test_only_the_prompts_that_it_chooses_are_steered(lm: ji.LanguageModel, condition: Any) -> None:
    tokens = prompts(CONFIG, (7, 4, 5), seed=6)
    chosen = np.asarray([True, False, True])
    logits = lambda strength: np.asarray(ji.run(lm, tokens, edits=condition.add(strength)).logits)  # noqa: E731
    steered, off, on = logits(3.0 * chosen[:, None, None]), logits(0.0), logits(3.0)
    np.testing.assert_array_equal(steered[1, :4], off[1, :4])
    np.testing.assert_allclose(steered[[0, 2]], on[[0, 2]], atol=1e-5)


def test_a_threshold_is_found_and_judged_on_prompts_held_out(lm: ji.LanguageModel, condition: Any) -> None:
    ours, others = kind(5, 2, 30), kind(30, 3, 20)
    found = best_threshold(lm, condition, ours, others)
    assert found.score > 0.9 and found.held_out > 0.8 and not found.below and found.scores.max() == found.score
    assert found.thresholds[found.layer] == found.threshold and "f1" in repr(found)
    chosen = [gate(lm, side, condition, float(found.threshold), layer=found.layer) for side in (ours, others)]
    assert chosen[0].mean() > 0.8 and chosen[1].mean() < 0.2
    swapped = best_threshold(lm, condition, others, ours, by="accuracy")  # the other kind lies below
    assert swapped.below and swapped.held_out > 0.8
    same = best_threshold(lm, condition, ours, others)
    assert (same.threshold, same.layer, same.held_out) == (found.threshold, found.layer, found.held_out)
    with pytest.raises(ji.InputError, match="Prompt 0 is one that the vector was made from"):
        best_threshold(lm, condition, kind(5, 0), others)


def test_the_best_threshold_is_the_best_of_all(rng: np.random.Generator) -> None:
    ours, others = rng.normal(0.1, 0.2, 9), rng.normal(-0.1, 0.2, 7)
    for by in ("f1", "accuracy"):
        score, threshold, below, apart = conditions._best(ours, others, by)
        tried = []
        for t in np.linspace(-1, 1, 4001):
            for side in (False, True):
                true, false = ((ours < t).sum(), (others < t).sum()) if side else ((ours > t).sum(), (others > t).sum())
                recall, wrong = true / 9, false / 7
                precision = true / max(true + false, 1)
                tried.append(2 * precision * recall / max(precision + recall, 1e-9) if by == "f1" else (recall + 1 - wrong) / 2)
        assert score == pytest.approx(max(tried)) and not below and -1 < threshold < 1 and apart > 0


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda lm, c: gate(lm, [[1, 2]], c, 1.5, layer=1), "a cosine is from -1 to 1"),
        (lambda lm, c: gate(lm, [[1, 2]], c, 0.5, layer=3), "no direction for layer 3"),
        (lambda lm, c: gate(lm, [[1]], c, 0.5, layer=1), "leaves out the first"),
        (lambda lm, c: gate(lm.replace(params=params(CONFIG, seed=1)), [[1, 2]], c, 0.5, layer=1), "made from another model"),
        (lambda lm, c: best_threshold(lm, c, kind(5, 4, 2), kind(30, 4)), "2 prompts of a kind; expected enough"),
        (lambda lm, c: best_threshold(lm, c, kind(5, 4), kind(30, 4), held_out=1.0), "a share of 0 to 1"),
    ),
)
def test_what_is_no_condition_is_refused(lm: ji.LanguageModel, condition: Any, make: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        make(lm, condition)


def test_heads_have_conditions_too(lm: ji.LanguageModel) -> None:
    tokens, values = prompts(CONFIG, (7, 4), seed=6), np.zeros((1, 4, 6))
    values[0, 2] = 1
    found = cosines(lm, tokens, make_vector(lm, "z", (1,), values), position=-1)
    z = np.asarray(ji.run(lm, tokens, sites=("z",)).at("z", position=-1))[1].reshape(2, -1)
    np.testing.assert_allclose(found[0], z @ values.reshape(-1) / np.linalg.norm(z, axis=1) / np.sqrt(6), atol=1e-5)
