"""A GGUF file holds its tokenizer as flat fields (tokens, merges or scores, token types); here they become a `tokenizers` pipeline.

Two kinds are understood, by `tokenizer.ggml.model`: "gpt2", byte-level BPE with its merges written out and the pre-tokeniser
named by `tokenizer.ggml.pre`; and "llama", SentencePiece BPE, whose merges are derived from the scores.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jaxinterp.errors import CheckpointError

# `tokenizer.ggml.token_type`
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

SPACE = "\u2581"
"""SentencePiece's visible space."""

SPECIAL_TOKEN_FIELDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}

QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut into words before byte-level merges: what the name in `tokenizer.ggml.pre` stands for.

    Attributes:
        pattern: the regular expression of a word; None is GPT-2's.
        single_digits: every digit is a word of its own, before the pattern.
        nfc: text is brought to Unicode's composed form first.
        ignore_merges: a word that is in the vocabulary is one token, whatever the merges say.
        adds_bos: the default where `tokenizer.ggml.add_bos_token` is absent.
    """

    pattern: str | None = None
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The `tokenizers` object."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


_LLAMA3 = PreTokenizer(LLAMA3_PATTERN, ignore_merges=True, adds_bos=True)

PRE_TOKENIZERS = {
    "default": PreTokenizer(),
    "gpt-2": PreTokenizer(),
    "phi-2": PreTokenizer(),
    "olmo": PreTokenizer(nfc=True),
    "smollm": PreTokenizer(single_digits=True),
    "starcoder": PreTokenizer(single_digits=True),
    "qwen2": PreTokenizer(QWEN2_PATTERN, nfc=True),
    "deepseek-r1-qwen": PreTokenizer(QWEN2_PATTERN),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": PreTokenizer(LLAMA3_PATTERN),
    "smaug-bpe": PreTokenizer(LLAMA3_PATTERN),
    "tekken": PreTokenizer(TEKKEN_PATTERN, ignore_merges=True, adds_bos=True),
}


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer fields of one file, checked.

    Attributes:
        tokens: the text of each id, in the file's own spelling.
        types: the kind of each id (normal 1, unknown 2, control 3, user-defined 4, unused 5, byte 6).
        scores: SentencePiece's score of each id; empty where the file has none.
        merges: pairs in order of rank; None where the file has none.
        special_tokens: "bos_token", "eos_token", "unk_token", "pad_token" -> token, those that the file names.
    """

    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]] | None
    special_tokens: dict[str, str]

    def of_type(self, kind: int) -> list[str]:
        """The tokens of one kind, in order of id."""
        return [token for token, its in zip(self.tokens, self.types, strict=True) if its == kind]


