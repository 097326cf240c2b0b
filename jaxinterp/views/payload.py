"""View: what a picture shows, as data. The terminal, PNG and HTML renderers read nothing else.

A payload holds numbers with named axes, the strings that stand along those axes, one sentence on what a number means
and how it was made. It goes to JSON and back; numbers travel as compressed bytes in base64, and arrays that are only
looked at (attention patterns) in 8 bits with their scale beside them.

    kind        arrays                                          what it shows
    table       one [row] array a column of numbers             rows, such as the most likely next tokens
    line        values [series, x]                              one value a layer, several series
    heatmap     values [row, column], texts [row, column]       a grid on a diverging or sequential scale
    attention   pattern [head, key] or [layer, head, query, key]  where heads look
    highlight   scores [position]                               a prompt, each token coloured by its score
    scatter     x [point], y [point]                            points, with the lines y = x and of a fit
    report      none                                            sections with headings, text and views
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.views.arrays import decode_array, encode_array

Kind = Literal["table", "line", "heatmap", "attention", "highlight", "scatter", "report"]
KINDS: tuple[str, ...] = get_args(Kind)
SCHEMA = 1
TOKEN_AXES = ("position", "query", "key")
COLUMN_KINDS = ("token", "text", "number", "percent", "signed")


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of a report: a heading, a paragraph, and views that stand side by side where there is room."""

    heading: str
    text: str = ""
    views: "tuple[View, ...]" = ()


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A picture as data. Make one with `table`, `line`, `heatmap`, `attention`, `highlight`, `scatter` or `report`.

    Attributes:
        kind: which picture.
        title: a few words.
        arrays: the numbers, by name.
        axes: for each array, the names of its axes.
        labels: for an axis (or a column of strings in a table), the string at each index.
        tokens: the prompt's token strings; axes called position, query or key without labels of their own read them.
        normalisation: what one number is, in one sentence.
        options: small settings that renderers read: the colour scale, columns, where axes end, reference lines.
        quantised: arrays that JSON may hold in 8 bits.
        provenance: how it was made: model, prompt, versions.
        sections: of a report, its parts in order.
    """

    kind: str
    title: str
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    normalisation: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quantised: tuple[str, ...] = ()
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sections: tuple[Section, ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays.items())
        return f"View({self.kind}: {self.title!r}{', ' + shapes if shapes else ''})"

    def axis_labels(self, axis: str) -> tuple[str, ...]:
        """The string at each index of an axis: its labels, the tokens, or the index itself."""
        if axis in self.labels:
            return tuple(self.labels[axis])
        if axis in TOKEN_AXES and self.tokens:
            return self.tokens
        for name, array in self.arrays.items():
            if axis in self.axes[name]:
                return tuple(map(str, range(array.shape[self.axes[name].index(axis)])))
        return ()

    def cell_texts(self) -> list[list[str]]:
        """The text of each cell of a heat-map, [row][column], empty where a cell has none; no rows where no cell has any."""
        names = (*self.labels.get("texts", ()), "")  # -1 is no text
        return [[names[code] for code in row] for row in self.arrays["texts"].tolist()] if "texts" in self.arrays else []

    def to_json(self, *, quantise: bool = True) -> str:
        """The payload as JSON text; `quantise=False` keeps every array exact."""
        return json.dumps(_to_dict(self, quantise), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "View":
        """The view that `to_json` wrote.

        Raises:
            InputError: the text is not a view, or of a newer schema than this version reads.
        """
        try:
            data = json.loads(text)
            return _from_dict(data)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"This is not a view: {type(error).__name__}: {error}.") from error

    def show(self) -> None:
        """Print the picture in the terminal."""
        from jaxinterp.views.terminal import show

        show(self)

    def save(self, path: str | Path) -> Path:
        """Write the picture; the suffix says how: .html, .png, .json or .txt. Returns the path."""
        from jaxinterp.views.render import save

        return save(self, path)

    def _repr_html_(self) -> str:
        from jaxinterp.views.html import notebook_cell

        return notebook_cell(self)


def table(title: str, columns: Mapping[str, tuple[str, Sequence[Any] | np.ndarray]], *, normalisation: str = "", **about: Any) -> View:
    """Rows with named columns, such as the most likely next tokens.

    Args:
        title: a few words.
        columns: name -> (kind, one value a row); kinds are "token", "text", "number", "percent" (0 to 1, with a bar) and "signed".
        normalisation: what the numbers are.
        about: `tokens`, `provenance`.

    Example:
        >>> table("Next token", {"token": ("token", [" Mary", " John"]), "probability": ("percent", [0.9, 0.1])})
        View(table: 'Next token', probability [2])
    """
    strings, arrays = {}, {}
    for name, (kind, values) in columns.items():
        if kind not in COLUMN_KINDS:
            raise InputError(f"Column {name!r} is of kind {kind!r}; expected one of {', '.join(COLUMN_KINDS)}.")
        if kind in ("token", "text"):
            strings[name] = tuple(map(str, values))
        else:
            arrays[name] = np.asarray(values, np.float32)
    listed = [{"name": name, "kind": kind} for name, (kind, _) in columns.items()]
    axes = dict.fromkeys(arrays, ("row",))
    return View("table", title, arrays, axes, strings, normalisation=normalisation, options={"columns": listed}, **about)


def line(
    title: str,
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    x: str = "layer",
    x_labels: Sequence[str] = (),
    normalisation: str = "",
    **about: Any,
) -> View:
    """One value at each point of an axis (usually a layer), for one or more series.

    Args:
        title: a few words.
        series: name -> values [x].
        x: what the horizontal axis is.
        x_labels: the string at each point; indices where empty.
        normalisation: what one number is; stands beside the vertical axis.
        about: `tokens`, `provenance`.
    """
    values = np.stack([np.asarray(v, np.float32) for v in series.values()])
    labels = {"series": tuple(series)} | ({x: tuple(x_labels)} if len(x_labels) else {})
    return View("line", title, {"values": values}, {"values": ("series", x)}, labels, normalisation=normalisation, **about)


def heatmap(
    title: str,
    values: np.ndarray,
    axes: tuple[str, str],
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    scale: Literal["diverging", "sequential"] = "diverging",
    limits: tuple[float, float] | None = None,
    texts: Sequence[Sequence[str]] | np.ndarray | None = None,
    normalisation: str = "",
    **about: Any,
) -> View:
    """A grid of numbers, rows by columns; NaN cells are left empty.

    Args:
        title: a few words.
        values: [row, column].
        axes: names of rows and columns, such as ("layer", "head").
        labels: strings along an axis; indices (or tokens, for position, query and key) where absent.
        scale: "diverging" is symmetric around zero, "sequential" goes from low to high.
        limits: where the colours end; from the values if None.
        texts: [row, column], a word for each cell, such as its likeliest token, which stands in the cell instead of the number
            where there is room; "" for none. Each different word is kept once.
        normalisation: what one number is.
        about: `tokens`, `provenance`.
    """
    values = np.asarray(values, np.float32)
    if scale not in ("diverging", "sequential"):
        raise InputError(f"A heatmap's scale is 'diverging' or 'sequential', not {scale!r}.")
    low, high = limits or _limits(values, scale)
    options = {"scale": {"kind": scale, "low": low, "high": high}}
    strings = {axis: tuple(map(str, names)) for axis, names in (labels or {}).items()}
    arrays = {"values": values}
    if texts is not None:
        words = [[str(word) for word in row] for row in texts]
        strings["texts"] = tuple(dict.fromkeys(word for row in words for word in row if word))
        code = {"": -1} | {word: i for i, word in enumerate(strings["texts"])}
        arrays["texts"] = np.asarray([[code[word] for word in row] for row in words], np.int32)
    return View(
        "heatmap", title, arrays, dict.fromkeys(arrays, tuple(axes)), strings, normalisation=normalisation, options=options, **about
    )


def attention(
    title: str,
    pattern: np.ndarray,
    tokens: Sequence[str],
    *,
    heads: Sequence[str] = (),
    notes: Sequence[str] = (),
    normalisation: str = "share of a query's attention: each row sums to 1",
    **about: Any,
) -> View:
    """Where heads look.

    Args:
        title: a few words.
        pattern: [head, key], the row of one query for a few heads; or [layer, head, query, key], everything.
        tokens: the prompt's token strings.
        heads: of [head, key], the name of each head, such as "23.3".
        notes: of [head, key], a few words about each head.
        normalisation: what one number is.
        about: `provenance`.
    """
    pattern = np.asarray(pattern, np.float32)
    names = {2: ("head", "key"), 4: ("layer", "head", "query", "key")}.get(pattern.ndim)
    if names is None:
        raise InputError(f"An attention view takes [head, key] or [layer, head, query, key]; got {list(pattern.shape)}.")
    labels = {name: tuple(map(str, given)) for name, given in (("head", heads), ("note", notes)) if len(given)}
    options = {"scale": {"kind": "sequential", "low": 0.0, "high": 1.0}}
    return View(
        "attention", title, {"pattern": pattern}, {"pattern": names}, labels, tuple(tokens), normalisation, options, ("pattern",), **about
    )


def highlight(
    title: str,
    scores: np.ndarray | Sequence[float],
    tokens: Sequence[str],
    *,
    signed: bool = True,
    limits: tuple[float, float] | None = None,
    normalisation: str = "",
    **about: Any,
) -> View:
    """A prompt with each token coloured by its score, and the score under it.

    Args:
        title: a few words.
        scores: [position], one a token; NaN is left without colour.
        tokens: the prompt's token strings.
        signed: colours diverge around zero, and every score shows its sign; else they go from low to high.
        limits: where the colours end; from the scores if None.
        normalisation: what one score is.
        about: `provenance`.

    Example:
        >>> highlight("Attribution", [2.1, -0.4], [" Mary", " John"])
        View(highlight: 'Attribution', scores [2])
    """
    scores = np.asarray(scores, np.float32)
    if scores.shape != (len(tokens),):
        raise InputError(f"A highlight takes one score a token: {len(tokens)} tokens and scores of shape {list(scores.shape)}.")
    kind = "diverging" if signed else "sequential"
    low, high = limits or _limits(scores, kind)
    options = {"scale": {"kind": kind, "low": low, "high": high}}
    return View("highlight", title, {"scores": scores}, {"scores": ("position",)}, {}, tuple(tokens), normalisation, options, **about)


def scatter(
    title: str,
    x: np.ndarray | Sequence[float],
    y: np.ndarray | Sequence[float],
    *,
    names: tuple[str, str] = ("x", "y"),
    labels: Sequence[str] = (),
    identity: bool = True,
    line: tuple[float, float] | None = None,
    normalisation: str = "",
    **about: Any,
) -> View:
    """Points, such as estimates against exact values.

    Args:
        title: a few words.
        x: [point], NaN is left out.
        y: [point], likewise.
        names: what x and y are.
        labels: the name of each point; indices where empty.
        identity: draws y = x, and both axes end at the same values unless one is over four times as wide.
        line: (slope, intercept) of a line to draw, such as a fit.
        normalisation: what one point is.
        about: `provenance`.

    Example:
        >>> scatter("Estimates", [0.1, 0.9], [0.2, 0.8], names=("estimate", "exact"), labels=["0.1", "0.2"], line=(0.75, 0.125))
        View(scatter: 'Estimates', x [2], y [2])
    """
    arrays = {"x": np.asarray(x, np.float32), "y": np.asarray(y, np.float32)}
    if line is not None and not np.isfinite(line).all():
        raise InputError(f"A scatter's line is a finite slope and intercept, or None; got {line}.")
    ends = {axis: _ends(values) for axis, values in arrays.items()}
    widths = [high - low for low, high in ends.values()]
    if identity and max(widths) <= 4 * min(widths):
        lows, highs = zip(*ends.values(), strict=True)
        ends = {axis: [min(lows), max(highs)] for axis in ends}
    options = {"names": list(names), "ends": ends, "identity": identity, "line": None if line is None else [float(part) for part in line]}
    strings = {"point": tuple(map(str, labels))} if len(labels) else {}
    return View("scatter", title, arrays, dict.fromkeys(arrays, ("point",)), strings, (), normalisation, options, **about)


def report(title: str, sections: Sequence[Section], **about: Any) -> View:
    """Views under headings, in order; `about` may give `provenance`."""
    return View("report", title, sections=tuple(sections), **about)


def _ends(values: np.ndarray) -> list[float]:
    """Where an axis ends: a little beyond its points."""
    finite = values[np.isfinite(values)].astype(float)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return [low - room, high + room]


def _limits(values: np.ndarray, scale: str) -> tuple[float, float]:
    """Where the colours end: symmetric for a diverging scale, zero or the minimum to the maximum for a sequential one."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (-1.0, 1.0) if scale == "diverging" else (0.0, 1.0)
    if scale == "diverging":
        most = float(np.abs(finite).max()) or 1.0
        return -most, most
    low, high = min(0.0, float(finite.min())), float(finite.max())
    return (low, high) if high > low else (low, low + 1.0)


