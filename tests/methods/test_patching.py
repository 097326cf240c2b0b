"""Patching beyond one site and one grid: several sites and metrics, roles, components, prompts of different lengths, `out`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.runs import measure
from tests.tiny import CONFIGS, params, prompts

METRIC = ji.metrics.logit_difference([3, 4], [5, 9])


def pair(lm: ji.LanguageModel) -> tuple[ji.Tokens, ji.Tokens]:
    """Two prompts of 5 and 7 tokens and their corrupted twins, which differ from positions 2 and 3 on."""
    clean = prompts(lm.config, (5, 7))
    ids = np.array(clean.ids)
    ids[0, 2], ids[1, 3], ids[1, 5] = (ids[0, 2] + 1) % 50, (ids[1, 3] + 1) % 50, (ids[1, 5] + 7) % 50
    return clean, ji.Tokens.from_ids(ids, clean.mask)


@pytest.fixture(scope="module")
def lm() -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIGS["llama"]), CONFIGS["llama"])


def near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_several_sites_and_metrics_in_one_call(lm: ji.LanguageModel) -> None:
    clean, corrupt = pair(lm)
    metrics = {"difference": METRIC, "probability": ji.metrics.probability([3, 4])}
    found = ji.patch(lm, clean, corrupt, metrics, sites=["attn_out", "mlp_out"])
    assert found["difference"].axes[0] == ("site", ("attn_out", "mlp_out"))
    assert found["difference"].values.shape == (2, 3, 7)
    for i, site in enumerate(["attn_out", "mlp_out"]):
        for name, metric in metrics.items():
            alone = ji.patch(lm, clean, corrupt, metric, site)
            near(found[name].values[i], alone.values)
            near(found[name].per_example[:, i], alone.per_example)


def test_roles_name_each_prompts_own_position(lm: ji.LanguageModel) -> None:
    clean, corrupt = pair(lm)
    grid = ji.patch(lm, clean, corrupt, METRIC)
    roles = ji.patch(lm, clean, corrupt, METRIC, over={"layer": [0, 2], "position": {"changed": [2, 3], "end": [4, 6]}})
    assert roles.axes == (("layer", (0, 2)), ("position", ("changed", "end")))
    for row, places in enumerate([(2, 4), (3, 6)]):
        for i, layer in enumerate((0, 2)):
            near(roles.per_example[row, i], grid.per_example[row, layer, list(places)])
    fixed = ji.patch(lm, clean, corrupt, METRIC, over=("layer",), at={"position": np.asarray([[2], [3]])})
    near(fixed.values[[0, 2]], roles.values[:, 0])


def test_components_are_patched_together(lm: ji.LanguageModel) -> None:
    clean, corrupt = pair(lm)
    mask = np.zeros((3, 4), bool)
    mask[0, 1] = mask[2, 3] = True
    result = ji.patch(lm, clean, corrupt, METRIC, "z", components={"pair": ji.heads("0.1 2.3"), "mask": mask, "all": np.ones((3, 4), bool)})
    source = ji.run(lm, clean, sites="z")["z"]
    want = METRIC(ji.run(lm, corrupt, edits=ji.edits.replace("z", source, where=ji.heads("0.1 2.3"))))
    near(result.per_example[:, 0], want)
    near(result.per_example[:, 1], want)
    near(result.per_example[:, 2], METRIC(ji.run(lm, corrupt, edits=ji.edits.replace("z", source))))
    layers = ji.patch(lm, clean, corrupt, METRIC, "resid_pre", components=[np.arange(3) == 0])
    near(layers.effects, 1)


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_a_position_map_pairs_prompts_of_different_lengths(lm: ji.LanguageModel, mode: Any) -> None:
    clean = ji.Tokens.from_ids([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]], np.asarray([[True] * 6, [True] * 4 + [False] * 2]))
    corrupt = ji.Tokens.from_ids([[1, 2, 30, 31, 4, 5, 6], [7, 18, 9, 10, 11, 0, 0]], np.asarray([[True] * 7, [True] * 5 + [False] * 2]))
    there = [[0, 1, 2, 4, 5, 6], [0, 1, 2, -1]]
    result = ji.patch(lm, clean, corrupt, METRIC, mode=mode, position_map=there)
    base, other = (corrupt, clean) if mode == "denoise" else (clean, corrupt)
    source = np.asarray(ji.run(lm, other, sites="resid_pre")["resid_pre"])
    for row, forward in enumerate(there):
        steps = {a: b for a, b in enumerate(forward) if b >= 0}
        steps = {b: a for a, b in steps.items()} if mode == "denoise" else steps
        for position in range(int(base.lengths[row])):
            if position not in steps:
                assert np.isnan(result.per_example[row, :, position]).all()
                continue
            value = source[1, row, steps[position]]
            place = np.minimum(position, np.asarray(base.lengths) - 1)[:, None]
            want = METRIC(ji.run(lm, base, edits=ji.edits.replace("resid_pre", value, layer=1, position=place, batch=row)))
            near(result.per_example[row, 1, position], np.asarray(want)[row])
    with pytest.raises(ji.InputError, match="position_map: pair 1 has 4 clean and 5 corrupt tokens"):
        ji.patch(lm, clean, corrupt, METRIC, position_map=[there[0], [0, 1, 2, 5]])
    with pytest.raises(ji.InputError, match="a position_map must say"):
        ji.patch(lm, clean, corrupt, METRIC)


def test_edits_of_one_side_and_a_linear_model_adds_up() -> None:
    config = CONFIGS["attention"]
    lm = ji.LanguageModel(params(config), config)
    clean, corrupt = pair(lm)
    frozen = ji.run(lm, corrupt, sites="pattern")["pattern"]
    freeze = [ji.edits.replace("pattern", frozen)]
    options: dict[str, Any] = {"edits": freeze, "mode": "noise"}
    one = ji.patch(lm, clean, corrupt, METRIC, "z", ("layer", "head"), **options)
    last = one.values[-1] - np.mean(one.clean)  # heads of one layer do not read one another
    together = ji.patch(lm, clean, corrupt, METRIC, "z", components=[np.arange(3) == 2], **options)
    near(last.sum(), together.values[0] - np.mean(together.clean))
    shifted = ji.patch(lm, clean, corrupt, METRIC, "z", ("layer",), clean_edits=[ji.edits.scale("embed", 2.0)])
    near(shifted.clean, METRIC(ji.run(lm, clean, edits=ji.edits.scale("embed", 2.0))))
    near(shifted.corrupt, METRIC(ji.run(lm, corrupt)))


@pytest.mark.parametrize("block", [8, 16])
def test_units_that_reach_over_blocks_and_many_prompts_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    config = CONFIGS["gemma"]
    lm = ji.LanguageModel(params(config), config)
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 50, (5, 12))
    twin = ids.copy()
    twin[np.arange(5), [0, 3, 5, 9, 11]] += 1
    metric = ji.metrics.logit_difference(3, 5)
    whole = ji.patch(lm, ids % 50, twin % 50, metric)
    monkeypatch.setitem(measure.BLOCKS, "cpu", (block,))
    parts = ji.patch(lm, ids % 50, twin % 50, metric)
    near(parts.per_example, whole.per_example)
    source = ji.run(lm, ids % 50, sites="resid_pre")["resid_pre"]
    near(parts.per_example[:, 1, 5], metric(ji.run(lm, twin % 50, edits=ji.edits.replace("resid_pre", source, layer=1, position=5))))


KILLED = """
import sys, numpy as np, jaxinterp as ji
from jaxinterp.runs import kept
from tests.methods.test_patching import METRIC, pair
from tests.tiny import CONFIGS, params
lm = ji.LanguageModel(params(CONFIGS["llama"]), CONFIGS["llama"])
write = kept.Kept.write
def slow(self, arrays, first):
    write(self, arrays, first)
    print("kept", flush=True)
    import time; time.sleep(0.2)
