"""A view as a PNG, by matplotlib (the optional extra "plot"): for papers, slides and READMEs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.views.colours import FAINT, INK, PAPER, SCALES, SERIES, colour_at, readable_on
from jaxinterp.views.numbers import cell_number, number
from jaxinterp.views.numbers import column as column_texts
from jaxinterp.views.payload import View
from jaxinterp.views.terminal import lines_of
from jaxinterp.views.tokens import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.5  # inches
MARGIN = 0.35
CHARACTER = 0.079  # width in inches of one character of the token rows
SMALL_CHARACTER = 0.057  # of one character inside a cell
LINE = "#e4e7ec"
STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK["light"],
    "text.parse_math": False,  # a token may hold a dollar sign
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT["light"],
    "xtick.color": FAINT["light"],
    "ytick.color": FAINT["light"],
    "savefig.facecolor": PAPER["light"],
}


def save_png(view: View, path: Path, dpi: int = 160) -> None:
    """Write the view as a PNG.

    Raises:
        InputError: matplotlib is not installed; the message says how to install it.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("A .png needs matplotlib: pip install 'jaxinterp[plot]'. An .html or .txt needs nothing more.") from error
    with matplotlib.rc_context(STYLE):
        blocks = list(_blocks(view))
        height = sum(block[0] for block in blocks) + 2 * MARGIN
        figure = Figure(figsize=(WIDTH, height))
        top = height - MARGIN
        for block_height, draw in blocks:
            draw(figure, (top - block_height) / height, block_height / height)
            top -= block_height
        figure.savefig(path, dpi=dpi)


Block = tuple[float, Callable[["Figure", float, float], None]]


def _blocks(view: View) -> "list[Block]":
    """What stands below each other: heights in inches and functions that draw at (bottom, height), fractions of the figure."""
    if view.kind != "report":
        return [_row((view,))]
    blocks = [_text(view.title, 15, "bold", 0.5)] if view.title else []
    for part in view.sections:
        blocks.append(_text(part.heading, 11.5, "bold", 0.42))
        for text in part.text.splitlines():
            blocks.extend(_text(wrapped, 9, "normal", 0.2, FAINT["light"]) for wrapped in _wrap(text, 112))
        if part.views and all(inner.kind == "table" for inner in part.views):
            blocks.append(_row(part.views))
        else:
            blocks.extend(_row((inner,)) for inner in part.views)
    return blocks


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def _text(text: str, size: float, weight: str, height: float, colour: str = INK["light"]) -> Block:
    def draw(figure: "Figure", bottom: float, share: float) -> None:
        figure.text(MARGIN / WIDTH, bottom + 0.3 * share, text, fontsize=size, fontweight=weight, color=colour)

    return height, draw


def _row(views: tuple[View, ...]) -> Block:
    """Views side by side in boxes of equal width, each with its title."""
    head = 0.5 if any(view.normalisation for view in views) else 0.3
    kinds = {
        "table": (_table_size, _table),
        "line": (_line_size, _line),
        "heatmap": (_heatmap_size, _heatmap),
        "attention": (_attention_size, _attention),
        "highlight": (_highlight_size, _highlight),
        "scatter": (_scatter_size, _scatter),
    }
    each = (WIDTH - 2 * MARGIN) / len(views)
    sizes = [kinds[view.kind][0](view, each - 0.3 * (len(views) > 1)) for view in views]
    height = max(size.height + size.above + size.below for size in sizes) + head + 0.3

    def draw(figure: "Figure", bottom: float, share: float) -> None:
        inch = share / height  # of the figure's height
        for i, (view, size) in enumerate(zip(views, sizes, strict=True)):
            left, top = MARGIN + i * each, bottom + share
            figure.text(left / WIDTH, top - 0.12 * inch, view.title, fontsize=9.5, fontweight="bold", va="top")
            figure.text(left / WIDTH, top - 0.3 * inch, view.normalisation, fontsize=8, color=FAINT["light"], va="top")
            low = top - (head + size.above + size.height) * inch
            axes = figure.add_axes(((left + size.left) / WIDTH, low, size.width / WIDTH, size.height * inch))
            kinds[view.kind][1](view, axes)

    return height, draw


