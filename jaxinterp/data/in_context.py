"""Tasks to be learned in context: pairs of words (input, output), and prompts that show some of them and ask for another.

    pairs = ji.data.word_pairs(lm, "plural")                     # (("key", "keys"), ("book", "books"), ...)
    asked = ji.data.in_context(lm, pairs[:20], pairs[20:], shots=1)
    asked.prompts[0], asked.answers[0]                           # "Q: table\\nA: tables\\n\\nQ: ship\\nA:", " ships"

Word lists are this library's own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxinterp.data.frames import one_of
from jaxinterp.data.words import CAPITALS, LANGUAGES, NOUNS, OPPOSITES
from jaxinterp.errors import InputError
from jaxinterp.model.language_model import LanguageModel

Word = tuple[str, str]

# fmt: off
_OPPOSITES = (
    ("above", "below"), ("accept", "reject"), ("alive", "dead"), ("always", "never"), ("arrive", "leave"), ("begin", "end"),
    ("better", "worse"), ("bitter", "sweet"), ("brave", "cowardly"), ("buy", "sell"), ("cheap", "expensive"), ("clean", "dirty"),
    ("day", "night"), ("deep", "shallow"), ("east", "west"), ("easy", "difficult"), ("enter", "exit"), ("everyone", "nobody"),
    ("external", "internal"), ("female", "male"), ("first", "last"), ("forget", "remember"), ("friend", "enemy"), ("give", "take"),
    ("guilty", "innocent"), ("heaven", "hell"), ("heavy", "light"), ("huge", "tiny"), ("import", "export"), ("include", "exclude"),
    ("increase", "decrease"), ("inside", "outside"), ("lose", "win"), ("loud", "quiet"), ("love", "hate"), ("major", "minor"),
    ("many", "few"), ("maximum", "minimum"), ("modern", "ancient"), ("more", "less"), ("narrow", "wide"), ("north", "south"),
    ("odd", "even"), ("on", "off"), ("optimistic", "pessimistic"), ("over", "under"), ("permanent", "temporary"), ("positive", "negative"),
    ("private", "public"), ("push", "pull"), ("question", "answer"), ("rise", "fall"), ("rough", "smooth"), ("safe", "dangerous"),
    ("same", "different"), ("sharp", "dull"), ("simple", "complex"), ("smart", "stupid"), ("start", "finish"), ("success", "failure"),
    ("tall", "short"), ("thick", "thin"), ("tight", "loose"), ("top", "bottom"), ("ugly", "beautiful"), ("upper", "lower"),
    ("urban", "rural"), ("victory", "defeat"), ("warm", "cool"), ("war", "peace"), ("young", "old"),
)
_PLURALS = (
    ("apple", "apples"), ("animal", "animals"), ("artist", "artists"), ("baby", "babies"), ("bag", "bags"), ("bank", "banks"),
    ("boat", "boats"), ("box", "boxes"), ("building", "buildings"), ("bus", "buses"), ("child", "children"), ("church", "churches"),
    ("city", "cities"), ("class", "classes"), ("cloud", "clouds"), ("country", "countries"), ("egg", "eggs"), ("engine", "engines"),
    ("eye", "eyes"), ("factory", "factories"), ("family", "families"), ("finger", "fingers"), ("foot", "feet"), ("glass", "glasses"),
    ("hand", "hands"), ("island", "islands"), ("knife", "knives"), ("lady", "ladies"), ("leaf", "leaves"), ("life", "lives"),
    ("man", "men"), ("mountain", "mountains"), ("mouse", "mice"), ("party", "parties"), ("person", "people"), ("planet", "planets"),
    ("road", "roads"), ("school", "schools"), ("soldier", "soldiers"), ("song", "songs"), ("star", "stars"), ("story", "stories"),
    ("tooth", "teeth"), ("wall", "walls"), ("watch", "watches"), ("wife", "wives"), ("wolf", "wolves"), ("woman", "women"),
)
_PASTS = (
    ("ask", "asked"), ("become", "became"), ("begin", "began"), ("believe", "believed"), ("break", "broke"), ("bring", "brought"),
    ("build", "built"), ("buy", "bought"), ("call", "called"), ("carry", "carried"), ("catch", "caught"), ("change", "changed"),
    ("choose", "chose"), ("come", "came"), ("create", "created"), ("decide", "decided"), ("die", "died"), ("draw", "drew"),
    ("drink", "drank"), ("drive", "drove"), ("eat", "ate"), ("expect", "expected"), ("explain", "explained"), ("fall", "fell"),
    ("feel", "felt"), ("fight", "fought"), ("find", "found"), ("fly", "flew"), ("follow", "followed"), ("forget", "forgot"),
    ("give", "gave"), ("go", "went"), ("grow", "grew"), ("happen", "happened"), ("hear", "heard"), ("help", "helped"),
    ("hold", "held"), ("join", "joined"), ("keep", "kept"), ("kill", "killed"), ("know", "knew"), ("learn", "learned"),
    ("leave", "left"), ("live", "lived"), ("look", "looked"), ("lose", "lost"), ("make", "made"), ("meet", "met"),
    ("move", "moved"), ("need", "needed"), ("open", "opened"), ("pay", "paid"), ("play", "played"), ("reach", "reached"),
    ("remain", "remained"), ("run", "ran"), ("say", "said"), ("see", "saw"), ("sell", "sold"), ("send", "sent"),
    ("sing", "sang"), ("sit", "sat"), ("speak", "spoke"), ("spend", "spent"), ("stand", "stood"), ("start", "started"),
    ("stop", "stopped"), ("study", "studied"), ("swim", "swam"), ("take", "took"), ("talk", "talked"), ("teach", "taught"),
    ("tell", "told"), ("think", "thought"), ("travel", "traveled"), ("try", "tried"), ("turn", "turned"), ("use", "used"),
    ("wait", "waited"), ("walk", "walked"), ("want", "wanted"), ("watch", "watched"), ("wear", "wore"), ("win", "won"),
    ("work", "worked"), ("write", "wrote"),
)
_COMPARATIVES = (
    ("big", "bigger"), ("bright", "brighter"), ("broad", "broader"), ("cheap", "cheaper"), ("clear", "clearer"), ("close", "closer"),
    ("cold", "colder"), ("cool", "cooler"), ("dark", "darker"), ("deep", "deeper"), ("early", "earlier"), ("easy", "easier"),
    ("fast", "faster"), ("great", "greater"), ("happy", "happier"), ("hard", "harder"), ("healthy", "healthier"), ("heavy", "heavier"),
    ("high", "higher"), ("large", "larger"), ("late", "later"), ("light", "lighter"), ("long", "longer"), ("low", "lower"),
    ("near", "nearer"), ("new", "newer"), ("old", "older"), ("poor", "poorer"), ("quick", "quicker"), ("rich", "richer"),
    ("safe", "safer"), ("sharp", "sharper"), ("short", "shorter"), ("simple", "simpler"), ("slow", "slower"), ("small", "smaller"),
    ("smart", "smarter"), ("smooth", "smoother"), ("soft", "softer"), ("strong", "stronger"), ("tall", "taller"), ("thick", "thicker"),
    ("thin", "thinner"), ("tight", "tighter"), ("warm", "warmer"), ("weak", "weaker"), ("wide", "wider"), ("young", "younger"),
)
# fmt: on

WORD_PAIRS: Mapping[str, tuple[Word, ...]] = MappingProxyType(
    {
        "antonym": (*OPPOSITES, *_OPPOSITES),
        "capital": CAPITALS,
        "language": LANGUAGES,
        "plural": (*NOUNS, *_PLURALS),
        "past": _PASTS,
        "comparative": _COMPARATIVES,
        "capitalize": tuple((verb, verb.capitalize()) for verb, _ in _PASTS),
    }
)
"""Tasks by name."""

TEMPLATE = "Q: {input}\nA: {output}\n\n"
"""What one pair is written as; a question is the same up to its output."""


@dataclasses.dataclass(frozen=True)
class InContext:
    """Prompts that show pairs of a task and ask for the output of another.

    Attributes:
        prompts: B texts, each ending where the answer begins.
        answers: B texts, each one token after its prompt, with the space between them.
        ids: [B] int32, those tokens.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    ids: Any

    def __repr__(self) -> str:
        return f"InContext({len(self.prompts)} prompts; the first: {self.prompts[0]!r} -> {self.answers[0]!r})"


