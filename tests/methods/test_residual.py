"""Direct logit attribution: parts sum to the metric on every kind of model, and are what the frozen model's gradient says."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.residual import DirectAttribution, direct_logit_attribution
from jaxinterp.methods.residual_parts import attribute, needed_sites
from jaxinterp.model.rules import NORMS
from jaxinterp.runs.objective import zeros_at
from tests.parity.ours import QUICK
from tests.programs import compiled
from tests.tiny import CONFIGS, SMALL, params, prompts

FINE = (*SMALL, "mixed")
METRIC = ji.metrics.logit_difference([3, 4], [5, 9])


def model(name: str) -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIGS[name]), CONFIGS[name])


def close(got: Any, want: Any, scale: Any = 1.0) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * float(np.abs(scale).max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_sum_to_the_metric_and_to_one_another(name: str) -> None:
    """On every kind of model; heads, source positions and neurons of those that differ in what these are."""
    config, weights = CONFIGS[name], params(CONFIGS[name])
    tokens = prompts(config, (5, 7), left=name in SMALL)
    kinds = ("layer", "head", "source", "neuron") if name in FINE else ("layer",)
    sites = {"logits_raw", *(site for by in kinds for site in needed_sites(config, by))}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def every(weights: Any) -> Any:
        trace = ji.forward(weights, tokens, config, sites=sites)
        return trace, {by: attribute(weights, METRIC, trace, None, config=config, by=by, precision="highest") for by in kinds}

    trace, found = every(weights)
    logits = np.asarray(trace["logits_raw"])[np.arange(2), tokens.last]
    want = logits[[0, 1], [3, 4]] - logits[[0, 1], [5, 9]]
    close(found["layer"][2], want, want)
    for parts, others, *_ in found.values():
        every_part = [np.asarray(x).reshape(2, -1) for x in (parts, *others.values())]
        close(sum(np.nansum(x, axis=1) for x in every_part), want, np.nansum(np.abs(np.concatenate(every_part, axis=1)), axis=1))
    layer, others = (found["layer"][0], found["layer"][1])
    biased = {"attn.b_O": config.o_bias, "mlp.b_out": config.mlp_out_bias and config.has_mlp, "unembed.b_U": config.unembed_bias}
    assert {bias for bias in biased if bias in others} == {bias for bias, there in biased.items() if there}
    if name in FINE:
        heads, sources, neurons = (np.asarray(found[by][0]) for by in ("head", "source", "neuron"))
        close(heads.sum(axis=-1), layer[..., 0], layer[..., 0])
        close(np.nansum(sources, axis=-1), heads, heads)
        close(np.nansum(neurons.reshape(2, 3, -1), axis=-1), layer[..., 1], layer[..., 1])
        assert np.isnan(sources[0, ..., 5:]).all() and not np.isnan(sources[1]).any()
    if name == "mixed":  # layer 0 is dense, with 20 neurons; the experts of the others have 10 each
        assert neurons.shape == (2, 3, 5, 20) and np.isnan(layer[:, 0, 2]).all() and not np.isnan(layer[:, 1:]).any()
        assert np.isnan(neurons[:, 0, 1:]).all() and np.isnan(neurons[:, 1:, :, 10:]).all() and not np.isnan(neurons[:, 0, 0]).any()


@pytest.mark.parametrize("name", ["gemma", "bert"])
def test_parts_are_value_times_gradient_of_the_frozen_model(name: str) -> None:
    """Value . gradient at what is added, attention and MLPs detached and everything after them held: what by="layer" must say."""
    config, weights = CONFIGS[name], params(CONFIGS[name])
    tokens = prompts(config, (5, 7))
    sites = [site for site in ("embed", "pos_embed", "attn_out", "mlp_out") if not ji.SITES[site].absent(config)]
    rules = ji.Rules(norms=NORMS, detach={"attn_out": True, "mlp_out": True})

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(weights: Any) -> Any:
        def measured(zeros: Any) -> Any:
            edits = [ji.edits.add(site, value) for site, value in zeros.items()]
            captured = {*sites, *needed_sites(config, "layer"), "logits_raw"}
            trace = ji.forward(weights, tokens, config, sites=captured, edits=edits, rules=rules)
            rows = trace["logits_raw"][jnp.arange(2), tokens.last]
            return (rows[jnp.arange(2), jnp.array([3, 4])] - rows[jnp.arange(2), jnp.array([5, 9])]).sum(), trace

        slopes, trace = jax.grad(measured, has_aux=True)(zeros_at(sites, config, 2, 7, jnp.float32))
        values = {site: jnp.einsum("...BPD,...BPD->B...", trace[site], slopes[site]) for site in sites}
        return values, attribute(weights, METRIC, trace, None, config=config, by="layer", precision="highest")[:2]

    want, (layer, others) = both(weights)
    for i, (site, biases) in enumerate({"attn_out": ("attn.b_O", "ln1_post.b"), "mlp_out": ("mlp.b_out", "ln2_post.b")}.items()):
        close(layer[..., i] + sum(others[bias] for bias in biases if bias in others), want[site], want[site])
    for site in sites[:-2]:
        close(others[site], want[site], want[site])


def test_another_runs_denominators_in_a_post_norm_stack() -> None:
    """The sum is the metric of a run with this run's writes and the other run's denominators in the stream's norms."""
    config, weights = CONFIGS["bert"], params(CONFIGS["bert"])
    tokens, other = prompts(config, (7, 7)), prompts(config, (7, 7), seed=3)
    sites, scales = needed_sites(config, "layer"), ("ln1_scale", "ln2_scale")

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(weights: Any) -> Any:
        run, clean = (ji.forward(weights, given, config, sites=sites) for given in (tokens, other))
        edits = [ji.edits.replace(site, run[site]) for site in ("attn_out", "mlp_out")]
        edits += [ji.edits.replace(site, clean[site]) for site in scales]
        mixed = ji.forward(weights, tokens, config, edits=edits)
        return METRIC(run), METRIC(mixed), attribute(weights, METRIC, run, clean, config=config, by="layer", precision="highest")

    own, want, (layer, others, total, _) = both(weights)
    close(total, own)
    close(layer.sum(axis=(1, 2)) + sum(value.reshape(2, -1).sum(axis=1) for value in others.values()), want)
    assert np.abs(want - own).max() > 0.1


