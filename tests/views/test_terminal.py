"""Pictures in terminals: wide and narrow, with and without colour, with and without Unicode."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from jaxinterp.views import View, heatmap, highlight, line, scatter, table
from jaxinterp.views.render import save
from jaxinterp.views.terminal import show
from tests.views.samples import every_kind


def printed(view: View, width: int = 100, encoding: str = "utf-8", **options: object) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    show(view, Console(file=stream, width=width, legacy_windows=False, **{"color_system": None} | options))  # type: ignore[arg-type]
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("kind", every_kind())
@pytest.mark.parametrize("width", [40, 100])
def test_every_kind_fits_the_width(kind: str, width: int) -> None:
    text = printed(every_kind()[kind], width)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("kind", every_kind())
def test_a_terminal_without_utf8_gets_ascii(kind: str) -> None:
    text = printed(every_kind()[kind], encoding="ascii")
    assert text.isascii() and text.strip()


def test_without_colour_the_numbers_are_there() -> None:
    text = printed(heatmap("grid", np.array([[2.86, -1.07], [np.nan, 0.001]]), ("layer", "head")))
    assert "\x1b" not in text
    assert all(part in text for part in ("+2.86", "−1.07", "0.00", "–"))


def test_with_colour_cells_are_painted() -> None:
    text = printed(heatmap("grid", np.array([[3.0, -3.0]]), ("layer", "head")), color_system="truecolor", force_terminal=True)
    assert len(set(re.findall(r"48;2;(\d+;\d+;\d+)", text))) == 2


def test_a_grid_too_wide_for_the_terminal_says_what_is_missing() -> None:
    text = printed(heatmap("grid", np.ones((2, 500)), ("layer", "neuron")), width=60)
    shown = 4 * ((60 - 6 - 4) // 2)
    assert f"… {500 - shown} more columns do not fit here" in text


def test_tokens_are_text_and_never_markup() -> None:
    text = printed(every_kind()["attention"])
    assert "[red]" in printed(every_kind()["table"]) and "23.3" in text and "+2.86" in text


def test_a_line_ends_with_its_name_and_last_value() -> None:
    text = printed(line("lens", {"clean": [0.0, 1.0, 6.12], "corrupt": [0.0, np.nan, -5.49]}, normalisation="logit difference"))
    assert "clean +6.12" in text and "corrupt −5.49" in text and "logit difference" in text


def test_saved_as_text_it_has_no_escape_codes(tmp_path) -> None:
    path = save(every_kind()["report"], tmp_path / "report.txt")
    assert "\x1b" not in path.read_text(encoding="utf-8")


def test_a_highlight_shows_signs_without_colour_and_paints_around_zero_with_it() -> None:
    view = highlight("tokens", [2.0, -2.0, 0.0, np.nan], [" Mary", " John", " and", " so"])
    words, numbers = printed(view).splitlines()[1:3]
    assert words.split() == ["␣Mary", "␣John", "␣and", "␣so"] and numbers.split() == ["+2.00", "−2.00", "0.00"]
    painted = printed(view, color_system="truecolor", force_terminal=True)
    assert len(set(re.findall(r"48;2;(\d+;\d+;\d+)", painted))) == 3
    narrow = printed(highlight("tokens", np.ones(30), ["word"] * 30), width=40)
    assert narrow.count("word") == 30 and narrow.count("1.00") == 30


def test_a_scatter_has_its_points_above_its_lines() -> None:
    x = np.linspace(-1, 1, 7)
    rows = printed(scatter("cells", x, x, names=("estimate", "exact"), line=(-1.0, 0.0)), encoding="ascii").splitlines()
    assert rows[1] == "exact" and "estimate" in rows[-2] and rows[-1].split("y = ")[1:] == ["x   -- ", "-1.00 x + 0"]
    plot = [row.partition("|")[2] for row in rows[2:16]]
    assert "".join(plot).count("o") == 7 and "".join(plot).count("-") > 20 and "".join(plot).count(".") > 5
    right = [row.index("o") for row in plot if "o" in row]
    assert right == sorted(right, reverse=True)  # y = x rises to the right
    falls = [row.index("-") for row in plot if "-" in row]
    assert len(falls) > 11 and falls == sorted(falls)
    alone = printed(scatter("cells", x, x, identity=False))
    assert alone.count("•") == 7 and printed(scatter("cells", np.ones(2), np.ones(2))).count("●") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_cells_show_their_texts_instead_of_numbers_where_they_fit(encoding: str) -> None:
    view = heatmap("g", np.array([[0.9, 0.1]]), ("layer", "head"), scale="sequential", texts=[[" Mary", " antidote"]])
    row = printed(view, encoding=encoding).splitlines()[-1]
    space, strong = ("_", "#") if encoding == "ascii" else ("␣", "█")
    assert f"{space}Mary{strong}" in row and f"{space}ant" in row and "0.90" not in row and len(row.rstrip()) <= 6 + 2 * 7
    painted = printed(view, color_system="truecolor", force_terminal=True)
    assert "␣Mary" in painted and "█" not in painted
    wide = heatmap("g", np.ones((1, 60)), ("layer", "head"), texts=[["word"] * 60])
    assert "word" not in printed(wide) and printed(wide, width=300).count("word") == 60


def test_texts_of_a_table_keep_a_width_and_numbers_all_their_digits() -> None:
    view = table(
        "cells",
        {
            "cell": ("text", ["layer 11, head 4, position 13"]),
            **{f"log P(a long name {i})": ("signed", [-1.25 - i]) for i in range(3)},
            "share": ("percent", [1.0]),
        },
    )
    text = printed(view, 56)
    assert max(map(len, text.splitlines())) <= 56
    assert all(part in text for part in ("layer 11,", "position", "−1.25", "−2.25", "−3.25", "100.0 % ███"))
