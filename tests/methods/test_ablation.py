"""Ablation against plain runs, its identities, its reference figures, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.ablation.layout import product_layout
from jaxinterp.methods.grid import Axis
from jaxinterp.model.sites import site_of
from jaxinterp.runs import measure
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

METRIC = ji.metrics.logit_difference([3, 4, 5, 6], [5, 9, 1, 2])
ZERO = ji.edits.zero


def model(name: str = "llama") -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIGS[name]), CONFIGS[name])


def measured(lm: ji.LanguageModel, tokens: ji.Tokens, *edits: ji.edits.Edit) -> np.ndarray:
    """[B]: the metric of a plain run with these edits."""
    return np.asarray(METRIC(ji.run(lm, tokens, edits=edits)))


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize(
    ("name", "site", "over", "kind"),
    [
        ("llama", "z", ("layer", "head"), "zero"),
        ("gemma", "mlp_out", ("layer",), "mean"),
        ("bert", "z", ("layer", "head"), "mean"),
        ("neox", "mlp_post", {"layer": [1], "neuron": [0, 7]}, "mean"),
        ("moe", "expert_weights", {"layer": [0, 2], "expert": [1, 4]}, "zero"),
    ],
)
def test_every_cell_is_its_own_run(name: str, site: str, over: Any, kind: Any) -> None:
    lm = model(name)
    tokens = prompts(lm.config, (5, 7, 6, 7) if name == "llama" else (6, 6, 6, 6))
    reference = prompts(lm.config, (6, 6, 6), seed=3) if kind == "mean" else None
    result = ji.ablate(lm, tokens, METRIC, site, over, kind, reference=reference)
    value = 0.0 if reference is None else np.asarray(ji.run(lm, reference, sites=(site,))[site]).mean(axis=1, keepdims=True)
    for index in ((0, 0), (-1, 1), (0, -1)):
        cell = index[: len(result.axes)]
        at: Any = {axis: labels[i] for (axis, labels), i in zip(result.axes, cell, strict=True)}
        close(result.per_example[:, *cell], measured(lm, tokens, ji.edits.replace(site, value, **at)))
    close(result.clean, measured(lm, tokens))
    close(result.effects, result.values - result.clean.mean())


def test_means_by_group_by_named_position_and_pooled() -> None:
    lm = model()
    tokens, there = prompts(lm.config, (5, 7, 5, 7), left=True), prompts(lm.config, (7, 7, 5, 5, 5), seed=4)
    z = np.asarray(ji.run(lm, there, sites=("z",))["z"], np.float64)
    ours, theirs = np.asarray(tokens.lengths), np.asarray(there.lengths)
    at: Any = {"layer": 1, "head": 2}
    columns = [np.flatnonzero(row) for row in np.asarray(tokens.mask)]

    def replaced(means: list[np.ndarray], positions: list[np.ndarray]) -> np.ndarray:
        """By plain runs: in each prompt some positions take means [n H E] of layer 1."""
        value, where = np.zeros((4, 7, 4, 6)), np.zeros((1, 4, 7), bool)
        for row, (mean, chosen) in enumerate(zip(means, positions, strict=True)):
            value[row, columns[row][chosen]], where[0, row, columns[row][chosen]] = mean, True
        return measured(lm, tokens, ji.edits.replace("z", value, where=where, **at))

    grid: Any = {"layer": [1], "head": [2]}
    groups: Any = {"groups": ["five", "seven", "five", "seven"], "reference_groups": ["seven", "seven", "five", "five", "five"]}
    by_group = ji.ablate(lm, tokens, METRIC, "z", grid, "mean", reference=there, **groups)
    means = [z[1, theirs == n, :n].mean(axis=0) for n in ours]
    close(by_group.per_example[:, 0, 0], replaced(means, [np.arange(n) for n in ours]))
    assert dict(by_group.how)["groups"] == "2"

    roles: dict[str, Any] = {"second": [1, 2, 1, 2], "END": -1}
    other: dict[str, Any] = {"second": [2, 2, 1, 1, 1], "END": -1}
    named = ji.ablate(lm, tokens, METRIC, "z", grid, "mean", reference=there, by=roles, reference_positions=other)
    mean = np.stack([z[1, np.arange(5), np.asarray(other["second"])].mean(axis=0), z[1, np.arange(5), theirs - 1].mean(axis=0)])
    close(named.per_example[:, 0, 0], replaced([mean] * 4, [np.array([b, n - 1]) for b, n in zip(roles["second"], ours, strict=True)]))
    assert dict(named.how)["by"] == "named positions: second, END"
    one = ji.ablate(lm, tokens, METRIC, "z", {**grid, "position": ["END"]}, "mean", reference=there, by=roles, reference_positions=other)
    close(one.per_example[:, 0, 0, 0], replaced([mean[1:]] * 4, [np.array([n - 1]) for n in ours]))
    assert one.axes[2] == ("position", ("END",))
    zero = ji.ablate(lm, tokens, METRIC, "z", grid, by=roles)
    close(zero.per_example[:, 0, 0], replaced([0 * mean] * 4, [np.array([b, n - 1]) for b, n in zip(roles["second"], ours, strict=True)]))

    pooled = ji.ablate(lm, tokens, METRIC, "z", grid, "mean", reference=there, by="pooled")
    mean = np.concatenate([z[1, row, 1:n] for row, n in enumerate(theirs)]).mean(axis=0)
    close(pooled.per_example[:, 0, 0], replaced([mean] * 4, [np.arange(1, n) for n in ours]))
    assert "without token 0" in dict(pooled.how)["by"]


def test_a_reference_may_be_a_run_or_the_means_themselves() -> None:
    lm = model("gemma")
    tokens, there = prompts(lm.config, (9, 9, 9, 9)), prompts(lm.config, (9,) * 5, seed=3)
    trace = ji.run(lm, there, sites=("z",))
    whole = ji.ablate(lm, tokens, METRIC, kind="mean", reference=there, batch_size=2)
    for reference in (trace, {"z": np.asarray(trace["z"]).mean(axis=1, keepdims=True)}):
        close(ji.ablate(lm, tokens, METRIC, kind="mean", reference=reference).values, whole.values)
    with compiled() as events:
        others, reference = prompts(lm.config, (9, 9, 9, 9), seed=8), prompts(lm.config, (9,) * 7, seed=9)
        ji.ablate(lm, others, METRIC, kind="mean", reference=reference, batch_size=2)
    assert not events


def test_resampling_takes_other_prompts_of_the_group() -> None:
    lm = model()
    tokens = prompts(lm.config, (5, 7, 5, 7))
    grid: Any = {"layer": [0, 2], "head": [1]}
    groups = [5, 7, 5, 7]
    result = ji.ablate(lm, tokens, METRIC, "z", grid, "resample", groups=groups, draws=3, seed=5)
    again = ji.ablate(lm, tokens, METRIC, "z", grid, "resample", groups=groups, draws=2, seed=5)
    np.testing.assert_array_equal(result.partners, [[2, 3, 0, 1]] * 3)
    close(again.per_draw, result.per_draw[:2])
    close(result.per_example, result.per_draw.mean(axis=0))
    z = np.asarray(ji.run(lm, tokens, sites=("z",))["z"])
    close(result.per_draw[0, :, 1, 0], measured(lm, tokens, ji.edits.replace("z", z[:, [2, 3, 0, 1]], layer=2, head=1)))

    alike = prompts(lm.config, (6,) * 8)
    free = ji.ablate(lm, alike, METRIC_8, "z", grid, "resample", draws=20)
    assert (free.partners != np.arange(8)).all()
    assert (np.sort(free.partners, axis=1) == np.arange(8)).all()
    assert len({tuple(row) for row in free.partners}) > 10
    pool = prompts(lm.config, (6,) * 3, seed=2)
    drawn = ji.ablate(lm, alike, METRIC_8, "z", grid, "resample", reference=pool, draws=20).partners
    assert set(np.unique(drawn)) == {0, 1, 2}
    own = ji.ablate(lm, alike, METRIC_8, "z", grid, "resample", reference=prompts(lm.config, (6,) * 8, seed=2), partners="own")
    np.testing.assert_array_equal(own.partners, [np.arange(8)])


METRIC_8 = ji.metrics.logit_difference([3, 4, 5, 6] * 2, [5, 9, 1, 2] * 2)


def without(lm: ji.LanguageModel, tokens: ji.Tokens, heads: str = "", keep: bool = False) -> np.ndarray:
    """[B]: the metric of a plain run without some heads (`keep`: without all others)."""
    where = np.zeros((3, 1, 1, 4), bool)
    for name in heads.split():
        layer, head = name.split(".")
        where[int(layer), 0, 0, int(head)] = True
    return measured(lm, tokens, ZERO("z", where=~where if keep else where))


def test_what_does_not_differ_has_no_effect_and_keeping_is_ablating_the_rest() -> None:
    lm = model("oss")
    same = prompts(lm.config, (6,), seed=1)
    tokens = ji.Tokens.from_ids(np.repeat(same.ids, 4, axis=0))
    for options in ({"kind": "resample", "draws": 2}, {"kind": "mean", "reference": tokens}):
        close(ji.ablate(lm, tokens, METRIC, **options).effects, 0)
    others = prompts(lm.config, (6, 6, 6, 6))
    sets = {
        "none": np.zeros((3, 4), bool),
        "all": np.ones((3, 4), bool),
        "two": ji.heads("0.1 2.3"),
        "layer": np.array([False, True, False]),
    }
    wanted = ("", "0.0 0.1 0.2 0.3 1.0 1.1 1.2 1.3 2.0 2.1 2.2 2.3", "0.1 2.3", "1.0 1.1 1.2 1.3")
    for keep in (False, True):
        found = ji.ablate(lm, others, METRIC, components=sets, keep=keep)
        close(found.per_example.T, [without(lm, others, heads, keep) for heads in wanted])
        assert found.axes == (("component", ("none", "all", "two", "layer")),)
        close(found.effects[1 if keep else 0], 0)


def test_keeping_one_component_of_a_grid() -> None:
    config = CONFIGS["llama"]
    site = site_of("z", config)
    axes = [Axis("layer", (0, 2), (0, 2)), Axis("head", (1,), (1,)), Axis("position", (-1,), (-1,))]
    cell = product_layout(axes, site, {}, config, keep=True).cells[1]["z"]
    assert np.argwhere(~cell.where).tolist() == [[2, 0, 0, 1]]
    assert {name: int(index) for name, index in cell.select.items()} == {"position": -1}
    rest = product_layout(axes[:1], site_of("mlp_out", config), {}, config, keep=True).cells[0]["mlp_out"]
    assert rest.where.tolist() == [False, True, True]


def test_sets_may_span_sites_and_metrics_share_a_run() -> None:
    lm = model("llama")
    tokens = prompts(lm.config, (6, 6, 6, 6))
    mlps = np.array([False, True, True])
    sets = {"both": {"z": ji.heads("0.1 2.3"), "mlp_out": mlps}, "heads": {"z": ji.heads("0.1")}}
    metrics = {"difference": METRIC, "probability": ji.metrics.probability(3)}
    found = ji.ablate(lm, tokens, metrics, ("z", "mlp_out"), components=sets)
    edits = [ZERO("z", where=ji.heads("0.1 2.3")), ZERO("mlp_out", layer=[1, 2])]
    close(found["difference"].per_example[:, 0], measured(lm, tokens, *edits))
    close(found["difference"].per_example[:, 1], measured(lm, tokens, ZERO("z", layer=0, head=1)))
    close(found["probability"].per_example[:, 0], metrics["probability"](ji.run(lm, tokens, edits=edits)))


def test_noise_is_the_prompts_own_and_in_stated_units() -> None:
    lm = model()
    tokens = prompts(lm.config, (5, 7, 6, 7))
    grid: Any = {"layer": [1], "head": [0, 3]}
    close(ji.ablate(lm, tokens, METRIC, "z", grid, "noise", std=0.0, std_unit="absolute").effects, 0)
    found = ji.ablate(lm, tokens, METRIC, "z", grid, "noise", reference=tokens, std=0.5, draws=2)
    first = ji.Tokens.from_ids(np.asarray(tokens.ids)[:1], np.asarray(tokens.mask)[:1])
    metric = ji.metrics.logit_difference([3], [5])
    alone = ji.ablate(lm, first, metric, "z", grid, "noise", reference=tokens, std=0.5, draws=2)
    close(alone.per_draw[:, 0], found.per_draw[:, 0])
    z = np.asarray(ji.run(lm, tokens, sites=("z",))["z"], np.float64)
    mine = np.concatenate([z[1, row, 1:n, 3] for row, n in enumerate(np.asarray(tokens.lengths))])
    unit = np.sqrt(mine.var(axis=0).mean())
    absolute = ji.ablate(lm, tokens, METRIC, "z", grid, "noise", std=0.5 * unit, std_unit="absolute", draws=2)
    close(absolute.per_draw[..., 1], found.per_draw[..., 1])


def test_optimal_constants_cost_less_than_means() -> None:
    lm = model()
    tokens = prompts(lm.config, (6, 6, 6, 6))
    away = ji.metrics.kl_divergence(ji.run(lm, tokens))
    mean = np.asarray(ji.run(lm, tokens, sites=("z",))["z"], np.float32)
    by_position, pooled = mean.mean(axis=1, keepdims=True), mean[:, :, 1:].mean(axis=(1, 2), keepdims=True)
    options: Any = {"kind": "optimal", "reference": tokens, "training": ji.OptimalTraining(steps=25)}
    best = ji.ablate(lm, tokens, away, "z", {"layer": [0, 2], "head": [1, 3]}, **options)
    for i, layer in enumerate((0, 2)):
        for j, head in enumerate((1, 3)):
            edit = ji.edits.replace("z", by_position, layer=layer, head=head)
            assert best.values[i, j] < 0.9 * np.mean(away(ji.run(lm, tokens, edits=edit)))
    assert best.constants["z"][0].shape == (1, 6, 1, 6)
    pair = ji.ablate(lm, tokens, away, components=[ji.heads("0.1 2.3")], by="pooled", **options)
    edit = ji.edits.replace("z", pooled, where=ji.heads("0.1 2.3"), position=[1, 2, 3, 4, 5])
    assert pair.values[0] < 0.9 * np.mean(away(ji.run(lm, tokens, edits=edit)))


def test_sequences_of_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model()
    tokens = prompts(lm.config, (6, 6, 6, 6))
    members = [ji.heads("0.1"), ji.heads("1.2"), ji.heads("2.3")]
    for keep in (False, True):
        left = ji.leave_one_out(lm, tokens, METRIC, members, keep=keep, out=tmp_path / f"left {keep}")
        close(left.clean, without(lm, tokens, "0.1 1.2 2.3", keep))
        close(left.per_example[:, 1], without(lm, tokens, "0.1 2.3", keep))
        close(left.effects, left.values - left.clean.mean())
    steps = ji.greedy(lm, tokens, METRIC, 3, out=tmp_path / "steps")
    names = [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    alone = [without(lm, tokens, name).mean() for name in names]
    close(steps.candidates[0], alone)
    assert steps.order[0] == names[int(np.argmin(alone))]
    close(steps.per_example.T, [without(lm, tokens, " ".join(steps.order[:n])) for n in range(4)])
    close(steps.values, steps.per_example.mean(axis=0))
    kept = ji.greedy(lm, tokens, METRIC, 2, components=members, keep=True, choose="highest")
    close(kept.per_example.T, [without(lm, tokens, " ".join(kept.order[:n]), keep=True) for n in range(3)])

    (tmp_path / "steps" / "step 2" / "cells-000000000.safetensors").unlink()
    ran, run = [], measure._Job.run
    monkeypatch.setattr(measure._Job, "run", lambda self, chunk, started: ran.append(len(chunk)) or run(self, chunk, started))
    again = ji.greedy(lm, tokens, METRIC, 3, out=tmp_path / "steps")
    assert ran == [12], "one step was lost, and only its cells run again"
    assert again.order == steps.order
    np.testing.assert_array_equal(again.candidates, steps.candidates)
    np.testing.assert_array_equal(ji.leave_one_out(lm, tokens, METRIC, members, keep=True, out=tmp_path / "left True").values, left.values)
    assert ran == [12]
    with pytest.raises(ji.InputError, match="another sweep"):
        ji.greedy(lm, tokens, METRIC, 3, members, out=tmp_path / "steps")


@pytest.mark.parametrize(("name", "norm"), [("llama", "freeze"), ("neox", "recompute")])
def test_direct_effects_are_what_heads_write_and_repair_is_the_rest(name: str, norm: Any) -> None:
    lm = model(name)
    tokens = prompts(lm.config, (6, 6, 6, 6))
    found = ji.self_repair(lm, tokens, METRIC, kind="zero", norm=norm)
    close(found.repair, found.total.effects - found.direct.effects)
    trace = ji.run(lm, tokens, sites=("head_out", "ln_final_scale", "resid_post"))
    stream, scale = np.asarray(trace.at("resid_post", layer=2)), np.asarray(trace["ln_final_scale"])
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        close(found.total.per_example[:, layer, head], without(lm, tokens, f"{layer}.{head}"))
        rest = stream - np.asarray(trace["head_out"])[layer, :, :, head]
        frozen = [ji.edits.replace("ln_final_scale", scale)] if norm == "freeze" else []
        close(found.direct.per_example[:, layer, head], measured(lm, tokens, ji.edits.replace("resid_post", rest, layer=2), *frozen))
    if norm == "recompute":  # in parallel blocks nothing comes after the last layer's heads but the norm
        close(found.repair[2], 0)
    assert abs(found.repair[0]).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mean"}, "needs reference="),
        ({"kind": "zero", "reference": "own"}, "takes no reference"),
        ({"kind": "mean", "reference": "longer"}, "by='position' needs prompts that align"),
        ({"kind": "mean", "reference": "longer", "by": {"END": -1}, "reference_positions": {"S2": 0}}, "by names END"),
        ({"kind": "mean", "reference": "longer", "by": {"END": [1, 2]}}, "one integer for each of the 4 prompts"),
        ({"kind": "mean", "reference": "own", "by": {"END": -1}, "at": {"position": 2}}, "leave 'position' out"),
        ({"by": {"S2": [5, 2, 3, 4], "END": -1}}, "two names stand at one position of prompt 0"),
        ({"kind": "mean", "reference": {"q": 0.0}}, "not for site 'z'"),
        ({"kind": "mean", "reference": {"z": np.zeros((5, 6))}}, "must broadcast against"),
        ({"kind": "mean", "reference": "own", "draws": 2}, "more only for kind"),
        ({"kind": "resample", "groups": [0, 0, 0, 1]}, "prompt 3 of group 1 has no other"),
        ({"kind": "resample", "reference": "longer"}, "do not align"),
        ({"kind": "resample", "reference": "longer", "partners": "own"}, "4 prompts and 2 references"),
        ({"kind": "resample", "partners": [0, 1, 2, 9]}, "numbers from 0 to 3"),
        ({"kind": "resample", "groups": [0, 1]}, "a label for each of the 4 prompts"),
        ({"components": []}, "components is empty"),
        ({"components": [ji.heads("3.0")]}, "head 3.0 is out of range"),
        ({"components": [np.ones((3, 3), bool)]}, r"booleans of shape \[3, 4\]"),
        ({"site": ("z", "mlp_out")}, "a grid is over one site"),
        ({"over": ("layer", "neuron")}, "has no axis 'neuron'"),
        ({"over": "layer", "at": {"layer": 1}}, "is in `over` and in `at`"),
        ({"kind": "noise", "std": -1.0, "std_unit": "absolute"}, "expected at least 0"),
        ({"kind": "optimal", "reference": "own", "by": {"END": -1}}, "one for all prompts"),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    lm = model()
    tokens = prompts(lm.config, (6, 6, 6, 6))
    named: dict[str, Any] = {"own": tokens, "longer": prompts(lm.config, (8, 8), seed=2)}
    given = options.get("reference")
    options = options | {"reference": named[given]} if isinstance(given, str) else options
    with pytest.raises(ji.InputError, match=message):
        ji.ablate(lm, tokens, METRIC, **options)


# ------------------------------------------------------------------------------------------------- reference figures

PAIRS = [
    ("Mary", "John", "Tom", "store", "drink"), ("Anna", "James", "Paul", "park", "ball"), ("Sarah", "Paul", "Mary", "school", "book"),
    ("David", "Lisa", "Anna", "office", "ring"), ("Emma", "Mark", "Sarah", "store", "book"), ("Tom", "Kate", "David", "park", "drink"),
    ("Lisa", "David", "Emma", "school", "ball"), ("John", "Sarah", "Mark", "office", "ring"),
]  # fmt: skip


def sentences(subject: int) -> list[str]:
    return [f"Then, {row[0]} and {row[1]} went to the {row[3]}. {row[subject]} gave a {row[4]} to" for row in PAIRS]


@pytest.mark.weights
def test_figures_of_eight_pairs(smollm2: ji.LanguageModel) -> None:
    clean, abc = sentences(1), sentences(2)
    metric = ji.metrics.logit_difference([f" {row[0]}" for row in PAIRS], [f" {row[1]}" for row in PAIRS])
    sets = [ji.heads("23.3"), ji.heads("23.3 29.1"), ji.heads("24.4"), ji.heads("5.2")]
    columns: dict[str, tuple[dict[str, Any], list[float]]] = {
        "zero": ({}, [3.0158, 2.2414, 5.5556, 5.8420]),
        "mean": ({"reference": abc}, [3.0247, 2.3786, 5.7841, 5.8249]),
        "resample": ({"reference": abc, "partners": "own"}, [2.7058, 2.0742, 6.2456, 5.8881]),
    }
    for kind, (options, want) in columns.items():
        found = ji.ablate(smollm2, clean, metric, components=sets, kind=kind, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.values, want, atol=3e-4)
        np.testing.assert_allclose(found.clean.mean(), 5.8743, atol=3e-4)
    mlp: dict[str, Any] = {"site": "mlp_out", "over": {"layer": [11]}}
    found = {
        "by position": ji.ablate(smollm2, clean, metric, kind="mean", reference=clean, **mlp),
        "pooled": ji.ablate(smollm2, clean, metric, kind="mean", reference=clean, by="pooled", **mlp),
        "zero": ji.ablate(smollm2, clean, metric, **mlp),
    }
    want = {"by position": 5.877, "pooled": 5.232, "zero": -0.829}  # token 0 is a sink: zero breaks it, the others leave it alone
    for name, value in want.items():
        np.testing.assert_allclose(found[name].values, [value], atol=2e-3, err_msg=name)
