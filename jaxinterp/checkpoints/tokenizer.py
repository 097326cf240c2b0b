"""Text to token ids and back: one `Tokenizer` class for every checkpoint, on the `tokenizers` package.

It is read from a folder in HF layout (`tokenizer_from_folder`) or from a GGUF file's fields (`tokenizer_from_gguf`) and written
back with `save_tokenizer`. Two tokenizers with the same content are equal and hash alike, so that models that are loaded twice
share their compiled programs.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, models

from jaxinterp.checkpoints.tokenizer_gguf import SPACE, build_backend
from jaxinterp.errors import CheckpointError, InputError

if TYPE_CHECKING:
    import jinja2

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

OLDER_VOCABULARIES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "tiktoken.model",
)
"""Files from which transformers can make a fast tokenizer where a folder has no tokenizer.json."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """A checkpoint's tokenizer, its BOS policy and its chat template; compared and hashed by content.

    Attributes:
        special_tokens: "bos_token", "eos_token", "pad_token" ... -> token, those that the model has.
        bos_id, eos_id, pad_id: their ids, or None.
        adds_bos: whether the model was trained with BOS first, that is, whether its own pipeline puts it there.
        prefix_ids, suffix_ids: what its own pipeline puts before and after a single text: [CLS] and [SEP] of an encoder.
        vocab_size: the number of tokens, added ones included. The model's unembedding may be wider (padding).
        chat_template: the Jinja text of the chat template, or None.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str] | None = None, chat_template: str | None = None):
        """Take a `tokenizers` pipeline over.

        Args:
            backend: the pipeline. It now belongs to this object: its truncation, padding and post-processing are switched off here.
            special_tokens: "bos_token" -> token and so on; tokens of the pipeline.
            chat_template: Jinja text.

        Raises:
            CheckpointError: a special token that is not in the vocabulary.
        """
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        backend.no_truncation()
        backend.no_padding()
        for name, token in self.special_tokens.items():
            if backend.token_to_id(token) is None:
                raise CheckpointError(f"the tokenizer's {name} is {token!r}, which is not in its vocabulary")
        self.bos_id, self.eos_id, self.pad_id = (self._special_id(backend, name) for name in ("bos_token", "eos_token", "pad_token"))
        first = backend.encode("", add_special_tokens=True).ids[:1]
        self.adds_bos = self.bos_id is not None and first == [self.bos_id]
        self.prefix_ids, self.suffix_ids = _surroundings(backend)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        # BOS is put in front by the caller, who can see it. A post-processor would also cut the spaces off the offsets.
        self._post_processor = backend.post_processor
        backend.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]  (None is allowed; the stubs do not say so)
        self._backend = backend

    def _special_id(self, backend: tokenizers.Tokenizer, name: str) -> int | None:
        return backend.token_to_id(self.special_tokens[name]) if name in self.special_tokens else None

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, bos={self.special_tokens.get('bos_token')!r}, adds_bos={self.adds_bos})"

    # -- content ------------------------------------------------------------------------------------------------------------------

    @cached_property
    def digest(self) -> str:
        """A hash of everything that decides what this tokenizer does: vocabulary, pipeline, special tokens, chat template."""
        post_processor = self._post_processor.__getstate__().decode() if self._post_processor is not None else None
        content = hashlib.blake2b(self._backend.to_str().encode(), digest_size=16)
        content.update(json.dumps([post_processor, sorted(self.special_tokens.items()), self.chat_template]).encode())
        return content.hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Tokenizer) and self.digest == other.digest)

    # -- text and ids -------------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Nothing is added, and special tokens that are written in the text are read as such.

        Raises:
            InputError: not a string, or a string with lone surrogates.
        """
        return self._encode(text).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text and where each one stands in it.

        Returns:
            ids, and for each the (start, end) of its characters in `text`. A token's own leading space counts; the pieces of one
            character that takes several tokens all have that character's span.
        """
        encoding = self._encode(text)
        return encoding.ids, encoding.offsets

    def _encode(self, text: str) -> tokenizers.Encoding:
        if not isinstance(text, str):
            raise InputError(f"expected a string to tokenize, got {type(text).__name__}")
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError(f"the text cannot be tokenized, it is not valid Unicode (a lone surrogate): {text[:40]!r}") from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included; bytes that make no character become U+FFFD."""
        return self._backend.decode([int(index) for index in ids], skip_special_tokens=False)

    def display(self, token_id: int) -> str:
        """One token as people should see it.

        Returns:
            Its true text, leading space included (" Mary", "\\n"); bytes that are not a whole character as "<0xE2>"; special
            tokens by name. An id without a token (a padded vocabulary) is "<id 50300>".
        """
        token = self._backend.id_to_token(int(token_id)) if token_id >= 0 else None
        if token is None:
            return f"<id {int(token_id)}>"
        if token in self._special_texts:
            return token
        if self._byte_values is not None:
            # An added token is written as it is, outside the byte alphabet.
            return _readable(bytes(map(self._byte_values.__getitem__, token))) if self._byte_values.keys() >= set(token) else token
        if self._has_visible_spaces:
            byte = BYTE_TOKEN.fullmatch(token)
            return _readable(bytes.fromhex(byte[1])) if byte else token.replace(SPACE, " ")
        return token

    def token_id(self, token: str) -> int | None:
        """The id of an exact vocabulary entry, special tokens included ("<|im_start|>"), or None."""
        return self._backend.token_to_id(token)

    @cached_property
    def _special_texts(self) -> frozenset[str]:
        return frozenset(added.content for added in self._backend.get_added_tokens_decoder().values() if added.special)

    @cached_property
    def _byte_values(self) -> dict[str, int] | None:
        """Byte-level vocabularies spell each byte as one printable character: character -> byte. None for others."""
        return _byte_alphabet() if b'"ByteLevel"' in self._decoder_state else None

    @cached_property
    def _has_visible_spaces(self) -> bool:
        return any(mark in self._decoder_state for mark in (SPACE.encode(), b'"Metaspace"', b'"ByteFallback"'))

    @property
    def _decoder_state(self) -> bytes:
        return self._backend.decoder.__getstate__() if self._backend.decoder is not None else b""

    # -- chat ---------------------------------------------------------------------------------------------------------------------

    def render_chat(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        """Write messages as one prompt, with the model's chat template.

        Args:
            messages: mappings with a "role" and a "content", in order.
            add_generation_prompt: end with the opening of the assistant's turn.

        Returns:
            The prompt's text, with whatever special tokens the template writes, BOS included.

        Raises:
            InputError: no chat template, or one that refuses these messages.
        """
        from jaxinterp.checkpoints import chat

        if self._compiled_template is None:
            raise InputError("this model's tokenizer has no chat template: write the prompt out and use to_tokens")
        return chat.render(self._compiled_template, messages, add_generation_prompt, self.special_tokens)

    @cached_property
    def _compiled_template(self) -> "jinja2.Template | None":
        from jaxinterp.checkpoints import chat

        return chat.compile_template(self.chat_template) if self.chat_template is not None else None


def tokenizer_from_gguf(fields: Mapping[str, object]) -> Tokenizer | None:
    """Build the tokenizer that a GGUF file describes.

    Args:
        fields: the file's metadata, name ("tokenizer.ggml.tokens") -> Python value.

    Returns:
        The tokenizer, or None for a file that has none.

    Raises:
        CheckpointError: a kind of tokenizer or pre-tokeniser that is not understood, or fields that contradict one another.
    """
    if fields.get("tokenizer.ggml.model", "none") in ("none", "no_vocab"):
        return None
    backend, special_tokens = build_backend(fields)
    template = fields.get("tokenizer.chat_template")
    return Tokenizer(backend, special_tokens, str(template) if template is not None else None)


def tokenizer_from_folder(folder: Path) -> Tokenizer | None:
    """Read the tokenizer of a folder in HF layout.

    Reads tokenizer.json with tokenizer_config.json, special_tokens_map.json and chat_template.jinja; special tokens that none of
    these names are taken from generation_config.json and config.json. Whether BOS is added is decided by tokenizer.json's
    post-processor, as in transformers 5, and not by `add_bos_token`. A folder that has an older vocabulary file instead is read
    through transformers' AutoTokenizer, which is imported then.

    Returns:
        The tokenizer, or None for a folder that has none.

    Raises:
        CheckpointError: files that cannot be read, or a folder that needs transformers where it is not installed.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        older = [name for name in OLDER_VOCABULARIES if (folder / name).is_file()]
        return _through_transformers(folder, older[0]) if older else None
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CheckpointError(f"{path} is not a tokenizer that the tokenizers package can read: {error}") from error
    config = _read_json(folder / "tokenizer_config.json")
    special_tokens = _special_tokens(folder, config, backend)
    _add_missing_tokens(backend, config, special_tokens)
    return Tokenizer(backend, special_tokens, _chat_template(folder, config))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template), which transformers and we read back equal.

    Args:
        tokenizer: what to write.
        folder: where; made if needed. Tokenizer files that are there already are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    if tokenizer._post_processor is not None:
        backend.post_processor = tokenizer._post_processor
    backend.save(str(folder / "tokenizer.json"), pretty=True)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **tokenizer.special_tokens,
    }
    if not isinstance(backend.model, models.WordPiece):
        config["model_input_names"] = ["input_ids", "attention_mask"]  # transformers' default has token types as well
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for stale in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):  # they would override what was just written
        (folder / stale).unlink(missing_ok=True)