def build_backend(fields: Mapping[str, object]) -> tuple[Tokenizer, dict[str, str]]:
    """Build the `tokenizers` pipeline that a GGUF file's fields describe.

    Args:
        fields: the file's metadata, name -> Python value.

    Returns:
        The pipeline, with a post-processor that adds BOS where the model does; and its special tokens, name -> token.

    Raises:
        CheckpointError: an unknown kind of tokenizer or pre-tokeniser, or fields that are missing or contradict one another.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind not in BUILDERS:
        raise CheckpointError(f"the GGUF file's tokenizer.ggml.model is {kind!r}, which is not understood; known: {', '.join(BUILDERS)}")
    vocabulary = read_vocabulary(fields)
    try:
        backend, adds_bos = BUILDERS[cast(str, kind)](vocabulary, fields)
        _add_tokens(backend, vocabulary)
        _add_post_processor(backend, vocabulary, fields, adds_bos)
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions: a merge whose token is missing, for one
        raise CheckpointError(f"the GGUF file's tokenizer fields contradict one another: {error}") from error
    return backend, vocabulary.special_tokens


def read_vocabulary(fields: Mapping[str, object]) -> Vocabulary:
    """Check and gather the tokenizer fields of a GGUF file; raises CheckpointError where one is missing or out of range."""
    tokens = [str(token) for token in _array(fields, "tokens")]
    if not tokens:
        raise CheckpointError("the GGUF file has no tokenizer.ggml.tokens")
    types = [int(cast(int, kind)) for kind in _array(fields, "token_type")] or [1] * len(tokens)
    scores = [float(cast(float, score)) for score in _array(fields, "scores")]
    for name, length in (("token_type", len(types)), ("scores", len(scores) or len(tokens))):
        if length != len(tokens):
            raise CheckpointError(f"the GGUF file has {len(tokens)} tokens but {length} entries in tokenizer.ggml.{name}")
    special_tokens = {}
    for name, field in SPECIAL_TOKEN_FIELDS.items():
        if (token_id := fields.get(f"tokenizer.ggml.{field}")) is None:
            continue
        index = int(cast(int, token_id))
        if not 0 <= index < len(tokens):
            raise CheckpointError(f"the GGUF file's tokenizer.ggml.{field} is {index}, but it has {len(tokens)} tokens")
        special_tokens[name] = tokens[index]
    merges = None
    if "tokenizer.ggml.merges" in fields:
        merges = [_pair(str(merge)) for merge in _array(fields, "merges")]
    return Vocabulary(tokens, types, scores, merges, special_tokens)


def merges_from_scores(tokens: list[str], priorities: list[float], left_out: set[str]) -> list[tuple[str, str]]:
    """Write a SentencePiece vocabulary's merges out, best first.

    SentencePiece joins the two neighbours whose joined piece has the highest score; the same as merges that are ranked by the
    score of what they make, longer left halves first.

    Args:
        tokens: every piece, by id.
        priorities: of each piece, higher first.
        left_out: pieces that are never made by joining (control and byte tokens).
    """
    pieces = set(tokens) - left_out
    made = [index for index, token in enumerate(tokens) if len(token) > 1 and token not in left_out]
    made.sort(key=priorities.__getitem__, reverse=True)
    merges: list[tuple[str, str]] = []
    for _, group in groupby(made, key=priorities.__getitem__):
        tied = [tokens[index] for index in group]
        pairs = [
            (left, right)
            for token in tied
            for cut in range(len(token) - 1, 0, -1)
            if (left := token[:cut]) in pieces and (right := token[cut:]) in pieces
        ]
        if len(tied) > 1:  # between tokens that tie the lengths decide, then the order of ids: as in transformers
            pairs.sort(key=lambda pair: (len(pair[0]), len(pair[1])), reverse=True)
        merges += pairs
    return merges


def _byte_level(vocabulary: Vocabulary, fields: Mapping[str, object]) -> tuple[Tokenizer, bool]:
    """Byte-level BPE; returns the pipeline and whether such a model adds BOS unless its file says otherwise."""
    name = str(fields.get("tokenizer.ggml.pre", "default"))
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"the GGUF file's tokenizer.ggml.pre is {name!r}, which is not understood; known: {', '.join(PRE_TOKENIZERS)}"
        )
    if vocabulary.merges is None:
        raise CheckpointError("the GGUF file has a byte-level tokenizer but no tokenizer.ggml.merges")
    style = PRE_TOKENIZERS[name]
    vocab = {token: index for index, token in enumerate(vocabulary.tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=vocabulary.merges, ignore_merges=style.ignore_merges))
    if style.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = style.build()
    backend.decoder = decoders.ByteLevel()
    return backend, style.adds_bos


def _sentencepiece(vocabulary: Vocabulary, fields: Mapping[str, object]) -> tuple[Tokenizer, bool]:
    """SentencePiece BPE with byte fallback; returns the pipeline and whether such a model adds BOS unless its file says otherwise."""
    # Runs of spaces are written as real spaces (Gemma), but text reaches the model with visible ones.
    tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in vocabulary.tokens]
    merges = vocabulary.merges
    if merges is None:
        if not vocabulary.scores:
            raise CheckpointError("the GGUF file has a SentencePiece tokenizer but neither tokenizer.ggml.scores nor tokenizer.ggml.merges")
        # What the user defined is matched before anything is joined, in order of id; its score is a placeholder.
        first = max(vocabulary.scores) + len(tokens)
        kinds_and_scores = zip(vocabulary.types, vocabulary.scores, strict=True)
        priorities = [first - index if kind == USER_DEFINED else score for index, (kind, score) in enumerate(kinds_and_scores)]
        merges = merges_from_scores(
            tokens, priorities, {*vocabulary.of_type(CONTROL), *vocabulary.of_type(BYTE), *vocabulary.of_type(UNKNOWN)}
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = vocabulary.special_tokens.get("unk_token")
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    visible_spaces = normalizers.Replace(" ", SPACE)
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), visible_spaces])
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = visible_spaces
    backend.decoder = decoders.Sequence(decoding)
    return backend, True


BUILDERS: dict[str, Callable[[Vocabulary, Mapping[str, object]], tuple[Tokenizer, bool]]] = {"gpt2": _byte_level, "llama": _sentencepiece}


def _add_tokens(backend: Tokenizer, vocabulary: Vocabulary) -> None:
    """Tell the pipeline which tokens are found whole in the text: control tokens (special) and user-defined ones (not)."""
    special = dict.fromkeys([*vocabulary.of_type(CONTROL), *vocabulary.special_tokens.values()])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    # A run of spaces that was respelled is made by merges instead.
    plain = [token for token in vocabulary.of_type(USER_DEFINED) if token not in special and backend.token_to_id(token) is not None]
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])


def _add_post_processor(backend: Tokenizer, vocabulary: Vocabulary, fields: Mapping[str, object], adds_bos: bool) -> None:
    """Write the file's BOS and EOS policy into the pipeline, where transformers looks for it too."""
    begin, end = "", ""
    if fields.get("tokenizer.ggml.add_bos_token", adds_bos) and "bos_token" in vocabulary.special_tokens:
        begin = vocabulary.special_tokens["bos_token"]
    if fields.get("tokenizer.ggml.add_eos_token", False) and "eos_token" in vocabulary.special_tokens:
        end = vocabulary.special_tokens["eos_token"]
    if not begin and not end:
        return
    single = [*([begin] if begin else []), "$A", *([end] if end else [])]
    pair = [*single, *([f"{begin}:1"] if begin else []), "$B:1", *([f"{end}:1"] if end else [])]
    ids = [(token, cast(int, backend.token_to_id(token))) for token in dict.fromkeys((begin, end)) if token]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def _array(fields: Mapping[str, object], name: str) -> Iterable[object]:
    value = fields.get(f"tokenizer.ggml.{name}", ())
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise CheckpointError(f"the GGUF file's tokenizer.ggml.{name} should be a list, it is {value!r}")
    return value


def _pair(merge: str) -> tuple[str, str]:
    cut = merge.find(" ", 1)  # from the second character on: the left half is never empty, but it may itself be a space
    if cut < 0 or cut + 1 == len(merge):
        raise CheckpointError(f"the GGUF file's tokenizer.ggml.merges holds {merge!r}, which is not two tokens")
    return merge[:cut], merge[cut + 1 :]
