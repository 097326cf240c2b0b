"""Tokens and numbers as people see them."""

import pytest

from jaxinterp.views.numbers import column, number
from jaxinterp.views.tokens import shorten, visible


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Mary", "␣Mary"),
        ("  ", "␣␣"),
        ("\n\n", "⏎⏎"),
        ("\t\r", "⇥␍"),
        ("", "∅"),
        ("\x00", "␀"),
        ("\u200b", "<U+200B>"),
        ("\u202eabc", "<U+202E>abc"),
        ("\u00a0", "<U+00A0>"),
        ("\u0301", "◌\u0301"),
        ("<0xE2>", "<0xE2>"),
        ("né日", "né日"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_long_tokens_are_cut_with_an_ellipsis() -> None:
    assert shorten(" antidisestablishmentarianism", 8) == "␣antidi…"


@pytest.mark.parametrize(
    ("value", "style", "shown"),
    [
        (6.1196, "signed", "+6.12"),
        (-5.4853, "signed", "−5.49"),
        (0.7731, "percent", "77.3 %"),
        (0.0001, "percent", "<0.1 %"),
        (0.0, "percent", "0 %"),
        (1234.5, "number", "1234"),
        (0.000123, "number", "0.00012"),
        (float("nan"), "number", "–"),
        (float("-inf"), "number", "−∞"),
    ],
)
def test_numbers_have_three_digits_that_matter(value: float, style: str, shown: str) -> None:
    assert number(value, style) == shown


def test_a_column_has_one_number_of_decimals() -> None:
    assert column([11.6, -0.0025, 4.64], "signed") == ["+11.60", "0.00", "+4.64"]
