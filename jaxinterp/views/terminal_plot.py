"""Bars, line plots and scatters out of characters."""

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


def scatter_plot(view: View, width: int, colours: tuple[str, ...], *, ascii_only: bool = False) -> Text:
    """Points over the lines of a scatter: y = x faint and dotted, the other line in the second colour."""
    (name, above), ends, line = view.options["names"], view.options["ends"], view.options["line"]
    scale = {0: number(ends["y"][1], "signed"), HEIGHT - 1: number(ends["y"][0], "signed")}
    left, styles = max(6, *map(len, scale.values())), ("dim", colours[1], colours[0])
    columns = max(min(width - left - 2, 64), 8)
    cells, owner = _points(view, columns, ascii_only)
    lines = [Text(above, style="dim")]
    for row in range(HEIGHT):
        rule = "|" if ascii_only else "┤" if row in scale else "│"
        text = Text(scale.get(row, "").rjust(left) + rule + " ", style="dim")
        for cell, layer in zip(cells[row], owner[row].tolist(), strict=True):
            text.append(cell, style=styles[layer])
        lines.append(text)
    margin, (first, last) = " " * (left + 2), (number(end, "signed") for end in ends["x"])
    lines.append(Text(margin + first + name.center(max(columns - len(first) - len(last), 0)) + last, style="dim"))
    known = Text(margin)
    if view.options["identity"]:
        known.append(f"{'..' if ascii_only else '⠂⠂'} y = x   ", style="dim")
    if line:
        sign = "−" if line[1] < 0 else "+"
        known.append(f"{'--' if ascii_only else '⠒⠒'} y = {number(line[0])} x {sign} {number(abs(line[1]))}", style=colours[1])
    return Text("\n").join([*lines, known] if known.plain.strip() else lines)


def _points(view: View, columns: int, ascii_only: bool) -> tuple[list[list[str]], np.ndarray]:
    """The character of each cell of a scatter, and what is on top there: 0 the line y = x, 1 the other line, 2 points, ● several."""
    ends, line = view.options["ends"], view.options["line"]
    wide, high = (columns, HEIGHT) if ascii_only else (2 * columns, 4 * HEIGHT)
    across, none = np.linspace(ends["x"][0], ends["x"][1], wide), np.zeros(0)
    identity = across[::3] if view.options["identity"] else none
    fit = (across, line[0] * across + line[1]) if line else (none, none)
    bits, owner = np.zeros((HEIGHT, columns), int), np.zeros((HEIGHT, columns), int)
    cells = [[" "] * columns for _ in range(HEIGHT)]
    for layer, (x, y) in enumerate(((identity, identity), fit, (view.arrays["x"], view.arrays["y"]))):
        for i, up in zip(_steps(x, ends["x"], wide), _steps(y, ends["y"], high), strict=True):
            if i < 0 or up < 0:
                continue
            j = high - 1 - up
            row, column = j * HEIGHT // high, i * columns // wide
            bits[row, column] |= DOTS[j % 4, i % 2]
            if layer == 2:  # a dot would be lost among those of the lines
                mark = "o" if ascii_only else "●" if owner[row, column] == 2 else "•"
            else:
                mark = ".-"[layer] if ascii_only else chr(0x2800 + int(bits[row, column]))
            cells[row][column] = mark
            owner[row, column] = layer
    return cells, owner


def _steps(values: np.ndarray, ends: list[float], size: int) -> list[int]:
    """The step, from 0 to size - 1, of each value between the ends; -1 for what is not a number or beyond."""
    place = (np.asarray(values, float) - ends[0]) / (ends[1] - ends[0]) * (size - 1)
    inside = np.isfinite(place) & (place >= 0) & (place <= size - 1)
    return np.where(inside, np.rint(place), -1).astype(int).tolist()


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
