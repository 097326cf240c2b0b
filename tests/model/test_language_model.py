"""From text to tokens and back: padding, the BOS policy, finding words, chat spans, sharing programs between loads."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from tests.programs import traces
from tests.tiny import CONFIGS, params

FOLDER = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level"
TOKENIZER: Any = tokenizer_from_folder(FOLDER)
CONFIG = CONFIGS["llama"].replace(d_vocab=TOKENIZER.vocab_size, n_ctx=64)
LM = ji.LanguageModel(params(CONFIG), CONFIG, TOKENIZER)


def test_prompts_are_padded_on_the_right_and_their_positions_are_their_own() -> None:
    tokens = LM.to_tokens(["Mary gave John a drink", "John"])
    assert tokens.lengths.tolist() == [len(TOKENIZER.encode(text)) for text in ("Mary gave John a drink", "John")]
    assert (tokens.last == tokens.lengths - 1).all()
    assert not tokens.mask[1, int(tokens.lengths[1]) :].any()
    assert "".join(LM.to_strings(tokens)[0]) == "Mary gave John a drink"
    assert "".join(LM.to_strings(tokens)[1]) == "John"
    ids, mask = np.array([[9, 9, 1, 2], [3, 4, 5, 9]]), np.array([[0, 0, 1, 1], [1, 1, 1, 0]])
    mixed = ji.Tokens.from_ids(ids, mask)
    assert mixed.positions.tolist() == [[-1, -1, 0, 1], [0, 1, 2, 2]]
    assert mixed.last.tolist() == [3, 2]


def test_the_bos_policy_is_an_argument_and_is_recorded() -> None:
    plain = LM.to_tokens("Mary", bos=False)
    first = LM.to_tokens("Mary", bos=True)
    assert first.ids[0, 0] == TOKENIZER.bos_id
    assert first.ids[0, 1:].tolist() == plain.ids[0].tolist()
    assert (plain.bos, LM.to_tokens("Mary").bos) == ("none", "model")
    named = LM.to_tokens("Mary", bos=" John")
    assert named.ids[0, 0] == LM.to_id(" John")
    assert ji.run(LM, named).tokens.bos == named.bos == " John"
    with pytest.raises(ji.InputError, match="not a token of this vocabulary"):
        LM.to_tokens("Mary", bos="<|nothing|>")


def test_find_gives_the_position_of_an_occurrence_in_each_prompt() -> None:
    texts = ["When Mary and John went, John gave Mary", "and John and John"]
    tokens = LM.to_tokens(texts)
    second = LM.find(tokens, " John", which=1)
    for row in (0, 1):
        strings = LM.to_strings(tokens)[row]
        assert strings[second[row]] == " John"
        assert strings[: second[row]].count(" John") == 1
    np.testing.assert_array_equal(LM.find(tokens, " John", which=-1), second)
    with pytest.raises(ji.InputError, match=r"prompt 1 holds it 0 times"):
        LM.find(tokens, " Mary")


def test_chat_gives_the_spans_of_each_message() -> None:
    conversation = [
        {"role": "user", "content": "Who gave a drink?"},
        {"role": "assistant", "content": "Mary"},
        {"role": "user", "content": "to John"},
    ]
    tokens = LM.chat([conversation, conversation[:1]], prefill="When")
    assert tokens.roles == ("user", "assistant", "user")
    strings = LM.to_strings(tokens)
    for span, message in zip(tokens.spans[0], conversation, strict=True):
        assert message["content"] in "".join(strings[0][span[0] : span[1]])
    assert tokens.spans[1].tolist()[1:] == [[-1, -1]] * 2
    assert "".join(strings[0]).endswith("When")
    assert ji.run(LM, tokens).logits.shape[0] == 2


def test_two_loads_share_their_programs() -> None:
    again = ji.LanguageModel(params(CONFIG), CONFIG.replace(), tokenizer_from_folder(FOLDER))
    assert jax.tree.structure(LM) == jax.tree.structure(again)
    count = jax.jit(lambda lm: ji.forward(lm.params, np.asarray([[1, 2, 3]]), lm.config).logits.sum())
    assert count(LM) == count(again)
    assert traces(count) == 1
    assert LM.digest() == again.digest() != ji.LanguageModel(params(CONFIG, seed=1), CONFIG).digest()


def test_nothing_passed_in_is_changed() -> None:
    tokens = LM.to_tokens("Mary gave John a drink")
    before = jax.tree.map(np.array, (LM.params, tokens))
    edit = ji.edits.zero("z", layer=0)
    ji.run(LM, tokens, sites="all", edits=[edit])
    jax.tree.map(np.testing.assert_array_equal, before, (LM.params, tokens))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [("", "Prompt 0 is empty"), (["Mary", ""], "Prompt 1 is empty"), ([], "the list is empty"), (["Mary", 3], "mixes kinds")],
)
def test_empty_or_mixed_prompts_are_refused(prompts: object, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        LM.to_tokens(prompts)
