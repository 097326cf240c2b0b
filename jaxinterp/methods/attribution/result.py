"""InputAttribution: signed scores of a prompt's tokens, with the numbers that say how far to trust them."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxinterp.errors import InputError

if TYPE_CHECKING:
    from jaxinterp.views import View


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scores", "values", "baseline", "total", "spread", "tokens"],
    meta_fields=["method", "unit", "signed", "how", "strings"],
)
@dataclasses.dataclass(frozen=True)
class InputAttribution:
    """What each token of each prompt contributes to a metric.

    Attributes:
        scores: [B P], one number a token; NaN at padding, and where a method has no score for a token.
        values: [B], the metric of each prompt; None where a method was given no metric.
        baseline: [B], the metric of the run that the prompt is held against; None where there is no such run.
        total: [B], what a prompt's scores sum to if the method's promise is kept; None where it makes none.
        spread: [B P], the standard error of each score, where scores come from samples; else None.
        tokens: the prompts.
        method: which method.
        unit: what one score is, in a few words.
        signed: whether scores have a sign; else they say how much, and not in which direction.
        how: how it was made.
        strings: the tokens of each prompt, without padding.
    """

    scores: Any
    values: Any
    baseline: Any
    total: Any
    spread: Any
    tokens: Any
    method: str
    unit: str
    signed: bool
    how: tuple[tuple[str, str], ...]
    strings: tuple[tuple[str, ...], ...]

    @property
    def error(self) -> Any:
        """[B]: what the scores miss of the sum that they promise, total - sum of scores, in the metric's units; None without a promise."""
        return None if self.total is None else np.asarray(self.total) - np.nansum(np.asarray(self.scores, np.float64), axis=1)

    @property
    def relative_error(self) -> Any:
        """[B]: |error| / |total|: 0.01 is 1 %."""
        error = self.error
        if error is None:
            return None
        return np.abs(error) / np.maximum(np.abs(np.asarray(self.total)), np.finfo(np.float64).tiny)

    def of(self, prompt: int = 0) -> np.ndarray:
        """The scores of one prompt's tokens, without padding."""
        return np.asarray(self.scores)[prompt][np.asarray(self.tokens.mask)[prompt]]

    def top(self, k: int = 5, prompt: int = 0) -> list[tuple[int, str, float]]:
        """The k tokens of a prompt with the largest scores of either sign: (position, string, score)."""
        scores = self.of(prompt)
        order = np.argsort(-np.abs(np.nan_to_num(scores)), kind="stable")[:k]
        return [(int(p), self.strings[prompt][p], float(scores[p])) for p in order]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each token: prompt, position, token, score."""
        try:
            import pandas
        except ImportError:
            raise InputError("to_dataframe() needs pandas: pip install pandas.") from None
        rows = [
            (prompt, position, token, score)
            for prompt, words in enumerate(self.strings)
            for position, (token, score) in enumerate(zip(words, self.of(prompt).tolist(), strict=True))
        ]
        return pandas.DataFrame(rows, columns=["prompt", "position", "token", "score"])

    def view(self, prompt: int | None = None, title: str = "") -> "View":
        """The prompt with its tokens coloured by score; of several prompts a report, unless one is chosen."""
        from jaxinterp.views import Section, highlight, report

        title = title or self.method.replace("_", " ")
        many = len(self.strings) > 1 and prompt is None
        chosen = range(len(self.strings)) if many else [prompt or 0]
        views = [
            highlight(
                f"prompt {i}" if many else title, self.of(i), self.strings[i], signed=self.signed, normalisation=self._sentence(i),
                provenance=dict(self.how) if not many else {},
            )
            for i in chosen
        ]  # fmt: skip
        return report(title, [Section(title, self.unit, tuple(views))], provenance=dict(self.how)) if many else views[0]

    def _sentence(self, prompt: int) -> str:
        """What a score is, and what the scores of this prompt add up to."""
        parts = [self.unit]
        if self.values is not None:
            parts.append(f"metric {float(self.values[prompt]):+.4g}")
        if self.baseline is not None:
            parts.append(f"baseline {float(self.baseline[prompt]):+.4g}")
        if (error := self.relative_error) is not None:
            parts.append(f"completeness error {100 * float(error[prompt]):.2g} %")
        return "; ".join(parts)

    def show(self) -> None:
        """Prints the coloured tokens in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors, with method, tokens and provenance in its header), or the picture (.html, .png, .json, .txt)."""
        from safetensors.numpy import save_file

        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        named = {name: getattr(self, name) for name in ("scores", "values", "baseline", "total", "spread")}
        named |= {"ids": self.tokens.ids, "mask": self.tokens.mask}
        about = {"method": self.method, "unit": self.unit, "signed": str(self.signed), "strings": json.dumps(self.strings)}
        arrays = {name: np.ascontiguousarray(np.asarray(value)) for name, value in named.items() if value is not None}
        save_file(arrays, str(path), metadata=about | dict(self.how))
        return Path(path)

    def __repr__(self) -> str:
        batch, positions = np.shape(self.scores)
        parts = [f"{batch} prompt{'s' * (batch != 1)} x {positions} tokens"]
        for name, value in (("metric", self.values), ("baseline", self.baseline)):
            parts += [] if value is None else [f"{name} {float(np.mean(np.asarray(value))):.4g}"]
        error = self.relative_error
        parts += [] if error is None else [f"completeness error {100 * float(error.max()):.2g} %"]
        return f"InputAttribution({self.method}: {'; '.join(parts)}; {', '.join(f'{key}={value}' for key, value in self.how)})"