kept.Kept.write = slow
clean, corrupt = pair(lm)
ji.patch(lm, clean, corrupt, METRIC, batch_size=2, out=sys.argv[1], edits=[ji.edits.scale("mlp_out", 0.9, layer=0)])
"""


def test_a_killed_sweep_goes_on_from_its_finished_chunks(lm: ji.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sweep"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "kept\n"
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = len(list(folder.glob("cells-*.safetensors")))
    assert 3 <= kept < 11
    ran = []
    run = measure._Job.run
    monkeypatch.setattr(measure._Job, "run", lambda self, chunk, started: ran.append(len(chunk)) or run(self, chunk, started))
    clean, corrupt = pair(lm)
    base = [ji.edits.scale("mlp_out", 0.9, layer=0)]
    again = ji.patch(lm, clean, corrupt, METRIC, batch_size=2, out=folder, edits=base)
    assert sum(ran) == 21 - 2 * kept
    near(again.values, ji.patch(lm, clean, corrupt, METRIC, edits=base).values)
    ran.clear()
    near(ji.patch(lm, clean, corrupt, METRIC, out=folder, edits=base).effects, again.effects)
    assert not ran
    others: tuple[dict[str, Any], ...] = ({"site": "resid_post", "edits": base}, {"edits": [ji.edits.scale("attn_out", 0.9, layer=0)]})
    for other in others:
        with pytest.raises(ji.InputError, match="holds chunks of another sweep"):
            ji.patch(lm, clean, corrupt, METRIC, out=folder, **other)
    zeroed = {site: lambda layer, site=site: ji.edits.zero(site, layer=layer) for site in ("attn_out", "mlp_out")}
    ji.sweep(lm, clean, METRIC, zeroed["attn_out"], {"layer": [0, 1]}, out=tmp_path / "zero")
    with pytest.raises(ji.InputError, match="holds chunks of another sweep"):
        ji.sweep(lm, clean, METRIC, zeroed["mlp_out"], {"layer": [0, 1]}, out=tmp_path / "zero")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ji.InputError, match="does not hold a sweep"):
        ji.patch(lm, clean, corrupt, METRIC, out=tmp_path / "full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": {"position": {"end": [4, 4, 4]}, "layer": [0]}}, "a position for each of the 2 prompts"),
        ({"over": {"position": {"end": [4, 9]}}}, "out of range for prompt 1"),
        ({"over": {"layer": {"first": [0, 0]}}}, "name positions"),
        ({"site": "z", "components": []}, "components is empty"),
        ({"site": "z", "components": [np.ones((2, 4), bool)]}, "boolean mask of shape"),
        ({"site": "mlp_out", "components": [ji.heads("0.1")]}, "no head axis"),
        ({"sites": ["resid_pre", "nowhere"]}, "no site 'nowhere'"),
        ({"over": ("layer",), "at": {"position": 99}}, "position 99 is out of range"),
        ({"at": {"position": 1}}, "in `over` and in `at`"),
        ({"over": ("layer", "layer")}, "named twice"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"metric": {}}, "0 metrics"),
        ({"edits": [ji.edits.zero("z", layer=7)]}, "layer 7 is out of range"),
        ({"edits": [ji.edits.add("mlp_out", np.zeros(5))]}, "does not broadcast"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(lm: ji.LanguageModel, options: dict[str, Any], message: str) -> None:
    clean, corrupt = pair(lm)
    with pytest.raises(ji.InputError, match=message):
        ji.patch(lm, clean, corrupt, **{"metric": METRIC, **options})
