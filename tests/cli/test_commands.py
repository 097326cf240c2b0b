"""Every command, on a tiny model from a folder: what it prints, what it writes, how it ends."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxinterp as ji
from jaxinterp.checkpoints import load as loading
from jaxinterp.cli import ablate, attribute, demo, doctor, generate, info, models, patch, predict, prune, steer, trace, verify
from tests.cli.conftest import Outcome

Cli = Callable[..., Outcome]
COMMANDS = (ablate, attribute, demo, doctor, generate, info, models, patch, predict, prune, steer, trace, verify)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_help_has_an_example(cli: Cli, command) -> None:
    outcome = cli(f"{command.NAME} --help")
    assert outcome.code == 0
    assert " ".join(command.EXAMPLE.split()) in " ".join(outcome.out.split())
    assert "--json" in outcome.out and "--debug" in outcome.out


def test_predict_prints_what_run_predicts(cli: Cli, folder: Path) -> None:
    best = ji.run(ji.load(folder), "to the store").top(3)[0]
    found = cli("predict --json --top 3", folder, "to the store").json()
    assert [(row["id"], row["token"]) for row in found["predictions"]] == [(p.id, p.token) for p in best]
    assert found["predictions"][0]["probability"] == pytest.approx(best[0].probability, rel=1e-5)
    assert found["about"]["dtype"] == "float32"
    shown = cli("predict --top 3", folder, "to the store")
    assert shown.code == 0 and f"{100 * best[0].probability:.1f} %" in shown.out


def test_a_dash_reads_the_prompt_from_standard_input(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = cli("predict --json", folder, "to the store").json()
    monkeypatch.setattr(sys, "stdin", io.StringIO("to the store\n"))
    assert cli("predict --json", folder, "-").json() == typed
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli("predict", folder, "-") == Outcome(1, "", "jaxinterp: The prompt is empty: give a text, or - to read standard input.\n")


def test_dtype_is_the_type_of_weights_and_computation(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.safetensors"
    assert (
        cli("trace --dtype bfloat16 --site resid_post --json", folder, "to", "--out", out).json()["sites"]["resid_post"]["dtype"]
        == "bfloat16"
    )
    try:
        assert (
            cli("trace --dtype float64 --site resid_post --json", folder, "to", "--out", out).json()["sites"]["resid_post"]["dtype"]
            == "float64"
        )
    finally:
        jax.config.update("jax_enable_x64", False)


def test_trace_writes_arrays_and_what_they_mean(cli: Cli, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.safetensors"
    assert cli("trace --site resid_post --site pattern", folder, "to the store", "--out", out).code == 0
    expected = ji.run(ji.load(folder), "to the store", sites=("resid_post", "pattern"))
    arrays, described = load_file(out), json.loads((tmp_path / "trace.json").read_text())
    assert set(arrays) == {"resid_post", "pattern"} == set(described["sites"])
    for site, array in arrays.items():
        np.testing.assert_array_equal(array, expected[site])
        assert described["sites"][site]["shape"] == list(array.shape)
    assert described["sites"]["pattern"]["axes"] == ["L", "B", "H", "Q", "K"]
    assert len(described["tokens"]) == expected["resid_post"].shape[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.json", "trace.safetensors"]


def test_trace_of_all_leaves_out_only_opt_in_sites(cli: Cli, folder: Path, tmp_path: Path) -> None:
    found = cli("trace --site all --json", folder, "to", "--out", tmp_path / "all.safetensors").json()
    config = ji.load(folder).config
    assert set(found["sites"]) == {name for name, site in ji.SITES.items() if not site.absent(config) and not site.opt_in}


def test_info_lists_every_site_and_parameter(cli: Cli, folder: Path) -> None:
    lm = ji.load(folder)
    found = cli("info --json --tokens 8", folder).json()
    assert found["n_parameters"] == lm.n_params == sum(int(np.prod(entry["shape"])) for entry in found["parameters"])
    assert {entry["site"] for entry in found["sites"]} | set(found["absent"]) == set(ji.SITES)
    sites = {entry["site"]: entry for entry in found["sites"]}
    trace = ji.run(lm, np.zeros((1, 8), np.int32), sites=("z",))
    assert sites["z"]["shape"] == list(trace["z"].shape) and sites["z"]["bytes"] == trace["z"].nbytes
    shown = cli("info", folder).out
    for text in ("blocks × 3", "W_gate", "resid_post", "no pos_embed: its positions are rotary, not learned"):
        assert text in shown


def test_models_names_registry_and_families(cli: Cli) -> None:
    found = cli("models --json").json()
    assert "smollm2-135m-instruct" in {model["name"] for model in found["models"]}
    assert {"llama", "gpt2"} <= {family["model_type"] for family in found["families"]}
    assert "smollm2-135m-instruct" in cli("models").out


def test_doctor_finds_this_machine_in_order(cli: Cli) -> None:
    found = cli("doctor --json").json()
    assert found["problems"] == []
    assert found["matmul"]["largest relative error, highest"] < 1e-5
    assert found["matmul"]["by default this device multiplies in"] == "float32"  # the tests run on CPUs
    assert found["versions"]["jax"] == jax.__version__
    assert "Nothing is wrong." in cli("doctor").out


def test_doctor_sees_a_matmul_that_rounds_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = jax.numpy.matmul
    monkeypatch.setattr(
        jax.numpy, "matmul", lambda a, b, **_: whole(a.astype("bfloat16"), b.astype("bfloat16"), preferred_element_type="float32")
    )
    found = doctor.matmul("float32")
    assert found["bits kept by default"] == 7 and found["by default this device multiplies in"].startswith("bfloat16;")
    whole_report = {"matmul": found, "caches": {"writable": True}}
    assert "A float32 matmul at full precision is off by" in doctor.problems_of(whole_report)[0]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("predict", 2, "Missing argument"),
        ("predict {folder} to --dtype int8", 2, "Invalid value for '--dtype'"),
        ("predict {folder} to --top 0", 2, "Invalid value for '--top'"),
        ("sing", 2, "No such command"),
        ("predict {folder} ''", 1, "The prompt is empty"),
        ("predict {folder} to --bos '<nope>'", 1, "'<nope>' is not a token"),
        ("predict {folder}/nowhere to", 1, "nowhere"),
        ("trace {folder} to --site resid_post --out a.npz", 1, "--out is a .safetensors file; got 'a.npz'"),
        ("trace {folder} to --site pos_embed --out {tmp}/a.safetensors", 1, "its positions are rotary, not learned"),
        ("trace {folder} to --site resid_post --out {tmp}/no/a.safetensors", 1, "No such file or directory"),
        ("info {folder} --tokens 99", 1, "this model's context is 32"),
        ("demo --out a.gif", 1, "--out ends in .html, .png, .json or .txt; got 'a.gif'"),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence(cli: Cli, folder: Path, tmp_path: Path, line: str, code: int, message: str) -> None:
    outcome = cli(line.format(folder=folder, tmp=tmp_path))
    assert outcome.code == code and outcome.out == ""
    assert message in " ".join(outcome.err.replace("│", " ").split())
    assert "Traceback" not in outcome.err
    assert code == 2 or (outcome.err.startswith("jaxinterp: ") and outcome.err.count("\n") == 1)


def test_debug_shows_the_traceback(cli: Cli, folder: Path) -> None:
    outcome = cli("predict --debug", folder, "")
    assert outcome.code == 1 and "Traceback" in outcome.err and "The prompt is empty" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(KeyboardInterrupt(), 130, "interrupted"), (ZeroDivisionError("x"), 1, "unexpected ZeroDivisionError: x")],
)
def test_interrupts_and_surprises(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading, "load", fails)
    outcome = cli("predict", folder, "to")
    assert outcome.code == code and outcome.err.startswith(f"jaxinterp: {message}") and "Traceback" not in outcome.err


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"jaxinterp {ji.__version__}\n"


def test_verify_says_what_is_wrong_and_ends_with_1(cli: Cli, folder: Path) -> None:
    """The tiny model is random: all that is wrong with it is its loss on a sentence."""
    outcome = cli("verify --no-torch --json", folder)
    found = outcome.json()
    assert outcome.code == 1 and not found["ok"]
    assert [check["name"] for check in found["checks"] if not check["ok"]] == ["plausible loss"]
    assert found["first"].startswith("plausible loss")
    shown = cli("verify --no-torch", folder)
    assert shown.code == 1 and "WRONG" in shown.out and "Wrong: plausible loss" in shown.out


def test_patch_prints_and_writes_the_grid(cli: Cli, folder: Path, tmp_path: Path) -> None:
    lm = ji.load(folder)
    clean, corrupt = "to the store", "the the store"
    prompts = ("--clean", clean, "--corrupt", corrupt, "--answer", " the")
    picture = tmp_path / "grid.html"
    want = ji.patch(lm, clean, corrupt, ji.metrics.log_probability(" the"), "z", ("layer", "head"), "noise")
    found = cli("patch --site z --over layer,head --mode noise --json", folder, *prompts, "--html", picture).json()
    np.testing.assert_allclose(found["effects"], want.effects, rtol=1e-4, atol=1e-4)
    assert found["axes"][1] == {"name": "head", "labels": list(range(lm.config.n_heads))}
    assert picture.read_text(encoding="utf-8").startswith("<!doctype html>")
    both = cli("patch --site attn_out --site mlp_out --json", folder, *prompts, "--out", tmp_path / "kept").json()
    assert [axis["name"] for axis in both["axes"]] == ["site", "layer", "position"]
    assert (tmp_path / "kept" / "mlp_out" / "sweep.json").exists()
    shown = cli("patch", folder, *prompts)
    assert shown.code == 0 and "1 is the other run's value" in shown.out
    assert "--html ends in" in cli("patch", folder, *prompts, "--html", tmp_path / "grid.pdf").err


def test_ablate_prints_what_is_lost(cli: Cli, folder: Path, tmp_path: Path) -> None:
    lm = ji.load(folder)
    metric = ji.metrics.log_probability(" the")
    found = cli("ablate --json --answer", " the", folder, "to the store").json()
    np.testing.assert_allclose(found["effects"], ji.ablate(lm, "to the store", metric).effects, rtol=1e-4, atol=1e-4)
    reference = tmp_path / "prompts.txt"
    reference.write_text("to the store\nthe the store\n", encoding="utf-8")
    options = ("--answer", " the", "--heads", "0.1 2.0", "--kind", "mean", "--reference", reference)
    together = cli("ablate --json --keep", folder, "to the store", *options).json()
    want = ji.ablate(
        lm, "to the store", metric, kind="mean", components=[ji.heads("0.1 2.0")], keep=True, reference=["to the store", "the the store"]
    )
    np.testing.assert_allclose(together["effects"], want.effects, rtol=1e-4, atol=1e-4)
    assert "--keep goes with --heads" in cli("ablate --keep", folder, "to", "--answer", " the").err
    assert "needs reference=" in cli("ablate --kind mean", folder, "to", "--answer", " the").err
