"""GridResult: what a sweep measured, on the axes of its grid, with how it was made."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.runs.provenance import RECORD
from jaxinterp.runs.statistics import Statistics, statistics


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "effects", "per_example", "clean", "corrupt"],
    meta_fields=["axes", "mode", "how", "tokens"],
)
@dataclasses.dataclass(frozen=True)
class GridResult:
    """A metric over a grid of cells; arrays have the axes of `axes`, in order.

    Attributes:
        values: the metric of each cell's run, mean over the prompts that have the cell.
        effects: "denoise": (values - corrupt) / (clean - corrupt), "noise": (values - clean) / (corrupt - clean), each a
            ratio of means over the prompts that have the cell: 1 is the other run's value, 0 no effect. Without another run:
            values - base.
        per_example: [B, ...] the metric of each prompt; NaN where a prompt does not have the cell's position.
        clean: [B], the metric of the clean run (without another run: the base run).
        corrupt: [B], that of the corrupt run, or None.
        axes: (name, labels) of each axis.
        mode: "denoise", "noise" or "sweep".
        how: how it was made: site, BOS, packed or whole runs; fingerprints of weights, prompts, base edits and metric; versions.
        tokens: token strings of the first prompt that cells run, for pictures; empty without a tokenizer.
    """

    values: Any
    effects: Any
    per_example: Any
    clean: Any
    corrupt: Any
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    mode: str
    how: tuple[tuple[str, str], ...] = ()
    tokens: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(labels)} {name}" for name, labels in self.axes)
        how = ", ".join(f"{name}={value}" for name, value in self.how if name not in RECORD)
        return f"{type(self).__name__}({shape}, {self.mode}, {how})"

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each cell: its coordinates, value and effect."""
        try:
            import pandas
        except ImportError:
            raise InputError("to_dataframe() needs pandas: pip install pandas.") from None
        names = [name for name, _ in self.axes]
        index = pandas.MultiIndex.from_product([labels for _, labels in self.axes], names=names)
        return pandas.DataFrame({"value": np.ravel(self.values), "effect": np.ravel(self.effects)}, index=index).reset_index()

    def statistics(self, *, clusters: Any = None, draws: int = 2000, flips: int = 10_000, level: float = 0.95, seed: int = 0) -> Statistics:
        """How sure each effect is: standard error, bootstrap interval, and p over the whole grid; see `runs.statistics`.

        Args:
            clusters: [B], a label for each pair, such as its template: pairs of one label are resampled together.
            draws: of the bootstrap.
            flips: of signs, where all patterns are too many.
            level: of the interval.
            seed: of draws and flips.

        Raises:
            InputError: the clean-corrupt difference is within two standard errors of zero.
        """
        return statistics(
            self.per_example, self.clean, self.corrupt, self.mode, axes=self.axes, clusters=clusters, draws=draws, flips=flips,
            level=level, seed=seed,
        )  # fmt: skip

    def view(self, title: str = "") -> Any:
        """The effects as a heat-map, diverging around 0: the last two axes, one map for each point of the axes before them."""
        from jaxinterp.views import Section, heatmap, report

        effects = np.asarray(self.effects, np.float64)
        axes: list[Any] = list(self.axes) if len(self.axes) > 1 else [("", ("",)), *self.axes]
        unit = "values - base" if self.mode == "sweep" else f"share of the clean-corrupt difference ({self.mode})"
        (rows, row_labels), (columns, column_labels) = axes[-2:]
        labels = {rows: self._shown(rows, row_labels), columns: self._shown(columns, column_labels)}
        about = {"normalisation": unit, "labels": labels}
        title = title or dict(self.how).get("site", "")
        maps = effects.reshape(-1, len(row_labels), len(column_labels))
        before = axes[:-2]
        if not before:
            return heatmap(title, maps[0], (rows, columns), **about)
        names = [" ".join(map(str, point)) for point in itertools.product(*(points for _, points in before))]
        views = tuple(heatmap(name, values, (rows, columns), **about) for name, values in zip(names, maps, strict=True))
        heading = title or " x ".join(name for name, _ in before)
        return report(heading, [Section(heading, unit, views)])

    def _shown(self, name: str, labels: tuple[Any, ...]) -> list[str]:
        """What stands along an axis: positions with their tokens where one prompt was swept."""
        tokens = self.tokens if name in ("position", "query", "key") and len(self.per_example) == 1 else ()
        return [
            f"{label} {tokens[label]}" if isinstance(label, int) and -len(tokens) <= label < len(tokens) else str(label) for label in labels
        ]

    def show(self) -> None:
        """Prints the heat-map in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors, with axes and provenance as JSON in its header), or the picture (.html, .png, .json, .txt)."""
        from safetensors.numpy import save_file

        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        about = ("axes", "mode", "how", "tokens")
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in about}
        arrays = {
            "".join((name, *map(str, path))): np.ascontiguousarray(leaf)
            for name, value in fields.items()
            for path, leaf in jax.tree_util.tree_leaves_with_path(value)
        }
        axes = json.dumps([[name, [str(x) for x in labels]] for name, labels in self.axes])
        made = {"axes": axes, "mode": self.mode, "tokens": json.dumps(self.tokens), **dict(self.how)}
        save_file(arrays, str(path), metadata=made)
        return Path(path)


