"""Sweeps: every number is that of plain runs with the same edit, and nothing is judged on what it was made from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

import jaxinterp as ji
from jaxinterp.methods.steering.operations import edit_of, levels_of
from jaxinterp.methods.steering.sweep import sweep
from jaxinterp.methods.steering.sweep_result import SteeringSweep
from jaxinterp.methods.steering.vector import SteeringVector, make_vector, texts_of
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

CONFIG = CONFIGS["gemma"]
LM = ji.LanguageModel(params(CONFIG), CONFIG)
PROMPTS, NEUTRAL = prompts(CONFIG, (5, 7)), prompts(CONFIG, (6, 3), seed=5)
METRIC = ji.metrics.logit_difference([3, 4], [5, 9])
LEVELS = (-1.0, 0.0, 2.0)
OPTIONS: dict[str, Any] = {"strengths": LEVELS, "neutral": NEUTRAL}


def vector_of(seed: int = 0, site: str = "resid_post", size: float = 1.0, layers: tuple[int, ...] = (0, 1, 2)) -> SteeringVector:
    """Random directions, made from a text that is in no other set."""
    own = texts_of(prompts(CONFIG, (9,), seed=8))
    return make_vector(LM, site, layers, size * np.random.default_rng(seed).normal(size=(len(layers), 24)), how=(("method", "random"), own))


VECTOR = vector_of()


def divergence(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    p, q = (log_softmax(np.asarray(each, np.float64), axis=-1) for each in (reference, logits))
    return (np.exp(p) * (p - q)).sum(axis=-1)


def test_every_cell_is_what_plain_runs_give() -> None:
    """Metric, KL at the last token, KL and cross-entropy over all tokens of neutral texts, norms; under a base edit."""
    base = ji.edits.scale("mlp_out", 0.5, layer=1)
    found = sweep(LM, VECTOR, PROMPTS, METRIC, layers=[2, 0], edits=[base], **OPTIONS)
    assert found.axes == (("layer", (2, 0)), ("strength", LEVELS)) and found.effects.shape == (2, 3)
    plain, other = (ji.run(LM, tokens, edits=[base], sites=("resid_post",)) for tokens in (PROMPTS, NEUTRAL))
    mask, ids = np.asarray(NEUTRAL.mask), np.asarray(NEUTRAL.ids)
    nexts = mask[:, 1:]
    for row, layer in enumerate((2, 0)):
        for column, strength in enumerate(LEVELS):
            edits = [base, ji.edits.add("resid_post", strength * VECTOR.values[layer], layer=layer)]
            run, side = (ji.run(LM, tokens, edits=edits, sites=("resid_post",)) for tokens in (PROMPTS, NEUTRAL))
            want = np.asarray(METRIC(run))
            np.testing.assert_allclose(found.per_example[:, row, column], want, rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(found.effects[row, column], (want - np.asarray(METRIC(plain))).mean(), rtol=2e-3, atol=2e-5)
            last = [each.at("logits", position=-1) for each in (plain, run)]
            np.testing.assert_allclose(found.kl[row, column], divergence(*last).mean(), rtol=2e-3, atol=2e-6)
            np.testing.assert_allclose(
                found.neutral_kl[row, column], divergence(other.logits, side.logits)[mask].mean(), rtol=2e-3, atol=2e-6
            )
            chosen = np.take_along_axis(log_softmax(np.asarray(side.logits, np.float64), -1)[:, :-1], ids[:, 1:, None], axis=2)[..., 0]
            np.testing.assert_allclose(found.loss[row, column], -chosen[nexts].mean(), rtol=1e-4)
            held = [np.asarray(each.at("resid_post", position=-1, layer=layer)) for each in (plain, run)]
            sizes = [np.linalg.norm(x, axis=1) for x in (held[0], held[1], held[1] - held[0])]
            np.testing.assert_allclose(found.norm_ratio[row, column], (sizes[1] / sizes[0]).mean(), rtol=1e-4)
            np.testing.assert_allclose(found.step[row, column], (sizes[2] / sizes[0]).mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.perplexity[:, 1], 1)
    assert found.neutral_kl[:, 1].max() == pytest.approx(0, abs=1e-6) and abs(found.effects[:, [0, 2]]).min() > 1e-3


@pytest.mark.parametrize(("operation", "relative"), [("add", True), ("replace", False), ("project_out", False)])
def test_the_other_operations_are_the_vectors_own(operation: str, relative: bool) -> None:
    levels = {} if operation == "project_out" else {"strengths": (0.0, 3.0)}
    position = [[-1], [2]]
    found = sweep(LM, VECTOR, PROMPTS, METRIC, operation=operation, relative=relative, position=position, neutral=(), **levels)  # type: ignore[arg-type]
    assert np.isnan(found.neutral_kl).all() and np.isnan(found.perplexity).all()
    for layer in range(3):
        for column, strength in enumerate(found.strengths):
            edit = edit_of(VECTOR, layer, strength, operation, relative, position=position)
            np.testing.assert_allclose(found.values[layer, column], METRIC(ji.run(LM, PROMPTS, edits=edit)).mean(), rtol=1e-4, atol=1e-5)
            edit = edit_of(VECTOR, layer, strength, operation, relative)
            pair = [np.asarray(ji.run(LM, PROMPTS, ("resid_post",), e).at("resid_post", position=-1, layer=layer)) for e in ((), edit)]
            ratio = np.linalg.norm(pair[1], axis=1) / np.linalg.norm(pair[0], axis=1)
            np.testing.assert_allclose(found.norm_ratio[layer, column], ratio.mean(), rtol=1e-4)


def test_another_vector_strengths_and_texts_compile_nothing() -> None:
    sweep(LM, VECTOR, PROMPTS, METRIC, **OPTIONS)
    with compiled() as events:
        others = {"strengths": (0.5, 0.0, -4.0), "neutral": prompts(CONFIG, (3, 6), seed=3)}
        sweep(LM, vector_of(1), prompts(CONFIG, (7, 5), seed=2), METRIC, **others)
    assert not events


def blown() -> SteeringSweep:
    """Layer 1 of this vector is a hundred times too long."""
    values = np.array(VECTOR.values)
    values[1] *= 100
    return sweep(LM, make_vector(LM, "resid_post", (0, 1, 2), values), PROMPTS, METRIC, **OPTIONS)


def test_the_best_cell_is_within_its_budget_and_blown_norms_are_told(tmp_path: Path) -> None:
    found = blown()
    for by in ("neutral_kl", "kl", "perplexity", "norm_ratio"):
        cost = np.asarray(getattr(found, by))
        budget = float(np.median(cost))
        best = found.best(budget, by=by)  # type: ignore[arg-type]
        row, column = found.layers.index(best.layer), found.strengths.index(best.strength)
        assert best.costs[by] == pytest.approx(cost[row, column]) and best.costs[by] <= budget
        assert best.effect == pytest.approx(found.effects[cost <= budget].max())
    assert found.best(lowest=True).effect == found.effects.min()
    assert found.blown.tolist() == (found.norm_ratio > 2).tolist() and found.blown[1, [0, 2]].all() and not found.blown[1, 1]
    assert "layers 1" in found.warning and "norm over 2 times" in repr(found)
    assert sweep(LM, vector_of(size=1e-3), PROMPTS, METRIC, strengths=(1.0,), neutral=()).warning == ""
    with pytest.raises(ji.InputError, match="no cell has kl of -1 or less"):
        found.best(-1, by="kl")
    kinds = [view.kind for part in found.view().sections for view in part.views]
    assert kinds == ["heatmap"] * 3 + ["scatter", "table"]
    from safetensors.numpy import load_file

    kept = load_file(found.save(tmp_path / "sweep.safetensors"))
    np.testing.assert_array_equal(kept["neutral_kl"], found.neutral_kl)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.safetensors"]


def test_finished_chunks_are_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(LM, VECTOR, PROMPTS, METRIC, batch_size=2, out=tmp_path / "kept", **OPTIONS)
    monkeypatch.setattr("jaxinterp.runs.measure.packed_program", None)
    again = sweep(LM, VECTOR, PROMPTS, METRIC, batch_size=2, out=tmp_path / "kept", **OPTIONS)
    np.testing.assert_array_equal(again.neutral_kl, whole.neutral_kl)
    np.testing.assert_array_equal(again.effects, whole.effects)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sweep(LM, VECTOR, prompts(CONFIG, (9,), seed=8), METRIC), "the vector was made from"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC, neutral=prompts(CONFIG, (9,), seed=8)), "the vector was made from"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC, layers=3), "no direction for layer 3"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC, strengths=(0,)), "one or more of them not 0"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC, strengths=(1, 1)), "different finite numbers"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC, operation="project_out", strengths=(1,)), "leave them out"),
        (lambda: levels_of((1,), "swap", False), "expected add, replace or project_out"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC, operation="replace", relative=True), "is for operation='add'"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC), "neutral texts need a tokenizer"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC, neutral=[[3]]), "A neutral text has one token"),
        (lambda: sweep(LM, VECTOR, PROMPTS, METRIC, strengths=(1,), neutral=()).best(1), "neutral_kl was not measured"),
        (lambda: sweep(LM.replace(params=params(CONFIG, seed=1)), VECTOR, PROMPTS, METRIC), "another model of the same shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        call()


# --------------------------------------------------------------------------------------------------------- KL, everywhere


def test_kl_over_several_positions_is_the_mean_and_a_wider_run_pads_the_reference() -> None:
    left = prompts(CONFIG, (5, 7), left=True)
    for tokens in (PROMPTS, left):
        runs = [ji.run(LM, tokens, edits=edits) for edits in ((), ji.edits.zero("mlp_out", layer=1))]
        each, mask = divergence(*(run.logits for run in runs)), np.asarray(tokens.mask)
        want = np.where(mask, each, 0).sum(axis=1) / mask.sum(axis=1)
        metric = ji.metrics.kl_divergence(runs[0], position="all")
        np.testing.assert_allclose(metric(runs[1]), want, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(ji.metrics.kl_divergence(runs[0].logits, position="all")(runs[1]), metric(runs[1]), rtol=1e-5)
        several = ji.metrics.kl_divergence(runs[0], position=[[0, -1], [3, 2]])
        columns = np.asarray(tokens.columns(np.asarray([[0, -1], [3, 2]])))
        np.testing.assert_allclose(several(runs[1]), np.take_along_axis(each, columns, axis=1).mean(axis=1), rtol=1e-3, atol=1e-6)
    with pytest.raises(ji.InputError, match=r"logits \[B P V\]"):
        ji.metrics.kl_divergence(np.zeros((2, 50)), position="all")
    with pytest.raises(ji.InputError, match="'all'"):
        ji.metrics.kl_divergence(np.zeros((2, 50)), position="last")


def test_an_edit_of_new_tokens_leaves_the_prompt_as_it_is_to_the_bit() -> None:
    """Logits and what the cache is made of, at every prompt token; from the first new token on they differ."""
    vector = vector_of(size=5)
    sites = ("logits", "k_rot", "v", "resid_post")
    plain, steered = (ji.generate(LM, PROMPTS, 4, sites=sites, edits=edits) for edits in ((), vector.add(2.0, when="new")))
    for site in sites:
        axis = 1 if site == "logits" else 2
        ours, theirs = (np.asarray(found.trace[site]) for found in (steered, plain))
        np.testing.assert_array_equal(np.take(ours, range(7), axis=axis), np.take(theirs, range(7), axis=axis))
        assert (np.take(ours, [7], axis=axis) != np.take(theirs, [7], axis=axis)).any()
