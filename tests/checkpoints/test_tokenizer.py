"""The tokenizer of a folder: ids, offsets, what people see, equality, chat, and writing it back."""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from jaxinterp.checkpoints.tokenizer import Tokenizer, save_tokenizer, tokenizer_from_folder
from jaxinterp.errors import CheckpointError, InputError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level"
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the fixture that a test may change."""
    return shutil.copytree(FIXTURE, tmp_path / "model")


@pytest.fixture
def tokenizer() -> Tokenizer:
    return read(FIXTURE)


def read(folder: Path) -> Tokenizer:
    tokenizer = tokenizer_from_folder(folder)
    assert tokenizer is not None
    return tokenizer


def rewrite(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None writes null."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(path: Path, *keys: str) -> None:
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in keys}))


def texts(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.display(index) for index in tokenizer.encode(text)]


@pytest.mark.parametrize(
    "text", ["When Mary went", "  two spaces  ", "\n\n\ttabs\r\n", "déjà vu 東京 🙂", "", "<|im_start|>user\nHi<|im_end|>"]
)
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encode_adds_nothing_and_reads_special_tokens_in_the_text(tokenizer: Tokenizer) -> None:
    assert texts(tokenizer, "<|im_start|>When Mary") == ["<|im_start|>", "When", " Mary"]
    assert tokenizer.encode("<|im_start|>")[0] == tokenizer.bos_id
    assert tokenizer.encode("") == []


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert texts(tokenizer, " 2024") == [" ", "2", "0", "2", "4"]


def test_display_shows_spaces_newlines_and_partial_characters(tokenizer: Tokenizer) -> None:
    assert texts(tokenizer, " Mary and\n") == [" Mary", " and", "\n"]
    assert texts(tokenizer, "\U0001f9ff")[-1] == "<0xBF>"
    # A token may hold whole characters and a piece of one.
    mixed = tokenizer.encode("déjà")[0]
    assert tokenizer.display(mixed) == "d<0xC3>"
    assert tokenizer.display(tokenizer.vocab_size + 7) == f"<id {tokenizer.vocab_size + 7}>"


def test_offsets_are_characters_and_cover_the_text(tokenizer: Tokenizer) -> None:
    text = "déjà vu, Mary 🙂 went<|im_end|> to"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert offsets[0][0] == 0 and offsets[-1][1] == len(text)
    assert all(after[0] <= before[1] for before, after in pairwise(offsets)), "a gap between tokens"
    spans = {tokenizer.display(index): text[start:end] for index, (start, end) in zip(ids, offsets, strict=True)}
    assert spans[" Mary"] == " Mary" and spans[" went"] == " went" and spans["<|im_end|>"] == "<|im_end|>"
    assert spans["<0x82>"] == "🙂"


def test_offsets_refer_to_the_text_before_it_is_normalised(folder: Path) -> None:
    rewrite(folder / "tokenizer.json", normalizer={"type": "NFC"})
    text = "cafe\u0301 Mary"
    ids, offsets = read(folder).encode_with_offsets(text)
    assert text[slice(*offsets[-1])] == " Mary" and ids == read(folder).encode("café Mary")


def test_token_id_is_of_an_exact_entry(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_id("<|im_end|>") == tokenizer.eos_id == 2
    assert tokenizer.token_id("ĠMary") == tokenizer.encode(" Mary")[0]
    assert tokenizer.token_id("no such token") is None


def test_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        tokenizer.encode("a\ud800b")


# -- equality -----------------------------------------------------------------------------------------------------------------------


def test_two_loads_are_equal_and_a_changed_policy_is_not(tokenizer: Tokenizer, folder: Path) -> None:
    assert read(folder) == tokenizer and hash(read(folder)) == hash(tokenizer) and len({read(folder), tokenizer}) == 1
    rewrite(folder / "tokenizer_config.json", bos_token="<|endoftext|>")
    assert read(folder) != tokenizer
    assert tokenizer != "a string"


def test_a_changed_vocabulary_template_or_bos_policy_is_not_equal(tokenizer: Tokenizer, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert read(folder) != tokenizer
    (folder / "chat_template.jinja").unlink()
    assert read(folder) == tokenizer
    rewrite(folder / "tokenizer.json", post_processor=bos_post_processor())
    assert read(folder) != tokenizer
    shutil.copy(FIXTURE / "tokenizer.json", folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    rewrite(folder / "tokenizer.json", model={**model, "merges": model["merges"][:-1]})
    assert read(folder) != tokenizer


# -- special tokens and policy -------------------------------------------------------------------------------------------------------


def bos_post_processor() -> dict[str, object]:
    template = processors.TemplateProcessing(single="<|im_start|> $A", pair="$A $B", special_tokens=[("<|im_start|>", 1)])
    return json.loads(template.__getstate__())


def test_the_post_processor_decides_whether_bos_is_added(tokenizer: Tokenizer, folder: Path) -> None:
    # The fixture's tokenizer_config.json says add_bos_token, which transformers 5 ignores beside a tokenizer.json.
    assert tokenizer.bos_id == 1 and not tokenizer.adds_bos
    rewrite(folder / "tokenizer.json", post_processor=bos_post_processor())
    changed = read(folder)
    assert changed.adds_bos and changed.encode("Mary") == tokenizer.encode("Mary"), "encode itself never adds it"


def test_ids_come_from_the_first_file_that_names_them(folder: Path) -> None:
    names = ("bos_token", "eos_token", "pad_token")
    without(folder / "tokenizer_config.json", *names)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 2, "eos_token_id": [1, 2]}))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}))
    tokenizer = read(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 0, 1)
    rewrite(folder / "tokenizer_config.json", bos_token=None)
    assert read(folder).bos_id is None, "null says that there is none"


def test_several_eos_ids_give_the_first(folder: Path) -> None:
    without(folder / "tokenizer_config.json", "eos_token")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert read(folder).eos_id == 1


def test_tokens_that_only_the_config_declares_are_added(tokenizer: Tokenizer, folder: Path) -> None:
    rewrite(
        folder / "tokenizer_config.json",
        added_tokens_decoder={"400": {"content": "<tool>", "special": False, "normalized": False}},
        additional_special_tokens=["<|image|>"],
    )
    changed = read(folder)
    assert changed.vocab_size == tokenizer.vocab_size + 2 and changed.token_id("<tool>") == 400
    assert texts(changed, "a<tool><|image|>") == ["a", "<tool>", "<|image|>"]


def test_truncation_and_padding_in_the_file_do_not_act(folder: Path) -> None:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    assert read(folder).encode("When Mary and John went") == read(FIXTURE).encode("When Mary and John went")


def test_other_kinds_of_vocabulary_are_shown_as_they_are() -> None:
    backend = Backend(models.WordPiece(vocab={"[UNK]": 0, "mary": 1, "##s": 2}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert texts(Tokenizer(backend), "Marys") == ["mary", "##s"]


# -- files that are missing or broken ---------------------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_gives_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_from_folder(tmp_path) is None


def test_an_older_vocabulary_needs_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"vocab\.json but no tokenizer\.json.*pip install transformers"):
        tokenizer_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", '{"version": "1.0"'), ("tokenizer_config.json", "{"), ("tokenizer_config.json", "[]")]
)
def test_a_broken_file_is_named(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        tokenizer_from_folder(folder)


def test_a_special_token_that_is_no_text_is_refused(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", bos_token=7)
    with pytest.raises(CheckpointError, match="should be a string, it is 7"):
        tokenizer_from_folder(folder)


# -- chat ---------------------------------------------------------------------------------------------------------------------------


def test_chat_is_rendered_with_the_models_template(tokenizer: Tokenizer) -> None:
    rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
    assert tokenizer.render_chat(CHAT, add_generation_prompt=False) == rendered
    assert tokenizer.render_chat(CHAT, add_generation_prompt=True) == rendered + "<|im_start|>assistant\n"


def test_a_template_sees_the_helpers_that_templates_expect(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{{ sep_token }}\n"
        "{% for message in messages %}\n"
        "    {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "    {% generation %}{{ message | tojson }}{% endgeneration %}\n"
        "{% endfor %}\n"
        "{% if tools is none %}{{ strftime_now('%Y') | length }}{% endif %}\n"
    )
    messages = [{"role": "user", "content": "<é>"}, {"role": "user", "content": "no"}]
    assert read(folder).render_chat(messages, False) == '<|im_start|>\n{"role": "user", "content": "<é>"}4'


def test_a_template_refuses_in_its_own_words_and_cannot_reach_python(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('the first message must be from the user') }}")
    with pytest.raises(InputError, match=r"refuses these messages: the first message must be from the user"):
        read(folder).render_chat(CHAT, False)
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    with pytest.raises(InputError, match="unsafe"):
        read(folder).render_chat(CHAT, False)


def test_chat_errors_are_one_sentence(tokenizer: Tokenizer, folder: Path) -> None:
    with pytest.raises(InputError, match="a chat is a list of messages"):
        tokenizer.render_chat([{"content": "no role"}], False)
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(CheckpointError, match="not valid Jinja: line 1"):
        read(folder).render_chat(CHAT, False)
    (folder / "chat_template.jinja").unlink()
    rewrite(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(InputError, match="no chat template"):
        read(folder).render_chat(CHAT, False)


def test_of_several_named_templates_the_default_is_taken(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    rewrite(folder / "tokenizer_config.json", chat_template=named)
    assert read(folder).render_chat(CHAT, False) == "plain"


# -- writing --------------------------------------------------------------------------------------------------------------------------


def test_what_is_saved_reads_back_equal(tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    rewrite(folder / "tokenizer.json", post_processor=bos_post_processor())
    for index, original in enumerate([tokenizer, read(folder)]):
        save_tokenizer(original, tmp_path / f"saved{index}")
        again = read(tmp_path / f"saved{index}")
        assert again == original and again.adds_bos == original.adds_bos
        assert (again.bos_id, again.eos_id, again.pad_id) == (original.bos_id, original.eos_id, original.pad_id)
        assert again.render_chat(CHAT, True) == original.render_chat(CHAT, True)


def test_saving_over_another_tokenizer_replaces_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("another model's")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"cls_token": "<|endoftext|>"}))
    save_tokenizer(tokenizer, tmp_path)
    assert read(tmp_path) == tokenizer
