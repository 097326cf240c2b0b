"""Our tokenizers against transformers' on hundreds of varied texts: `make parity` runs these."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from jaxinterp.checkpoints.tokenizer import Tokenizer, save_tokenizer, tokenizer_from_folder, tokenizer_from_gguf

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

transformers = pytest.importorskip("transformers", exc_type=ImportError)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level"

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<bos>", "<eos>", "<start_of_turn>", "<unused7>", "<s>", "</s>"]

FIXED = [
    *["", " ", "  ", "\n", "\n\n", " \n", "\t\t\tx", "a", " a", "  a", "a ", "a  "],
    *["12345", " 12 345", "x²³½", "3.14159e-10", "٣٤٥ १२३", "Ⅷ ⅓", "2024-05-31T12:45"],
    *["🙂", "👩‍👩‍👧‍👦 family", "🇬🇧🇫🇷", "\U0001f9ff ꙮ𒐫", "漢字かな交じり文", "한국어 텍스트", "Ελληνικά", "русский текст"],
    *["עברית", "العربية", "ไทย", "हिन्दी", "é vs e\u0301", "ﬁ ligature", "\u00a0nbsp\u2003em", "zero\u200bwidth", "\ufeffbom"],
    *["def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass\n", "for (int i=0;i<10;i++){a[i]=b[i]+1;}", "--==__##!!..."],
    *['<div class="x">&nbsp;</div>', "it's I'M we'll they'RE don't", "http://a.b/c?d=e&f=%20", "C:\\path\\file", "a\r\nb\r\n"],
    *["<0x0A> <0xE2>", "▁a ▁▁ b", "Ġa ĠĠ", "\x00\x01\x7f", "word " * 50, "\n" * 40, "\t" * 40, "a\n \n  \n   b"],
    *["  multiple   spaces    here     x", " " * 31 + "a", " " * 33, "a" + " " * 100 + "b"],
    *[form.format(token) for token in SPECIAL for form in ("{0}", "a{0}b", " {0} {0}\n{0}", "  {0}  12")],
    *[token[:-1] for token in SPECIAL],
]

LETTERS = ["a", "b", "Z", "é", "漢", "🙂", "'s", "the", " and", "ing", "ß", "я", "▁", "1", "9"]
OTHERS = [" ", "  ", "  x", "\u00a0", "\n", "\r\n", "\t", "_", "-", "(", ")", "{", "<", ">", ".", ","]

RANGES = [(32, 127), (160, 0x250), (0x370, 0x600), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF), (0x20, 0xD7FF), (32, 33)]

CHATS = [
    [{"role": "user", "content": "hi"}],
    [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b\n"},
        {"role": "user", "content": "c"},
    ],
]


def texts() -> list[str]:
    """The fixed ones, 250 of common pieces and 250 of characters from all over Unicode."""
    chance = random.Random(7)
    joined = ["".join(chance.choice(LETTERS + OTHERS) for _ in range(chance.randint(1, 40))) for _ in range(250)]
    wild = ["".join(chr(chance.randrange(*chance.choice(RANGES))) for _ in range(chance.randint(1, 30))) for _ in range(250)]
    return FIXED + joined + wild


def assert_equal(ours: Tokenizer, theirs: Any) -> None:
    """The same ids, text and policy as transformers on every text, special tokens in it included."""
    different = [text for text in texts() if ours.encode(text) != theirs.encode(text, add_special_tokens=False)]
    assert different == []
    for text in texts():
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.adds_bos == (theirs.encode("a")[0] == theirs.bos_token_id)
    assert ours.chat_template == theirs.chat_template
    for messages in CHATS if ours.chat_template is not None else []:
        for opens in (True, False):
            rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
            assert ours.render_chat(messages, opens) == rendered


def ours_and_theirs(path: Path) -> tuple[Tokenizer, Any]:
    import gguf

    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items() if name.startswith("tokenizer.")}
    ours = tokenizer_from_gguf(fields)
    assert ours is not None
    return ours, transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def from_folder(folder: Path) -> Tokenizer:
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer is not None
    return tokenizer


def test_smollm2_from_its_gguf() -> None:
    cache = Path(os.environ.get("JAXINTERP_CACHE") or Path.home() / ".cache" / "jaxinterp")
    path = next(cache.rglob("SmolLM2-135M-Instruct*.gguf"), None)
    if path is None:
        pytest.skip("the SmolLM2 file is not in the cache")
    ours, theirs = ours_and_theirs(path)
    # transformers' GGUF path does not know the pre-tokeniser "smollm"; this is what the model's own tokenizer.json has.
    from tokenizers import pre_tokenizers

    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    assert_equal(ours, theirs)


def test_gemma3_from_its_gguf() -> None:
    path = os.environ.get("JAXINTERP_GEMMA3_GGUF")
    if path is None:
        pytest.skip("opt-in: set JAXINTERP_GEMMA3_GGUF to a Gemma 3 GGUF file")
    assert_equal(*ours_and_theirs(Path(path)))


def test_a_folder_in_hf_layout() -> None:
    assert_equal(from_folder(FIXTURE), transformers.AutoTokenizer.from_pretrained(str(FIXTURE)))


@pytest.mark.parametrize("model_type", [None, "llama", "gpt2", "gpt_neox", "qwen3", "gemma3_text", "mistral"])
def test_what_we_save_is_read_by_transformers(model_type: str | None, tmp_path: Path) -> None:
    ours = from_folder(FIXTURE)
    save_tokenizer(ours, tmp_path)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert_equal(ours, transformers.AutoTokenizer.from_pretrained(str(tmp_path)))


def test_sentencepiece_fields_that_we_save_are_read_by_transformers(tmp_path: Path) -> None:
    cases = json.loads((FIXTURE.parent / "sentencepiece.json").read_text(encoding="utf-8"))
    for index, case in enumerate(cases):
        ours = tokenizer_from_gguf(case["fields"])
        assert ours is not None and ours.adds_bos
        save_tokenizer(ours, tmp_path / str(index))
        assert_equal(ours, transformers.AutoTokenizer.from_pretrained(str(tmp_path / str(index))))


def test_what_transformers_saves_is_read_by_us(tmp_path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(str(FIXTURE))
    theirs.add_bos_token = True
    theirs.save_pretrained(tmp_path)
    ours = from_folder(tmp_path)
    assert ours.adds_bos
    assert_equal(ours, theirs)


def test_an_older_vocabulary_is_read_through_transformers(tmp_path: Path) -> None:
    model = json.loads((FIXTURE / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "add_bos_token": True})
    )
    ours = from_folder(tmp_path)
    assert ours.adds_bos and ours.encode(" Mary") == from_folder(FIXTURE).encode(" Mary")
    assert_equal(ours, transformers.AutoTokenizer.from_pretrained(str(tmp_path)))