def _special_tokens(folder: Path, config: Mapping[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str]:
    """The named special tokens: the first file that mentions a name decides, and null means that there is none."""
    sources = [config, _read_json(folder / "special_tokens_map.json")]
    ids = {**_read_json(folder / "config.json"), **_read_json(folder / "generation_config.json")}
    tokens: dict[str, str] = {}
    for name in SPECIAL_TOKEN_NAMES:
        source = next((source for source in sources if name in source), None)
        if source is not None:
            token = _content(source[name])
        else:
            index = ids.get(f"{name}_id")
            index = index[0] if isinstance(index, list) and index else index  # several EOS: the first is the model's own
            token = backend.id_to_token(index) if isinstance(index, int) and index >= 0 else None
        if token is not None:
            tokens[name] = token
    return tokens


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
    """Make every token that only tokenizer_config.json declares one that is found whole in the text, as transformers does."""
    known = {added.content for added in backend.get_added_tokens_decoder().values()}
    extra = [config.get(name) or [] for name in ("additional_special_tokens", "extra_special_tokens")]
    listed = [token for group in extra for token in (group.values() if isinstance(group, dict) else group)]
    declared = [token for _, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda entry: int(entry[0]))]
    options = ("single_word", "lstrip", "rstrip", "normalized")
    for token in [*declared, *special_tokens.values(), *listed]:
        content = _content(token)
        if content is None or content in known:
            continue
        known.add(content)
        given = {name: bool(token[name]) for name in options if name in token} if isinstance(token, dict) else {"normalized": False}
        special = not isinstance(token, dict) or token.get("special", True) or content in special_tokens.values()
        backend.add_tokens([AddedToken(content, special=special, **given)])


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The default chat template: chat_template.jinja, else tokenizer_config.json's (one text, or several with names)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return _default_template(config.get("chat_template"))


