"""The README's Python examples run, in order, and print what the README says they print."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxinterp as ji

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Python blocks, each with the text block that follows it."""
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    return [(code, blocks[i + 1][1]) for i, (language, code) in enumerate(blocks) if language == "python"]


@pytest.mark.weights
def test_examples_print_what_they_say(smollm2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ji, "load", {"smollm2-135m-instruct": smollm2}.__getitem__)
    names: dict[str, Any] = {}
    with np.printoptions():  # the examples set theirs
        for code, said in examples():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, str(README), "exec"), names)
            assert printed.getvalue() == said


def test_every_example_says_what_it_prints() -> None:
    blocks = [language for language, _ in BLOCK.findall(README.read_text(encoding="utf-8"))]
    followers = [blocks[i + 1] for i, language in enumerate(blocks) if language == "python"]
    assert len(followers) >= 3 and set(followers) == {"text"}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (README.parent / link).exists()] == []
