"""monitor: how far every token of a conversation lies along a direction, message by message.

    projection(t) = x_l(t) . v_l / |v_l|        cosine(t) = projection(t) / |x_l(t)|

Tracking a trait along its direction, as with persona vectors (Chen et al. 2025, arXiv:2507.21509). Exact; one forward pass, up to the
layer that is read, and none where a generation has captured the site. Means are over a message's own tokens, without those of the chat
template and without the first token of a text, a sink whose norm is a hundred times the others'. Misleads: the projection has no zero
of its own, so compare messages, or give a threshold that held-out texts have shown; and it reads what the direction holds, topic and
style included.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from jaxinterp.errors import InputError
from jaxinterp.methods.results import How, frame, write
from jaxinterp.methods.steering.vector import SteeringVector
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.selection import at
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.generation import Generation
from jaxinterp.runs.provenance import fingerprint_of_weights
from jaxinterp.runs.run import run

Kind = Literal["projection", "cosine"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scores", "means", "spans"],
    meta_fields=["roles", "strings", "layer", "kind", "threshold", "how"],
)
@dataclasses.dataclass(frozen=True)
class Monitor:
    """Where tokens and messages lie along a direction.

    Attributes:
        scores: [B P], of each token at its own position; NaN after a text's end.
        means: [B n], of each message; NaN where a conversation has fewer.
        spans: [B n 2], positions where each message begins and ends (end exclusive), -1 where there is none.
        roles: of each message: "user", "assistant" ...; "text" of a plain text; "prompt" and "new" of a generation.
        strings: the tokens of each text.
        layer: which layer was read.
        kind: "projection" or "cosine".
        threshold: over which a message is flagged, or None.
        how: how it was made.
    """

    scores: Any
    means: Any
    spans: Any
    roles: tuple[str, ...]
    strings: tuple[tuple[str, ...], ...]
    layer: int
    kind: str
    threshold: float | None
    how: How = ()

    @property
    def flags(self) -> Any:
        """[B n] bool: messages whose mean is over the threshold; none without one."""
        means = np.asarray(self.means)
        return np.zeros(means.shape, bool) if self.threshold is None else np.nan_to_num(means, nan=-np.inf) > self.threshold

    def _rows(self) -> list[tuple[int, int]]:
        """(conversation, message) of every message that there is."""
        return [(int(row), int(turn)) for row, turn in np.argwhere(np.asarray(self.spans)[:, :, 0] >= 0)]

    def turns(self, text: int | None = None) -> dict[str, list[Any]]:
        """What there is of each message, of one text or of all: text, turn, role, tokens, mean, highest score, its token, and flag."""
        names = ("text", "turn", "role", "tokens", "mean", "highest", "at", "flag")
        out: dict[str, list[Any]] = {name: [] for name in names}
        scores, means, spans, flags = (np.asarray(each) for each in (self.scores, self.means, self.spans, self.flags))
        for row, turn in self._rows():
            if text is not None and row != text:
                continue
            begin, end = spans[row, turn].tolist()
            inside = scores[row, begin:end]
            top = begin + int(inside.argmax())
            shown = self.strings[row][top] if self.strings else str(top)
            entry = (row, turn, self.roles[turn], end - begin, float(means[row, turn]), float(inside.max()), shown, bool(flags[row, turn]))
            for name, value in zip(names, entry, strict=True):
                out[name].append(value)
        return out

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each message."""
        return frame(self.turns())

    def view(self, title: str = "Along the direction") -> Any:
        """Each text with its tokens coloured, its messages as a table, and the means over its turns as a line."""
        from jaxinterp.views import Section, highlight, line, report, table

        unit = f"{self.kind} at layer {self.layer}" + ("" if self.threshold is None else f"; flagged over {self.threshold:g}")
        scores = np.asarray(self.scores, np.float64)
        largest = float(np.nanmax(abs(scores[:, 1:]), initial=0)) or 1.0
        sections = []
        for row in range(len(scores)):
            told = self.turns(row)
            strings = self.strings[row] if self.strings else [str(i) for i in range(int((~np.isnan(scores[row])).sum()))]
            views: list[Any] = [highlight("Tokens", scores[row, : len(strings)], strings, limits=(-largest, largest), normalisation=unit)]
            names = [f"{turn} {role}" for turn, role in zip(told["turn"], told["role"], strict=True)]
            if len(names) > 1:
                views.append(line("Means over the turns", {"mean": told["mean"]}, x="turn", x_labels=names, normalisation=unit))
            columns: dict[str, Any] = {"message": ("text", names), "mean": ("signed", told["mean"]), "highest": ("signed", told["highest"])}
            columns |= {"at": ("token", told["at"]), "": ("text", ["flagged" if flag else "" for flag in told["flag"]])}
            views.append(table("Messages", columns, normalisation=unit))
            sections.append(Section(f"Text {row}" if len(scores) > 1 else "", "", tuple(views)))
        return report(
            title, sections, provenance={"site": dict(self.how)["site"], "layer": str(self.layer), "vector": dict(self.how)["vector"]}
        )

    def show(self) -> None:
        """Prints the picture in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors, with roles and provenance in its header), or the picture (.html, .png, .json, .txt)."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        about = {name: getattr(self, name) for name in ("roles", "strings", "layer", "kind", "threshold")}
        return write(path, {"scores": self.scores, "means": self.means, "spans": self.spans}, about, self.how)

    def __repr__(self) -> str:
        shown = ", ".join(f"{self.roles[turn]} {float(np.asarray(self.means)[row, turn]):+.3g}" for row, turn in self._rows()[:4])
        more = len(self._rows()) - 4
        flagged = f"; {int(self.flags.sum())} flagged" if self.threshold is not None else ""
        return f"Monitor({self.kind} at layer {self.layer}: {shown}{f' and {more} more' if more > 0 else ''}{flagged})"


def monitor(
    lm: LanguageModel, texts: Any, vector: SteeringVector, *, layer: int | None = None, kind: Kind = "projection",
    threshold: float | None = None, edits: Sequence[Edit] | Edit = (), bos: str | bool = "model", precision: str | None = "highest",
    force: bool = False,
) -> Monitor:  # fmt: skip
    """Scores every token of texts, of conversations or of what a model has written along a direction.

    Args:
        lm: the model.
        texts: a conversation ([{"role": "user", "content": ...}, ...]) or several; a text or several, `Tokens`, or ids; or a
            `Generation`, of which the captured site is read, as the steered model held it, or else a plain run of its tokens.
        vector: the direction.
        layer: which of its layers; may be left out where it has one.
        kind: "projection", in the site's own units, or "cosine", from -1 to 1.
        threshold: over which the mean of a message is flagged.
        edits: of the run.
        bos: as for `run`, of plain texts.
        precision: as for `run`.
        force: as for `SteeringVector.check`.

    Returns:
        A Monitor: `.scores` [B P], `.means` [B n] of each message, `.flags`, `.view()`.

    Raises:
        InputError: another model's vector, a layer that it lacks, an unknown kind, or edits with a generation that captured the site.

    Example:
        >>> talk = [{"role": "user", "content": "I had such a lovely day!"}, {"role": "assistant", "content": "How dreadful for you."}]
        >>> found = ji.steering.monitor(lm, talk, ji.steering.sentiment_vector(lm), layer=12)
        >>> found.means[0, 0] > found.means[0, 1]
        True
    """
    vector.check(lm, force=force)
    if kind not in ("projection", "cosine"):
        raise InputError(f"monitor(): kind is {kind!r}; expected 'projection' or 'cosine'.")
    if layer is None and len(vector.layers) > 1:
        raise InputError(f"monitor() reads one layer, and this vector has {len(vector.layers)}: name one with layer=.")
    own = vector if layer is None else vector.at(layer)
    (layer,), direction = own.layers, np.asarray(own.values, np.float64).reshape(-1)
    captured = None
    if isinstance(texts, Generation):
        tokens, captured = texts.tokens, _captured(texts, vector.site, layer)
        if captured is not None and edits:
            raise InputError("monitor(): this generation has captured the site, so edits cannot act any more: steer it in ji.generate().")
    else:
        tokens = lm.chat(texts) if _is_chat(texts) else lm.to_tokens(texts, bos=bos)
    if captured is None:
        sites: Any = {vector.site: at(layer=[layer])}
        captured = run(lm, tokens, sites=sites, edits=edits, stop=layer + 1, precision=precision)[vector.site][0]
    scores = _scores(np.asarray(captured, np.float64), np.asarray(tokens.mask), direction, kind)
    spans, roles = _messages(tokens, texts)
    means = np.asarray(
        [[scores[row, begin:end].mean() if end > begin else np.nan for begin, end in turns] for row, turns in enumerate(spans)]
    )
    strings = () if lm.tokenizer is None else tuple(map(tuple, lm.to_strings(tokens)))
    how = (
        ("site", vector.site), ("vector", dict(vector.how).get("method", "directions")), ("weights", fingerprint_of_weights(lm.params)),
        ("bos", tokens.bos),
    )  # fmt: skip
    return Monitor(scores, means, spans, roles, strings, layer, kind, threshold, how)


def _is_chat(texts: Any) -> bool:
    """Whether these are messages, or conversations of them."""
    first = texts[0] if isinstance(texts, list | tuple) and texts else None
    return isinstance(first, Mapping) or (isinstance(first, list | tuple) and bool(first) and isinstance(first[0], Mapping))


def _captured(generation: Generation, site: str, layer: int) -> np.ndarray | None:
    """[B P ...]: what a generation has captured of a layer, if it has captured all of it."""
    trace = generation.trace
    if trace is None or site not in trace or layer not in trace.layers_of(site):
        return None
    axes = dict(trace.axes)[site]
    if any(letter.islower() for letter in axes.removeprefix("l").removeprefix("L")):
        return None
    value = np.asarray(trace[site])
    return value[trace.layers_of(site).index(layer)] if axes[0] in "Ll" else value


def _scores(value: Float[np.ndarray, "B P ..."], mask: np.ndarray, direction: np.ndarray, kind: str) -> Float[np.ndarray, "B P"]:
    """Scores by position: those of a text's own tokens first, then NaN."""
    flat = value.reshape(*value.shape[:2], -1)
    along = flat @ direction / np.linalg.norm(direction)
    if kind == "cosine":
        size = np.linalg.norm(flat, axis=-1)
        along = along / np.where(size == 0, 1, size)
    order = np.argsort(~mask, axis=1, kind="stable")
    found = np.where(np.take_along_axis(mask, order, axis=1), np.take_along_axis(along, order, axis=1), np.nan)
    return found[:, : int(mask.sum(axis=1).max())]


def _mean(scores: np.ndarray, begin: int, end: int) -> float:
    return float(scores[begin:end].mean()) if end > begin else np.nan


def _messages(tokens: Tokens, texts: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Where messages begin and end, and their roles; a plain text is one message, without its first token."""
    lengths = np.asarray(tokens.lengths)
    first = np.minimum(1, lengths - 1)
    if tokens.spans is not None:
        spans, roles = np.asarray(tokens.spans), tokens.roles
        if isinstance(texts, Generation):
            spans, roles = np.concatenate([spans, _new(texts, lengths)], axis=1), (*roles, "new")
        return spans, roles
    if isinstance(texts, Generation):
        new = _new(texts, lengths)
        return np.concatenate([np.stack([first, new[:, 0, 0]], axis=1)[:, None], new], axis=1), ("prompt", "new")
    return np.stack([first, lengths], axis=1)[:, None], ("text",)


def _new(generation: Generation, lengths: np.ndarray) -> np.ndarray:
    """[B 1 2]: where the new tokens of a generation stand."""
    return np.stack([lengths - np.asarray(generation.lengths), lengths], axis=1)[:, None]
