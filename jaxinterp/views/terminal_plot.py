"""Bars and line plots out of characters."""

import numpy as np
from rich.text import Text

from jaxinterp.views.numbers import number
from jaxinterp.views.payload import View

HEIGHT = 14  # character rows of a line plot; each holds four rows of braille dots
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
MARKS = "ox+*#@"


def bar(fraction: float, width: int, ascii_only: bool = False) -> str:
    """A horizontal bar, to an eighth of a character."""
    fraction = min(max(fraction, 0.0), 1.0) if np.isfinite(fraction) else 0.0
    if ascii_only:
        return "#" * round(fraction * width)
    eighths = round(fraction * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def line_plot(view: View, width: int, colours: tuple[str, ...], *, ascii_only: bool = False) -> Text:
    """The series of a line view over its x axis, each named where it ends."""
    values = view.arrays["values"]
    names, points = view.axis_labels("series"), view.axis_labels(view.axes["values"][1])
    low, high = _limits(values)
    ends = [f"{name} {number(_last(row), 'signed')}" for name, row in zip(names, values, strict=True)]
    left, right = 8, max(map(len, ends)) + 2
    columns = max(min(width - left - right, 64), 8)
    if ascii_only:
        cells, owner = _marks(values, low, high, columns)
    else:
        cells, owner = _braille(values, low, high, columns)
    zero = _row(0.0, low, high) if low < 0 < high else None
    scale = {0: high, HEIGHT - 1: low} | ({zero: 0.0} if zero is not None else {})
    tags = _place_tags(ends, values, low, high)
    lines = [Text(view.normalisation, style="dim")] if view.normalisation else []
    for row in range(HEIGHT):
        rule = "|" if ascii_only else "┤" if row in scale else "│"
        text = Text((number(scale[row], "signed") if row in scale else "").rjust(left - 2) + rule + " ", style="dim")
        for column in range(columns):
            series = owner[row, column]
            if series >= 0:
                text.append(cells[row][column], style=colours[series % len(colours)])
            else:
                text.append(("-" if ascii_only else "┈") if row == zero else " ", style="dim")
        if row in tags:
            text.append(f" {ends[tags[row]]}", style=f"bold {colours[tags[row] % len(colours)]}")
        lines.append(text)
    between = max(columns - len(points[0]) - len(points[-1]), 0)
    lines.append(Text(" " * left + points[0] + view.axes["values"][1].center(between) + points[-1], style="dim"))
    return Text("\n").join(lines)


def _last(row: np.ndarray) -> float:
    """The last value that is a number."""
    finite = row[np.isfinite(row)]
    return float(finite[-1]) if finite.size else float("nan")


def _limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = (min(low, 0.0), max(high, 0.0)) if min(abs(low), abs(high)) < 2 * (high - low) else (low, high)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _row(value: float, low: float, high: float, rows: int = HEIGHT) -> int:
    """The row, counted from the top, of a value."""
    return round((high - value) / (high - low) * (rows - 1))


def _braille(values: np.ndarray, low: float, high: float, columns: int) -> tuple[list[list[str]], np.ndarray]:
    """Dots along each series; a cell that several series cross has the colour of the last."""
    bits = np.zeros((HEIGHT, columns), int)
    owner = np.full((HEIGHT, columns), -1)
    for s, row in enumerate(values):
        path = np.interp(np.linspace(0, len(row) - 1, columns * 2), np.arange(len(row)), row)
        previous = None
        for x, value in enumerate(path):
            if not np.isfinite(value):
                previous = None
                continue
            y = _row(float(value), low, high, HEIGHT * 4)
            for dot in range(min(y, previous if previous is not None else y), max(y, previous if previous is not None else y) + 1):
                bits[dot // 4, x // 2] |= DOTS[dot % 4, x % 2]
                owner[dot // 4, x // 2] = s
            previous = y
    return [[chr(0x2800 + int(b)) for b in row] for row in bits], owner


def _marks(values: np.ndarray, low: float, high: float, columns: int) -> tuple[list[list[str]], np.ndarray]:
    """One mark for each value, for terminals that only write ASCII."""
    cells = [[" "] * columns for _ in range(HEIGHT)]
    owner = np.full((HEIGHT, columns), -1)
    for s, row in enumerate(values):
        for i, value in enumerate(row):
            if np.isfinite(value):
                x, y = round(i / max(len(row) - 1, 1) * (columns - 1)), _row(float(value), low, high)
                cells[y][x], owner[y, x] = MARKS[s % len(MARKS)], s
    return cells, owner


def _place_tags(ends: list[str], values: np.ndarray, low: float, high: float) -> dict[int, int]:
    """The row at which each series' name stands: where the series ends, moved when that row is taken."""
    taken: dict[int, int] = {}
    for s in range(len(ends)):
        end = _last(values[s])
        wanted = _row(end, low, high) if np.isfinite(end) else 0
        free = sorted((abs(row - wanted), row) for row in range(HEIGHT) if row not in taken)
        if free:
            taken[free[0][1]] = s
    return taken
