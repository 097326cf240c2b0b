"""jaxinterp attribute: what it prints is what the library finds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.cli import attribute as command
from jaxinterp.methods.attribution.attribute import attribute
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]
TEXT = "to the store"


def test_help_has_an_example(cli: Cli) -> None:
    outcome = cli("attribute --help")
    assert outcome.code == 0 and " ".join(command.EXAMPLE.split()) in " ".join(outcome.out.split())


def test_scores_of_a_contrast_and_their_picture(cli: Cli, folder: Path, tmp_path: Path) -> None:
    lm, picture = ji.load(folder), tmp_path / "scores.html"
    want = attribute(lm, TEXT, ji.metrics.logit_difference(" the", " to"), "occlusion", baseline="zero")
    options = ("--target", " the", "--other", " to", "--method", "occlusion", "--baseline", "zero", "--html", picture)
    found = cli("attribute --json", folder, TEXT, *options).json()
    np.testing.assert_allclose(found["scores"], want.of(0), rtol=1e-4, atol=1e-5)
    assert found["tokens"] == list(want.strings[0]) and found["metric"] == pytest.approx(float(want.values[0]), rel=1e-4)
    assert found["method"] == "occlusion" and found["signed"] and found["how"]["replaced_by"] == "zero"
    assert picture.read_text(encoding="utf-8").startswith("<!doctype html>")
    shown = cli("attribute", folder, TEXT, *options)
    assert shown.code == 0 and "occlusion: the against  to" in shown.out and "picture: " in shown.out
    assert all(("+" if score > 0 else "−") + f"{abs(score):.2f}" in shown.out for score in want.of(0) if abs(score) > 0.1)


def test_a_target_of_several_tokens_is_a_continuation(cli: Cli, folder: Path) -> None:
    lm, target = ji.load(folder), " the store"
    want = attribute(lm, "to" + target, ji.metrics.continuation_log_probability(target), "ig", steps=17, tolerance=1e9)
    outcome = cli("attribute --json --method ig --steps 17", folder, "to", "--target", target)
    found = outcome.json()
    assert ("miss their sum by" in outcome.err) == (found["relative_error"] > 0.05)
    np.testing.assert_allclose(found["scores"], want.of(0), rtol=1e-3, atol=1e-4)
    assert found["prompt"] == "to" + target and found["relative_error"] == pytest.approx(float(want.relative_error[0]), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--method magic", "There is no attribution method 'magic'"),
        ("--method saliency --baseline zero", "--baseline is not an option of saliency"),
        ("--html scores.pdf", "--html ends in"),
        ("--other 'to the'", "An answer must be one token"),
        ("--baseline to", "must have one length"),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence(cli: Cli, folder: Path, line: str, message: str) -> None:
    outcome = cli(f"attribute {line}", folder, TEXT, "--target", " the")
    assert outcome.code == 1 and message in outcome.err and outcome.err.count("\n") == 1
