"""The demo's experiment gives the numbers that are known of SmolLM2, and its parts add up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxinterp.checkpoints import load as loading
from jaxinterp.cli import demo
from jaxinterp.cli.demo import Findings, experiment, picture
from tests.cli.conftest import Outcome

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def found(smollm2: Any) -> Findings:
    return experiment(smollm2)


def test_both_prompts_are_solved(found: Findings) -> None:
    assert found.difference.tolist() == pytest.approx([6.1196, -5.4853], abs=5e-4)
    assert [row[0].token for row in found.predictions] == [" Mary", " John"]


def test_the_last_read_off_is_the_model_itself(found: Findings) -> None:
    assert found.lens.shape == (30, 2)
    assert found.lens[-1].tolist() == pytest.approx(found.difference.tolist(), abs=1e-3)
    assert found.parting_layer() == 23


def test_parts_add_up_to_the_logit_difference(found: Findings) -> None:
    assert abs(found.parts()["rest"]).max() < 1e-3  # SmolLM2 has no biases
    known = {(23, 3): 2.86, (29, 1): 1.73, (24, 4): -1.07, (29, 0): -1.01, (23, 0): 0.82, (23, 1): 0.78}
    assert found.strongest(6) == list(known)
    assert [float(found.heads[0, layer, head]) for layer, head in known] == pytest.approx(list(known.values()), abs=6e-3)


def test_the_strongest_head_looks_at_the_repeated_name(found: Findings) -> None:
    assert found.tokens[int(found.patterns[23, 3].argmax())] == " John"
    assert found.patterns.sum(axis=-1) == pytest.approx(1.0, abs=1e-4)


def test_patching_finds_what_carries_the_difference(found: Findings) -> None:
    stream, heads = found.stream.effects, found.patched_heads.effects
    assert stream.shape == (30, 14) and heads.shape == (30, 9)
    assert stream[:20, 9].tolist() == pytest.approx([1.0] * 20, abs=0.015)
    assert stream[20:24, 9].tolist() == pytest.approx([0.91, 0.61, 0.62, 0.58], abs=6e-3)
    assert stream[24:, 13].min() > 0.9
    known = {(23, 3): 0.58, (29, 1): 0.27, (24, 4): -0.25, (20, 0): 0.22, (29, 0): -0.20, (17, 4): 0.18}
    assert [float(heads[head]) for head in known] == pytest.approx(list(known.values()), abs=6e-3)
    order = abs(heads).ravel().argsort()[::-1][:6]
    assert [divmod(int(flat), 9) for flat in order] == list(known)


def test_a_steered_text_stands_beside_the_plain_one(found: Findings) -> None:
    plain, steered = found.texts
    assert plain.startswith(" lost. I'm not sure") and steered.startswith(" incredibly grateful to be a part of this community")
    told = found.as_dict()["steering"]
    assert (told["plain"], told["steered"]) == (plain, steered)


def test_the_report_tells_all_of_it(found: Findings) -> None:
    view = picture(found, {"model": "smollm2"})
    assert [kind for part in view.sections for kind in (inner.kind for inner in part.views)] == [
        "table", "table", "line", "table", "heatmap", "attention", "heatmap", "heatmap", "table",
    ]  # fmt: skip


def test_the_command_writes_the_report_and_says_where(
    cli: Callable[..., Outcome], smollm2: Any, found: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "experiment", lambda lm: found)
    monkeypatch.setattr(loading, "load", lambda name, dtype: {"smollm2-135m-instruct": smollm2}[name])
    out = tmp_path / "demo.html"
    outcome = cli("demo --out", out)
    assert outcome.code == 0 and f"report: {out}" in outcome.out and out.read_text(encoding="utf-8").startswith("<!doctype html>")
    numbers = json.loads(cli("demo --json --out", out).out)
    assert numbers["logit_difference"]["clean"] == pytest.approx(6.1196, abs=5e-4)
    assert numbers["steering"]["steered"][:20] in outcome.out and numbers["steering"]["plain"][:10] in outcome.out
