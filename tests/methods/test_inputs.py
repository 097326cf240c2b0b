"""Input attribution: known answers on a linear model, sums, causality, padding, batches, and what each method refuses."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.attribution.attribute import METHODS, attribute
from jaxinterp.methods.attribution.discretised import anchors_program
from jaxinterp.methods.attribution.gradient import gradient_x_input, relevance_propagation, saliency, smoothgrad, vargrad
from jaxinterp.methods.attribution.integrated import integrated_gradients, sequential_integrated_gradients
from jaxinterp.methods.attribution.mixing import attention_rollout, value_zeroing
from jaxinterp.methods.attribution.perturbation import leave_one_out, occlusion
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.methods.attribution.shapley import shapley
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

CONFIG = CONFIGS["qwen3"]
LM = ji.LanguageModel(params(CONFIG), CONFIG)
TOKENS = prompts(CONFIG, (5, 3))
METRIC = ji.metrics.logit_difference(np.asarray([3, 8]), np.asarray([11, 20]))
LEFT = prompts(CONFIG, (5, 3), left=True)
SWAPPED = ji.Tokens.from_ids(np.asarray(LEFT.ids)[::-1], np.asarray(LEFT.mask)[::-1])
METRIC_SWAPPED = ji.metrics.logit_difference(np.asarray([8, 3]), np.asarray([20, 11]))
FEW: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"spacing": "linear", "steps": 4, "tolerance": 1e6},
    "sequential_integrated_gradients": {"steps": 2, "tolerance": 1e6},
    "discretised_integrated_gradients": {"steps": 2, "neighbours": 5, "baseline": 0, "tolerance": 1e6},
    "smoothgrad": {"samples": 4},
    "vargrad": {"samples": 4},
    "shapley": {"samples": 4},
}


def linear_model(layers: int = 2) -> ji.LanguageModel:
    """A model that is affine in its embeddings: no norm, no MLP, and queries of zero, so that attention is even."""
    config = CONFIGS["attention"].replace(n_layers=layers)
    weights = params(config)
    weights["blocks"][0]["attn"]["W_Q"] = jnp.zeros_like(weights["blocks"][0]["attn"]["W_Q"])
    return ji.LanguageModel(weights, config)


LINEAR = linear_model()


def embedded(lm: ji.LanguageModel, tokens: ji.Tokens) -> np.ndarray:
    return np.asarray(ji.run(lm, tokens, sites=("embed",), stop=0)["embed"])


def test_on_a_linear_model_every_method_gives_the_same_known_scores() -> None:
    """score_p = x_p . gradient, found by running basis vectors; they sum to f(x) - f(0)."""
    x = embedded(LINEAR, TOKENS)
    at_zero = np.asarray(METRIC(ji.run(LINEAR, TOKENS, inputs=np.zeros_like(x))))
    one = lambda p: METRIC(ji.run(LINEAR, TOKENS, inputs=np.where(np.arange(5)[None, :, None] == p, x, 0)))  # noqa: E731
    known = np.stack([np.asarray(one(p)) - at_zero for p in range(5)], axis=1)
    for found in (
        gradient_x_input(LINEAR, TOKENS, METRIC),
        integrated_gradients(LINEAR, TOKENS, METRIC, baseline="zero", steps=4, spacing="linear"),
        occlusion(LINEAR, TOKENS, METRIC, baseline="zero"),
        shapley(LINEAR, TOKENS, METRIC, baseline="zero", samples=4),
    ):
        assert np.isnan(found.scores[1, 3:]).all() and not np.isnan(found.scores[0]).any()
        np.testing.assert_allclose(np.nan_to_num(found.scores), np.where(TOKENS.mask, known, 0), rtol=1e-3, atol=2e-4, err_msg=found.method)
        np.testing.assert_allclose(found.values, METRIC(ji.run(LINEAR, TOKENS)), rtol=1e-5)
        if found.method == "gradient_x_input":  # what remains is the metric at zero embeddings
            np.testing.assert_allclose(found.error, at_zero, rtol=1e-3, atol=2e-4)
        elif found.baseline is not None:
            np.testing.assert_allclose(found.baseline, at_zero, rtol=1e-4, atol=1e-5)
            assert found.relative_error.max() < 1e-4
    assert np.nanmax(found.spread) < 1e-4


def test_rules_make_gradient_x_input_complete_and_lrp() -> None:
    """A model without biases is linear under the affine rules, so that scores sum to the metric; LRP is the same under its own."""
    config = CONFIGS["llama"]
    lm = ji.LanguageModel(params(config), config)
    found = gradient_x_input(lm, TOKENS, METRIC, rules=ji.Rules.affine())
    assert found.relative_error.max() < 1e-4
    assert np.abs(np.nan_to_num(found.scores)).max() > 0.1
    slope = ji.gradients(lm, TOKENS, METRIC, ["embed"], rules=ji.Rules.attn_lrp())["embed"]
    lrp = relevance_propagation(lm, TOKENS, METRIC)
    np.testing.assert_allclose(np.nan_to_num(lrp.scores), np.where(TOKENS.mask, (slope * embedded(lm, TOKENS)).sum(axis=-1), 0), atol=1e-4)
    np.testing.assert_allclose(lrp.error, lrp.values - np.nansum(lrp.scores, axis=1))


def test_integrated_gradients_are_the_integral_and_their_error_is_reported() -> None:
    x = embedded(LM, TOKENS)
    start = np.asarray(LM.params["embed"]["W_E"]).mean(axis=0)[None, None]
    total = lambda value: METRIC(ji.forward(LM.params, TOKENS, CONFIG, inputs=value)).sum()  # noqa: E731
    slope = jax.jit(lambda shares: jax.lax.map(lambda a: jax.grad(total)(start + a * (x - start)), shares).mean(axis=0))
    want = np.where(TOKENS.mask, (np.asarray(slope((np.arange(600) + 0.5) / 600)) * (x - start)).sum(axis=-1), 0)
    difference = METRIC(ji.run(LM, TOKENS)) - METRIC(ji.run(LM, TOKENS, inputs=np.broadcast_to(start, x.shape)))
    ways: tuple[dict[str, Any], ...] = ({"tolerance": 1e-3}, {"spacing": "linear", "steps": 64}, {"spacing": "log", "steps": 64})
    for options in ways:
        found = integrated_gradients(LM, TOKENS, METRIC, **options)
        np.testing.assert_allclose(np.nan_to_num(found.scores), want, atol=5e-3 * np.abs(want).max())
        np.testing.assert_allclose(found.total, difference, rtol=1e-4)
        np.testing.assert_allclose(found.error, np.asarray(difference) - np.nansum(found.scores, axis=1), atol=1e-4)
        assert found.relative_error.max() < 2e-3
    with pytest.warns(UserWarning, match="miss their sum by .* % was wanted"):
        missed = integrated_gradients(LM, TOKENS, METRIC, steps=4, spacing="linear", tolerance=1e-9)
    assert missed.relative_error.max() > 1e-9


def test_baselines_and_kept_positions() -> None:
    given = prompts(CONFIG, (5, 3), seed=7)
    few: dict[str, Any] = {"steps": 4, "spacing": "linear", "tolerance": 1e6}
    by_prompt = integrated_gradients(LM, TOKENS, METRIC, baseline=given, **few)
    np.testing.assert_allclose(by_prompt.baseline, METRIC(ji.run(LM, given)), rtol=1e-4)
    by_value = integrated_gradients(LM, TOKENS, METRIC, baseline=embedded(LM, given), **few)
    np.testing.assert_array_equal(by_value.scores, by_prompt.scores)
    by_token = integrated_gradients(LM, TOKENS, METRIC, baseline=4, **few)
    np.testing.assert_allclose(
        by_token.baseline, METRIC(ji.run(LM, np.full((2, 5), 4))).at[1].set(METRIC(ji.run(LM, np.full((2, 3), 4)))[1]), rtol=1e-4
    )
    kept = integrated_gradients(LM, TOKENS, METRIC, baseline=4, keep=[0, -1], **few)
    assert not kept.scores[0, [0, 4]].any() and not kept.scores[1, [0, 2]].any() and kept.scores[0, 1:4].all()
    for wrong, message in (
        (prompts(CONFIG, (5, 4)), "Pair 1 has 3 clean and 4 corrupt tokens"),
        (np.zeros((2, 4, 24), np.float32), r"expected embeddings \[D\], \[P D\] or \[B P D\] = \[2, 5, 24\]; got shape \[2, 4, 24\]"),
        ("pad", "no padding token"),
        (99, "baseline is token 99"),
        (LEFT, "padded on another side"),
    ):
        with pytest.raises(ji.InputError, match=message):
            integrated_gradients(LM, TOKENS, METRIC, baseline=wrong, **few)


def test_sequential_integrated_gradients_are_occlusion_as_an_integral() -> None:
    found = sequential_integrated_gradients(LM, TOKENS, METRIC, steps=24, spacing="linear", tolerance=0.1)
    exact = occlusion(LM, TOKENS, METRIC).scores
    np.testing.assert_allclose(found.scores, exact, atol=2e-2 * np.nanmax(np.abs(exact)))
    np.testing.assert_allclose(found.total, np.nansum(exact, axis=1), rtol=1e-4)


def test_shapley_values_are_exact_from_all_orders_and_always_sum() -> None:
    tokens = prompts(CONFIG, (4, 3))
    start = np.asarray(LM.params["embed"]["W_E"]).mean(axis=0)
    x = embedded(LM, tokens)

    def worth(there: tuple[int, ...]) -> np.ndarray:
        keep = np.isin(np.arange(4), there)[None, :, None]
        return np.asarray(METRIC(ji.run(LM, tokens, inputs=np.where(keep, x, start))), np.float64)

    known = np.zeros((2, 4))
    for row, n in ((0, 4), (1, 3)):
        for p, size in itertools.product(range(n), range(n)):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for there in itertools.combinations([q for q in range(n) if q != p], size):
                known[row, p] += weight * (worth((*there, p)) - worth(there))[row]
    every = shapley(LM, tokens, METRIC, samples=24)
    np.testing.assert_allclose(np.nan_to_num(every.scores), known, rtol=1e-4, atol=1e-5)
    assert not np.nan_to_num(every.spread).any() and dict(every.how)["orders"] == "all"
    some = shapley(LM, tokens, METRIC, samples=8)
    np.testing.assert_allclose(np.nansum(some.scores, axis=1), some.values - some.baseline, rtol=1e-9)
    assert 0 < np.nanmean(np.abs(some.scores - every.scores)) < 3 * np.nanmean(some.spread)


def test_occlusion_averages_over_windows() -> None:
    x, start = embedded(LM, TOKENS), np.asarray(LM.params["embed"]["W_E"]).mean(axis=0)
    full = np.asarray(METRIC(ji.run(LM, TOKENS)))

    def loss(*positions: int) -> np.ndarray:
        return full - np.asarray(METRIC(ji.run(LM, TOKENS, inputs=np.where(np.isin(np.arange(5), positions)[None, :, None], start, x))))

    found = occlusion(LM, TOKENS, METRIC, window=2, stride=2).scores  # the last window of 5 tokens holds one
    want = np.stack([loss(0, 1)[0], loss(0, 1)[0], loss(2, 3)[0], loss(2, 3)[0], loss(4)[0]])
    np.testing.assert_allclose(found[0], want, rtol=1e-3, atol=1e-4)
    overlapping = occlusion(LM, TOKENS, METRIC, window=2).scores
    np.testing.assert_allclose(
        overlapping[1, :3], [loss(0, 1)[1], (loss(0, 1)[1] + loss(1, 2)[1]) / 2, loss(1, 2)[1]], rtol=1e-3, atol=1e-4
    )


def test_leaving_a_token_out_is_the_run_without_it() -> None:
    full = np.asarray(METRIC(ji.run(LM, TOKENS)))
    found = leave_one_out(LM, TOKENS, METRIC).scores
    for p in range(4):
        shorter = np.delete(np.asarray(TOKENS.ids)[:1], p, axis=1)
        one = ji.metrics.logit_difference(3, 11)(ji.run(LM, shorter))[0]
        np.testing.assert_allclose(found[0, p], full[0] - one, rtol=1e-4, atol=1e-5)
    assert np.isnan(found[0, 4]) and np.isnan(found[1, 2]) and not np.isnan(found[1, :2]).any()
    masked, empty = (leave_one_out(LM, TOKENS, METRIC, by=by).scores for by in ("mask", "values"))
    for p in (0, 2):
        hidden = METRIC(ji.run(LM, TOKENS, edits=ji.edits.knockout(key=p)))
        np.testing.assert_allclose(masked[:, p], full - hidden, rtol=1e-4, atol=1e-5)
        zeroed = METRIC(ji.run(LM, TOKENS, edits=ji.edits.zero("v", position=p)))
        np.testing.assert_allclose(empty[:, p], full - zeroed, rtol=1e-4, atol=1e-5)


def test_mixing_follows_patterns_and_values_without_a_metric() -> None:
    trace = ji.run(LM, TOKENS, sites=("pattern", "resid_pre", "resid_post"))
    mean = np.asarray(trace["pattern"])[:, 0].mean(axis=1)
    rolled = np.linalg.multi_dot([(mean[layer] + np.eye(5)) / (mean[layer].sum(-1, keepdims=True) + 1) for layer in (2, 1, 0)])
    found = attention_rollout(LM, TOKENS)
    np.testing.assert_allclose(found.scores[0], rolled[-1], rtol=1e-4)
    assert found.values is None and not found.signed and np.nansum(found.scores, axis=1) == pytest.approx([1, 1])
    layer, distances = 1, []
    for p in range(5):
        edits = [ji.edits.replace("resid_pre", np.asarray(trace["resid_pre"])), ji.edits.zero("v", where=np.arange(5)[None, None] == p)]
        changed = ji.run(LM, TOKENS, sites=("resid_post",), edits=edits)["resid_post"][layer, 0, -1]
        kept = trace["resid_post"][layer, 0, -1]
        distances.append(1 - float(changed @ kept / (jnp.linalg.norm(changed) * jnp.linalg.norm(kept))))
    zeroed = value_zeroing(LM, TOKENS, METRIC, layer=layer)
    np.testing.assert_allclose(zeroed.scores[0], np.asarray(distances) / sum(distances), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(np.nansum(value_zeroing(LM, TOKENS).scores, axis=1), 1, rtol=1e-5)


def test_noise_can_be_given_and_moments_are_those_over_it() -> None:
    x = embedded(LM, TOKENS)
    noise = 0.05 * np.random.default_rng(0).normal(size=(4, *x.shape)).astype(np.float32)
    each = [x + e for e in noise]
    products = np.stack([value * np.asarray(ji.gradients(LM, TOKENS, METRIC, ["embed"], inputs=value)["embed"]) for value in each])
    mean, variance = smoothgrad(LM, TOKENS, METRIC, given=noise), vargrad(LM, TOKENS, METRIC, given=noise)
    mask = np.asarray(TOKENS.mask)
    np.testing.assert_allclose(mean.scores[mask], products.mean(axis=0).sum(axis=-1)[mask], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(variance.scores[mask], products.var(axis=0).sum(axis=-1)[mask], rtol=1e-3, atol=1e-5)
    drawn = [smoothgrad(LM, TOKENS, METRIC, samples=4, seed=seed).scores[mask] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3


@pytest.mark.parametrize("strategy", ["greedy", "max_count"])
def test_anchors_are_words_made_monotone(strategy: str) -> None:
    words = np.asarray(LM.params["embed"]["W_E"])
    tokens, goal, steps, near = prompts(CONFIG, (2,)), words[:1], 3, 6
    start = jnp.broadcast_to(jnp.asarray(goal), (1, 2, 24))
    points = np.asarray(
        anchors_program(LM.params, tokens, jnp.asarray(embedded(LM, tokens)), start, steps, near, strategy, CONFIG, None, "highest")
    )

    def monotone(point: np.ndarray, last: np.ndarray) -> np.ndarray:
        inside = (point >= np.minimum(last, goal[0])) & (point <= np.maximum(last, goal[0]))
        return np.where(inside, point, last - (last - goal[0]) / steps)

    for p, token in enumerate(np.asarray(tokens.ids)[0]):
        path, want = [token], [words[token]]
        for _ in range(steps):
            last = words[path[-1]]
            nearest = [j for j in np.argsort(((words - last) ** 2).sum(axis=1), kind="stable")[:near] if j not in path and j != 0]
            moved = [
                ((words[j] - monotone(words[j], last)) ** 2).sum() if strategy == "greedy" else (monotone(words[j], last) != words[j]).sum()
                for j in nearest
            ]
            path.append(nearest[int(np.argmin(moved))])
            want.append(monotone(words[path[-1]], want[-1]))
        np.testing.assert_allclose(points[:, 0, p], [goal[0], *want[::-1]], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def at_once() -> dict[str, InputAttribution]:
    """Every method on a batch."""
    return {name: attribute(LM, TOKENS, METRIC, name, **FEW.get(name, {})) for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_padding_and_the_other_prompts_change_nothing(name: str, at_once: dict[str, InputAttribution]) -> None:
    """The prompts change places, and the shorter one is padded on the left."""
    together = at_once[name]
    moved = attribute(LM, SWAPPED, METRIC_SWAPPED, name, **FEW.get(name, {}))
    for row in range(2):
        close = {"rtol": 2e-3, "atol": 2e-4 * np.nanmax(np.abs(together.of(row)))}
        np.testing.assert_allclose(moved.of(1 - row), together.of(row), **close)
    assert together.scores.shape == (2, 5) and np.isnan(together.scores[1, 3:]).all() and np.isnan(moved.scores[0, :2]).all()


def test_adaptive_panels_of_a_prompt_are_its_own() -> None:
    together = integrated_gradients(LM, TOKENS, METRIC, tolerance=1e-3)
    alone = integrated_gradients(LM, np.asarray(TOKENS.ids)[:1], ji.metrics.logit_difference(3, 11), tolerance=1e-3)
    np.testing.assert_allclose(alone.of(0), together.of(0), rtol=1e-3, atol=1e-4)
    assert int(dict(together.how)["steps"]) >= int(dict(alone.how)["steps"]) > 17


def test_tokens_after_the_one_that_is_read_have_no_score_and_nothing_is_compiled_again(at_once: dict[str, InputAttribution]) -> None:
    """Another prompt, other answers and another position are data of the same programs."""
    tokens = prompts(CONFIG, (5, 3), seed=9)
    metric = ji.metrics.logit_difference(np.asarray([5, 1]), np.asarray([2, 40]), position=1)
    with compiled() as events:
        found = {name: attribute(LM, tokens, metric, name, **FEW.get(name, {})) for name in METHODS}
    assert not events
    for name, one in found.items():
        if name not in ("attention_rollout", "value_zeroing"):
            assert not one.scores[0, 2:].any() and one.scores[1, 2] == 0, name
            assert np.nan_to_num(one.scores[0, :2]).any(), name


def test_metrics_without_a_gradient_are_refused_and_saturated_ones_warned_of() -> None:
    itself = ji.metrics.kl_divergence(ji.run(LM, TOKENS))
    with pytest.raises(ji.InputError, match="to the run itself"):
        saliency(LM, TOKENS, itself)
    for method in ("saliency", "integrated_gradients", "discretised_integrated_gradients"):
        with pytest.raises(ji.InputError, match="rank counts tokens"):
            attribute(LM, TOKENS, ji.metrics.rank(3), method, **FEW.get(method, {}))
    with pytest.warns(UserWarning, match="saturated"):
        saliency(LM, TOKENS, ji.metrics.probability(np.asarray(ji.run(LM, TOKENS).at("logits", position=-1)).argmin(axis=1)))
    assert occlusion(LM, TOKENS, ji.metrics.rank(3)).scores.shape == (2, 5)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("nonsense", {}, "There is no attribution method 'nonsense'"),
        ("ig", {"steps": 3}, "17 or more with spacing='adaptive'"),
        ("ig", {"tolerance": 0}, "tolerance is 0"),
        ("occlusion", {"window": 2, "stride": 3}, "tokens between windows would have no score"),
        ("shapley", {"samples": 5}, "an even number"),
        ("shapley", {"samples": 1}, "4 or more orders"),
        ("smoothgrad", {"given": np.zeros((2, 4, 24))}, r"expected noise \[n B P D\]"),
        ("dig", {"steps": 9, "neighbours": 9}, r"more than steps \(9\)"),
        ("value_zeroing", {"layer": 3}, "this model has layers 0 to 2"),
    ],
)
def test_options_that_mean_nothing_are_refused(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        attribute(LM, TOKENS, METRIC, method, **options)


def test_a_result_is_a_pytree_with_a_picture_and_a_file(tmp_path, at_once: dict[str, InputAttribution]) -> None:
    from safetensors import safe_open

    found = at_once["integrated_gradients"]
    assert jax.tree.map(lambda leaf: leaf, found).strings == found.strings
    assert repr(found).startswith("InputAttribution(integrated_gradients: 2 prompts x 5 tokens; metric ")
    assert "completeness error" in repr(found) and "from_baseline=mean" in repr(found)
    with safe_open(found.save(tmp_path / "scores.safetensors"), "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("scores"), found.scores)
        assert file.metadata()["method"] == "integrated_gradients"
    assert found.view().kind == "report" and found.view(prompt=1).tokens == found.strings[1]
    assert found.top(2)[0][2] == found.of(0)[np.abs(found.of(0)).argmax()]
    assert found.save(tmp_path / "scores.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.weights
def test_the_corrupt_prompt_as_baseline_leaves_no_error_on_smollm2(smollm2: ji.LanguageModel) -> None:
    """32 evenly spaced points: completeness within 1 %, and the token that differs carries the whole change."""
    texts = [f"When Mary and John went to the store, {name} gave a drink to" for name in ("John", "Mary")]
    metric = ji.metrics.logit_difference(" Mary", " John")
    found = integrated_gradients(smollm2, texts[0], metric, baseline=texts[1], steps=32, spacing="linear")
    assert found.relative_error[0] < 0.01
    assert found.total[0] == pytest.approx(6.1196 + 5.4853, abs=1e-3)
    assert found.top(1)[0][:2] == (9, " John") and found.top(1)[0][2] == pytest.approx(11.6049, rel=1e-3)
    assert not np.delete(found.of(0), 9).any()