def test_another_runs_denominators_through_the_final_norm() -> None:
    lm = model("llama")
    tokens, other = prompts(lm.config, (5, 7)), prompts(lm.config, (5, 7), seed=3)
    run, clean = (ji.run(lm, given, sites=(*needed_sites(lm.config, "layer"), "ln_final_scale")) for given in (tokens, other))
    found = direct_logit_attribution(lm, run, METRIC, scale=clean)
    ratio = (run.at("ln_final_scale", position=-1) / clean.at("ln_final_scale", position=-1))[:, 0]
    close(found.total, METRIC(run))
    close(found.total - found.remainder, ratio * METRIC(run))
    given = direct_logit_attribution(lm, run, METRIC, scale=clean.at("ln_final_scale", position=-1)[:, 0])
    close(given.per_example, found.per_example, found.per_example)


def test_a_trace_and_prompts_give_the_same_and_other_prompts_compile_nothing() -> None:
    lm = model("llama")
    tokens = prompts(lm.config, (5, 7))
    of_trace = direct_logit_attribution(lm, ji.run(lm, tokens, sites=(*needed_sites(lm.config, "layer"), "ln_final_scale")), METRIC)
    found = direct_logit_attribution(lm, tokens, METRIC)
    close(of_trace.per_example, found.per_example)
    close(found.remainder, 0, found.total)
    assert found.axes == (("layer", (0, 1, 2)), ("part", ("attn", "mlp")))
    with compiled() as programs:
        direct_logit_attribution(lm, prompts(lm.config, (6, 7), seed=5), ji.metrics.logit_difference([7, 8], [1, 2]))
    assert not programs


