"""jaxinterp prune, on a tiny model from a folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.cli import prune as command
from jaxinterp.methods.weights.shrink import shrink
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]
TEXTS = ("to the store", "Mary and John", "the store and Mary", "to John and Mary")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n")
    return path


def test_help_has_an_example(cli: Cli) -> None:
    outcome = cli("prune --help")
    assert outcome.code == 0 and " ".join(command.EXAMPLE.split()) in " ".join(outcome.out.split())
    assert "--json" in outcome.out and "--debug" in outcome.out


def test_it_saves_and_reports_what_shrink_finds(cli: Cli, folder: Path, texts: Path, tmp_path: Path) -> None:
    found = shrink(ji.load(folder), TEXTS[::2], TEXTS[1::2], heads=0.5, neurons=0.25, controls=1, rounds=0)
    line = "prune --heads 0.5 --neurons 0.25 --controls 1 --rounds 0"
    shown = cli(f"{line} --json", folder, "--texts", texts, "--out", tmp_path / "small").json()
    assert ji.load(tmp_path / "small").digest() == found.lm.digest() and shown["saved"] == str(tmp_path / "small")
    assert [row["model"] for row in shown["models"]] == ["whole", "pruned", "random 0"]
    np.testing.assert_allclose([row["loss"] for row in shown["models"]], found.columns()["loss"], rtol=1e-5)
    assert [row["parameters"] for row in shown["models"][:2]] == list(found.record.parameters)
    assert shown["removed_heads"] == [f"{layer}.{head}" for layer, head in np.argwhere(found.record.removed_heads)]
    assert [len(layer) for layer in shown["removed_neurons"]] == [5, 5, 5]


def test_it_prints_losses_sizes_and_speed(cli: Cli, folder: Path, texts: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = cli("prune --heads 0.5 --unit head --controls 1 --rounds 1", folder, "--texts", texts, "--html", page)
    assert outcome.code == 0 and page.stat().st_size > 1000
    for part in ("whole", "pruned", "random", "tokens a second", "2 texts ranked on, 2 held out"):
        assert part in outcome.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--heads 1", "from 0 to below 1"),
        ("--texts {missing}", "cannot be read"),
        ("--texts {one}", "holds 1 texts; expected two or more"),
        ("--out {full}", "holds something already"),
        ("--html page.docx", "--html ends in"),
    ],
)
def test_bad_options_give_one_sentence(cli: Cli, folder: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "one").write_text("to the store\n")
    places = {"missing": tmp_path / "missing", "one": tmp_path / "one", "full": tmp_path}
    outcome = cli("prune", folder, *line.format(**places).split())
    assert outcome.code == 1 and message in outcome.err and outcome.err.count("\n") == 1
