"""Texts side by side: those of `ji.generate`, with KL and norms of plain runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

import jaxinterp as ji
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from jaxinterp.methods.steering.side_by_side import side_by_side
from jaxinterp.methods.steering.sweep import sweep
from jaxinterp.methods.steering.vector import make_vector
from tests.tiny import CONFIGS, params

TOKENIZER: Any = tokenizer_from_folder(Path(__file__).parents[2] / "fixtures" / "tokenizers" / "byte_level")
WORDS = CONFIGS["qwen3"].replace(d_vocab=TOKENIZER.vocab_size, n_ctx=96)
READER = ji.LanguageModel(params(WORDS), WORDS, TOKENIZER)
TEXTS = ["Mary gave John", "When"]


def divergence(reference: Any, logits: Any) -> np.ndarray:
    p, q = (log_softmax(np.asarray(each, np.float64), axis=-1) for each in (reference, logits))
    return (np.exp(p) * (p - q)).sum(axis=-1)


@pytest.mark.parametrize("when", ["all", "new", "prompt"])
def test_texts_side_by_side_are_those_of_generate_and_kl_and_norm_those_of_runs(when: str) -> None:
    vector = make_vector(READER, "resid_post", (0, 1, 2), np.random.default_rng(0).normal(size=(3, 24)))
    found = side_by_side(READER, vector, TEXTS, [1.0, -2.0], layer=1, when=when, max_new_tokens=8, stop_tokens=())
    plain = ji.generate(READER, TEXTS, 8, stop_tokens=())
    assert found.plain == plain.text and found.prompts == tuple(TEXTS) and found.kl.shape == (2, 2)
    lengths = np.asarray(READER.to_tokens(TEXTS).lengths)
    chosen = {"all": (0, 99), "new": (0, 99), "prompt": (-99, 0)}[when]
    for row, strength in enumerate((1.0, -2.0)):
        assert found.texts[row + 1] == ji.generate(READER, TEXTS, 8, stop_tokens=(), edits=vector.add(strength, layer=1, when=when)).text
        for text in range(2):
            ids = np.asarray(plain.tokens.ids)[text][np.asarray(plain.tokens.mask)[text]][None]
            place = np.arange(ids.shape[1]) - lengths[text]
            acting = (chosen[0] <= place) & (place < chosen[1]) if when != "all" else place > -99
            edit = vector.add(strength, layer=1, position=np.flatnonzero(acting))
            runs = [ji.run(READER, ids, ("resid_post",), edits) for edits in ((), edit)]
            kl = divergence(*(run.logits[0] for run in runs))[place >= -1].mean()
            np.testing.assert_allclose(found.kl[row, text], kl, rtol=2e-3, atol=1e-5)
            sizes = [np.linalg.norm(np.asarray(run["resid_post"])[1, 0], axis=-1) for run in runs]
            seen = acting & (np.arange(len(acting)) >= (1 if when == "all" else 0))
            np.testing.assert_allclose(found.norm_ratio[row, text], (sizes[1] / sizes[0])[seen].mean(), rtol=1e-3)
    assert len({found.plain, *found.texts[1:]}) == 3 and "KL" in found.view().sections[0].views[0].arrays
    with pytest.raises(ji.InputError, match="no tokenizer"):
        side_by_side(READER.replace(tokenizer=None), vector, [[1, 2]], layer=1)


def test_a_sweeps_examples_are_texts_at_its_best_cell() -> None:
    vector = make_vector(READER, "resid_post", (0, 1, 2), np.random.default_rng(0).normal(size=(3, 24)))
    found = sweep(READER, vector, TEXTS, ji.metrics.log_probability(7), strengths=(-3, 1, 2))
    assert not np.isnan(found.neutral_kl).any()  # the default texts, cut to this model's context
    best = found.best()
    shown = found.examples(READER, TEXTS, 5)
    assert shown.layers == (best.layer,) and set(shown.strengths) == {-3, 2, best.strength} and len(shown.texts) == 1 + len(shown.strengths)
