"""Pictures in the terminal, by rich: colour where there is colour, the same facts in characters where there is none."""

import os
from collections.abc import Callable, Iterator

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from jaxinterp.views.colours import SERIES, Theme, colour_at, readable_on
from jaxinterp.views.numbers import cell_number, number
from jaxinterp.views.numbers import column as column_texts
from jaxinterp.views.payload import View
from jaxinterp.views.terminal_plot import bar, line_plot, scatter_plot
from jaxinterp.views.tokens import shorten, visible

PLAIN = {
    "␣": "_",
    "⏎": "\\n",
    "␍": "\\r",
    "⇥": "\\t",
    "∅": "<empty>",
    "−": "-",
    "–": "-",
    "…": "...",
    "·": "|",
    "∞": "inf",
    "•": "o",
    "●": "o",
    "↵": "\\n",
}
WIDEST_TOKEN = 20
MOST_BLOCKS = 4  # a heatmap wider than the terminal is continued below itself this many times
TEXT_BLOCKS = 2  # so often to show texts, which need wider cells
LEAST = {"text": 12, "token": 8, "percent": 12}  # characters of a table's column, however narrow the terminal
BAR = 16


def show(view: View, console: Console | None = None) -> None:
    """Print a view, on a terminal of any encoding."""
    write(console or Console(), lambda out: out.print(render(view, out)))


def write(console: Console, draw: Callable[[Console], None]) -> None:
    """Let `draw` print on the console; what a terminal without UTF-8 cannot write is spelt in ASCII."""
    if not console.options.ascii_only:
        draw(console)
        return
    with console.capture() as captured:
        draw(console)
    text = captured.get().translate(str.maketrans(PLAIN))
    console.file.write(text.encode(console.encoding, "backslashreplace").decode(console.encoding))
    console.file.flush()


def render(view: View, console: Console) -> RenderableType:
    """A view as something that rich prints on this console."""
    if view.kind == "report":
        return Group(*_report(view, console))
    kinds = {"table": _table, "line": _line, "heatmap": _heatmap, "attention": _attention, "highlight": _highlight, "scatter": _scatter}
    body = kinds[view.kind](view, console)
    head = [Text(view.title, style="bold")] if view.title else []
    note = [Text(view.normalisation, style="dim")] if view.normalisation and view.kind != "line" else []
    return Group(*head, *note, body)


def theme() -> Theme:
    """Whether the terminal is light, as far as it says (COLORFGBG); dark otherwise."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return "light" if background in ("7", "15") else "dark"


def _coloured(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _report(view: View, console: Console) -> Iterator[RenderableType]:
    for i, part in enumerate(view.sections):
        yield Text("" if i == 0 else "\n") + Text(part.heading, style="bold underline")
        if part.text:
            yield Text(part.text)
        for group in _side_by_side(part.views, console):
            yield Padding(group, (1, 0, 0, 2))
    made = " · ".join(f"{key} {value}" for key, value in view.provenance.items())
    if made:
        yield Text(f"\n{made}", style="dim")


def _side_by_side(views: tuple[View, ...], console: Console) -> Iterator[RenderableType]:
    """Tables stand beside each other where the terminal is wide enough for all; everything else one below the other."""
    rendered = [render(view, console) for view in views]
    needed = sum(console.measure(r).maximum + 4 for r in rendered) if views and all(view.kind == "table" for view in views) else None
    if needed is None or needed > console.width - 2:
        yield from rendered
        return
    grid = Table.grid(padding=(0, 4))
    grid.add_row(*rendered)
    yield grid


def _table(view: View, console: Console) -> RenderableType:
    columns = view.options["columns"]
    kinds = {entry["name"]: entry["kind"] for entry in columns}
    texts = {name: column_texts(array.tolist(), kinds[name]) for name, array in view.arrays.items()}
    texts |= {name: [shorten(s, 24) if kinds[name] == "token" else s for s in strings] for name, strings in view.labels.items()}
    named = any(name.strip() for name in kinds)
    widths = _widths(kinds, texts, named, console.width - 2)
    out = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", show_header=named)
    for name, kind in kinds.items():
        head = Text(name, no_wrap=False, overflow="fold")
        out.add_column(head, justify="right" if kind in ("number", "signed") else "left", width=widths[name], no_wrap=kind != "text")
    for i in range(len(texts[columns[0]["name"]])):
        cells: list[Text] = []
        for name, kind in kinds.items():
            cell = Text(texts[name][i].rjust(7 if kind == "percent" else 0), style="bold" if kind == "token" else "")
            if kind == "percent":
                filled = bar(float(view.arrays[name][i]), min(BAR, widths[name] - 8), console.options.ascii_only)
                cell.append(" ").append(filled, style=SERIES[theme()][0])
            cells.append(cell)
        out.add_row(*cells)
    return out


def _widths(kinds: dict[str, str], texts: dict[str, list[str]], named: bool, room: int) -> dict[str, int]:
    """Characters of each column: what it needs, or less of the widest ones, never less than its numbers or a few words."""
    content = {name: max([8 + BAR if kind == "percent" else 1, *map(cell_len, texts[name])]) for name, kind in kinds.items()}
    widths = {name: max(content[name], cell_len(name) if named else 0) for name in kinds}
    least = {name: min(widths[name], LEAST.get(kind, content[name])) for name, kind in kinds.items()}
    room -= 3 * (len(kinds) - 1)  # between columns
    while sum(widths.values()) > room and widths != least:
        widest = max((name for name in kinds if widths[name] > least[name]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _line(view: View, console: Console) -> RenderableType:
    return line_plot(view, min(console.width - 4, 100), SERIES[theme()], ascii_only=console.options.ascii_only)


def _scatter(view: View, console: Console) -> RenderableType:
    return scatter_plot(view, min(console.width - 4, 100), SERIES[theme()], ascii_only=console.options.ascii_only)


def _cell(value: float, text: str, scale: dict, colour: bool) -> Text:
    """One cell: text on the scale's colour, or text alone."""
    if not colour or not np.isfinite(value):
        return Text(text)
    fraction = (value - scale["low"]) / (scale["high"] - scale["low"])
    if scale["kind"] == "sequential" and fraction < 0.03:
        return Text(text)
    paper = colour_at(fraction, scale["kind"], theme())
    ink = readable_on(paper)
    return Text(text, Style(color=f"rgb{ink}".replace(" ", ""), bgcolor=f"rgb{paper}".replace(" ", "")))


