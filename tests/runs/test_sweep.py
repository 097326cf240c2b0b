"""The engine against plain runs: every cell equals `ji.run` with the same edit, whatever is packed, chunked or fallen back."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.sites import site_of
from jaxinterp.runs import measure
from jaxinterp.runs.provenance import fingerprint_of_weights, record
from jaxinterp.runs.results import check_comparable
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

METRIC = ji.metrics.logit_difference([3, 4], [5, 9])


def pair(config: ji.TransformerConfig) -> tuple[ji.Tokens, ji.Tokens]:
    """Two prompts of 5 and 7 tokens and their corrupted twins, which differ from positions 2 and 3 on."""
    clean = prompts(config, (5, 7))
    ids = np.array(clean.ids)
    ids[0, 2], ids[1, 3], ids[1, 5] = (ids[0, 2] + 1) % 50, (ids[1, 3] + 1) % 50, (ids[1, 5] + 7) % 50
    return clean, ji.Tokens.from_ids(ids, clean.mask)


def model(name: str) -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIGS[name]), CONFIGS[name])


def looped(
    lm: ji.LanguageModel, base: ji.Tokens, other: ji.Tokens, site: str, axes: tuple[str, ...], points: list[tuple[int, ...]]
) -> np.ndarray:
    """[C B]: the same cells by `ji.run` with `replace`, one at a time; NaN where a prompt lacks the position."""
    source = ji.run(lm, other, sites=(site,))[site]
    out = []
    for point in points:
        at: dict[str, Any] = dict(zip(axes, point, strict=True))
        lacking = np.zeros(2, bool)
        for name in ("position", "query"):
            if name in at:
                lacking = at[name] >= np.asarray(base.lengths)
                at[name] = np.minimum(at[name], np.asarray(base.lengths) - 1)[:, None]
        keep = {"batch": np.flatnonzero(~lacking)} if lacking.any() else {}
        values = np.array(METRIC(ji.run(lm, base, edits=ji.edits.replace(site, source, **at, **keep))))
        values[lacking] = np.nan
        out.append(values)
    return np.asarray(out)


@pytest.mark.parametrize(
    ("name", "site", "over"),
    [
        ("llama", "resid_pre", ("layer", "position")),
        ("llama", "z", ("layer", "head")),
        ("gemma", "pattern", ("layer", "query")),
        ("oss", "v", ("layer", "position")),
        ("mixed", "attn_out", ("layer", "position")),
        ("mixed", "router_logits", ("layer", "position")),
        ("neox", "mlp_post", ("layer", "position")),
        ("bert", "z", ("layer", "head")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_every_cell_equals_its_own_run(name: str, site: str, over: tuple[str, ...], mode: Any) -> None:
    lm = model(name)
    clean, corrupt = pair(lm.config)
    result = ji.patch(lm, clean, corrupt, METRIC, site, over, mode)
    base, other = (corrupt, clean) if mode == "denoise" else (clean, corrupt)
    grid = [labels for _, labels in result.axes]
    corners = [tuple(grid[axis][i] for axis, i in enumerate(index)) for index in ((0, 0), (0, -1), (-1, 2), (-1, -1), (1, 3))]
    want = looped(lm, base, other, site, over, corners)
    got = np.asarray([[result.per_example[row][grid[0].index(a), grid[1].index(b)] for row in (0, 1)] for a, b in corners])
    span = abs(float(np.mean(result.clean) - np.mean(result.corrupt)))
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * max(span, 1))
    np.testing.assert_allclose(result.clean, METRIC(ji.run(lm, clean)), rtol=1e-4, atol=1e-4)
    start, end = (result.corrupt, result.clean) if mode == "denoise" else (result.clean, result.corrupt)
    there = ~np.isnan(result.per_example)
    change = np.where(there, result.per_example - start[:, None, None], 0).sum(axis=0)
    np.testing.assert_allclose(result.effects, change / np.where(there, (end - start)[:, None, None], 0).sum(axis=0), rtol=1e-4, atol=1e-5)


def test_patching_everything_gives_the_other_run_and_nothing_before_the_difference_changes() -> None:
    lm = model("llama")
    clean, corrupt = pair(lm.config)
    everything = ji.patch(lm, clean, corrupt, METRIC, "resid_pre", ("layer",))
    np.testing.assert_allclose(everything.effects, 1, atol=1e-4)
    grid = ji.patch(lm, clean, corrupt, METRIC, "resid_pre")
    np.testing.assert_array_equal(grid.per_example[0, :, :2], np.broadcast_to(grid.corrupt[0], (3, 2)))
    assert np.isnan(grid.per_example[0, :, 5:]).all()
    assert not np.isnan(grid.values).any()


def test_chunks_and_new_data_change_no_result_and_compile_nothing() -> None:
    lm = model("llama")
    clean, corrupt = pair(lm.config)
    whole = ji.patch(lm, clean, corrupt, METRIC, "z", ("layer", "head"))
    for size in (1, 5):
        np.testing.assert_allclose(
            ji.patch(lm, clean, corrupt, METRIC, "z", ("layer", "head"), batch_size=size).values, whole.values, rtol=1e-4, atol=1e-5
        )
    other = ji.LanguageModel(params(CONFIGS["llama"], seed=1), CONFIGS["llama"])
    with compiled() as events:
        ji.patch(other, clean, corrupt, ji.metrics.logit_difference([7, 8], [1, 2]), "z", ("layer", "head"))
    assert not events


def test_chunks_are_many_times_the_base_runs_that_each_of_them_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model("llama")
    cells = [[ji.edits.zero("z", layer=0, head=number % 4, position=0)] for number in range(300)]  # each changes as much as a base run
    metric = ji.metrics.logit_difference(3, 5)
    job = measure._prepare(lm, prompts(lm.config, (7,)), None, cells, metric, None, None, (), None, "highest")
    assert [len(chunk) for chunk in job.chunks(np.arange(300), None)] == [300]
    monkeypatch.setitem(measure.WORK, "cpu", 1.0)
    assert [len(chunk) for chunk in job.chunks(np.arange(300), None)] == [60] * 5  # at most 64 would do


def test_sweep_runs_any_edits_over_any_coordinates() -> None:
    lm = model("gemma")
    tokens, _ = pair(lm.config)
    vector = np.random.default_rng(0).normal(size=24).astype(np.float32)

    def make(layer: int, strength: float) -> list[ji.edits.Edit]:
        return [ji.edits.add("resid_post", strength * vector, layer=layer, position=-2), ji.edits.zero("z", layer=2, head=1)]

    base = [ji.edits.scale("mlp_out", 0.5, layer=0)]
    result = ji.sweep(lm, tokens, METRIC, make, {"layer": range(3), "strength": [-1.0, 0.5]}, edits=base)
    for i, layer in enumerate(range(3)):
        for j, strength in enumerate([-1.0, 0.5]):
            want = METRIC(ji.run(lm, tokens, edits=[*base, *make(layer, strength)]))
            np.testing.assert_allclose(result.per_example[:, i, j], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result.effects, result.values - np.mean(METRIC(ji.run(lm, tokens, edits=base))), rtol=1e-4, atol=1e-4)


def doubled(x: Any) -> Any:
    return 2 * x


def test_functions_final_sites_masks_and_whole_distributions_give_the_same() -> None:
    lm = model("llama")
    tokens, corrupt = pair(lm.config)
    reference = ji.run(lm, corrupt)
    cases: list[tuple[Any, Any, Any]] = [
        (lambda layer: ji.edits.apply("z", doubled, layer=layer), range(3), METRIC),
        (lambda layer: ji.edits.scale("ln_final", 1.0 + layer), range(2), METRIC),
        (lambda layer: ji.edits.zero("z", where=ji.heads([(layer, 1), (2, 0)])), range(3), ji.metrics.kl_divergence(reference)),
        (lambda n: ji.edits.zero("resid_pre", where=np.arange(3)[:, None, None] == n, batch=1), range(3), ji.metrics.cross_entropy()),
        (lambda layer: ji.edits.knockout(query=-1, key=[0, 1], layer=layer), range(3), ji.metrics.log_probability(3)),
    ]  # fmt: skip
    for make, points, metric in cases:
        result = ji.sweep(lm, tokens, metric, lambda layer, make=make: make(layer), {"layer": points})
        want = np.asarray([metric(ji.run(lm, tokens, edits=make(layer))) for layer in points])
        np.testing.assert_allclose(result.per_example.T, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm, a, b: ji.patch(lm, a, b, METRIC, "resid"), "no site 'resid'"),
        (lambda lm, a, b: ji.patch(lm, a, b, METRIC, "z", ("layer", "neuron")), "has no axis 'neuron'"),
        (lambda lm, a, b: ji.patch(lm, a, b, METRIC, "z", {"layer": [3]}), "layer 3 is out of range"),
        (lambda lm, a, b: ji.patch(lm, a, b, METRIC, "z", {"position": [9]}), "longest prompt has 7 tokens"),
        (lambda lm, a, b: ji.patch(lm, a, prompts(lm.config, (6, 7)), METRIC), "Pair 0 has 5 clean and 6 corrupt tokens"),
        (lambda lm, a, b: ji.patch(lm, a, prompts(lm.config, (5,)), METRIC), "2 clean and 1 corrupt"),
        (lambda lm, a, b: ji.patch(lm, a, a, METRIC), "no scale"),
        (lambda lm, a, b: ji.sweep(lm, a, METRIC, lambda layer: ji.edits.zero("z", layer=layer), {"layer": []}), "grid is empty"),
        (lambda lm, a, b: ji.sweep(lm, a, METRIC, lambda n: ji.edits.zero("z", layer=[0] * n), {"n": [1, 2]}), "another form"),
    ],
)  # fmt: skip
def test_bad_sweeps_are_refused_in_one_sentence(call: Any, message: str) -> None:
    lm = model("llama")
    clean, corrupt = pair(lm.config)
    with pytest.raises(ji.InputError, match=message):
        call(lm, clean, corrupt)


def test_results_are_kept_shown_and_saved(tmp_path: Any) -> None:
    lm = model("llama")
    result = ji.patch(lm, *pair(lm.config), METRIC)
    assert "3 layer x 7 position" in repr(result)
    assert result.view().kind == "heatmap"
    assert result.save(tmp_path / "grid.safetensors").stat().st_size > 0
    assert site_of("resid_pre", lm.config).per_layer


def test_results_say_what_they_were_made_with_and_unlike_ones_refuse_to_be_compared() -> None:
    lm, other = model("llama"), ji.LanguageModel(params(CONFIGS["llama"], seed=1), CONFIGS["llama"])
    clean, corrupt = pair(lm.config)
    result = ji.patch(lm, clean, corrupt, METRIC)
    padded = dataclasses.replace(result, how=made(lm, corrupt.padded(12), METRIC, other=clean.padded(16)))
    check_comparable(result, padded)
    unlike = {
        "other weights": ji.patch(other, clean, corrupt, METRIC),
        "prompts that were run": ji.patch(lm, clean, prompts(lm.config, (5, 7), seed=5), METRIC),
        "values were written": ji.patch(lm, prompts(lm.config, (5, 7), seed=5), corrupt, METRIC),
        "measure different things": ji.patch(lm, clean, corrupt, ji.metrics.logit_difference([3, 4], [5, 8])),
        "base edits": dataclasses.replace(result, how=made(lm, corrupt, METRIC, other=clean, edits=[ji.edits.zero("z", layer=1)])),
        "BOS policies": dataclasses.replace(result, how=(*result.how, ("bos", "none"))),
        "'denoise' and the other 'noise'": dataclasses.replace(result, mode="noise"),
        "grids differ": dataclasses.replace(result, axes=(("layer", (0, 1, 2)), ("position", (6, 5, 4, 3, 2, 1, 0)))),
    }
    for reason, one in unlike.items():
        with pytest.raises(ji.InputError, match=reason):
            check_comparable(result, one)
    for changed in ("W_O", "W_U", "ln_final"):
        edited = jax.tree_util.tree_map_with_path(lambda path, w, name=changed: 1.01 * w if name in str(path) else w, lm.params)
        assert fingerprint_of_weights(edited) != fingerprint_of_weights(lm.params)


def made(lm: ji.LanguageModel, tokens: ji.Tokens, metric: Any, **given: Any) -> Any:
    return (("bos", tokens.bos), *record(lm, tokens, metric.bind(lm, tokens), **given))


def test_values_that_span_prompts_fit_any_bucket_and_masks_count_the_layers_that_have_a_site() -> None:
    lm = model("mixed")
    tokens = prompts(lm.config, (9, 7))
    values = np.random.default_rng(1).normal(size=(2, 9, 24)).astype(np.float32)
    result = ji.sweep(lm, tokens, METRIC, lambda layer: ji.edits.add("resid_mid", values, layer=layer), {"layer": [0, 2]})
    for i, layer in enumerate((0, 2)):
        np.testing.assert_allclose(
            result.per_example[:, i], METRIC(ji.run(lm, tokens, edits=ji.edits.add("resid_mid", values, layer=layer))), rtol=2e-4, atol=2e-5
        )
    with_experts = (1, 2)
    rows = ji.sweep(lm, tokens, METRIC, lambda n: ji.edits.zero("router_logits", where=(np.arange(2) == n)[:, None, None]), {"n": [0, 1]})
    for i, layer in enumerate(with_experts):
        masked = ji.edits.zero("router_logits", where=(np.arange(2) == i)[:, None, None])
        want = METRIC(ji.run(lm, tokens, edits=ji.edits.zero("router_logits", layer=layer)))
        np.testing.assert_allclose(METRIC(ji.run(lm, tokens, edits=masked)), want, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(rows.per_example[:, i], want, rtol=2e-4, atol=2e-5)