def test_the_result_names_sorts_saves_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = model("gpt2")
    tokens = prompts(lm.config, (5, 7))
    found = {by: direct_logit_attribution(lm, tokens, METRIC, by) for by in ("layer", "source")}
    for result in found.values():
        names, every = result.components()
        assert every.shape == (2, len(names))
        close(np.nansum(every, axis=1) + result.remainder, result.total, result.total)
        close(sum(value for name, value in result.sums().items() if name != "total"), result.total, result.total)
        copy = jax.tree.map(lambda x: x, result)
        assert isinstance(copy, DirectAttribution) and copy.axes == result.axes and "remainder" in repr(copy)
        result.save(tmp_path / "parts.safetensors")
        result.save(tmp_path / "parts.json")
        result.show()
    assert "The strongest heads" in capsys.readouterr().out
    names, every = found["layer"].components()
    assert {"embed", "pos_embed", "0.attn", "2.mlp", "1.mlp.b_out", "0.attn.b_O", "ln_final.b", "unembed.b_U"} <= set(names)
    best = found["layer"].top(3, prompt=1)
    order = np.argsort(-np.abs(every[1]))[:3]
    close(best.arrays["part"], every[1][order])
    assert list(best.labels["component"]) == [names[i] for i in order]


def test_a_metric_that_is_not_linear_is_its_tangent() -> None:
    lm = model("llama")
    tokens = prompts(lm.config, (5, 7))
    metric = ji.metrics.log_probability([3, 4])
    found = direct_logit_attribution(lm, tokens, metric)
    logits = np.asarray(ji.run(lm, tokens).logits, np.float64)[np.arange(2), tokens.last]
    slope = np.eye(50)[[3, 4]] - np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    close(found.total - found.remainder, (slope * logits).sum(axis=1), logits)
    whole = direct_logit_attribution(lm, tokens, ji.metrics.custom(_mean_of_three, position=[0, 2, 3], columns=[1, 2]))
    close(whole.remainder, 0, whole.total)


def _mean_of_three(logits: Any) -> Any:
    return logits.mean(axis=(1, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm, t: direct_logit_attribution(lm, t, ji.metrics.rank(3)), "no direction to project on"),
        (lambda lm, t: direct_logit_attribution(lm, t, ji.metrics.kl_divergence(ji.run(lm, t))), "no direction to project on"),
        (lambda lm, t: direct_logit_attribution(lm, t, ji.metrics.projection("resid_post", np.ones(24), layer=1)), "reads resid_post"),
        (lambda lm, t: direct_logit_attribution(lm, ji.run(lm, t, sites={"embed": None, "z": ji.at(position=-1), "resid_post": None}),
                                                METRIC, "head"), r"lacks z, mlp_out .*'z', 'mlp_out', 'resid_post'"),
        (lambda lm, t: direct_logit_attribution(lm, t, METRIC, scale=np.ones(3)), r"\[2 1\]"),
        (lambda lm, t: direct_logit_attribution(lm, t, METRIC, scale=ji.run(lm, t)), "given as scale lacks resid_post"),
        (lambda lm, t: direct_logit_attribution(lm, ji.run(lm, t), METRIC, edits=ji.edits.zero("z")), "has been run already"),
    ],
)  # fmt: skip
def test_what_cannot_be_attributed_is_refused(call: Any, message: str) -> None:
    lm = model("llama")
    with pytest.raises(ji.InputError, match=message):
        call(lm, prompts(lm.config, (7, 7)))


@pytest.mark.weights
def test_smollm2_gives_the_known_parts_of_heads(smollm2: Any) -> None:
    prompt = "When Mary and John went to the store, John gave a drink to"
    found = direct_logit_attribution(smollm2, prompt, ji.metrics.logit_difference(" Mary", " John"), "head")
    known = {(23, 3): 2.86, (29, 1): 1.73, (24, 4): -1.07, (29, 0): -1.01, (23, 0): 0.82, (23, 1): 0.78}
    order = np.abs(found.values).ravel().argsort()[::-1][:6]
    assert [divmod(int(i), 9) for i in order] == list(known)
    assert [float(found.values[head]) for head in known] == pytest.approx(list(known.values()), abs=6e-3)
    assert float(found.total[0]) == pytest.approx(6.1196, abs=5e-4) and abs(float(found.remainder[0])) < 1e-5
    assert float(np.nansum(found.components()[1])) == pytest.approx(6.1196, abs=5e-4)