def _shade(value: float, scale: dict, ascii_only: bool) -> str:
    """Two characters for a cell without colour: its sign and how far it is from zero (or from low)."""
    if not np.isfinite(value):
        return "  "
    ramp = " .:*#" if ascii_only else " ░▒▓█"
    if scale["kind"] == "diverging":
        step = min(int(abs(value) / scale["high"] * 4.999), 4)
        return (" " if step == 0 else "+" if value > 0 else "-") + ramp[step]
    step = min(int((value - scale["low"]) / (scale["high"] - scale["low"]) * 4.999), 4)
    return ramp[step] * 2


def _heatmap(view: View, console: Console) -> RenderableType:
    values, scale = view.arrays["values"], view.options["scale"]
    rows, columns = (view.axis_labels(axis) for axis in view.axes["values"])
    colour, ascii_only = _coloured(console), console.options.ascii_only
    largest = max(abs(scale["low"]), abs(scale["high"]))
    margin = max(min(max(map(len, rows), default=0), 16), len(view.axes["values"][0])) + 1
    room = max(console.width - margin - 4, 8)
    words = view.cell_texts()
    numbered = room // 7 * (TEXT_BLOCKS if words else 1) >= len(columns)
    width = 7 if numbered else 2
    fits = room // width
    lines = []
    for block, begin in enumerate(range(0, len(columns), fits)):
        if block == MOST_BLOCKS:
            rest = f"… {len(columns) - begin} more columns do not fit here; the HTML picture shows all {len(columns)}"
            lines.append(Text(rest, style="dim"))
            break
        shown = range(begin, min(begin + fits, len(columns)))
        heads = _column_heads([columns[j] for j in shown], width, view.axes["values"][1])
        lines.append(Text(view.axes["values"][0].ljust(margin), style="dim") + heads)
        for i, row in enumerate(rows):
            text = Text(shorten(row, margin - 1).ljust(margin), style="dim")
            for j in shown:
                value = float(values[i, j])
                inside = "  " if colour else _shade(value, scale, ascii_only)
                if numbered and words:
                    inside = _word(words[i][j], width, "" if colour else _shade(value, scale, ascii_only), ascii_only)
                elif numbered:
                    inside = cell_number(value, largest, scale["kind"] == "diverging").center(width)
                text.append_text(_cell(value, inside, scale, colour))
            lines.append(text)
    return Text("\n").join(lines)


