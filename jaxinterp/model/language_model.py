"""LanguageModel: parameters, config and tokenizer together, as a pytree, with the way from text to tokens and back."""

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.parameters import by_layer, stacked
from jaxinterp.model.tokens import Tokens


@runtime_checkable
class TokenizerProtocol(Protocol):
    """What the model needs of a tokenizer; equal content compares equal."""

    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    adds_bos: bool
    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]: ...
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def display(self, token_id: int) -> str: ...
    def token_id(self, token: str) -> int | None: ...
    def render_chat(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str: ...


Prompts = str | Sequence[str] | Tokens | Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "tokenizer"])
@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A transformer with its weights and tokenizer. Two loads of one checkpoint share every compiled program.

    Attributes:
        params: nested dict of arrays.
        config: the architecture.
        tokenizer: from text to ids and back, or None: strings are then an error.
    """

    params: Any
    config: TransformerConfig
    tokenizer: Any = None

    def to_tokens(self, prompts: Prompts, bos: str | bool = "model") -> Tokens:
        """Tokens of one or many prompts, padded on the right.

        Args:
            prompts: a string, a list of strings, ids [B P] (or [P]), or Tokens, which are returned as they are.
            bos: "model" does as the model's own tokenizer does (an encoder's puts [CLS] before a text and [SEP] after it);
                True and False put its beginning-of-sequence token first or not; any other string is the token to put first.

        Raises:
            InputError: a prompt is empty, or strings were given to a model without a tokenizer.
        """
        if isinstance(prompts, Tokens):
            return prompts
        texts = [prompts] if isinstance(prompts, str) else prompts
        if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
            first, last, label = self._surroundings(bos)
            return self._pad([first + self._tokenizer.encode(text) + last for text in texts], label)
        if isinstance(texts, list | tuple) and (not texts or any(isinstance(text, str) for text in texts)):
            raise InputError(
                "Prompts must be a string, a list of strings, Tokens or an integer array [B P]; the list is empty or mixes kinds."
            )
        try:
            return Tokens.from_ids(texts if isinstance(texts, jax.Array) else np.asarray(texts))
        except ValueError as error:
            raise (
                error
                if isinstance(error, InputError)
                else InputError("Lists of ids must have one length; pad them and pass Tokens.from_ids(ids, mask).")
            ) from None

    def chat(self, messages: Sequence[Mapping[str, str]] | Sequence[Sequence[Mapping[str, str]]], prefill: str | None = None) -> Tokens:
        """Tokens of one or many conversations through the model's chat template, ready for the assistant's answer.

        Args:
            messages: [{"role": "user", "content": ...}, ...], or a list of such conversations.
            prefill: the beginning of the assistant's answer, continued without a new turn.

        Returns:
            Tokens with `spans` [B n 2], the positions of each message's content (end exclusive; -1 where a conversation
            has fewer messages), and `roles`.
        """
        conversations: list[Any] = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        rows, spans = [], []
        for conversation in conversations:
            turns: list[dict[str, Any]] = [dict(message) for message in conversation]
            text = self._tokenizer.render_chat(turns, add_generation_prompt=True) + (prefill or "")
            ids, offsets = self._tokenizer.encode_with_offsets(text)
            rows.append(ids)
            spans.append(_message_spans(text, turns, offsets))
        width = max(len(row) for row in spans)
        table = np.asarray([row + [(-1, -1)] * (width - len(row)) for row in spans], np.int32).reshape(len(rows), width, 2)
        longest = max(conversations, key=len)
        roles = tuple(str(message["role"]) for message in longest)
        return dataclasses.replace(self._pad(rows, "chat template"), spans=table, roles=roles)

    def to_strings(self, ids: Any) -> Any:
        """Display strings of ids: a list for [P] (or one prompt), a list of lists for [B P]; Tokens leave out padding."""
        if isinstance(ids, Tokens):
            real = [np.asarray(row)[np.asarray(keep)] for row, keep in zip(ids.ids, ids.mask, strict=True)]
            return [self.to_strings(row) for row in real]
        ids = np.asarray(ids)
        if ids.ndim == 0:
            return self._tokenizer.display(int(ids))
        return [self.to_strings(row) for row in ids]

    def to_id(self, text: str) -> int:
        """The id of a string that is exactly one token.

        Raises:
            InputError: it is several tokens; the message shows them and names the leading space.
        """
        return single_token(self._tokenizer, text)

    def find(self, tokens: Tokens | str | Sequence[str], text: str, which: int = 0) -> np.ndarray:
        """[B]: the position of the last token of an occurrence of `text` in each prompt.

        Args:
            tokens: the prompts.
            text: what to look for, with its leading space, as whole tokens.
            which: 0 is the first occurrence, 1 the second, -1 the last.

        Raises:
            InputError: a prompt does not hold it that often.
        """
        tokens = self.to_tokens(tokens)
        wanted = word_ids(self._tokenizer, text)
        found = []
        for row, (ids, mask) in enumerate(zip(np.asarray(tokens.ids), np.asarray(tokens.mask), strict=True)):
            real = ids[mask].tolist()
            ends = [i + len(wanted) - 1 for i in range(len(real) - len(wanted) + 1) if real[i : i + len(wanted)] == wanted]
            if not -len(ends) <= which < len(ends):
                shown = "".join(self.to_strings(ids[mask]))
                raise InputError(f"find({text!r}, which={which}): prompt {row} holds it {len(ends)} times as whole tokens: {shown!r}.")
            found.append(ends[which])
        return np.asarray(found, np.int32)

    @property
    def n_params(self) -> int:
        """How many numbers the parameters are."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.params))

    def digest(self) -> str:
        """A hash of all weights, by name, type, shape and bytes: what a result was made with."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(np.asarray(leaf)).view(np.uint8).data)
        return digest.hexdigest()

    def by_layer(self) -> "LanguageModel":
        """The same model with its weights a layer at a time, from which a CPU decodes faster; see `parameters.by_layer`.

        These are copies: write `lm = lm.by_layer()` to hold the weights once. `stacked()` is the way back.
        """
        return self if isinstance(self.params["blocks"][0], tuple) else self.replace(params=by_layer(self.params))

    def stacked(self) -> "LanguageModel":
        """The same model with its layers in stacks, as it was loaded."""
        return self.replace(params=stacked(self.params)) if isinstance(self.params["blocks"][0], tuple) else self

    def replace(self, **changes: Any) -> "LanguageModel":
        """A copy with other params, config or tokenizer."""
        return dataclasses.replace(self, **changes)

    @property
    def _tokenizer(self) -> TokenizerProtocol:
        if self.tokenizer is None:
            raise InputError("This model has no tokenizer, so text cannot be used with it; pass token ids [B P] or Tokens.")
        return self.tokenizer

    def _surroundings(self, bos: str | bool) -> tuple[list[int], list[int], str]:
        """Ids to put before and after each text, and the policy's name."""
        if bos == "model" and not self.config.causal:
            return list(self._tokenizer.prefix_ids), list(self._tokenizer.suffix_ids), "model"
        first, label = self._bos(bos)
        return first, [], label

    def _bos(self, bos: str | bool) -> tuple[list[int], str]:
        tokenizer = self._tokenizer
        if bos == "model":
            return ([tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []), "model"
        if bos is False:
            return [], "none"
        named = tokenizer.bos_id if bos is True else tokenizer.token_id(str(bos))
        if bos is True and named is None:
            raise InputError("This tokenizer has no beginning-of-sequence token; name the token to put first, or use bos=False.")
        ids = [named] if named is not None else word_ids(tokenizer, str(bos))
        if len(ids) != 1:
            raise InputError(f"bos={bos!r} is not a token of this vocabulary.")
        return ids, tokenizer.display(ids[0])

    def _pad(self, rows: Sequence[Sequence[int]], bos: str) -> Tokens:
        empty = [i for i, row in enumerate(rows) if not len(row)]
        if empty:
            raise InputError(f"Prompt {empty[0]} is empty: every prompt needs at least one token.")
        pad = self._tokenizer.pad_id or 0
        width = max(len(row) for row in rows)
        ids = np.full((len(rows), width), pad, np.int32)
        mask = np.zeros((len(rows), width), bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return Tokens.from_ids(ids, mask, bos=bos)

    def __repr__(self) -> str:
        c = self.config
        return f"LanguageModel({c.n_layers} layers, d_model {c.d_model}, {c.n_heads} heads, {self.n_params:,} parameters)"


def _message_spans(text: str, turns: Sequence[Mapping[str, Any]], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Token positions of each message's content, found in order in the rendered text; (-1, -1) where a template dropped it."""
    spans, cursor = [], 0
    for turn in turns:
        content = str(turn["content"]).strip()
        begin = text.find(content, cursor)
        if begin < 0 or not content:
            spans.append((-1, -1))
            continue
        cursor = begin + len(content)
        inside = [i for i, (a, b) in enumerate(offsets) if a < cursor and b > begin]
        spans.append((inside[0], inside[-1] + 1) if inside else (-1, -1))
    return spans


def word_ids(tokenizer: TokenizerProtocol, text: str) -> list[int]:
    """Ids of a text as it stands inside a prompt: a tokenizer that puts a space before all text is not given a second one."""
    if text.startswith(" "):
        without = tokenizer.encode(text[1:])
        if "".join(tokenizer.display(piece) for piece in without) == text:
            return without
    return tokenizer.encode(text)


def single_token(tokenizer: TokenizerProtocol, text: str) -> int:
    """The id of a string that is exactly one token of a tokenizer; see `LanguageModel.to_id`."""
    exact = tokenizer.token_id(text)
    ids = [exact] if exact is not None else word_ids(tokenizer, text)
    if len(ids) == 1:
        return ids[0]
    pieces = " + ".join(repr(tokenizer.display(piece)) for piece in ids)
    spaced = not text.startswith(" ") and len(word_ids(tokenizer, " " + text)) == 1
    hint = (
        f"Did you mean {' ' + text!r}, with the leading space?"
        if spaced
        else "Most words are one token only with their leading space, such as ' Mary'."
    )
    raise InputError(f"An answer must be one token; {text!r} is {len(ids)}: {pieces}. {hint}")


def stack(models: Iterable[LanguageModel]) -> LanguageModel:
    """Checkpoints of one architecture as one model with a leading axis on every weight, for `jax.vmap`.

    `jax.vmap(lambda params: ji.forward(params, tokens, lm.config))(ji.stack([lm1, lm2]).params)` runs them all.

    Raises:
        InputError: configs or shapes differ.
    """
    models = list(models)
    if not models:
        raise InputError("stack(): expected one or more models.")
    for other in models[1:]:
        if other.config != models[0].config:
            raise InputError("stack(): the models' configs differ; only checkpoints of one architecture stack.")
        if jax.tree.map(lambda w: (w.shape, w.dtype), other.params) != jax.tree.map(lambda w: (w.shape, w.dtype), models[0].params):
            raise InputError("stack(): the models' parameters differ in names, shapes or types.")
    if any(other.tokenizer != models[0].tokenizer for other in models[1:]):
        warnings.warn("stack(): the models' tokenizers differ; the first one is kept.", stacklevel=2)
    return models[0].replace(params=jax.tree.map(lambda *leaves: jnp.stack(leaves), *[model.params for model in models]))
