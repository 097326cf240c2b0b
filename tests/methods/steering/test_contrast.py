"""Contrasts: what is read is what a run holds, and each method's direction is its definition, solved apart in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods import linear
from jaxinterp.methods.steering import contrast, fitting
from jaxinterp.methods.steering.classifiers import discriminant, from_probe, logistic, logistic_weights
from jaxinterp.methods.steering.components import first_component, principal
from jaxinterp.methods.steering.contrast import Contrast, read_contrast, spots, texts_from
from jaxinterp.methods.steering.difference import difference_of_means, mean_difference
from jaxinterp.methods.steering.fitting import fitted
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

CONFIG = CONFIGS["gpt2"]
POSITIVE, NEGATIVE = prompts(CONFIG, (7, 5, 4), seed=1), prompts(CONFIG, (3, 6, 7), seed=2)
MAKERS = (mean_difference, principal, logistic, discriminant)


@pytest.fixture(scope="module")
def lm() -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIG), CONFIG)


def near(a: Any, b: Any, tolerance: float) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def held(lm: ji.LanguageModel, tokens: ji.Tokens, site: str = "resid_post") -> list[np.ndarray]:
    """[L P ...] of each prompt, without padding."""
    values = np.asarray(ji.run(lm, tokens.padded(8), sites=(site,))[site])
    return [values[:, row][:, np.asarray(mask)] for row, mask in enumerate(tokens.padded(8).mask)]


# ------------------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("position", "tokens"),
    (
        (-1, lambda row, length: [length - 1]),
        (1, lambda row, length: [1]),
        ([0, -2], lambda row, length: [0, length - 2]),
        ("all", lambda row, length: range(1, length)),
        ([[2], [-3], [0]], lambda row, length: [(2, length - 3, 0)[row]]),
    ),
)
def test_what_is_read_is_the_mean_over_each_texts_own_tokens(lm: ji.LanguageModel, position: Any, tokens: Any, monkeypatch: Any) -> None:
    read = read_contrast(
        lm, POSITIVE, NEGATIVE, method="test", site="resid_post", layers=None, position=position, bos="model", precision="highest"
    )
    runs = [*held(lm, POSITIVE), *held(lm, NEGATIVE)]
    picked = [run[:, list(tokens(row % 3, run.shape[1]))] for row, run in enumerate(runs)]
    near(read.values, np.stack([run.mean(axis=1) for run in picked], axis=1), 1e-4)
    near(read.norms, np.mean([np.linalg.norm(run, axis=2).mean(axis=1) for run in picked], axis=0), 1e-4)
    assert read.positive.tolist() == [True] * 3 + [False] * 3 and read.paired and read.layers == (0, 1, 2)
    monkeypatch.setattr(contrast, "BATCH", 2)  # in batches by length, the last one filled up
    again = read_contrast(
        lm, POSITIVE, NEGATIVE, method="test", site="resid_post", layers=[2, 0], position=position, bos="model", precision="highest"
    )
    near(again.values, read.values[[0, 2]], 1e-4)
    assert again.layers == (0, 2)


def test_padding_on_the_left_and_other_layouts_read_the_same(lm: ji.LanguageModel) -> None:
    want = mean_difference(lm, POSITIVE, NEGATIVE, position="all")
    left = [prompts(CONFIG, lengths, seed=seed, width=9, left=True) for lengths, seed in (((7, 5, 4), 1), ((3, 6, 7), 2))]
    near(mean_difference(lm, *left, position="all").values, want.values, 1e-4)
    near(mean_difference(lm.by_layer(), POSITIVE, NEGATIVE, position="all").values, want.values, 1e-4)
    assert dict(want.how)["texts"] == dict(mean_difference(lm, *left).how)["texts"]


def test_an_answer_is_read_at_its_own_tokens(lm: ji.LanguageModel) -> None:
    pairs = [([1, 2, 3], [4, 5]), ([6, 7], [8]), ([9, 10, 11, 12], [13, 14, 15])]
    read = texts_from(lm, pairs, "model", "texts")
    assert (
        np.asarray(read.tokens.ids)[0, :5].tolist() == [1, 2, 3, 4, 5] and read.answers is not None and read.answers.tolist() == [2, 1, 3]
    )
    found = mean_difference(lm, pairs, POSITIVE, position={"positive": "answer", "negative": -1})
    answers = [run[:, -count:].mean(axis=1) for run, count in zip(held(lm, read.tokens), (2, 1, 3), strict=True)]
    near(found.values, np.mean(answers, axis=0) - np.mean([run[:, -1] for run in held(lm, POSITIVE)], axis=0), 1e-4)
    assert dict(found.how)["position"] == "answer and -1"


@pytest.mark.weights
def test_an_answers_tokens_are_those_of_the_joint_text(smollm2: Any) -> None:
    pairs = [("Is it? Answer:", " Yes indeed"), ("I am", "azed"), ("She said to ", "Mary")]
    with pytest.warns(UserWarning, match="ends with a space"):
        read = texts_from(smollm2, pairs, "model", "texts")
        told = ji.score(smollm2, [prompt for prompt, _ in pairs], [answer for _, answer in pairs])
    np.testing.assert_array_equal(read.answers, told.lengths)
    np.testing.assert_array_equal(read.tokens.ids, told.tokens.ids)
    happy = mean_difference(
        smollm2, ["I love this", "What a joy it is"], ["I hate this", "What a bore it is"], position="all", layers=[5, 20]
    )
    assert happy.layers == (5, 20) and happy.values.shape == (2, 576) and (happy.sizes < happy.norms).all()
    act = mean_difference(smollm2, "Love", "Hate", layers=6)  # activation addition: a pair of one
    assert np.isnan(act.accuracy).all() and dict(act.how)["examples"] == "1 + 1" and dict(act.how)["model"] == "llama"


# -------------------------------------------------------------------------------------------------------- definitions


def planted(rng: np.random.Generator, pairs: int, width: int, *, shift: float = 1.0, spread: float = 1.0, layers: int = 3) -> Contrast:
    """Pairs around means of their own, apart along the first coordinate, noisy along all and most along the last."""
    noise = np.where(np.arange(width) == width - 1, 4.0, 0.5) * spread
    own = np.tile(rng.normal(size=(layers, pairs, width)), (1, 2, 1))
    values = own + noise * rng.normal(size=own.shape)
    values[:, :pairs, 0] += shift
    values[:, pairs:, 0] -= shift
    positive = np.repeat([True, False], pairs)
    norms = np.linalg.norm(values, axis=2).mean(axis=1).astype(np.float32)
    return Contrast(values.astype(np.float32), positive, norms, True, "resid_post", tuple(range(layers)), (("method", "test"),))


def weights(example: Contrast) -> list[np.ndarray]:
    """y, and weights that leave some examples out, pairs together."""
    y = example.positive.astype(np.float32)
    chosen = np.ones(len(y), np.float32)
    chosen[[1, 1 + len(y) // 2]] = 0
    return [y, chosen]


@pytest.mark.parametrize("pairs", (6, 40))
def test_the_first_component_is_that_of_uncentred_differences(rng: np.random.Generator, pairs: int) -> None:
    example = planted(rng, pairs, 24)
    y, chosen = weights(example)
    x = example.values[0]
    direction = np.asarray(first_component(jnp.asarray(x), jnp.asarray(y), jnp.asarray(chosen)))
    differences = (x[:pairs] - x[pairs:])[chosen[:pairs] > 0]
    first = np.linalg.svd(differences.astype(np.float64))[2][0]
    first *= np.sign(np.sign(differences @ first).sum())
    near(direction / np.linalg.norm(direction), first, 1e-4)
    centred = np.concatenate([(-1) ** side * differences / 2 for side in (0, 1)])  # texts centred within their pair: the same component
    near(abs(np.linalg.svd(centred)[2][0]), abs(first), 1e-4)


def test_most_pairs_decide_the_sign_and_not_the_largest() -> None:
    differences = np.zeros((5, 8), np.float32)
    differences[:, 2] = [1, 1, 1, -10, 1]  # four of five say up, their mean says down
    x, y = jnp.asarray(np.concatenate([differences, 0 * differences])), jnp.asarray([1.0] * 5 + [0.0] * 5)
    assert first_component(x, y, jnp.ones(10))[2] > 0
    assert first_component(-x, y, jnp.ones(10))[2] < 0
    assert first_component(x, y, jnp.asarray([1.0, 0, 0, 1, 0] * 2))[2] < 0  # a tie: the mean


def test_the_first_axis_is_found_where_many_are_nearly_as_long(rng: np.random.Generator) -> None:
    x = rng.normal(size=(90, 300)).astype(np.float32)  # singular values close together: the hardest case
    find = jax.jit(linear.first_axis)
    found, (sizes, axes) = np.asarray(find(x)), np.linalg.svd(x)[1:]
    near(abs(found @ axes[0]), 1, 1e-3)
    near(np.linalg.norm(x @ found), sizes[0], 1e-5)
    one = np.outer(np.arange(5), np.arange(7.0)).astype(np.float32)  # of rank one, and nothing at all
    near(abs(find(one)), np.arange(7) / np.sqrt(91), 1e-5)
    np.testing.assert_array_equal(find(0 * one), 0)


@pytest.mark.parametrize("pairs", (6, 40))
def test_logistic_weights_are_at_the_optimum(rng: np.random.Generator, pairs: int) -> None:
    example = planted(rng, pairs, 24, shift=0.4)
    y, chosen = weights(example)
    x = example.values[0]
    found = np.asarray(logistic_weights(jnp.asarray(x), jnp.asarray(y), jnp.asarray(chosen), jnp.asarray(1e-2)), np.float64)
    kept = chosen > 0
    z, label = x[kept].astype(np.float64), y[kept]
    z = z - z.mean(axis=0)
    scale = np.sqrt((z**2).mean())
    z = np.concatenate([z / scale, np.ones((len(z), 1))], axis=1)
    w = np.zeros(25)
    ridge = 1e-2 * len(z)
    for _ in range(60):
        p = 1 / (1 + np.exp(-z @ w))
        w += np.linalg.solve(ridge * np.eye(25) + (z * (p * (1 - p))[:, None]).T @ z, z.T @ (label - p) - ridge * w)
    near(found, w[:24] / scale, 2e-3)


@pytest.mark.parametrize("pairs", (6, 40))
@pytest.mark.parametrize("shrinkage", (0.2, 1.0, None))
def test_the_discriminant_is_the_difference_through_the_shrunk_covariance(rng: np.random.Generator, pairs: int, shrinkage: Any) -> None:
    example = planted(rng, pairs, 24)
    y, chosen = weights(example)
    x = example.values[0]
    given = -1.0 if shrinkage is None else shrinkage
    found = np.asarray(linear.discriminant(jnp.asarray(x), jnp.asarray(y), jnp.asarray(chosen), given), np.float64)
    rows, label = x[chosen > 0].astype(np.float64), y[chosen > 0] > 0
    means = [rows[label].mean(axis=0), rows[~label].mean(axis=0)]
    within = rows - np.where(label[:, None], *means)
    covariance = within.T @ within / len(within)
    mean = np.trace(covariance) / 24
    if shrinkage is None:  # Ledoit and Wolf, by its definition
        distance = ((covariance - mean * np.eye(24)) ** 2).sum()
        error = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in within) / len(within) ** 2
        shrinkage = min(error / distance, 1)
        assert 0.01 < shrinkage < 0.99
    shrunk = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(24)
    want = np.linalg.solve(shrunk, means[0] - means[1])
    near(found / np.linalg.norm(found), want / np.linalg.norm(want), 1e-3)


def test_a_planted_direction_is_found_and_has_the_classes_distance(lm: ji.LanguageModel, rng: np.random.Generator) -> None:
    example = planted(rng, 40, 24, shift=2.0, spread=4.0)
    difference = example.values[:, :40].mean(axis=1) - example.values[:, 40:].mean(axis=1)
    cosines = {}
    for fit, options in ((difference_of_means, ()), (logistic_weights, (1e-2,)), (linear.discriminant, (-1.0,))):
        scaled = fit is not difference_of_means
        v = fitted(lm, example, fit, options, scaled=scaled, folds=None, seed=0)
        near((v.values * difference).sum(axis=1), v.sizes**2, 1e-3)  # v = (d . u) u
        cosines[fit] = (v.values[:, 0] / v.sizes).min()
        assert (v.accuracy >= 0.5).all() and dict(v.how)["folds"] == "5"
    near(fitted(lm, example, difference_of_means, scaled=False, folds=0, seed=0).values, difference, 1e-5)
    assert cosines[linear.discriminant] > 0.75 > cosines[difference_of_means] + 0.1, cosines  # it discounts the noisy coordinate


def test_accuracy_is_that_of_directions_fitted_without_the_fold(lm: ji.LanguageModel, rng: np.random.Generator) -> None:
    example = planted(rng, 11, 24, shift=0.6)
    v = fitted(lm, example, difference_of_means, scaled=False, folds=4, seed=3)
    tests = fitting._folds(example, 4, 3, 1, "test")
    np.testing.assert_array_equal(tests.sum(axis=0), 1)
    np.testing.assert_array_equal(tests[:, :11], tests[:, 11:])  # pairs are held out together
    right = np.zeros((3, 22), bool)
    for fold in tests:
        ups, downs = (example.values[:, side & ~fold].mean(axis=1) for side in (example.positive, ~example.positive))
        direction, middle = ups - downs, ((ups - downs) * (ups + downs)).sum(axis=1) / 2
        called = np.einsum("LNF,LF->LN", example.values, direction) > middle[:, None]
        right[:, fold] = (called == example.positive)[:, fold]
    near(v.accuracy, (right[:, :11].mean(axis=1) + right[:, 11:].mean(axis=1)) / 2, 1e-6)
    blind = planted(rng, 60, 24, shift=0.0, spread=2.0)
    assert abs(fitted(lm, blind, difference_of_means, scaled=False, folds=None, seed=0).accuracy - 0.5).max() < 0.2


# -------------------------------------------------------------------------------------------------------- the makers


@pytest.mark.parametrize("maker", MAKERS)
def test_a_maker_gives_a_vector_that_knows_how_it_was_made(lm: ji.LanguageModel, maker: Any) -> None:
    v = maker(lm, POSITIVE, NEGATIVE, site="z", layers=[2, 1])
    assert v.check(lm) is v and v.layers == (1, 2) and v.values.shape == (2, 4, 6) and v.site == "z"
    how = dict(v.how)
    assert how["method"] == maker.__name__ and how["examples"] == "3 + 3" and len(how["texts"].split()) == 6 and how["bos"] == "given"
    runs = [np.stack([run[[1, 2], -1] for run in held(lm, side, "z")], axis=1) for side in (POSITIVE, NEGATIVE)]
    difference = (runs[0].mean(axis=1) - runs[1].mean(axis=1)).reshape(2, -1)
    near(v.norms, np.linalg.norm(np.concatenate(runs, axis=1).reshape(2, 6, -1), axis=2).mean(axis=1), 1e-4)
    if maker is mean_difference:
        near(v.values.reshape(2, -1), difference, 1e-4)
    along = (v.unit().values.reshape(2, -1) * difference).sum(axis=1)
    near(abs(along), v.sizes, 1e-4)
    again = maker(lm, POSITIVE, NEGATIVE, site="z", layers=[2, 1])
    np.testing.assert_array_equal(again.values, v.values)


def test_other_texts_of_like_length_compile_nothing(lm: ji.LanguageModel) -> None:
    for maker in MAKERS:
        maker(lm, POSITIVE, NEGATIVE, layers=[0, 2])
    others = [prompts(CONFIG, (7, 6, 4), seed=seed) for seed in (21, 22)]
    with compiled() as programs:
        for maker, options in zip(MAKERS, ({}, {}, {"penalty": 0.3}, {"shrinkage": 0.2}), strict=True):
            maker(lm, *others, layers=[0, 2], position=1, seed=5, **options)
    assert not programs


def test_a_bfloat16_model_makes_nearly_the_same_vector(lm: ji.LanguageModel) -> None:
    half = lm.replace(params={**params(CONFIG, jnp.bfloat16)})
    v, w = (mean_difference(each, POSITIVE, NEGATIVE, position="all") for each in (lm, half))
    assert w.values.dtype == np.float32 and ((v.unit().values * w.unit().values).sum(axis=1) > 0.99).all()
    assert w.check(lm) is w


def test_a_probe_is_kept_as_it_is(lm: ji.LanguageModel) -> None:
    weights = np.arange(48.0).reshape(2, 24) + 1
    v = from_probe(lm, weights, layers=[2, 0], bias=[0.5, -1.0], accuracy=[0.9, 0.8], how=(("method", "my probe"), ("data", "reviews")))
    np.testing.assert_array_equal(v.values, weights)
    assert v.layers == (2, 0) and dict(v.how) | {"method": "my probe", "data": "reviews", "bias": "0.5 -1"} == dict(v.how)
    np.testing.assert_array_equal(from_probe(lm, weights[0], layers=range(3)).values, np.tile(weights[:1], (3, 1)))
    assert from_probe(lm, np.ones((4, 6)), site="z", layers=1, bias=2).values.shape == (1, 4, 6)
    refused: tuple[tuple[Any, dict[str, Any], str], ...] = (
        (np.ones(23), {"layers": 1}, "has shape"),
        (["a"] * 24, {"layers": 1}, "expected numbers"),
        (np.full(24, np.inf), {"layers": 1}, "not finite"),
        (np.ones(24), {"layers": 1, "bias": [1.0, 2.0]}, "bias has shape"),
        (np.ones(24), {"layers": [3]}, "expected different ones"),
    )
    for given, options, message in refused:
        with pytest.raises(ji.InputError, match=message):
            from_probe(lm, given, **options)


TWO, ONE = prompts(CONFIG, (4, 5), seed=3), prompts(CONFIG, (6,), seed=4)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda lm: principal(lm, ONE, ONE), "needs at least 2 texts of each kind; got 1 positive and 1 negative"),
        (lambda lm: logistic(lm, TWO, ONE), "needs at least 2 texts of each kind; got 2 positive and 1"),
        (lambda lm: discriminant(lm, ONE, TWO), "needs at least 2 texts of each kind"),
        (lambda lm: principal(lm, POSITIVE, TWO), "compares pairs, so it needs as many of both; got 3 positive and 2 negative"),
        (lambda lm: mean_difference(lm, ONE, TWO, folds=2), "2 folds of 1 positive and 2 negative texts do not leave 1 of each"),
        (lambda lm: mean_difference(lm, TWO, TWO, folds=3), "3 folds of 2 positive"),
        (lambda lm: mean_difference(lm, TWO, TWO, folds=1), "1 folds of 2 positive"),
        (lambda lm: principal(lm, TWO, TWO, folds=2), "do not leave 2 of each"),
        (lambda lm: mean_difference(lm, TWO, TWO), "both sets are the same at layer 0 of 'resid_post'"),
        (lambda lm: mean_difference(lm, [[3, 7]], [[3, 9]], position=0), "both sets are the same at layer 0"),
        (lambda lm: mean_difference(lm, TWO, ONE, position=4), "positive: position 4 is out of range for prompt 0"),
        (lambda lm: mean_difference(lm, TWO, ONE, position="last"), "expected an int, .n., .B n., 'answer' or 'all'"),
        (lambda lm: mean_difference(lm, TWO, ONE, position=0.5), "expected an int"),
        (lambda lm: mean_difference(lm, TWO, ONE, position="answer"), r"texts given as \(prompt, answer\) tuples"),
        (lambda lm: mean_difference(lm, [[1]], ONE, position="all"), "text 0 has one token, and position='all' leaves out the first"),
        (lambda lm: mean_difference(lm, TWO, ONE, position={"up": 1}), "positions by set"),
        (lambda lm: mean_difference(lm, ("a prompt", "an answer"), TWO), "a tuple of two strings is a prompt and its answer"),
        (lambda lm: mean_difference(lm, [("a", "b"), "c"], TWO), "for every text, or for none"),
        (lambda lm: mean_difference(lm, [([1], ["x"])], TWO), "must all be strings, or all"),
        (lambda lm: mean_difference(lm, [([1, 2], [])], TWO), "all lists of one or more ids"),
        (lambda lm: mean_difference(lm, TWO, ONE, site="logits"), "steers a site with axes L B P"),
        (lambda lm: mean_difference(lm, TWO, ONE, layers=3), "expected one or more of 0 to 2"),
        (lambda lm: mean_difference(lm, [[1, 50]], ONE), "Token id 50 is out of range"),
        (lambda lm: logistic(lm, TWO, POSITIVE, penalty=0.0), "expected a number over 0"),
        (lambda lm: discriminant(lm, TWO, POSITIVE, shrinkage=0.0), "over 0 and up to 1"),
    ),
)  # fmt: skip
def test_what_is_no_contrast_is_refused(lm: ji.LanguageModel, make: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        make(lm)


def test_unequal_sets_have_a_mean_difference(lm: ji.LanguageModel) -> None:
    v = mean_difference(lm, POSITIVE, TWO, position="all")
    means = [np.mean([run[:, 1:].mean(axis=1) for run in held(lm, side)], axis=0) for side in (POSITIVE, TWO)]
    near(v.values, means[0] - means[1], 1e-4)
    assert np.isfinite(v.accuracy).all() and dict(v.how)["folds"] == "2"


def test_spots_weigh_each_texts_tokens_equally(lm: ji.LanguageModel) -> None:
    index, weight = spots(texts_from(lm, POSITIVE, "model", "texts"), "all", "texts")
    np.testing.assert_allclose(weight.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal((weight > 0).sum(axis=1), [6, 4, 3])
    assert 0 not in index[weight > 0]
