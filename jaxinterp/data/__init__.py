"""Task data: pairs of clean and corrupt prompts, generated for a model's own tokenizer or read from files.

    pairs = ji.data.ioi(lm, 64, seed=0)
    metric = ji.metrics.log_odds(pairs.answers, pairs.others)
    ji.patch(lm, pairs.clean, pairs.corrupt, metric, "z", over=("layer", "head"))
    pairs.save("ioi.jsonl");  ji.data.load("ioi.jsonl", other_lm)

Every generator of `TASKS` takes (lm, n, seed=...), leaves out words that the tokenizer splits, and gives `Pairs`. `in_context` makes
prompts with examples from pairs of words, and `sentiment` sentences to steer by. Sentences and word lists are this library's own, after
the papers that the generators name.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxinterp.data.example import Example
from jaxinterp.data.in_context import WORD_PAIRS, InContext, in_context, word_pairs
from jaxinterp.data.knowledge import facts, successor
from jaxinterp.data.language import agreement, docstring
from jaxinterp.data.load import from_hub, load
from jaxinterp.data.names import ioi, pronouns
from jaxinterp.data.numbers import greater_than
from jaxinterp.data.pairs import Pairs, pair_up
from jaxinterp.data.repetition import induction
from jaxinterp.data.sentiment import Sentiment, sentiment

TASKS: Mapping[str, Callable[..., Pairs]] = MappingProxyType(
    {
        "ioi": ioi,
        "agreement": agreement,
        "pronouns": pronouns,
        "facts": facts,
        "greater_than": greater_than,
        "induction": induction,
        "docstring": docstring,
        "successor": successor,
    }
)
"""Generators by name: TASKS["ioi"](lm, 64, seed=0)."""

__all__ = [
    "TASKS", "WORD_PAIRS", "Example", "InContext", "Pairs", "Sentiment", "agreement", "docstring", "facts", "from_hub", "greater_than",
    "in_context", "induction", "ioi", "load", "pair_up", "pronouns", "sentiment", "successor", "word_pairs",
]  # fmt: skip
