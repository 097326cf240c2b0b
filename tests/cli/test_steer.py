"""jaxinterp steer: the texts and numbers that the library gives, on a tiny model from a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.cli import steer as command
from jaxinterp.methods.steering.difference import mean_difference
from jaxinterp.methods.steering.files import load
from jaxinterp.methods.steering.side_by_side import side_by_side
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]
GOOD, BAD = ["to the store", "Mary gave", "a drink"], ["John", "went to", "the end"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, Path, str, Path]:
    """Options that name a file of each kind, with blank lines and spaces at the ends of lines."""
    paths = tmp_path / "good.txt", tmp_path / "bad.txt"
    for path, lines in zip(paths, (GOOD, BAD), strict=True):
        path.write_text("\n" + "\n\n  ".join(lines) + "  \n", encoding="utf-8")
    return "--positive", paths[0], "--negative", paths[1]


def test_help_has_an_example_that_needs_no_files(cli: Cli) -> None:
    outcome = cli("steer --help")
    assert outcome.code == 0 and " ".join(command.EXAMPLE.split()) in " ".join(outcome.out.split())
    assert "--positive" not in command.EXAMPLE and "--json" in outcome.out


@pytest.mark.parametrize(("line", "options"), [("", {}), ("--relative --when new", {"relative": True, "when": "new"})])
def test_it_prints_what_the_library_finds(cli: Cli, folder: Path, files: Any, line: str, options: dict[str, Any]) -> None:
    lm = ji.load(folder)
    vector = mean_difference(lm, GOOD, BAD)
    want = side_by_side(lm, vector, "to the", -0.8, layer=1, max_new_tokens=6, **options)
    found = cli(f"steer -n 6 --layer 1 --strength -0.8 --json {line}", folder, "to the", *files).json()
    assert (found["plain"], found["steered"]) == (want.plain[0], want.steered[0]) and found["plain"] != found["steered"]
    assert (found["layer"], found["strength"], found["when"]) == (1, -0.8, options.get("when", "all"))
    np.testing.assert_allclose([found["kl"], found["norm_ratio"]], [want.kl[0, 0], want.norm_ratio[0, 0]], rtol=1e-3)
    assert found["vector"]["method"] == "mean_difference" and found["vector"]["size"] == pytest.approx(float(vector.sizes[1]), rel=1e-4)
    shown = cli(f"steer -n 6 --layer 1 --strength -0.8 {line}", folder, "to the", *files).out
    assert "plain" in shown and "-0.8" in shown and f"{want.kl[0, 0]:.2f}"[:4] in shown


def test_a_saved_direction_steers_as_the_texts_did_and_blown_norms_are_told(cli: Cli, folder: Path, files: Any, tmp_path: Path) -> None:
    kept, picture = tmp_path / "direction.safetensors", tmp_path / "steered.html"
    given = "steer -n 5 --layer 2 --strength 9 --method principal"
    made = cli(f"{given} --json", folder, "to the", *files, "--save", kept, "--html", picture).json()
    assert made["saved"] == str(kept) and load(kept, ji.load(folder)).layers == (0, 1, 2)
    again = cli("steer -n 5 --layer 2 --strength 9", folder, "to the", "--vector", kept)
    assert again.code == 0 and "norm is over 2 times the usual one at strength +9" in again.out and made["warning"] in again.out
    other = cli("steer -n 5 --layer 2 --strength 9 --json", folder, "to the", "--vector", kept).json()
    assert {name: other[name] for name in ("plain", "steered", "kl")} == {name: made[name] for name in ("plain", "steered", "kl")}
    assert other["vector"] == made["vector"] and picture.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--layer 3", "layer 3"),
        ("--save direction.npz", "--save ends in .safetensors or .gguf"),
        ("--vector direction.gguf", "give it, or --positive and --negative"),
        ("--strength nan", "finite numbers"),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence(cli: Cli, folder: Path, files: Any, line: str, message: str) -> None:
    outcome = cli(f"steer {line}", folder, "to", *files)
    assert outcome.code == 1 and message in outcome.err and outcome.err.count("\n") == 1


def test_bad_files_are_named_with_their_line(cli: Cli, folder: Path, files: Any, tmp_path: Path) -> None:
    bad = tmp_path / "other.txt"
    for content, message in (
        (b"one\n\n\xff\xfe\n", f"{bad}, line 3: not UTF-8"),
        (b"one\n\nMary gave\n", f"{bad}, line 3: 'Mary gave' is in {files[1]} too"),
        (b" \n\n", f"{bad} holds no text"),
    ):
        bad.write_bytes(content)
        outcome = cli("steer", folder, "to", *files[:3], bad)
        assert outcome.code == 1 and message in outcome.err and outcome.err.count("\n") == 1
    assert "cannot be read" in cli("steer", folder, "to", *files[:3], tmp_path / "none.txt").err
    assert "go together" in cli("steer", folder, "to", *files[:2]).err
