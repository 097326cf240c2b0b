"""Views go to JSON and back, and say what they hold."""

import json

import numpy as np
import pytest

from jaxinterp.errors import InputError
from jaxinterp.views import View, attention, heatmap, highlight, line, scatter, table
from jaxinterp.views.arrays import decode_array, encode_array
from tests.views.samples import every_kind, softmax_patterns


@pytest.mark.parametrize("kind", every_kind())
def test_json_gives_the_view_back(kind: str) -> None:
    view = every_kind()[kind]
    again = View.from_json(view.to_json(quantise=False))
    assert again.to_json(quantise=False) == view.to_json(quantise=False)
    assert (again.kind, again.tokens, again.labels, again.options) == (view.kind, view.tokens, view.labels, view.options)
    for name, array in view.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_eight_bits_keep_values_within_half_a_step_of_the_stated_scale() -> None:
    pattern = softmax_patterns(2, 2, 9)
    pattern[0, 0, 0, 1] = np.nan
    view = attention("all", pattern, ["a"] * 9)
    scale = json.loads(view.to_json())["arrays"]["pattern"]["scale"]
    back = View.from_json(view.to_json()).arrays["pattern"]
    assert np.isnan(back[0, 0, 0, 1]) and np.isfinite(back).sum() == pattern.size - 1
    assert np.nanmax(abs(back - pattern)) <= (scale["high"] - scale["low"]) / scale["steps"] / 2 + 1e-7


def test_numbers_that_are_read_are_exact() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    view = View.from_json(heatmap("grid", values, ("layer", "head")).to_json())
    np.testing.assert_array_equal(view.arrays["values"], values)


def test_axes_are_labelled_by_labels_then_tokens_then_indices() -> None:
    view = heatmap("grid", np.zeros((2, 3)), ("layer", "position"), tokens=("a", "b", "c"))
    assert view.axis_labels("layer") == ("0", "1")
    assert view.axis_labels("position") == ("a", "b", "c")
    assert heatmap("grid", np.zeros((2, 3)), ("layer", "head"), labels={"head": ["x", "y", "z"]}).axis_labels("head") == ("x", "y", "z")


def test_scales_are_symmetric_or_from_zero() -> None:
    assert heatmap("g", np.array([[-1.0, 3.0, np.nan]]), ("a", "b")).options["scale"] == {"kind": "diverging", "low": -3.0, "high": 3.0}
    assert heatmap("g", np.array([[1.0, 3.0]]), ("a", "b"), scale="sequential").options["scale"] == {
        "kind": "sequential",
        "low": 0.0,
        "high": 3.0,
    }


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="axis 'position' of 'values' has 3 entries and 2 labels"):
        heatmap("grid", np.zeros((2, 3)), ("layer", "position"), tokens=("a", "b"))
    with pytest.raises(InputError, match="different numbers of rows"):
        table("t", {"a": ("text", ["x"]), "b": ("number", [1, 2])})
    with pytest.raises(InputError, match="expected one of token, text"):
        table("t", {"a": ("colour", ["x"])})
    with pytest.raises(InputError, match=r"takes \[head, key\] or \[layer, head, query, key\]; got \[3\]"):
        attention("a", np.zeros(3), ["x"] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "has schema 2; this version of jaxinterp reads schema 1"),
        ({"kind": "pie"}, "kind is one of table, line"),
        ({"arrays": {"values": {"axes": ["series", "layer"]}}}, "This is not a view: KeyError"),
    ],
)
def test_json_that_is_not_a_view_is_refused(change: dict, message: str) -> None:
    data = json.loads(line("l", {"a": [1.0, 2.0]}).to_json()) | change
    with pytest.raises(InputError, match=message):
        View.from_json(json.dumps(data))
    with pytest.raises(InputError, match="This is not a view"):
        View.from_json("[")


def test_an_array_that_lies_about_its_size_is_refused() -> None:
    entry = encode_array(np.zeros(1_000_000, np.float32))
    with pytest.raises(InputError, match=r"shape \[3\] \(12 bytes\) and holds more"):
        decode_array("values", entry | {"shape": [3]})
    with pytest.raises(InputError, match="holds 4000000"):
        decode_array("values", entry | {"shape": [2_000_000]})
    with pytest.raises(InputError, match="cannot be unpacked"):
        decode_array("values", entry | {"data": entry["data"][4:]})


def test_a_highlight_has_one_score_a_token_and_a_scale_around_zero() -> None:
    view = highlight("tokens", [0.5, -2.0], ["a", "b"])
    assert view.options["scale"] == {"kind": "diverging", "low": -2.0, "high": 2.0}
    assert highlight("tokens", [0.5, 2.0], ["a", "b"], signed=False).options["scale"] == {"kind": "sequential", "low": 0.0, "high": 2.0}
    with pytest.raises(InputError, match=r"2 tokens and scores of shape \[3\]"):
        highlight("tokens", [1.0, 2.0, 3.0], ["a", "b"])


def test_cells_keep_their_texts_and_each_text_once() -> None:
    words = [[" Mary", "", " John"], [" John", " Mary", "\x00"]]
    view = heatmap("grid", np.zeros((2, 3)), ("layer", "position"), texts=words)
    again = View.from_json(view.to_json())
    assert again.cell_texts() == words and again.labels["texts"] == (" Mary", " John", "\x00")
    assert heatmap("grid", np.zeros((2, 3)), ("layer", "position")).cell_texts() == []
    with pytest.raises(InputError, match="axis 'position' of 'texts' has 2 entries where another array has 3"):
        heatmap("grid", np.zeros((2, 3)), ("layer", "position"), texts=[["a", "b"]] * 2)
    data = json.loads(view.to_json())
    data["labels"]["texts"].pop()
    with pytest.raises(InputError, match=r"texts -1 to 2; expected -1 \(none\) to 1"):
        View.from_json(json.dumps(data))


def test_a_scatter_has_one_frame_where_that_shows_something_and_a_line_of_numbers() -> None:
    ends = scatter("s", [0.0, 1.0], [0.0, 2.0]).options["ends"]
    assert ends["x"] == ends["y"] and ends["x"][0] < 0 and ends["x"][1] > 2
    apart = scatter("s", [0.0, 1.0], [0.0, 20.0]).options["ends"]
    assert apart["x"][1] < 1.1 and apart["y"][1] > 20
    assert scatter("s", [0.0, 1.0], [0.0, 2.0], identity=False).options["ends"]["x"][1] < 1.1
    with pytest.raises(InputError, match="axis 'point' of 'y' has 1 entries where another array has 2"):
        scatter("s", [0.0, 1.0], [0.0])
    with pytest.raises(InputError, match="axis 'point' of 'x' has 2 entries and 1 labels"):
        scatter("s", [0.0, 1.0], [0.0, 1.0], labels=["a"])
    with pytest.raises(InputError, match="finite slope and intercept"):
        scatter("s", [0.0, 1.0], [0.0, 1.0], line=(np.nan, 0.0))
