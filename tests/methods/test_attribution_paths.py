"""Integrals along paths of runs: completeness within the reported error, for activations, inputs, conductance; and concepts."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.attribution.concepts import concept_sensitivity, directions_program
from jaxinterp.methods.attribution.conductance import internal_influence, layer_conductance
from jaxinterp.methods.attribution.neurons import neuron_conductance
from jaxinterp.methods.attribution.paths import integrated_attribution
from tests.methods.test_activation_attribution import METRIC, model, near, pair


def test_along_activations_a_layers_nodes_sum_to_patching_the_layer() -> None:
    lm = model("llama")
    clean, corrupt = pair(lm)
    coarse, fine = (integrated_attribution(lm, clean, corrupt, METRIC, "z", ("layer", "head"), steps=steps) for steps in (2, 24))
    whole = ji.patch(lm, clean, corrupt, METRIC, "z", ("layer",))
    change = whole.per_example.T - np.asarray(whole.corrupt)
    near(fine.change, change, 1e-4)
    for found in (coarse, fine):
        sums = (found.per_example - np.asarray(found.corrupt)[:, None, None]).sum(axis=2).T
        near(change - sums, found.missed, 1e-4)  # what is reported is what is missing
    assert fine.error < 0.01 < coarse.error
    exact = ji.patch(lm, clean, corrupt, METRIC, "z", ("layer", "head"))
    assert fine.compare(exact).pearson > 0.9 and len(fine.verify(3).estimates) == 3


def test_along_inputs_the_embedding_is_complete() -> None:
    lm = model("gpt2")
    clean, corrupt = pair(lm)
    found = integrated_attribution(lm, clean, corrupt, METRIC, "embed", ("position",), "noise", path="inputs", steps=24)
    sums = np.nansum(found.per_example - np.asarray(found.clean)[:, None], axis=1)
    change = np.asarray(found.corrupt) - np.asarray(found.clean)
    near(change - sums, found.missed, 1e-4)
    assert found.error < 0.01 and found.mode == "noise"
    with pytest.raises(ji.InputError, match="expected 'activations' or 'inputs', at least 1"):
        integrated_attribution(lm, clean, corrupt, METRIC, steps=0)


def test_conductance_of_every_cut_is_the_change_of_the_metric() -> None:
    lm = model("gpt2")
    clean, corrupt = pair(lm)
    found = layer_conductance(lm, clean, METRIC, "resid_pre", baseline=corrupt, steps=24)
    change = np.asarray(METRIC(ji.run(lm, clean))) - np.asarray(METRIC(ji.run(lm, corrupt)))
    near(np.asarray(found.values) - found.baseline, change, 1e-4)
    near(np.nansum(found.per_example, axis=2), np.repeat((change - found.missed)[:, None], 3, axis=1), 1e-4)
    assert found.error < 0.01 and np.isnan(found.per_example[0, :, 5:]).all() and found.view().kind == "heatmap"


def test_a_neurons_conductance_by_token_sums_to_its_conductance(tmp_path: Any) -> None:
    lm = model("gpt2")
    clean, corrupt = pair(lm)
    neuron = {"layer": [1], "position": [-1], "neuron": [7]}
    whole = layer_conductance(lm, clean, METRIC, "mlp_post", neuron, baseline=corrupt, steps=4)
    by_token = neuron_conductance(lm, clean, METRIC, "mlp_post", {"layer": 1, "position": -1, "neuron": 7}, baseline=corrupt, steps=4)
    near(np.nansum(by_token.scores, axis=1), whole.per_example.reshape(2), 1e-5)
    assert (by_token.scores[:, :2] == 0).all() and np.isnan(by_token.scores[0, 5:]).all()  # what is equal in both prompts adds nothing
    influence = internal_influence(lm, clean, METRIC, "mlp_post", neuron, baseline=clean, steps=1)  # a path of one point: the slope itself
    slope = ji.gradients(lm, clean, METRIC, {"mlp_post": ji.at(layer=1, position=-1, neuron=7)})["mlp_post"]
    near(influence.scores.reshape(()), np.mean(slope))
    assert influence.save(tmp_path / "influence.safetensors").exists()


def test_a_concepts_direction_is_found_and_its_sensitivity_known() -> None:
    """Examples told apart by their last token; the metric is read straight along the residual stream."""
    lm = model("attention")
    random = np.random.default_rng(0)
    groups = [np.concatenate([random.integers(0, 50, (12, 3)), np.full((12, 1), token)], axis=1) for token in (7, 8)]
    prompts = ji.Tokens.from_ids(random.integers(0, 50, (6, 4)))
    for fit in ("logistic", "mean_difference"):
        found = concept_sensitivity(lm, prompts, METRIC_ONE, *map(ji.Tokens.from_ids, groups), fit=fit, shuffles=9)  # type: ignore[arg-type]
        assert found.accuracy[0] == 1 and found.chance.shape == (3, 9)
        slope = np.asarray(ji.gradients(lm, prompts, METRIC_ONE, {"resid_post": ji.at(position=-1)})["resid_post"])
        near(found.sensitivity, np.einsum("LBD,LD->LB", slope, found.directions))
        near(found.scores, (found.sensitivity > 0).mean(axis=1))
        near(np.linalg.norm(found.directions, axis=1), 1)
        assert found.view().kind == "line"
    with pytest.raises(ji.InputError, match="expected at least 2"):
        concept_sensitivity(lm, prompts, METRIC_ONE, groups[0][:1], groups[1])


METRIC_ONE = ji.metrics.logit_difference(3, 5)


def test_logistic_regression_is_at_its_optimum(rng: np.random.Generator) -> None:
    x = rng.normal(size=(1, 30, 5)).astype(np.float32)
    labels = rng.normal(size=30) + x[0, :, 0] > 0
    direction, middle = directions_program(jnp.asarray(x), jnp.asarray(labels[None]), jnp.ones(30, bool), 1e-2, fit="logistic")
    centred = x[0] - x[0].mean(axis=0)
    scale = np.sqrt((centred**2).mean())
    z = np.concatenate([centred / scale, np.ones((30, 1))], axis=1).astype(np.float64)
    w = np.zeros(6)
    for _ in range(50):
        p = 1 / (1 + np.exp(-z @ w))
        w += np.linalg.solve(0.3 * np.eye(6) + (z * (p * (1 - p))[:, None]).T @ z, z.T @ (labels - p) - 0.3 * w)
    near(np.asarray(direction[0, 0]), w[:5] / np.linalg.norm(w[:5]), 1e-4)
    near(float(middle[0, 0]), x[0].mean(axis=0) @ (w[:5] / np.linalg.norm(w[:5])) - w[5] * scale / np.linalg.norm(w[:5]), 1e-3)
