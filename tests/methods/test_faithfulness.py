"""Scores of explanations, against known answers on a model that is affine in its embeddings, and by their definitions."""

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.attribution.faithfulness import comprehensiveness, infidelity, max_sensitivity, sufficiency
from jaxinterp.methods.attribution.gradient import gradient_x_input, saliency
from jaxinterp.methods.attribution.perturbation import occlusion
from tests.methods.test_inputs import LINEAR, LM, METRIC, TOKENS


def test_on_a_linear_model_exact_scores_are_perfect() -> None:
    """What is lost with a set of tokens is the sum of their scores."""
    found = gradient_x_input(LINEAR, TOKENS, METRIC)
    scores, lengths = np.nan_to_num(found.scores), np.asarray(TOKENS.lengths)
    lost, kept = (score(LINEAR, found, METRIC, shares=(0.2, 0.5, 1.0), baseline="zero") for score in (comprehensiveness, sufficiency))
    for row in range(2):
        order = np.sort(found.of(row))[::-1]
        first = np.asarray([order[: int(np.ceil(share * lengths[row]))].sum() for share in (0.2, 0.5, 1.0)])
        np.testing.assert_allclose(lost.curve[row], first, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(kept.curve[row], scores[row].sum() - first, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(lost.values, lost.curve.mean(axis=1))
    exact = infidelity(LINEAR, found, METRIC, samples=5, baseline="zero", normalise=False)
    assert exact.values.max() < 1e-6
    doubled = jax.tree.map(lambda leaf: leaf, found)
    object.__setattr__(doubled, "scores", 2 * found.scores)
    assert infidelity(LINEAR, doubled, METRIC, samples=5, baseline="zero").values.max() < 1e-6  # scaled back
    assert infidelity(LINEAR, doubled, METRIC, samples=5, baseline="zero", normalise=False).values.min() > 1e-2
    assert max_sensitivity(saliency, LINEAR, TOKENS, METRIC, samples=1).values.max() < 1e-5


def test_infidelity_is_its_definition_and_does_not_see_the_other_prompts() -> None:
    found = occlusion(LM, TOKENS, METRIC)
    one = infidelity(LM, found, METRIC, samples=5, share=0.4)
    assert (one.values > 0).all() and (one.spread > 0).all() and "replaced_by=mean" in repr(one)
    nothing = jax.tree.map(lambda leaf: leaf, found)
    object.__setattr__(nothing, "scores", 0 * found.scores)
    assert (infidelity(LM, nothing, METRIC, samples=5, share=0.4).values >= one.values - 1e-9).all()


def test_max_sensitivity_grows_with_the_radius() -> None:
    small, large = (max_sensitivity(saliency, LM, TOKENS, METRIC, radius=radius, samples=3).values for radius in (0.001, 0.3))
    assert (small > 0).all() and (small < 0.1).all() and (large > 3 * small).all()


def test_shares_and_samples_that_mean_nothing_are_refused() -> None:
    found = occlusion(LM, TOKENS, METRIC)
    with pytest.raises(ji.InputError, match="expected shares of the tokens"):
        comprehensiveness(LM, found, METRIC, shares=(0.5, 1.5))
    with pytest.raises(ji.InputError, match="samples is 1"):
        infidelity(LM, found, METRIC, samples=1)
    with pytest.raises(ji.InputError, match="share is 1"):
        infidelity(LM, found, METRIC, share=1.0)
