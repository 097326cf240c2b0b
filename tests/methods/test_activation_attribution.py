"""Attribution patching against exact patching: equal on a linear model, repaired where softmax saturates, comparable cell by cell."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.attribution.activations import attribution_patch, relp
from jaxinterp.methods.attribution.compare import comparison
from jaxinterp.methods.attribution.query_key import one_key_at_a_time
from jaxinterp.model.attention import softmax
from tests.programs import compiled
from tests.tiny import CONFIGS, SIZE, params, prompts

METRIC = ji.metrics.logit_difference([3, 4], [5, 9])
EVERY: dict[str, Any] = {
    "resid_pre": {"layer": [0, 2], "position": {"changed": [2, 3], "end": [4, 6]}},  # roles: each prompt's own position
    "v": ("layer", "head", "position"),
    "attn_out": ("layer",),
}
ATTENTION = CONFIGS["attention"]


def pair(lm: ji.LanguageModel) -> tuple[ji.Tokens, ji.Tokens]:
    """Two prompts of 5 and 7 tokens and their corrupted twins, which differ from positions 2 and 3 on."""
    clean = prompts(lm.config, (5, 7))
    ids = np.array(clean.ids)
    ids[0, 2], ids[1, 3], ids[1, 5] = (ids[0, 2] + 1) % 50, (ids[1, 3] + 1) % 50, (ids[1, 5] + 7) % 50
    return clean, ji.Tokens.from_ids(ids, clean.mask)


def model(name: str) -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIGS[name]), CONFIGS[name])


def near(a: Any, b: Any, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=tolerance)


def test_on_a_linear_model_estimates_are_exact() -> None:
    lm = ji.LanguageModel(params(ATTENTION), ATTENTION)
    clean, corrupt = pair(lm)
    freeze = [ji.edits.replace("pattern", ji.run(lm, corrupt, sites="pattern")["pattern"])]
    for mode in ("denoise", "noise"):
        options: dict[str, Any] = {"mode": mode, "edits": freeze}
        found = attribution_patch(lm, clean, corrupt, METRIC, sites=EVERY, **options)
        for site, over in EVERY.items():
            exact = ji.patch(lm, clean, corrupt, METRIC, site, over, **options)
            near(found[site].per_example, exact.per_example)
            near(found[site].effects, exact.effects)
            held = found[site].compare(exact)
            assert held.pearson > 0.9999 and held.sign_agreement == 1 and abs(held.slope - 1) < 1e-3 and held.mean_error < 1e-4


def test_selections_are_those_of_the_exact_grid() -> None:
    lm = ji.LanguageModel(params(ATTENTION), ATTENTION)
    clean, corrupt = pair(lm)
    freeze: dict[str, Any] = {"edits": [ji.edits.replace("pattern", ji.run(lm, corrupt, sites="pattern")["pattern"])]}
    mask = np.zeros((3, 4), bool)
    mask[0, 1] = mask[0, 3] = True
    call: dict[str, Any] = {
        "site": "z", "components": {"two": mask, "one": ji.heads("2.1")}, "over": {"head": [3, 1]},
        "at": {"position": np.asarray([[2], [3]])},
    }  # fmt: skip
    near(
        attribution_patch(lm, clean, corrupt, METRIC, **call, **freeze).per_example,
        ji.patch(lm, clean, corrupt, METRIC, **call, **freeze).per_example,
    )
    both = attribution_patch(lm, clean, corrupt, METRIC, sites=["resid_pre", "attn_out"], **freeze)
    assert both.axes[0] == ("site", ("resid_pre", "attn_out")) and both.per_example.shape == (2, 2, 3, 7)
    checked = both.verify(both.values.size)
    assert {name.split(",")[0] for name in checked.exact.axes[0][1]} == {"site resid_pre", "site attn_out"}
    near(checked.exact.effects, checked.estimates)


def test_positions_of_prompts_of_different_lengths_are_paired_as_in_patching() -> None:
    lm = ji.LanguageModel(params(ATTENTION), ATTENTION)
    clean = ji.Tokens.from_ids([[1, 2, 3, 4, 5, 6]])
    corrupt = ji.Tokens.from_ids([[1, 2, 30, 31, 4, 5, 6]])
    metric = ji.metrics.logit_difference(3, 5)
    call: dict[str, Any] = {"site": "resid_pre", "position_map": [[0, 1, 2, 4, 5, 6]], "over": {"layer": [2], "position": range(7)}}
    frozen = ji.run(lm, corrupt, sites="pattern")["pattern"]
    exact = ji.patch(lm, clean, corrupt, metric, corrupt_edits=[ji.edits.replace("pattern", frozen)], **call)
    found = attribution_patch(lm, clean, corrupt, metric, corrupt_edits=[ji.edits.replace("pattern", frozen)], **call)
    assert np.isnan(found.per_example[0, 0, 3]) and np.isnan(exact.per_example[0, 0, 3])
    near(found.per_example, exact.per_example)


LAST = SIZE["n_layers"] - 1
HARD: dict[str, Any] = {
    "positions": "rotary", "rotary": CONFIGS["gemma"].rotary, "rotary_layers": (0, 1, 0), "score_soft_cap": 5.0, "windows": (3, 0, 3),
    "sinks": True, "q_bias": True, "k_bias": True, "qk_norm": "head",
}  # fmt: skip


def test_the_query_key_fix_is_exact_where_only_softmax_is_not_linear() -> None:
    """In the last layer of a model without norms and MLPs the metric is linear in the pattern; with all that attention can have."""
    config = ATTENTION.replace(**HARD)
    lm = ji.LanguageModel(params(config), config)
    clean, corrupt = pair(lm)
    knocked = ji.edits.knockout(query=-1, key=1, layer=LAST)
    grids: dict[str, Any] = {
        "q": {"layer": [LAST], "head": range(config.n_heads), "position": range(7)},
        "k": {"layer": [LAST], "head": range(config.n_kv_heads), "position": range(7)},
        "k_rot": {"layer": [LAST], "head": range(config.n_kv_heads)},  # all positions of a key head together
    }
    fixed = attribution_patch(lm, clean, corrupt, METRIC, sites=grids, softmax="exact", edits=[knocked])
    source = ji.run(lm, clean, sites=tuple(grids), edits=knocked)
    for site in grids:
        for index in np.ndindex(fixed[site].values.shape):
            chosen: dict[str, Any] = {name: int(labels[i]) for (name, labels), i in zip(fixed[site].axes, index, strict=True)}
            if chosen.get("position", 0) > 4:
                chosen["position"] = np.asarray([[0], [chosen["position"]]])  # the first prompt does not have it, and is not compared
            want = METRIC(ji.run(lm, corrupt, edits=[knocked, ji.edits.replace(site, source[site], **chosen)]))
            found = fixed[site].per_example[(slice(None), *index)]
            near(found[~np.isnan(found)], np.asarray(want)[~np.isnan(found)])


def test_a_key_changed_alone_is_the_softmax_recomputed(rng: np.random.Generator) -> None:
    scores, changed, slope = (rng.normal(size=(2, 3, 4, 4)).astype(np.float32) * size for size in (30, 30, 1))
    changed[0, 0, 3, 1] = -np.inf
    visible = np.broadcast_to(np.tril(np.ones((4, 4), bool)), (2, 1, 4, 4))
    sink = np.asarray([0.5, -20.0, 40.0], np.float32)
    for own in (None, jnp.asarray(sink)):
        found = jax.jit(one_key_at_a_time)(*map(jnp.asarray, (scores, changed, slope, visible)), own)

        def weighted(s: Any, own: Any = own) -> Any:
            pattern, taken = softmax(jnp.asarray(s), jnp.asarray(visible), own)
            return ((pattern if taken is None else pattern * (1 - taken)[..., None]) * slope).sum(axis=-1)

        for key in range(4):
            alone = np.where(np.arange(4) == key, changed, scores)
            near(found[..., key], weighted(alone) - weighted(scores))


def test_attribution_patching_is_wrong_and_the_fix_right_where_attention_is_saturated() -> None:
    weights: Any = params(ATTENTION)
    attention = weights["blocks"][0]["attn"]
    attention["W_Q"] = attention["W_Q"] * 20  # every softmax picks one key, so its own slope is nearly zero
    lm = ji.LanguageModel(weights, ATTENTION)
    clean, corrupt = pair(lm)
    grid: dict[str, Any] = {"site": "q", "over": {"layer": [LAST], "head": range(4), "position": [-1, 2, 3]}, "mode": "noise"}
    exact = ji.patch(lm, clean, corrupt, METRIC, **grid)
    plain = attribution_patch(lm, clean, corrupt, METRIC, **grid)
    fixed = attribution_patch(lm, clean, corrupt, METRIC, **grid, softmax="exact")
    assert abs(exact.effects).max() > 0.1 and abs(plain.effects).max() < 0.05 * abs(exact.effects).max()
    near(fixed.effects, exact.effects)


def test_grad_drop_is_the_mean_size_over_blocked_layers() -> None:
    lm = model("llama")
    clean, corrupt = pair(lm)
    grids: dict[str, Any] = {"z": ("layer", "head"), "k": ("layer", "position"), "resid_mid": ("layer",)}
    dropped = attribution_patch(lm, clean, corrupt, METRIC, sites=grids, grad_drop=True, softmax="exact")
    blocked = [ji.Rules(detach={site: np.arange(3) == layer for site in ("attn_out", "mlp_out")}) for layer in range(3)]
    each = [attribution_patch(lm, clean, corrupt, METRIC, sites=grids, rules=rules, softmax="exact") for rules in blocked]
    for site, layers in (("z", 2), ("k", 2), ("resid_mid", 3)):
        sizes = np.sum([abs(one[site].per_example.T - np.asarray(one[site].corrupt)) for one in each], axis=0).T / layers
        towards = np.sign(np.mean(dropped[site].clean) - np.mean(dropped[site].corrupt))
        near((dropped[site].per_example.T - np.asarray(dropped[site].corrupt)).T * towards, sizes)
        assert not dropped[site].signed and (dropped[site].effects >= 0).all()
    sized = comparison(np.asarray([1.0, 2.0]), np.asarray([-1.0, 2.0]), ("a", "b"), signed=False)
    assert np.isnan(sized.sign_agreement) and sized.exact.tolist() == [1, 2]


def test_slopes_at_both_runs_and_relp() -> None:
    lm = model("llama")
    clean, corrupt = pair(lm)
    both = attribution_patch(lm, clean, corrupt, METRIC, "mlp_post", ("layer", "neuron"), slopes_at="both")
    there = attribution_patch(lm, clean, corrupt, METRIC, "mlp_post", ("layer", "neuron"))
    back = attribution_patch(lm, clean, corrupt, METRIC, "mlp_post", ("layer", "neuron"), mode="noise")
    change = [(one.per_example.T - np.asarray(side)).T for one, side in ((there, there.corrupt), (back, back.clean))]
    near((both.per_example.T - np.asarray(both.corrupt)).T, (change[0] - change[1]) / 2)
    propagated = relp(lm, clean, corrupt, METRIC, "mlp_post", ("layer", "neuron"))
    affine = attribution_patch(lm, clean, corrupt, METRIC, "mlp_post", ("layer", "neuron"), rules=ji.Rules.affine("half"))
    near(propagated.values, affine.values)
    assert abs(propagated.values - there.values).max() > 1e-3


def test_verify_runs_the_cells_that_matter_and_results_travel(tmp_path: Any) -> None:
    lm = ji.LanguageModel(params(ATTENTION), ATTENTION)
    clean, corrupt = pair(lm)
    found = attribution_patch(lm, clean, corrupt, METRIC, "z", ("layer", "head"))
    exact = ji.patch(lm, clean, corrupt, METRIC, "z", ("layer", "head"))
    checked = found.verify(top=4)
    order = np.argsort(-abs(np.ravel(found.effects)))[:4]
    near(checked.exact.effects, np.ravel(exact.effects)[order])
    near(checked.estimates, np.ravel(found.effects)[order])
    assert checked.exact.axes[0][1][0] == f"layer {order[0] // 4}, head {order[0] % 4}"
    for shown in (checked.view(), found.compare(exact).view(), found.view()):
        assert shown.save(tmp_path / "view.html").exists()
    assert found.save(tmp_path / "estimates.safetensors").exists()
    assert len(np.asarray(found.compare(exact).deciles)) == 10
    with compiled() as programs:
        attribution_patch(lm, corrupt, clean, ji.metrics.logit_difference([6, 7], [8, 9]), "z", ("layer", "head"))
    assert not programs
    with pytest.raises(ji.InputError, match="cannot be compared: one is"):
        found.compare(dataclasses.replace(exact, mode="noise"))
    with pytest.raises(ji.InputError, match="the exact effects of 'q'"):
        found.compare(dataclasses.replace(exact, how=tuple((dict(exact.how) | {"site": "q"}).items())))


def test_what_has_no_meaning_is_refused() -> None:
    lm = model("llama")
    clean, corrupt = pair(lm)
    with pytest.raises(ji.InputError, match="rank counts tokens"):
        attribution_patch(lm, clean, corrupt, ji.metrics.rank(3))
    to_clean = ji.metrics.kl_divergence(ji.run(lm, clean))
    with pytest.raises(ji.InputError, match="kl_divergence to the run itself"):
        attribution_patch(lm, clean, corrupt, to_clean, mode="noise")
    assert np.isfinite(attribution_patch(lm, clean, corrupt, to_clean).values).all()
    with pytest.raises(ji.InputError, match="none of them is asked for"):
        attribution_patch(lm, clean, corrupt, METRIC, "z", softmax="exact")
    olmo = model("olmo2")
    with pytest.raises(ji.InputError, match="use site 'q_rot'"):
        attribution_patch(olmo, *pair(olmo), METRIC, "q", ("layer", "head"), softmax="exact")


def test_comparison_measures(rng: np.random.Generator) -> None:
    exact = rng.normal(size=50)
    same = comparison(2 * exact, exact, tuple(map(str, range(50))))
    assert same.pearson == pytest.approx(1) and same.spearman == pytest.approx(1) and same.slope == pytest.approx(0.5)
    assert same.sign_agreement == 1 and same.overlap == 1 and same.mean_error == pytest.approx(abs(exact).mean())
    assert [tenth.cells for tenth in same.deciles] == [5] * 10 and same.deciles[0].error == pytest.approx(same.deciles[0].exact)
    cubed = comparison(exact**3, exact, tuple(map(str, range(50))), k=7)
    assert cubed.spearman == pytest.approx(1) and cubed.pearson < 0.99 and cubed.overlap == 1
    assert comparison(-exact, exact, tuple(map(str, range(50)))).sign_agreement == 0