def word_pairs(
    lm: LanguageModel, task: str | Sequence[Word] | Mapping[str, str], *, template: str = TEMPLATE
) -> tuple[Word, ...]:  # fmt: skip
    """The pairs of a task whose output a model's tokenizer keeps whole.

    Args:
        lm: the model, for its tokenizer.
        task: a name of `WORD_PAIRS`, pairs (input, output), or {input: output}.
        template: how a pair is written, see `TEMPLATE`; it decides what stands before the output.

    Raises:
        InputError: no such task, an input that comes twice, or no output that is one token.

    Example:
        >>> ji.data.word_pairs(lm, "plural")[0]
        ('key', 'keys')
    """
    if isinstance(task, str):
        pairs = WORD_PAIRS[one_of(task, tuple(WORD_PAIRS), "word_pairs(): task")]
    else:
        pairs = tuple(task.items() if isinstance(task, Mapping) else task)
    if not pairs or not all(len(pair) == 2 and all(isinstance(word, str) and word for word in pair) for pair in pairs):
        raise InputError("word_pairs(): expected the name of a task or pairs of strings (input, output), at least one.")
    inputs = [question for question, _ in pairs]
    twice = [question for number, question in enumerate(inputs) if question in inputs[:number]]
    if twice:
        raise InputError(f"word_pairs(): the input {twice[0]!r} comes twice, and a pair in a prompt would give the other away.")
    pattern = _Pattern.of(template)
    whole = _answer_ids(lm, [pattern.ask(question) for question in inputs], [pattern.gap + output for _, output in pairs]) >= 0
    kept = tuple(pair for pair, one in zip(pairs, whole, strict=True) if one)
    if not kept:
        raise InputError(
            f"word_pairs(): none of the {len(pairs)} outputs, {pairs[0][1]!r} the first, is one token after its prompt for this "
            "model's tokenizer: use words that are."
        )
    return kept


