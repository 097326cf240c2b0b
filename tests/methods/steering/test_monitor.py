"""monitor: scores are projections of a run's values, messages are where the chat template put them, generations are read as they were."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from jaxinterp.methods.steering.monitor import monitor
from jaxinterp.methods.steering.sentiment import sentiment_vector
from jaxinterp.methods.steering.vector import make_vector
from tests.tiny import CONFIGS, params, prompts

TOKENIZER: Any = tokenizer_from_folder(Path(__file__).parents[2] / "fixtures" / "tokenizers" / "byte_level")
CONFIG = CONFIGS["qwen3"].replace(d_vocab=TOKENIZER.vocab_size, n_ctx=256)
LM = ji.LanguageModel(params(CONFIG), CONFIG, TOKENIZER)
VECTOR = make_vector(LM, "resid_post", (0, 1, 2), np.random.default_rng(0).normal(size=(3, 24)), how=(("method", "random"),))
UNIT = np.asarray(VECTOR.values[1], np.float64) / np.linalg.norm(VECTOR.values[1])
TALK = [{"role": "system", "content": "Mary"}, {"role": "user", "content": "gave a drink"}, {"role": "assistant", "content": "to John"}]


def held(tokens: ji.Tokens, row: int, edits: Any = ()) -> np.ndarray:
    """[P D]: the layer's values at the real tokens of one text."""
    return np.asarray(ji.run(LM, tokens, ("resid_post",), edits)["resid_post"], np.float64)[1, row][np.asarray(tokens.mask)[row]]


@pytest.mark.parametrize("kind", ["projection", "cosine"])
def test_scores_are_projections_of_each_texts_own_tokens(kind: str) -> None:
    for left in (False, True):
        tokens = prompts(CONFIG, (5, 7), left=left)
        found = monitor(LM, tokens, VECTOR, layer=1, kind=kind)  # type: ignore[arg-type]
        for row, length in enumerate((5, 7)):
            value = held(tokens, row)
            want = value @ UNIT / (1 if kind == "projection" else np.linalg.norm(value, axis=1))
            np.testing.assert_allclose(found.scores[row, :length], want, rtol=1e-4, atol=1e-4)
            assert np.isnan(found.scores[row, length:]).all()
            np.testing.assert_allclose(found.means[row, 0], want[1:].mean(), rtol=1e-4, atol=1e-4)  # without the first token
    assert found.roles == ("text",)


def test_a_planted_direction_is_seen_in_the_message_that_holds_it(tmp_path: Path) -> None:
    tokens = LM.chat(TALK)
    begin, end = (int(x) for x in np.asarray(tokens.spans)[0, 1])
    edit = VECTOR.add(30.0, layer=1, position=np.arange(begin, end))
    plain, planted = (monitor(LM, TALK, VECTOR, layer=1, edits=edits) for edits in ((), edit))
    assert planted.roles == ("system", "user", "assistant")
    np.testing.assert_array_equal(planted.spans, np.asarray(tokens.spans))
    change = np.asarray(planted.scores - plain.scores)[0]
    np.testing.assert_allclose(change[begin:end], 30 * np.linalg.norm(VECTOR.values[1]), rtol=1e-3)
    assert abs(np.delete(change, np.arange(begin, end))).max() < 1e-3  # at this layer nothing else has seen it
    threshold = float((plain.means.max() + planted.means[0, 1]) / 2)
    told = monitor(
        LM,
        [TALK, TALK[:2]],
        VECTOR,
        layer=1,
        edits=[VECTOR.add(30.0, layer=1, position=np.arange(begin, end), batch=0)],
        threshold=threshold,
    )
    assert told.flags.tolist() == [[False, True, False], [False, False, False]] and np.isnan(told.means[1, 2])
    rows = told.turns()
    assert rows["text"] == [0, 0, 0, 1, 1] and rows["flag"] == [False, True, False, False, False] and "1 flagged" in repr(told)
    assert rows["at"][1] in LM.to_strings(tokens)[0][begin:end]
    views = [view for part in told.view().sections for view in part.views]
    assert [view.kind for view in views] == ["highlight", "line", "table"] * 2
    assert len(views[0].tokens) == int(np.asarray(tokens.lengths)[0])
    from safetensors import safe_open

    with safe_open(told.save(tmp_path / "talk.safetensors"), "numpy") as file:
        assert json.loads(file.metadata()["roles"]) == list(told.roles)
        np.testing.assert_array_equal(file.get_tensor("scores"), told.scores)


def test_what_a_model_wrote_is_read_as_it_held_it() -> None:
    """From the generation's trace, steered values included; without a capture, a plain run of the same tokens."""
    edit = VECTOR.add(5.0, layer=1, when="new")
    captured = ji.generate(LM, ["Mary gave", "When"], 5, sites={"resid_post": ji.at(layer=[0, 1])}, edits=edit, stop_tokens=())
    found = monitor(LM, captured, VECTOR, layer=1)
    assert found.roles == ("prompt", "new") and found.spans[:, 1, 1].tolist() == np.asarray(captured.tokens.lengths).tolist()
    plain = monitor(LM, ji.generate(LM, ["Mary gave", "When"], 5, edits=edit, stop_tokens=()), VECTOR, layer=1)
    shift = 5 * np.linalg.norm(VECTOR.values[1])
    for row in range(2):
        (a, b), (c, d) = found.spans[row].tolist()
        assert (a, d - c) == (1, 5) or b == 1
        np.testing.assert_allclose(found.scores[row, a:b], plain.scores[row, a:b], atol=1e-3)
        np.testing.assert_allclose(found.scores[row, c] - plain.scores[row, c], shift, rtol=1e-3)
    single = ji.generate(LM, ["Mary gave", "When"], 5, sites={"resid_post": ji.at(layer=1)}, edits=edit, stop_tokens=())
    np.testing.assert_allclose(monitor(LM, single, VECTOR, layer=1).scores, found.scores, rtol=1e-5)
    answered = monitor(LM, ji.generate(LM, LM.chat(TALK), 3, stop_tokens=()), VECTOR.at(1))
    assert answered.roles == ("system", "user", "assistant", "new") and answered.spans[0, 3, 1] - answered.spans[0, 3, 0] == 3
    with pytest.raises(ji.InputError, match="has captured the site, so edits cannot act"):
        monitor(LM, captured, VECTOR, layer=1, edits=edit)


def test_what_cannot_be_monitored_is_refused() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (({}, "name one with layer="), ({"layer": 4}, "no direction for layer 4"))
    for options, message in cases:
        with pytest.raises(ji.InputError, match=message):
            monitor(LM, "Mary", VECTOR, **options)
    with pytest.raises(ji.InputError, match="another model"):
        monitor(LM.replace(params=params(CONFIG, seed=3)), "Mary", VECTOR, layer=1)


@pytest.mark.weights
def test_a_happy_message_lies_further_along_sentiment_than_a_sad_one(smollm2: Any) -> None:
    vector = sentiment_vector(smollm2, layers=[12, 16])
    talk = [
        {"role": "user", "content": "My daughter was born this morning, we are all so full of joy!"},
        {"role": "assistant", "content": "Congratulations to the whole family."},
        {"role": "user", "content": "Now my dog has been run over, and I cannot stop crying."},
        {"role": "assistant", "content": "I am sorry for your loss."},
    ]
    for layer in (12, 16):
        means = monitor(smollm2, talk, vector, layer=layer).means[0]
        assert means[0] > means[2] and means[1] > means[3]
