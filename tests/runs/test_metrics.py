"""Metrics against their formulas, on prompts of different lengths; binding of strings; what each refuses."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import jaxinterp as ji
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from tests.programs import traces
from tests.tiny import CONFIGS, params, prompts

CONFIG = CONFIGS["llama"]
TOKENS = prompts(CONFIG, (5, 7))
TRACE = ji.run(ji.LanguageModel(params(CONFIG), CONFIG), TOKENS, sites=("resid_post",))
LAST = np.asarray(TRACE.logits, np.float64)[[0, 1], [4, 6]]
TOKENIZER: Any = tokenizer_from_folder(Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level")
WORDS = CONFIG.replace(d_vocab=TOKENIZER.vocab_size, n_ctx=64)
LM = ji.LanguageModel(params(WORDS), WORDS, TOKENIZER)


def picked(logits: np.ndarray, ids: Any) -> np.ndarray:
    return logits[np.arange(len(logits)), ids]


@pytest.mark.parametrize(
    ("metric", "want"),
    [
        (ji.metrics.logit_difference(3, 4), LAST[:, 3] - LAST[:, 4]),
        (ji.metrics.logit_difference([3, 5], 4), picked(LAST, [3, 5]) - LAST[:, 4]),
        (ji.metrics.log_probability(7), log_softmax(LAST, 1)[:, 7]),
        (ji.metrics.probability([7, 8]), np.exp(picked(log_softmax(LAST, 1), [7, 8]))),
        (ji.metrics.rank(7), (LAST[:, [7]] < LAST).sum(1)),
        (ji.metrics.log_probability(7, position=2), log_softmax(np.asarray(TRACE.logits, np.float64)[:, 2], 1)[:, 7]),
        (ji.metrics.kl_divergence(np.zeros((2, 50))), (1 / 50 * (np.log(1 / 50) - log_softmax(LAST, 1))).sum(1)),
        (ji.metrics.kl_divergence(TRACE), [0, 0]),
        (ji.metrics.custom(lambda logits, w: (logits * w).sum((1, 2)), 2.0, columns=[1, 2]), 2 * LAST[:, [1, 2]].sum(1)),
    ],
)  # fmt: skip
def test_metrics_are_their_formulas(metric: Any, want: Any) -> None:
    np.testing.assert_allclose(metric(TRACE), want, rtol=2e-4, atol=2e-5)


def test_cross_entropy_is_the_mean_over_a_prompts_own_next_tokens() -> None:
    logs = log_softmax(np.asarray(TRACE.logits, np.float64), 2)
    ids = np.asarray(TOKENS.ids)
    want = [-np.mean([logs[row, p, ids[row, p + 1]] for p in range(length - 1)]) for row, length in enumerate((5, 7))]
    np.testing.assert_allclose(ji.metrics.cross_entropy()(TRACE), want, rtol=1e-4)


def test_projection_reads_a_site_whole_or_selected() -> None:
    direction = np.random.default_rng(0).normal(size=24)
    metric = ji.metrics.projection("resid_post", direction, layer=1)
    want = np.asarray(TRACE["resid_post"])[1, [0, 1], [4, 6]] @ direction
    np.testing.assert_allclose(metric(TRACE), want, rtol=1e-4, atol=1e-5)
    small = ji.forward(params(CONFIG), TOKENS, CONFIG, sites=metric.sites)
    np.testing.assert_allclose(metric(small), want, rtol=1e-3, atol=1e-4)
    with pytest.raises(ji.InputError, match="did not capture"):
        ji.metrics.projection("z", direction)(TRACE)


def test_metrics_read_no_more_than_they_declare() -> None:
    """From the logits at `reads` alone, NaN elsewhere, every metric gives what it gives from the whole run."""
    for metric in (
        ji.metrics.logit_difference(3, 4),
        ji.metrics.probability(3),
        ji.metrics.custom(lambda x: x.mean((1, 2)), position=[0, -1], columns=[5]),
    ):
        columns, vocabulary = metric.reads(TOKENS, CONFIG)
        poisoned = np.full(TRACE.logits.shape, np.nan, np.float32)
        rows = np.arange(2)[:, None]
        wanted = (
            (rows, columns) if vocabulary is None else (rows[:, :, None], np.asarray(columns)[:, :, None], np.asarray(vocabulary)[:, None])
        )
        poisoned[wanted] = np.asarray(TRACE.logits)[wanted]
        np.testing.assert_allclose(metric(ji.Trace(jnp.asarray(poisoned), {}, TOKENS)), metric(TRACE), rtol=1e-6)


def test_metrics_are_differentiable_and_their_answers_are_data() -> None:
    tokens = prompts(CONFIG, (7, 7))
    loss = jax.jit(lambda x, metric: metric(ji.forward(params(CONFIG), tokens, CONFIG, inputs=x)).sum())
    x = ji.forward(params(CONFIG), tokens, CONFIG, sites="embed", stop=0)["embed"]
    values = [loss(x, ji.metrics.logit_difference(a, b)) for a, b in ((1, 2), (3, 4))]
    assert values[0] != values[1]
    assert traces(loss) == 1
    assert np.abs(jax.grad(loss)(x, ji.metrics.log_probability(3))).max() > 0


def test_strings_are_bound_by_the_run_or_by_hand() -> None:
    prompt = "When Mary and John went to the store, John gave a drink to"
    metric = ji.metrics.logit_difference(" Mary", " John")
    trace = ji.run(LM, [prompt, prompt])
    ids = LM.to_id(" Mary"), LM.to_id(" John")
    np.testing.assert_array_equal(metric(trace), ji.metrics.logit_difference(*ids)(trace))
    np.testing.assert_array_equal(ji.metrics.logit_difference([" Mary", " John"], [" John", " Mary"])(trace)[0], metric(trace)[0])
    pure = ji.forward(LM.params, LM.to_tokens(prompt), WORDS)
    with pytest.raises(ji.InputError, match=r"bind them first with metric.bind\(lm\)"):
        metric(pure)
    np.testing.assert_allclose(metric.bind(LM)(pure), metric(trace)[:1], rtol=1e-4)


def test_an_answer_of_several_tokens_is_refused_and_the_space_is_named() -> None:
    with pytest.raises(ji.InputError, match=r"'Mary' is \d: .*Did you mean ' Mary', with the leading space"):
        LM.to_id("Mary")
    with pytest.raises(ji.InputError, match="must be one token"):
        ji.metrics.log_probability(" Constantinople").bind(LM)


def test_continuations_are_scored_on_the_tokens_of_the_joint_text() -> None:
    texts = ["John gave a drink to Mary", "When Mary and John went"]
    metric = ji.metrics.continuation_log_probability([" to Mary", " went"])
    trace = ji.run(LM, texts)
    logs = log_softmax(np.asarray(trace.logits, np.float64), 2)
    want = []
    for row, ending in enumerate((" to Mary", " went")):
        real = np.asarray(trace.tokens.ids)[row][np.asarray(trace.tokens.mask)[row]]
        n = len(TOKENIZER.encode(ending))
        assert TOKENIZER.decode(real[-n:].tolist()) == ending
        want.append(sum(logs[row, len(real) - n + i - 1, real[len(real) - n + i]] for i in range(n)))
    np.testing.assert_allclose(metric(trace), want, rtol=1e-4)
    with pytest.raises(ji.InputError, match="does not end with"):
        ji.metrics.continuation_log_probability(" Paris")(trace)
    with pytest.warns(UserWarning, match="ends with a space"):
        ji.metrics.continuation_log_probability(" Paris ")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ji.metrics.logit_difference([1, 2, 3], 4)(TRACE), "one for each of the 2 prompts"),
        (lambda: ji.metrics.logit_difference(1.5, 4)(TRACE), "must be one token id"),
        (lambda: ji.metrics.kl_divergence(np.zeros((2, 49)))(TRACE), "the reference has logits"),
        (lambda: ji.metrics.kl_divergence(np.zeros(50)), r"expected a Trace or logits \[B V\]"),
        (lambda: ji.metrics.custom(lambda x: x)(TRACE), "one number a prompt"),
        (lambda: ji.metrics.probability(3)(ji.run(LM, "Mary", stop=1)), "no logits to read"),
        (lambda: ji.metrics.continuation_log_probability(""), "is empty"),
    ],
)  # fmt: skip
def test_bad_metrics_are_refused_in_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        call()