def in_context(
    lm: LanguageModel, shown: Sequence[Word], asked: Sequence[Word], *, shots: int, template: str = TEMPLATE, shuffled: bool = False,
    seed: int = 0,
) -> InContext:  # fmt: skip
    """A prompt for each pair that is asked, showing other pairs before it.

    Args:
        lm: the model, for its tokenizer.
        shown: pairs that may be shown; a prompt never shows the pair that it asks.
        asked: pairs that are asked, one a prompt; a pair may come several times, each time with other pairs before it.
        shots: pairs shown before each question; 0 is none.
        template: how a pair is written.
        shuffled: whether the outputs that are shown change places, so that none stands at its own input and the task cannot be told.
        seed: of which pairs are shown, and of the shuffling.

    Raises:
        InputError: too few pairs to show, fewer than two to shuffle, or an answer that is not one token.

    Example:
        >>> ji.data.in_context(lm, [("key", "keys"), ("dog", "dogs")], [("city", "cities")], shots=1).answers
        (' cities',)
    """
    pattern = _Pattern.of(template)
    if not asked:
        raise InputError("in_context(): no pair is asked; expected one or more.")
    if shots < 0 or (shuffled and shots < 2):
        raise InputError(f"in_context(): shots is {shots}; expected 0 or more, and 2 or more where outputs are shuffled.")
    rng = np.random.default_rng(seed)
    prompts = []
    for question, _ in asked:
        others = [pair for pair in shown if pair[0] != question]
        if len(others) < shots:
            raise InputError(f"in_context(): {len(others)} pairs other than that of {question!r} can be shown; shots is {shots}.")
        chosen = [others[i] for i in rng.choice(len(others), shots, replace=False)] if shots else []
        outputs = np.arange(shots)
        if shuffled:
            order = rng.permutation(shots)
            outputs[order] = np.roll(order, 1)  # one cycle through all of them: none stays
        pairs = (pattern.pair(pair[0], chosen[output][1]) for pair, output in zip(chosen, outputs, strict=True))
        prompts.append("".join(pairs) + pattern.ask(question))
    answers = [pattern.gap + output for _, output in asked]
    ids = _answer_ids(lm, prompts, answers)
    if (ids < 0).any():
        row = int((ids < 0).argmax())
        raise InputError(
            f"in_context(): the answer {answers[row]!r} is not one token after its prompt for this model's tokenizer: keep the pairs "
            "that ji.data.word_pairs(lm, ...) gives."
        )
    return InContext(tuple(prompts), tuple(answers), ids)


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """A template's parts: what stands before the input, between input and output without the space, that space, and after."""

    before: str
    between: str
    gap: str
    after: str

    @classmethod
    def of(cls, template: str) -> "_Pattern":
        head, found, rest = template.partition("{input}")
        between, also, after = rest.partition("{output}")
        if not (found and also and between) or "{input}" in rest or "{output}" in head + after:
            raise InputError(f"The template {template!r} must hold {{input}} once and then {{output}} once, with text between them.")
        kept = between.rstrip(" ")
        return cls(head, kept, between[len(kept) :], after)

    def ask(self, question: str) -> str:
        return self.before + question + self.between

    def pair(self, question: str, output: str) -> str:
        return self.ask(question) + self.gap + output + self.after


def _answer_ids(lm: LanguageModel, prompts: Sequence[str], answers: Sequence[str]) -> Int[np.ndarray, "B"]:
    """The one token that each answer adds to its prompt, or -1 where it is several, unknown, or joined to the prompt's end."""
    short, long = (lm.to_tokens(list(texts), bos=False) for texts in (prompts, map(str.__add__, prompts, answers)))
    out = np.full(len(prompts), -1, np.int32)
    for row, answer in enumerate(answers):
        before, both = (np.asarray(tokens.ids)[row][np.asarray(tokens.mask)[row]] for tokens in (short, long))
        if len(both) == len(before) + 1 and (both[:-1] == before).all() and lm.to_strings(both[-1:])[0].strip() == answer.strip():
            out[row] = both[-1]
    return out
