"""Importance against runs without each part and against finite differences; shrinking: balanced, measured on other texts, reported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxinterp as ji
from jaxinterp.data.plain import PARAGRAPHS
from jaxinterp.errors import InputError
from jaxinterp.methods.weights.balance import balance
from jaxinterp.methods.weights.importance import Importance, Unit, importance
from jaxinterp.methods.weights.pruned_layout import pruned_layout
from jaxinterp.methods.weights.shrink import shrink
from jaxinterp.model.tokens import Tokens
from tests import tiny

CONFIG = tiny.CONFIGS["llama"]
METRIC = ji.metrics.cross_entropy()


@pytest.fixture(scope="module")
def lm() -> ji.LanguageModel:
    return ji.LanguageModel(tiny.params(CONFIG), CONFIG)


@pytest.fixture(scope="module")
def loss_under(lm: ji.LanguageModel) -> Callable[..., np.ndarray]:
    """The loss of each text [B], with z and mlp_post multiplied by factors [L B P H] and [L B P M]."""

    @jax.jit
    def loss(tokens: Tokens, heads: Any, neurons: Any) -> Any:
        edits = [ji.edits.scale("z", heads[..., None]), ji.edits.scale("mlp_post", neurons)]
        return METRIC(ji.forward(lm.params, tokens, CONFIG, edits=edits))

    def under(tokens: Tokens, heads: Any = None, neurons: Any = None) -> np.ndarray:
        shape = (CONFIG.n_layers, *tokens.ids.shape)
        ones = [np.ones((*shape, size), np.float32) for size in (CONFIG.n_heads, CONFIG.d_mlp)]
        given = [own if factors is None else factors for own, factors in zip(ones, (heads, neurons), strict=True)]
        return np.asarray(loss(tokens.arrays_only(), *given))

    return under


def factors(tokens: Tokens, size: int, part: Any, value: float) -> np.ndarray:
    """Ones, but for a part (layer, prompt, position, number)."""
    out = np.ones((CONFIG.n_layers, *tokens.ids.shape, size), np.float32)
    out[part] = value
    return out


EVERY = slice(None)


def test_exact_is_the_loss_without_each_part(lm: ji.LanguageModel, loss_under: Callable[..., np.ndarray]) -> None:
    tokens = tiny.prompts(CONFIG, (7, 5))
    heads = importance(lm, tokens)
    groups = importance(lm, tokens, unit="kv_head")
    assert (heads.method, heads.values.shape, groups.values.shape) == ("exact", (3, 4), (3, 2))
    base = loss_under(tokens)
    np.testing.assert_allclose(heads.loss, base, rtol=1e-5)
    for layer, head in ((0, 3), (1, 0), (2, 2)):
        without = loss_under(tokens, factors(tokens, 4, (layer, EVERY, EVERY, head), 0.0))
        np.testing.assert_allclose(heads.effects[layer, head], (without - base).mean(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(heads.values[layer, head], abs(without - base).mean(), rtol=1e-3, atol=1e-5)
        without = loss_under(tokens, factors(tokens, 4, (layer, EVERY, EVERY, [head // 2 * 2, head // 2 * 2 + 1]), 0.0))
        np.testing.assert_allclose(groups.effects[layer, head // 2], (without - base).mean(), rtol=1e-3, atol=1e-5)
    assert heads.order()[0] == np.unravel_index(np.argmin(heads.values), (3, 4))


def test_first_order_sums_the_sizes_of_slopes_a_token(lm: ji.LanguageModel, loss_under: Callable[..., np.ndarray]) -> None:
    tokens, step = tiny.prompts(CONFIG, (5,)), 0.02
    units: dict[Unit, Any] = {"head": (4, "heads", [0, 3]), "neuron": (20, "neurons", [0, 11]), "kv_head": (4, "heads", [0, 1])}
    for unit, (size, name, numbers) in units.items():
        found = importance(lm, tokens, unit=unit, method="first_order")
        for layer, number in ((0, numbers[0]), (2, numbers[1])):
            parts = [2 * number, 2 * number + 1] if unit == "kv_head" else number
            slopes = []
            for position in range(5):
                ends = [
                    loss_under(tokens, **{name: factors(tokens, size, (layer, 0, position, parts), 1 + side * step)}) for side in (1, -1)
                ]
                slopes.append(float((ends[0] - ends[1])[0]) / (2 * step))
            np.testing.assert_allclose(found.values[layer, number], np.abs(slopes).sum(), rtol=0.02, atol=2e-3)
            np.testing.assert_allclose(found.effects[layer, number], -np.sum(slopes), rtol=0.02, atol=2e-3)


def test_texts_count_alike_whatever_their_length_and_batch(lm: ji.LanguageModel) -> None:
    tokens = tiny.prompts(CONFIG, (7, 4, 5))
    each = [importance(lm, Tokens.from_ids(tokens.ids[i, : tokens.lengths[i]]), unit="neuron").values for i in range(3)]
    for size in (1, 2, 8):
        found = importance(lm, tokens, unit="neuron", batch_size=size)
        np.testing.assert_allclose(found.values, np.mean(each, axis=0), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.loss, METRIC(ji.run(lm, tokens)), rtol=1e-5)


def test_parts_run_exactly_beside_the_estimate(lm: ji.LanguageModel) -> None:
    tokens = tiny.prompts(CONFIG, (7, 5))
    exact = importance(lm, tokens, unit="kv_head")
    found = importance(lm, tokens, unit="kv_head", method="first_order", exact=4)
    assert [found.parts[0], found.parts[-1]] == [found.order()[0], found.order()[-1]] and len(found.parts) == 4
    np.testing.assert_allclose(found.exact, [exact.effects[part] for part in found.parts], rtol=1e-3, atol=1e-6)
    named = importance(lm, tokens, unit="kv_head", method="first_order", exact=[(0, 1), (2, 0), (1, 1)])
    assert named.check is not None and named.check.labels == ("0.1", "2.0", "1.1")
    np.testing.assert_allclose(named.check.exact, [abs(exact.effects[part]) for part in named.parts], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(named.check.estimate, [named.values[part] for part in named.parts])
    assert "Spearman" in repr(named) and exact.check is None


def test_a_ranking_is_shown_and_saved(lm: ji.LanguageModel, tmp_path: Path) -> None:
    found = importance(lm, tiny.prompts(CONFIG, (7, 5)), unit="neuron")
    assert found.view().arrays["values"].shape == (3, 20)
    values = np.random.default_rng(0).random((3, 200))
    shown = np.asarray(Importance(values, values, found.loss, "neuron", "first_order").view().arrays["values"])
    least = np.sort(values, axis=1)
    np.testing.assert_allclose(shown[:, 2], least[:, :60].sum(axis=1) / least.sum(axis=1), rtol=1e-5)
    assert shown.shape == (3, 10) and (shown[:, -1] == 1).all()
    saved = load_file(found.save(tmp_path / "neurons.safetensors"))
    np.testing.assert_array_equal(saved["values"], found.values)
    assert found.save(tmp_path / "neurons.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"unit": "neuron", "exact": 1}, "two or more"),
        ("llama", {"unit": "neuron", "exact": [(0, 1), (0, 20)]}, r"names \(0, 20\)"),
        ("llama", {"exact": 4}, "only beside first-order estimates"),
        ("llama", {"unit": "neuron", "batch_size": 0}, "batch_size is 0"),
        ("llama", {"unit": "neuron", "out": "kept"}, "one pass; leave it out"),
        ("bert", {}, "which this model does not predict"),
        ("moe", {"unit": "neuron"}, "inside experts"),
        ("attention", {"unit": "neuron"}, "has no neurons"),
    ],
)
def test_what_cannot_be_ranked_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    config = tiny.CONFIGS[name]
    with pytest.raises(InputError, match=message):
        importance(ji.LanguageModel(tiny.params(config), config), tiny.prompts(config, (7, 5)), **options)
    with pytest.raises(InputError, match="text 1 has one token"):
        importance(ji.LanguageModel(tiny.params(CONFIG), CONFIG), tiny.prompts(CONFIG, (7, 1)))


# ------------------------------------------------------------------------------------------------------------- shrinking


def test_a_balanced_choice_takes_the_least_of_every_row() -> None:
    random = np.random.default_rng(0)
    values = {"heads": random.random((3, 4)), "neurons": random.random((3, 20))}
    chosen = balance(CONFIG, 0.5, 0.25, "head").choose(values)
    for layer in range(3):
        assert set(np.flatnonzero(chosen["neurons"][layer])) == set(np.argsort(values["neurons"][layer])[:5])
        pairs = values["heads"][layer].reshape(2, 2)
        assert set(np.flatnonzero(chosen["heads"][layer])) == {int(pairs[0].argmin()), 2 + int(pairs[1].argmin())}
    groups = balance(CONFIG, 0.5, 0).choose({"heads": values["heads"][:, :2]})["heads"]
    assert (groups.reshape(3, 2, 2).all(axis=2).argmax(axis=1) == values["heads"][:, :2].argmin(axis=1)).all() and groups.sum() == 6
    alibi = tiny.CONFIGS["bloom"]
    heads = balance(alibi, 0.25, 0).choose({"heads": values["heads"]})["heads"]
    assert (heads.argmax(axis=1) == values["heads"].mean(axis=0).argmin()).all()
    for config, chosen in ((CONFIG, balance(CONFIG, 0.5, 0.25).random(3)), (alibi, balance(alibi, 0.25, 0.5).random(3))):
        layout = pruned_layout(config, **chosen)
        assert set(layout.fillers.values()) == {0} and layout.after.n_heads < config.n_heads


@pytest.fixture(scope="module")
def shrunk(lm: ji.LanguageModel) -> Any:
    texts, held_out = tiny.prompts(CONFIG, (7, 6), seed=1), tiny.prompts(CONFIG, (7, 5, 6), seed=2)
    return shrink(lm, texts, held_out, heads=0.5, neurons=0.25, controls=2, rounds=1, new_tokens=4)


def test_shrinking_removes_the_least_and_measures_elsewhere(lm: ji.LanguageModel, shrunk: Any) -> None:
    texts, held_out = tiny.prompts(CONFIG, (7, 6), seed=1), tiny.prompts(CONFIG, (7, 5, 6), seed=2)
    small = shrunk.lm.config
    assert (small.n_heads, small.n_kv_heads, small.d_mlp) == (2, 1, 15)
    ranked = importance(lm, texts, unit="kv_head", method="first_order").values
    assert (shrunk.record.removed_heads[:, ::2].argmax(axis=1) == ranked.argmin(axis=1)).all()
    np.testing.assert_allclose(shrunk.loss_before, METRIC(ji.run(lm, held_out)), rtol=1e-5)
    np.testing.assert_allclose(shrunk.loss_after, METRIC(ji.run(lm, held_out, edits=shrunk.record.ablation())), rtol=1e-4)
    assert shrunk.loss_random.shape == (2, 3) and not np.allclose(shrunk.loss_random[0], shrunk.loss_random[1])
    assert shrunk.bytes_before == 4 * lm.n_params and shrunk.bytes_after == 4 * shrunk.lm.n_params
    assert all(speed.forward > 0 and speed.decoding > 0 for speed in shrunk.speeds) and len(shrunk.speeds) == 2


def test_the_report_says_what_was_measured(lm: ji.LanguageModel, shrunk: Any, tmp_path: Path) -> None:
    columns = shrunk.columns()
    assert columns["model"] == ["whole", "pruned", "random 0", "random 1"] and columns["parameters"][:2] == [
        lm.n_params,
        shrunk.lm.n_params,
    ]
    np.testing.assert_allclose(columns["change"][1], (shrunk.loss_after - shrunk.loss_before).mean(), rtol=1e-5)
    view = shrunk.view()
    assert [section.heading for section in view.sections] == ["What it costs and saves", "Ranking of heads", "Ranking of neurons"]
    saved = load_file(shrunk.save(tmp_path / "report.safetensors"))
    np.testing.assert_array_equal(saved["heads"], shrunk.record.heads)
    np.testing.assert_array_equal(saved["loss_random"], shrunk.loss_random)
    assert shrunk.save(tmp_path / "report.html").stat().st_size > 1000
    assert f"{lm.n_params:,} -> {shrunk.lm.n_params:,}" in repr(shrunk)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"held_out": (7, 6)}, "held-out text 0 is among the texts"),
        ("llama", {"heads": 1.0}, "from 0 to below 1"),
        ("llama", {"heads": 0, "neurons": 0}, "not both 0"),
        ("llama", {"heads": 0.1}, "query heads of each key/value head is less than one"),
        ("llama", {"neurons": 0.01}, "neurons=0.01 of 20 neurons"),
        ("llama", {"new_tokens": 32}, "do not fit a context of 32"),
        ("llama", {"controls": -1}, "controls is -1"),
        ("olmo2", {}, "qk_norm='whole'"),
        ("solu", {}, "softmax over all neurons"),
        ("moe", {}, "give neurons=0"),
    ],
)
def test_what_cannot_be_shrunk_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    config = tiny.CONFIGS[name]
    lm = ji.LanguageModel(tiny.params(config), config)
    given = {"heads": 0.5, "new_tokens": 4} | {key: value for key, value in options.items() if key != "held_out"}
    held_out = tiny.prompts(config, (7, 6) if "held_out" in options else (5, 8))
    with pytest.raises(InputError, match=message):
        shrink(lm, tiny.prompts(config, (7, 6)), held_out, **given)


@pytest.mark.weights
def test_smollm2_without_a_third_of_its_heads(smollm2: ji.LanguageModel) -> None:
    texts, held_out = PARAGRAPHS[:2], PARAGRAPHS[2:4]
    found = shrink(smollm2, texts, held_out, heads=0.33, neurons=0.25, controls=1, rounds=0)
    assert (found.lm.config.n_heads, found.lm.config.n_kv_heads, found.lm.config.d_mlp) == (6, 2, 1152)
    assert found.lm.n_params < 0.8 * smollm2.n_params
    assert found.loss_before.mean() < found.loss_after.mean() < found.loss_random.mean() - 1
    small, zeroed = ji.run(found.lm, texts[0]).logits, ji.run(smollm2, texts[0], edits=found.record.ablation()).logits
    error = np.linalg.norm(np.asarray(small - zeroed), axis=-1) / np.linalg.norm(np.asarray(zeroed), axis=-1)
    assert error.max() < 1e-5