class _Size(NamedTuple):
    """Inches of the plot itself, and of the names to its left, above and below."""

    width: float
    height: float
    left: float = 0.0
    above: float = 0.0
    below: float = 0.0


def _bare(axes: "Axes") -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def _table_size(view: View, room: float) -> _Size:
    return _Size(min(room, 5.4), 0.23 * (len(next(iter(view.labels.values()), ())) or len(next(iter(view.arrays.values()), ()))) + 0.2)


def _table(view: View, axes: "Axes") -> None:
    columns = view.options["columns"]
    names = [column["name"] for column in columns]
    rows = len(view.labels[names[0]] if names[0] in view.labels else view.arrays[names[0]])
    axes.set(xlim=(0, 1), ylim=(rows, -0.9), xticks=[], yticks=[])
    _bare(axes)
    edges = np.linspace(0, 1, len(columns) + 1)
    for left, right, column in zip(edges[:-1], edges[1:], columns, strict=True):
        numeric = column["kind"] in ("number", "signed")
        x, side = (right - 0.02, "right") if numeric else (left, "left")
        axes.text(x, -0.4, column["name"], fontsize=8, color=FAINT["light"], ha=side, va="center")
        texts = column_texts(view.arrays[column["name"]].tolist(), column["kind"]) if column["name"] in view.arrays else []
        for i in range(rows):
            at: dict[str, Any] = {"va": "center", "fontsize": 9}
            if column["kind"] in ("token", "text"):
                text = view.labels[column["name"]][i]
                if column["kind"] == "token":
                    text, at["family"] = shorten(text, 18), "DejaVu Sans Mono"
                axes.text(left, i + 0.5, text, **at)
                continue
            value = float(view.arrays[column["name"]][i])
            if numeric:
                axes.text(right - 0.02, i + 0.5, texts[i], ha="right", **at)
            else:
                middle = left + 0.4 * (right - left)
                axes.text(middle - 0.02, i + 0.5, number(value, "percent"), ha="right", **at)
                axes.barh(i + 0.5, max(min(value, 1), 0) * (right - middle - 0.03), 0.42, left=middle, color=SERIES["light"][0])
    axes.hlines(range(rows), 0, 1, color=LINE, linewidth=0.7)


def _line_size(view: View, room: float) -> _Size:
    return _Size(room - 0.3, 2.5, left=0.3, below=0.4)