def grid_result(
    values: np.ndarray, base: np.ndarray, other: np.ndarray | None, axes: tuple[tuple[str, tuple[Any, ...]], ...], mode: str,
    how: tuple[tuple[str, str], ...], tokens: tuple[str, ...] = (),
) -> GridResult:  # fmt: skip
    """A GridResult from the metric of every cell.

    Args:
        values: [C B], cells in the order of the product of `axes`.
        base: [B], the metric of the run that cells edit.
        other: [B], that of the run whose values they write; None: effects are values - base.
        axes: (name, labels) of each axis.
        mode: "denoise", "noise", or "sweep" without another run.
        how: how it was made.
        tokens: token strings of the first prompt.

    Raises:
        InputError: both runs have the same mean, so that effects have no scale.
    """
    per_example = values.T.reshape(-1, *(len(labels) for _, labels in axes))
    mean = mean_of(per_example)
    there = ~np.isnan(per_example)
    rows = (slice(None), *[None] * len(axes))
    change = mean_of(np.where(there, per_example - base[rows], np.nan))
    if other is None:
        return GridResult(mean, change, per_example, base, None, axes, mode, how, tokens)
    if float(base.mean()) == float(other.mean()):
        raise InputError(f"The metric is {base.mean():.4g} on the clean and on the corrupt prompts, so effects have no scale.")
    span = mean_of(np.where(there, (other - base)[rows], np.nan))
    sides = (other, base) if mode == "denoise" else (base, other)
    return GridResult(mean, change / np.where(span == 0, np.nan, span), per_example, *sides, axes, mode, how, tokens)


UNLIKE = {
    "weights": "they were made with other weights",
    "bos": "their BOS policies differ",
    "tokens": "the prompts that were run differ",
    "other tokens": "the prompts whose values were written differ",
    "edits": "they were made under other base edits",
    "other edits": "the base edits of their other runs differ",
    "metric": "they measure different things",
}
"""What is said of two results that differ in an entry of `how`."""


def check_comparable(a: Any, b: Any) -> None:
    """Refuse two results whose numbers do not mean the same thing, such as an estimate and what it estimates.

    Args:
        a: a result with `how` (see `runs.provenance.record`), `axes` and `mode`.
        b: another.

    Raises:
        InputError: weights, prompts, BOS, base edits, metric, mode or axes differ; the first of them.
    """
    ours, theirs = dict(a.how), dict(b.how)
    for name, reason in UNLIKE.items():
        if ours.get(name) != theirs.get(name):
            told = " and ".join(f"{how.get(name, 'not said')}" for how in (ours, theirs))
            raise InputError(f"Two results cannot be compared: {reason} ({name}: {told}).")
    if a.mode != b.mode:
        raise InputError(f"Two results cannot be compared: one is {a.mode!r} and the other {b.mode!r}.")
    if a.axes != b.axes:
        grids = (" x ".join(f"{name} ({len(labels)})" for name, labels in result.axes) for result in (a, b))
        raise InputError(f"Two results cannot be compared: their grids differ ({' and '.join(grids)}); give `over` the same indices.")


def mean_of(per_example: np.ndarray) -> np.ndarray:
    """The mean over prompts that have the cell; NaN where none has."""
    there = ~np.isnan(per_example)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, per_example, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def stacked(results: list[GridResult], name: str, labels: tuple[Any, ...]) -> GridResult:
    """Results of one grid as one, with a new first axis.

    Raises:
        InputError: their grids differ.
    """
    first = results[0]
    for label, result in zip(labels, results, strict=True):
        if result.axes != first.axes:
            raise InputError(f"The grid at {label} differs from that at {labels[0]}: give `over` as a mapping with indices that both have.")
    arrays = {field: np.stack([getattr(result, field) for result in results]) for field in ("values", "effects")}
    per_example = np.stack([result.per_example for result in results], axis=1)
    how = tuple((key, value) for key, value in first.how if key != name)
    return dataclasses.replace(first, **arrays, per_example=per_example, axes=((name, labels), *first.axes), how=how)
