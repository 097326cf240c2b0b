"""Sentiment steering: held-out words and prompts are held out, and on SmolLM2 the log-odds of good words rise with the strength."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from jaxinterp.data.sentiment import BAD, GOOD, PAIRS, PROMPTS, sentiment
from jaxinterp.methods.steering.sentiment import sentiment_metric, sentiment_vector, steer_sentiment
from jaxinterp.methods.steering.sweep import sweep
from jaxinterp.methods.steering.vector import make_vector
from tests.tiny import CONFIGS

TOKENIZER: Any = tokenizer_from_folder(Path(__file__).parents[2] / "fixtures" / "tokenizers" / "byte_level")
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_held_out_words_and_prompts_are_in_no_pair() -> None:
    sentences = [sentence for pair in PAIRS for sentence in pair]
    assert len(PAIRS) >= 24 and len(set(sentences)) == len(sentences)
    for word in (*GOOD, *BAD):
        assert not [sentence for sentence in sentences if any(word in each or each in word for each in words(sentence) if len(each) > 3)]
    assert not set(GOOD) & set(BAD) and len(PROMPTS) == 16
    for prompt in PROMPTS:
        assert not any(sentence.startswith(prompt) for sentence in sentences) and not words(prompt) & {*GOOD, *BAD}
    for positive, negative in PAIRS:  # matched: no side is told by its length or its end
        assert abs(len(positive.split()) - len(negative.split())) <= 1 and positive[-1] == negative[-1] == "."


def test_a_tokenizer_that_splits_the_words_is_refused() -> None:
    with pytest.raises(ji.InputError, match="Of 15 good words, 0 are single tokens"):
        sentiment(ji.LanguageModel({}, CONFIGS["llama"], TOKENIZER))


@pytest.mark.weights
def test_log_odds_of_good_words_rise_with_the_strength(smollm2: Any) -> None:
    """At layer 12, and on nearly every prompt of its own; a direction of the same length that is not the contrast's does far less."""
    found = sentiment(smollm2)
    assert all(smollm2.to_id(word) for word in (*found.good, *found.bad)) and min(len(found.good), len(found.bad)) >= 10
    vector, metric = sentiment_vector(smollm2, layers=12), sentiment_metric(smollm2)
    options: dict[str, Any] = {"strengths": STRENGTHS, "neutral": ()}
    result = sweep(smollm2, vector, list(found.prompts), metric, **options)
    assert (np.diff(result.values[0]) > 0.6).all()
    assert (np.diff(result.per_example[:, 0], axis=1) > 0).all(axis=1).mean() > 0.8
    assert result.values[0].tolist() == pytest.approx([-0.05, 0.66, 1.89, 3.55, 5.05], abs=0.05)
    assert result.warning == "" and abs(result.kl[0, 2]) < 1e-6 and min(result.kl[0, [0, 1, 3, 4]]) > 0.01
    random = np.random.default_rng(0).normal(size=vector.values.shape)
    other = make_vector(smollm2, "resid_post", [12], random * (vector.sizes[0] / np.linalg.norm(random)))
    assert np.ptp(sweep(smollm2, other, list(found.prompts), metric, **options).values) < np.ptp(result.values) / 4
    texts = steer_sentiment(smollm2, "When I think about my life, I feel", 2.0, max_new_tokens=6)
    assert texts.layers == (12,) and texts.plain[0].startswith(" lost") and texts.steered[0].startswith(" incredibly grateful")
    assert 0.01 < texts.kl[0, 0] < 1 and 1 < texts.norm_ratio[0, 0] < 1.1