def _line(view: View, axes: "Axes") -> None:
    values, x = view.arrays["values"], view.axes["values"][1]
    names, points = view.axis_labels("series"), view.axis_labels(x)
    for i, (name, row) in enumerate(zip(names, values, strict=True)):
        colour = SERIES["light"][i % len(SERIES["light"])]
        axes.plot(range(len(row)), row, color=colour, linewidth=1.8, marker="o", markersize=2.8 if len(row) <= 64 else 0, clip_on=False)
        finite = np.flatnonzero(np.isfinite(row))
        if finite.size:
            end = float(row[finite[-1]])
            text = f"  {name} {number(end, 'signed' if np.nanmin(values) < 0 else 'number')}"
            axes.text(finite[-1], end, text, color=colour, fontweight="bold", va="center", fontsize=9)
    every = max(1, -(-len(points) // 16))
    axes.set_xticks(range(0, len(points), every), [shorten(points[i], 12) for i in range(0, len(points), every)])
    axes.set_xlabel(x, fontsize=8.5)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    _bare(axes)
    axes.set_xlim(-0.4, (len(points) - 1) * 1.16 + 0.4)
    if np.nanmin(values) < 0 < np.nanmax(values):
        axes.axhline(0, color="#c3c8d1", linewidth=1, zorder=0)


def _scatter_size(view: View, room: float) -> _Size:
    return _Size(min(room - 0.6, 5.4), 3.8, left=0.6, below=0.45)


def _scatter(view: View, axes: "Axes") -> None:
    options, x, y = view.options, view.arrays["x"], view.arrays["y"]
    axes.set(xlim=options["ends"]["x"], ylim=options["ends"]["y"], xlabel=options["names"][0], ylabel=options["names"][1])
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    if options["identity"]:
        axes.axline((0, 0), slope=1, color=FAINT["light"], linewidth=1.2, linestyle=(0, (4, 3)), label="y = x")
    axes.scatter(x, y, s=7 if len(x) > 500 else 16, color=SERIES["light"][0], alpha=0.65, linewidths=0, zorder=2)
    if options["line"]:
        slope, intercept = options["line"]
        name = f"y = {number(slope)} x {'−' if intercept < 0 else '+'} {number(abs(intercept))}"
        axes.axline((0, intercept), slope=slope, color=SERIES["light"][1], linewidth=1.4, label=name)
    if options["identity"] or options["line"]:
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    _bare(axes)


def _colour_map(kind: str) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(kind, SCALES[kind]["light"])


def _heatmap_size(view: View, room: float) -> _Size:
    rows, columns = view.arrays["values"].shape
    return _Size(min(room - 0.5, max(0.6 * columns, 2.0)), min(max(0.19 * rows, 0.8), 9.0), left=0.5, above=0.45)


def _heatmap(view: View, axes: "Axes") -> None:
    values, scale = view.arrays["values"], view.options["scale"]
    colours = _colour_map(scale["kind"])
    image = axes.imshow(values, cmap=colours, vmin=scale["low"], vmax=scale["high"], aspect="auto", interpolation="nearest")
    for axis, name, set_ticks in zip((0, 1), view.axes["values"], (axes.set_yticks, axes.set_xticks), strict=True):
        labels = view.axis_labels(name)
        every = max(1, -(-len(labels) // 40))
        slanted = {"rotation": 45, "ha": "left"} if axis == 1 and max(map(len, labels), default=0) > 4 else {}
        set_ticks(range(0, len(labels), every), [shorten(labels[i], 12) for i in range(0, len(labels), every)], fontsize=7.5, **slanted)
    axes.set_ylabel(view.axes["values"][0], fontsize=8.5)
    axes.set_xlabel(view.axes["values"][1], fontsize=8.5)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    _bare(axes)
    largest = max(abs(scale["low"]), abs(scale["high"]))
    words = view.cell_texts()
    if values.shape[1] <= 16 and words:
        room = int(axes.get_position().width * WIDTH / values.shape[1] / SMALL_CHARACTER)
        for (i, j), cell in np.ndenumerate(values):
            value = float(cell)
            paper = (
                colour_at((value - scale["low"]) / (scale["high"] - scale["low"]), scale["kind"]) if np.isfinite(value) else (255, 255, 255)
            )
            at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "family": "DejaVu Sans Mono"}
            axes.text(j, i, shorten(words[i][j], room) if words[i][j] else "", color=np.array(readable_on(paper)) / 255, **at)
    elif values.shape[1] <= 16 and largest < 1000:
        for (i, j), cell in np.ndenumerate(values):
            value = float(cell)
            if np.isfinite(value):
                ink = readable_on(colour_at((value - scale["low"]) / (scale["high"] - scale["low"]), scale["kind"]))
                text = cell_number(value, largest, scale["kind"] == "diverging")
                alpha = 0.45 if abs(value) < 0.08 * largest else 1.0
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=np.array(ink) / 255, alpha=alpha)
    if values.shape[1] > 16 or largest >= 1000 or words:
        axes.figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)


def _attention_size(view: View, room: float) -> _Size:
    shape = view.arrays["pattern"].shape
    if len(shape) == 2:
        return _Size(room, 0.3 * shape[0] * (len(_lines_of_words(view)) + 0.25))
    width = min(room - 0.4, 8.0 * shape[1] / shape[0])
    return _Size(width, width * shape[0] / shape[1], left=0.4, above=0.35)


def _lines_of_words(view: View) -> list[list[int]]:
    """Key positions of each line of text that the token rows take."""
    room = int((WIDTH - 2 * MARGIN - 1.3) / CHARACTER)
    lines: list[list[int]] = [[]]
    used = 0
    for k, token in enumerate(view.tokens):
        width = len(shorten(token, 16)) + 1
        if lines[-1] and used + width > room:
            lines.append([])
            used = 0
        lines[-1].append(k)
        used += width
    return lines


def _attention(view: View, axes: "Axes") -> None:
    axes.set(xticks=[], yticks=[])
    _bare(axes)
    if view.arrays["pattern"].ndim == 4:
        _all_heads(view, axes)
        return
    pattern, lines = view.arrays["pattern"], _lines_of_words(view)
    per_head = len(lines) + 0.25
    axes.set(xlim=(0, WIDTH - 2 * MARGIN), ylim=(per_head * len(pattern), 0))
    for h, name in enumerate(view.axis_labels("head")):
        top = h * per_head + 0.5
        axes.text(0, top, name, fontweight="bold", va="center")
        if "note" in view.labels:
            axes.text(0.45, top, view.labels["note"][h], color=FAINT["light"], va="center", fontsize=8.5)
        for row, positions in enumerate(lines):
            x = 1.3
            for k in positions:
                shown, share = shorten(view.tokens[k], 16), float(pattern[h, k])
                width = (len(shown) + 0.7) * CHARACTER
                colour = colour_at(share, "sequential") if share > 0.01 else (255, 255, 255)
                axes.fill_between([x, x + width], top + row - 0.42, top + row + 0.42, color=np.array(colour) / 255, linewidth=0)
                ink = np.array(readable_on(colour)) / 255
                axes.text(x + width / 2, top + row, shown, family="DejaVu Sans Mono", fontsize=8.5, ha="center", va="center", color=ink)
                x += width + 0.3 * CHARACTER


def _all_heads(view: View, axes: "Axes") -> None:
    """Every head's pattern as a small square, layers down and heads across; the square root of the share is coloured."""
    pattern = view.arrays["pattern"]
    layers, heads, queries, keys = pattern.shape
    canvas = np.full((layers, queries + 1, heads, keys + 1), np.nan, np.float32)
    canvas[:, :queries, :, :keys] = np.sqrt(np.clip(pattern, 0, 1)).transpose(0, 2, 1, 3)
    picture = canvas.reshape(layers * (queries + 1), heads * (keys + 1))
    axes.imshow(picture, cmap=_colour_map("sequential"), vmin=0, vmax=1, interpolation="antialiased")
    axes.set_yticks([(i + 0.5) * (queries + 1) for i in range(layers)], view.axis_labels("layer"), fontsize=7.5)
    axes.set_xticks([(i + 0.5) * (keys + 1) for i in range(heads)], view.axis_labels("head"), fontsize=7.5)
    axes.xaxis.tick_top()
    axes.set_ylabel("layer", fontsize=8.5)
    axes.set_xlabel("head", fontsize=8.5)
    axes.xaxis.set_label_position("top")


def _highlight_lines(view: View) -> tuple[list[str], list[list[int]]]:
    """The scores as texts, and the positions of each line."""
    style = "signed" if view.options["scale"]["kind"] == "diverging" else "number"
    texts = column_texts(view.arrays["scores"].tolist(), style)
    room = int((WIDTH - 2 * MARGIN) / CHARACTER)
    return texts, lines_of(view.tokens, texts, room)


def _highlight_size(view: View, room: float) -> _Size:
    return _Size(room, 0.46 * len(_highlight_lines(view)[1]))


def _highlight(view: View, axes: "Axes") -> None:
    scale, (texts, lines) = view.options["scale"], _highlight_lines(view)
    axes.set(xticks=[], yticks=[], xlim=(0, WIDTH - 2 * MARGIN), ylim=(len(lines), 0))
    _bare(axes)
    for row, positions in enumerate(lines):
        x = 0.0
        for p in positions:
            shown, value = shorten(view.tokens[p], 20), float(view.arrays["scores"][p])
            width = (max(len(shown), len(texts[p])) + 0.6) * CHARACTER
            there = np.isfinite(value)
            colour = colour_at((value - scale["low"]) / (scale["high"] - scale["low"]), scale["kind"]) if there else (255, 255, 255)
            axes.fill_between([x, x + width], row + 0.06, row + 0.56, color=np.array(colour) / 255, linewidth=0)
            ink = np.array(readable_on(colour)) / 255
            at: dict[str, Any] = {"ha": "center", "va": "center", "family": "DejaVu Sans Mono"}
            axes.text(x + width / 2, row + 0.31, shown, fontsize=8.5, color=ink, **at)
            axes.text(x + width / 2, row + 0.75, texts[p] if there else "", fontsize=7, color=FAINT["light"], **at)
            x += width + 0.4 * CHARACTER
