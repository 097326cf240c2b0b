"""The HTML file: one file, nothing fetched, nothing that a token holds ever becomes markup."""

import html.parser
import json
import re

import numpy as np
import pytest

from jaxinterp.errors import InputError
from jaxinterp.views import View, attention, heatmap, scatter, table
from jaxinterp.views.html import notebook_cell, page
from jaxinterp.views.render import save
from tests.views.samples import HOSTILE, every_kind, softmax_patterns


class Elements(html.parser.HTMLParser):
    """Every element of a page, and the text inside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


@pytest.mark.parametrize("kind", every_kind())
def test_nothing_is_fetched(kind: str) -> None:
    text = page(every_kind()[kind])
    names = {name for _, attributes in Elements(text).tags for name in attributes}
    assert not names & {"src", "href", "action", "data", "onload"}
    assert set(re.findall(r"https?://[^\s\"'<>]*", text)) <= {"http://www.w3.org/2000/svg"}
    policy = next(found["content"] for _, found in Elements(text).tags if found.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy


@pytest.mark.parametrize("kind", every_kind())
def test_hostile_tokens_stay_data(kind: str) -> None:
    view = every_kind()[kind]
    found = Elements(page(view))
    assert [tag for tag, _ in found.tags if tag == "script"] == ["script", "script"]
    data, code = found.scripts
    assert "alert" not in code and not set("<>&") & set(data)
    held = json.loads(data)["view"]
    assert held["title"] == view.title
    if view.tokens:
        assert tuple(held["tokens"]) == HOSTILE
        assert held["shown"]["tokens"][3] == "⏎" and held["shown"]["tokens"][6] == "<U+202E>"


def test_the_page_holds_the_payload() -> None:
    view = table("next", {"token": ("token", [" Mary"]), "probability": ("percent", [0.5])})
    held = json.loads(Elements(page(view)).scripts[0])["view"]
    shown = held.pop("shown")
    assert shown["token"] == ["␣Mary"]
    assert View.from_json(json.dumps(held)).to_json() == view.to_json()


def test_all_heads_of_a_12_by_12_model_at_64_tokens_are_under_300_kib() -> None:
    view = attention("every head", softmax_patterns(12, 12, 64), [f" token{i}" for i in range(64)])
    assert len(page(view).encode()) < 300 * 1024


def test_many_named_points_and_many_texts_are_under_300_kib() -> None:
    rng = np.random.default_rng(0)
    names = [f"layer {i // 100}, neuron {i}" for i in range(3000)]
    assert len(page(scatter("cells", rng.normal(size=3000), rng.normal(size=3000), labels=names)).encode()) < 300 * 1024
    words = [[f" token{i}" for i in row] for row in rng.integers(0, 3000, size=(30, 512))]
    assert len(page(heatmap("words", rng.normal(size=(30, 512)), ("layer", "position"), texts=words)).encode()) < 300 * 1024


def test_texts_of_cells_are_shown_as_tokens() -> None:
    held = json.loads(Elements(page(every_kind()["texts"])).scripts[0])["view"]
    assert held["shown"]["texts"][0] == "␣Mary" and held["labels"]["texts"][0] == " Mary"


def test_a_notebook_cell_is_a_sandboxed_frame() -> None:
    tags = Elements(notebook_cell(every_kind()["report"])).tags
    assert [tag for tag, _ in tags] == ["iframe"]
    assert tags[0][1]["sandbox"] == "allow-scripts"
    assert "<title>" in (tags[0][1]["srcdoc"] or "")


def test_suffixes_say_how_a_view_is_saved(tmp_path) -> None:
    view = every_kind()["line"]
    assert save(view, tmp_path / "a.html").read_text(encoding="utf-8") == page(view)
    assert View.from_json(view.save(tmp_path / "a.json").read_text(encoding="utf-8")).title == view.title
    with pytest.raises(InputError, match=r"saved as .html, .png, .json or .txt; got 'a.gif'"):
        view.save(tmp_path / "a.gif")