def _check(view: View) -> None:
    """Refuse a view whose parts do not fit together."""
    if view.kind not in KINDS:
        raise InputError(f"A view's kind is one of {', '.join(KINDS)}, not {view.kind!r}.")
    sizes: dict[str, int] = {}
    for name, array in view.arrays.items():
        if name not in view.axes or len(view.axes[name]) != array.ndim:
            raise InputError(f"View {view.title!r}: array {name!r} has shape {list(array.shape)} and axes {list(view.axes.get(name, ()))}.")
        for axis, size in zip(view.axes[name], array.shape, strict=True):
            if view.kind != "table" and sizes.setdefault(axis, size) != size:
                raise InputError(
                    f"View {view.title!r}: axis {axis!r} of {name!r} has {size} entries where another array has {sizes[axis]}."
                )
            strings = view.labels.get(axis, view.tokens if axis in TOKEN_AXES else ())
            if strings and len(strings) != size:
                raise InputError(f"View {view.title!r}: axis {axis!r} of {name!r} has {size} entries and {len(strings)} labels.")
    codes = view.arrays.get("texts", np.zeros(0)) if view.kind == "heatmap" else np.zeros(0)
    words = len(view.labels.get("texts", ()))
    if codes.size and not -1 <= codes.min() <= codes.max() < words:
        raise InputError(f"View {view.title!r}: cells have texts {codes.min()} to {codes.max()}; expected -1 (none) to {words - 1}.")
    columns = [*view.arrays.values(), *view.labels.values()] if view.kind == "table" else []
    rows = {len(column) for column in columns}
    if len(rows) > 1:
        raise InputError(f"View {view.title!r}: the columns of a table have different numbers of rows: {sorted(rows)}.")


