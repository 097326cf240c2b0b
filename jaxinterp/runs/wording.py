"""The text of new tokens: what they add to their prompt, what of it is certain while more come, and where a stop string ends it."""

from collections.abc import Sequence

from jaxinterp.model.language_model import TokenizerProtocol

CONTEXT = 8
"""Tokens of the prompt that are decoded with the new ones: a tokenizer may write a token in another way where a text begins."""

INCOMPLETE = "\ufffd"


class Wording:
    """Decodes the new tokens of one row."""

    def __init__(self, tokenizer: TokenizerProtocol, prompt: Sequence[int], stops: Sequence[str], stop_ids: Sequence[int]) -> None:
        self._tokenizer, self._stops, self._stop_ids = tokenizer, tuple(stops), set(stop_ids)
        self._context = [int(index) for index in prompt[-CONTEXT:]]
        self._before = tokenizer.decode(self._context).rstrip(INCOMPLETE)

    def text(self, ids: Sequence[int]) -> str:
        """What new tokens add to the prompt, without the token or the string that ended it."""
        whole = self._decoded(ids)
        ends = [whole.find(stop) for stop in self._stops if stop in whole]
        return whole[: min(ends)] if ends else whole

    def certain(self, ids: Sequence[int]) -> str:
        """The beginning of the text that no later token can change: no broken character, and no beginning of a stop string."""
        whole = self.text(ids)
        if any(stop in self._decoded(ids) for stop in self._stops):
            return whole
        whole = whole.rstrip(INCOMPLETE)
        held = max((n for stop in self._stops for n in range(1, len(stop)) if whole.endswith(stop[:n])), default=0)
        return whole[: len(whole) - held]

    def end(self, ids: Sequence[int], checked: int) -> int | None:
        """How many tokens it takes until the text holds a stop string, or None; the first `checked` have none."""
        if not self._stops or not any(stop in self._decoded(ids) for stop in self._stops):
            return None
        return next((n for n in range(checked + 1, len(ids)) if any(stop in self._decoded(ids[:n]) for stop in self._stops)), len(ids))

    def _decoded(self, ids: Sequence[int]) -> str:
        real = [int(index) for index in ids]
        ended = next((n for n, index in enumerate(real) if index in self._stop_ids), len(real))
        whole = self._tokenizer.decode(self._context + real[:ended])
        return whole[len(self._before) :] if whole.startswith(self._before) else self._tokenizer.decode(real[:ended])