def _word(text: str, width: int, shade: str, ascii_only: bool) -> str:
    """A cell's text in the middle of its width, cut where it must be; without colour the cell's shade stands behind it."""
    shade = "".join(dict.fromkeys(shade))  # of a sequential scale one character of two that are the same
    shown = visible(text) if text else ""
    if ascii_only:
        shown = shown.translate(str.maketrans(PLAIN)).encode("ascii", "backslashreplace").decode()
    out = Text(shown)
    out.truncate(width - max(len(shade), 1), overflow="crop" if ascii_only else "ellipsis")
    out.align("right" if shade else "center", width - len(shade))
    return out.plain + shade


def _column_heads(names: list[str], width: int, axis: str) -> Text:
    """Names above columns; where they do not fit, the first and the last."""
    if all(len(shorten(name, 99)) < max(width, 2) for name in names):
        return Text("".join(shorten(name, width).center(width) for name in names), style="dim")
    first, last = shorten(names[0], 10), shorten(names[-1], 10)
    span = len(names) * width
    return Text(f"{axis} {first} … {last}" if span < len(first) + len(last) + 4 else first + last.rjust(span - len(first)), style="dim")


def _attention(view: View, console: Console) -> RenderableType:
    pattern = view.arrays["pattern"]
    if pattern.ndim == 4:
        return _strongest(view)
    lines = []
    for i, name in enumerate(view.axis_labels("head")):
        note = view.labels["note"][i] if "note" in view.labels else ""
        best = np.argsort(-pattern[i], kind="stable")[:3].tolist()
        looks = " · ".join(f"{_named(view.tokens, k)} {number(float(pattern[i, k]), 'percent')}" for k in best)
        lines.append(Text.assemble((f"{name:>5} ", "bold"), (f" {note}" if note else "", "dim"), f"  looks at {looks}"))
        if _coloured(console):
            scale = view.options["scale"]
            words = [_cell(float(pattern[i, k]), shorten(token, 16), scale, True) for k, token in enumerate(view.tokens)]
            lines.append(Text("      ") + Text("").join(words))
    return Text("\n").join(lines)


def _named(tokens: tuple[str, ...], position: int) -> str:
    """A token, with its position where the prompt holds it more than once."""
    shown = shorten(tokens[position], 16)
    return f"{shown}@{position}" if tokens.count(tokens[position]) > 1 else shown


def _strongest(view: View) -> RenderableType:
    """Of a whole pattern, the last query's strongest looks at keys other than the first token, where idle heads rest."""
    last = np.nan_to_num(view.arrays["pattern"][:, :, -1, :]).copy()
    last[:, :, 0] = -1.0
    order = np.argsort(-last.reshape(-1), kind="stable")[:10]
    out = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for name in ("head", "looks at", "position", "share"):
        out.add_column(name, justify="left" if name == "looks at" else "right")
    for flat in order:
        layer, head, key = np.unravel_index(flat, last.shape)
        share = float(last[layer, head, key])
        if share >= 0:
            out.add_row(f"{layer}.{head}", Text(shorten(view.tokens[key], 24)), str(key), number(share, "percent"))
    return Group(Text("from the last position, keys after the first; the HTML picture shows every pattern", style="dim"), out)


def _highlight(view: View, console: Console) -> RenderableType:
    """Lines of tokens with their scores below: signs are read without colour too."""
    scores, scale = view.arrays["scores"], view.options["scale"]
    texts = column_texts(scores.tolist(), "signed" if scale["kind"] == "diverging" else "number")
    colour, out = _coloured(console), Text()
    for positions in lines_of(view.tokens, texts, console.width):
        words, numbers = Text(), Text()
        for p in positions:
            shown = shorten(view.tokens[p], WIDEST_TOKEN)
            width = max(len(shown), len(texts[p]))
            value = float(scores[p])
            words.append_text(_cell(value, shown.ljust(width), scale, colour) if np.isfinite(value) else Text(shown.ljust(width))).append(
                " "
            )
            numbers.append(texts[p].rjust(width) if np.isfinite(value) else " " * width, style="dim").append(" ")
        out.append_text(words).append("\n").append_text(numbers).append("\n")
    return out


def lines_of(tokens: tuple[str, ...], texts: list[str], room: int) -> list[list[int]]:
    """Positions of each line of tokens that have their scores below them."""
    lines: list[list[int]] = [[]]
    used = 0
    for p, (token, text) in enumerate(zip(tokens, texts, strict=True)):
        width = max(len(shorten(token, WIDEST_TOKEN)), len(text)) + 1
        if lines[-1] and used + width > room:
            lines.append([])
            used = 0
        lines[-1].append(p)
        used += width
    return lines