def _to_dict(view: View, quantise: bool) -> dict[str, Any]:
    """A view as what JSON holds; parts that are empty are left out."""
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": view.kind,
        "title": view.title,
        "normalisation": view.normalisation,
        "tokens": list(view.tokens),
        "labels": {axis: list(strings) for axis, strings in view.labels.items()},
        "arrays": {
            name: {"axes": list(view.axes[name])} | encode_array(array, eight_bits=quantise and name in view.quantised)
            for name, array in view.arrays.items()
        },
        "options": dict(view.options),
        "quantised": list(view.quantised),
        "provenance": dict(view.provenance),
        "sections": [
            {"heading": part.heading, "text": part.text, "views": [_to_dict(inner, quantise) for inner in part.views]}
            for part in view.sections
        ],
    }
    return {key: value for key, value in data.items() if key in ("schema", "kind", "title") or value}


def _from_dict(data: dict[str, Any]) -> View:
    """The view that `_to_dict` described."""
    if data.get("schema") != SCHEMA:
        raise InputError(f"This view has schema {data.get('schema')!r}; this version of jaxinterp reads schema {SCHEMA}.")
    arrays = data.get("arrays", {})
    return View(
        kind=data["kind"],
        title=data["title"],
        arrays={name: decode_array(name, entry) for name, entry in arrays.items()},
        axes={name: tuple(entry["axes"]) for name, entry in arrays.items()},
        labels={axis: tuple(strings) for axis, strings in data.get("labels", {}).items()},
        tokens=tuple(data.get("tokens", ())),
        normalisation=data.get("normalisation", ""),
        options=data.get("options", {}),
        quantised=tuple(data.get("quantised", ())),
        provenance=data.get("provenance", {}),
        sections=tuple(Section(part["heading"], part["text"], tuple(map(_from_dict, part["views"]))) for part in data.get("sections", ())),
    )
