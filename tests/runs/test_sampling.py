"""Each filter and penalty against a plain NumPy reference, on the same uniform numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.runs.generate import generate
from jaxinterp.runs.sampling import choose, draw, filtered, make_sampling, penalised, uniforms
from tests.programs import traces
from tests.tiny import CONFIGS, params

CONFIG = CONFIGS["llama"]
LM = ji.LanguageModel(params(CONFIG), CONFIG)
V = CONFIG.d_vocab
DEFAULTS: dict[str, Any] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0,
}  # fmt: skip


def settings(batch: int = 6, seed: Any = 0, bias: Any = None, lm: Any = LM, **given: Any) -> Any:
    return make_sampling(lm, batch, seed, bias, **(DEFAULTS | given))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(scores: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    """Which tokens stay, one row after the other and one filter after the other."""
    keep = np.zeros(scores.shape, bool)
    for row, values in enumerate(scores.astype(np.float64)):
        values = values.copy()
        if top_k:
            values[values < np.sort(values)[-top_k]] = -np.inf
        if top_p < 1:
            order = np.argsort(-values)
            total, kept = 0.0, []
            for token in order:
                kept.append(token)
                total += softmax(values)[token]
                if total >= top_p:
                    break
            values[np.setdiff1d(np.arange(len(values)), kept)] = -np.inf
        if min_p:
            values[softmax(values) < min_p * softmax(values).max()] = -np.inf
        keep[row] = np.isfinite(values)
    return keep


@pytest.mark.parametrize(
    "given",
    [{}, {"top_k": 1}, {"top_k": 7}, {"top_p": 0.6}, {"top_p": 1e-6}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.7, "min_p": 0.1}],
    ids=str,
)
def test_filters_keep_what_the_reference_keeps_and_draws_invert_its_distribution(given: dict[str, Any], rng: np.random.Generator) -> None:
    scores = (3 * rng.normal(size=(6, V))).astype(np.float32)
    kept = np.asarray(filtered(jnp.asarray(scores), settings(**given)))
    keep = reference(scores, **given)
    np.testing.assert_array_equal(np.isfinite(kept), keep)
    np.testing.assert_array_equal(kept[keep], scores[keep])
    for uniform in (0.0, 0.3, 0.999999, float(np.float32(1) - np.finfo(np.float32).epsneg)):
        tokens = np.asarray(draw(jnp.asarray(kept), jnp.full(6, uniform, jnp.float32)))
        for row in range(6):
            probability = np.where(keep[row], np.exp(scores[row].astype(np.float64)), 0)
            probability /= probability.sum()
            below, token = np.cumsum(probability), tokens[row]
            assert keep[row, token]
            assert below[token] - probability[token] - 1e-6 <= uniform < below[token] + 1e-6


def test_filters_are_data_and_rows_have_their_own() -> None:
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(3, V)).astype(np.float32) * 3)
    program = jax.jit(filtered)
    mixed = np.isfinite(program(scores, settings(3, top_k=[0, 2, 5], top_p=[1.0, 1.0, 0.5], min_p=[0.0, 0.0, 0.01])))
    np.testing.assert_array_equal(mixed[0], np.ones(V, bool))
    np.testing.assert_array_equal(mixed[1:2], reference(np.asarray(scores)[1:2], top_k=2))
    np.testing.assert_array_equal(mixed[2:], reference(np.asarray(scores)[2:], 5, 0.5, 0.01))
    program(scores, settings(3, top_p=0.3))
    assert traces(program) == 1


def test_penalties() -> None:
    lm = LM.replace(config=CONFIG.replace(d_vocab=3))
    logits, none = jnp.asarray([[2.0, -2.0, 0.0]]), jnp.zeros((1, 3), jnp.int32)
    seen = jnp.asarray([[True, True, False]])
    np.testing.assert_array_equal(penalised(logits, settings(1, lm=lm, repetition_penalty=2.0), seen, none), [[1.0, -4.0, 0.0]])
    counts = jnp.asarray([[0, 3, 1]])
    found = penalised(logits, settings(1, lm=lm, frequency_penalty=0.5), seen, counts)
    np.testing.assert_allclose(found, [[2.0, -3.5, -0.5]])
    both = penalised(logits, settings(1, lm=lm, repetition_penalty=2.0, frequency_penalty=0.5, bias={0: -np.inf, 2: 4.0}), ~seen, counts)
    np.testing.assert_allclose(both, [[-np.inf, -5.5, 1.5]])


def test_a_token_is_likeliest_at_temperature_0_and_as_frequent_as_it_is_likely_otherwise() -> None:
    logits = jnp.asarray([[0.0, 1.0, 2.0, 3.0] + [-30.0] * (V - 4)] * 2000, jnp.float32)
    seen, counts = jnp.zeros(logits.shape, bool), jnp.zeros(logits.shape, jnp.int32)
    program = jax.jit(choose)
    cold, own, _ = program(logits, settings(2000, temperature=0.0), seen, counts, jnp.asarray(0))
    assert (cold == 3).all()
    np.testing.assert_allclose(own, np.log(softmax(np.arange(4.0)))[3], rtol=1e-5)
    for temperature in (0.5, 1.0, 2.0):
        tokens, own, scores = program(logits, settings(2000, temperature=temperature), seen, counts, jnp.asarray(1))
        wanted = softmax(np.arange(4.0) / temperature)
        np.testing.assert_allclose(np.bincount(tokens, minlength=4)[:4] / 2000, wanted, atol=0.04)
        np.testing.assert_allclose(own, np.log(softmax(np.arange(4.0)))[np.asarray(tokens)], rtol=1e-4)
        np.testing.assert_allclose(scores[0, :4], np.arange(4.0) / temperature, rtol=1e-6)


def test_uniform_numbers_are_those_of_seed_row_and_step() -> None:
    def alone(seed: int, row: int, step: int) -> Any:
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), step), dtype=jnp.float32)

    np.testing.assert_array_equal(uniforms(settings(3, seed=7), jnp.asarray(5)), [alone(7, row, 5) for row in range(3)])
    np.testing.assert_array_equal(uniforms(settings(3, seed=[7, 8, 7]), jnp.asarray(5)), [alone(seed, 0, 5) for seed in (7, 8, 7)])


def test_scores_of_a_generation_are_what_its_tokens_were_drawn_from() -> None:
    ids = np.random.default_rng(0).integers(0, V, (2, 5))
    given: dict[str, Any] = {"temperature": 0.8, "top_k": 6, "repetition_penalty": 1.3, "frequency_penalty": 0.2}
    found = generate(LM, ids, 9, seed=4, scores=True, sites="logits", logit_bias={3: -np.inf}, **given)
    logits = np.asarray(found.trace.logits)[:, 4:-1]
    given["bias"] = {3: -np.inf}
    for step in range(9):
        seen = np.zeros((2, V), bool)
        counts = np.zeros((2, V), np.int32)
        for row in range(2):
            seen[row, ids[row]] = True
            np.add.at(counts[row], found.ids[row, :step], 1)
        own = settings(2, seed=4, **given)
        scores = filtered(penalised(jnp.asarray(logits[:, step]), own, jnp.asarray(seen), jnp.asarray(counts)) / 0.8, own)
        np.testing.assert_allclose(found.scores[:, step], scores, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found.ids[:, step], draw(scores, uniforms(own, jnp.asarray(step))))
    assert (found.ids != 3).all()
