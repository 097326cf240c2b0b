"""Generation: what `ji.generate` returns."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.model.tokens import Tokens

How = tuple[tuple[str, str], ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["ids", "lengths", "log_probabilities", "tokens", "trace", "scores"],
    meta_fields=["text", "ended", "strings", "how"],
)
@dataclasses.dataclass(frozen=True)
class Generation:
    """New tokens of each prompt, and what the model held while it wrote them.

    Attributes:
        ids: [B N] int32, the new tokens, the one that ended a text included; 0 after a row's end.
        lengths: [B] int32, how many of them each row has.
        log_probabilities: [B N], of each new token under the model itself (nats), whatever it was sampled by; NaN after a row's end.
        tokens: prompts and new tokens, padded on the left; `ji.run(lm, result.tokens)` runs the same texts.
        trace: a Trace of captured sites of every token of `tokens`, or None where no site was asked for.
        scores: [B N V], what each token was chosen by: logits after penalties, temperature and filters; None unless asked for.
        text: the new text of each prompt, without the stop token or stop string that ended it; () without a tokenizer.
        ended: what ended each row: "length", "stop token" or "stop string".
        strings: the display strings of each row's new tokens; () without a tokenizer.
        how: how it was made.
    """

    ids: Any
    lengths: Any
    log_probabilities: Any
    tokens: Tokens
    trace: Any
    scores: Any
    text: tuple[str, ...]
    ended: tuple[str, ...]
    strings: tuple[tuple[str, ...], ...]
    how: How = ()

    def __repr__(self) -> str:
        batch, steps = self.ids.shape
        first = f": {self.text[0][:60]!r}" if self.text else ""
        return f"Generation({batch} x {steps} new tokens{first}{' ...' if batch > 1 or (self.text and len(self.text[0]) > 60) else ''})"

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each new token: its prompt, step, id, string and log-probability."""
        try:
            import pandas
        except ImportError:
            raise InputError("to_dataframe() needs pandas: pip install pandas.") from None
        prompt, step = np.nonzero(np.arange(self.ids.shape[1])[None] < np.asarray(self.lengths)[:, None])
        columns = {"prompt": prompt, "step": step, "id": np.asarray(self.ids)[prompt, step]}
        if self.strings:
            columns["token"] = [self.strings[row][number] for row, number in zip(prompt, step, strict=True)]
        return pandas.DataFrame(columns | {"log_probability": np.asarray(self.log_probabilities)[prompt, step]})

    def save(self, path: str | Path) -> Path:
        """Writes ids, lengths, log-probabilities, all tokens, scores and captured sites as safetensors, texts and how in its header."""
        import json

        from safetensors.numpy import save_file

        arrays = {name: getattr(self, name) for name in ("ids", "lengths", "log_probabilities", "scores")}
        arrays |= {"tokens": self.tokens.ids, "mask": self.tokens.mask}
        arrays |= {f"value.{site}": value for site, value in (self.trace.activations if self.trace else {}).items()}
        made = {"text": json.dumps(self.text), "ended": json.dumps(self.ended), **dict(self.how)}
        found = {name: np.ascontiguousarray(np.asarray(value)) for name, value in arrays.items() if value is not None}
        save_file(found, str(path), metadata=made)
        return Path(path)