def _default_template(template: Any) -> str | None:
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        return template.get("default", next(iter(template.values())) if len(template) == 1 else None)
    return template


def _content(token: Any) -> str | None:
    """A token is written as a string, as {"content": ...} or as null."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise CheckpointError(f"a special token of the tokenizer's files should be a string, it is {content!r}")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object, it holds {type(value).__name__}")
    return value


def _through_transformers(folder: Path, vocabulary: str) -> Tokenizer:
    """Read a folder without tokenizer.json through transformers, which converts older vocabulary files."""
    advice = "or save it once where transformers is: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    try:
        from transformers import AutoTokenizer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise CheckpointError(
            f"{folder} has {vocabulary} but no tokenizer.json, and reading it needs transformers: pip install transformers, {advice}"
        ) from error
    try:
        fast = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        backend = tokenizers.Tokenizer.from_str(fast.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises many kinds, for files that it does not understand too
        raise CheckpointError(f"transformers cannot make a fast tokenizer of {folder / vocabulary}: {error}") from error
    special_tokens = {name: str(token) for name in SPECIAL_TOKEN_NAMES if (token := getattr(fast, name, None)) is not None}
    return Tokenizer(backend, special_tokens, _default_template(fast.chat_template))


def _surroundings(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Special tokens that the post-processor puts before and after a text."""
    encoded = backend.encode("a", add_special_tokens=True)
    inside = [index for index, special in enumerate(encoded.special_tokens_mask) if not special]
    if not inside:
        return (), ()
    return tuple(encoded.ids[: inside[0]]), tuple(encoded.ids[inside[-1] + 1 :])


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others, in order, from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + index): value for index, value in enumerate(others)}


def _readable(data: bytes) -> str:
    """Bytes as text, those that are no part of a whole character as <0xE2>."""
    text = data.decode("utf-8", errors="surrogateescape")
    return "".join(f"<0x{ord(char) - 0xDC00:02X}>" if 0xDC80 <= ord(char) <= 0xDCFF else char for char in text)
