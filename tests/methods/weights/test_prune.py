"""Pruning: the smaller model is the zero-ablated one, on every architecture, and its layout is the smallest that holds every layer."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.checkpoints.load import load
from jaxinterp.errors import InputError
from jaxinterp.methods.weights.prune import prune
from jaxinterp.methods.weights.pruned_layout import pruned_layout
from jaxinterp.model.config import Rotary, TransformerConfig
from tests import tiny

LLAMA = tiny.CONFIGS["llama"].replace(rotary=(Rotary(6),))
GPT2 = tiny.CONFIGS["gpt2"].replace(unembed_bias=False)


def model(config: TransformerConfig, dtype: Any = jnp.float32) -> ji.LanguageModel:
    return ji.LanguageModel(tiny.params(config, dtype), config)


def unlike(config: TransformerConfig, seed: int = 0) -> dict[str, Any]:
    """Other parts of every layer, and other numbers of them; the first layer loses every head."""
    random = np.random.default_rng(seed)
    gone = [config.n_heads - layer for layer in range(config.n_layers)]
    heads = np.stack([random.permutation(config.n_heads) < count for count in gone])
    neurons: dict[Any, Any] = {}
    for layer, experts in enumerate(config.expert_layers):
        if experts and config.experts is not None:
            for expert in range(config.experts.n):
                neurons[layer, expert] = random.permutation(config.experts.d_expert)[: 2 + (layer + expert) % 3]
        elif config.d_mlp:
            neurons[layer] = random.permutation(config.d_mlp)[: 4 + layer]
    return {"heads": heads, "neurons": neurons}


def apart(got: Any, want: Any) -> float:
    """The largest relative difference of a token."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float((np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)).max())


def both(lm: ji.LanguageModel, lost: dict[str, Any]) -> tuple[ji.Trace, ji.Trace]:
    """A run of the pruned model, and of the whole one with what was removed zeroed."""
    tokens = tiny.prompts(lm.config, (7, 5))
    zeroed = ji.run(lm, tokens, "resid_post", pruned_layout(lm.config, **lost).ablation())
    return ji.run(prune(lm, **lost), tokens, "resid_post"), zeroed


@pytest.mark.parametrize("name", sorted(set(tiny.CONFIGS) - {"neox", "gptj", "masked", "one", "qwen3", "solu"}))
def test_it_is_the_zeroed_model_and_smaller(name: str) -> None:
    """Grouped queries, biases, sinks, ALiBi, q/k norms by head, windows, every norm position, experts; unlike layers."""
    config = tiny.CONFIGS[name]
    lost = unlike(config)
    if name in ("olmo2", "attention"):
        del lost["heads" if name == "olmo2" else "neurons"]
    lm = model(config)
    small, zeroed = both(lm, lost)
    assert apart(small["resid_post"], zeroed["resid_post"]) < 1e-5
    if config.unembed != "none":
        assert apart(small.logits, zeroed.logits) < 1e-5
    pruned = prune(lm, **lost)
    layout = pruned_layout(config, **lost)
    assert layout.parameters == (lm.n_params, pruned.n_params) and pruned.n_params < lm.n_params
    if "heads" in lost:
        assert (layout.removed_heads == lost["heads"]).all()
    for key, neurons in lost.get("neurons", {}).items():
        layer, *expert = key if isinstance(key, tuple) else (key,)
        assert np.flatnonzero(layout.removed_neurons[layer][(*expert,)]).tolist() == sorted(neurons)


def test_the_edits_are_those_that_a_user_would_write() -> None:
    lm = model(LLAMA)
    neurons = np.random.default_rng(1).random((3, 20)) < 0.5
    small = prune(lm, heads="0.0 0.3 1.1 1.2 2.0 2.2", neurons=neurons)
    assert (small.config.n_heads, small.config.n_kv_heads) == (2, 2)
    tokens = tiny.prompts(LLAMA, (7, 5))
    edits = [ji.edits.zero("z", where=ji.heads("0.0 0.3 1.1 1.2 2.0 2.2")), ji.edits.zero("mlp_post", where=neurons[:, None, None, :])]
    assert apart(ji.run(small, tokens).logits, ji.run(lm, tokens, edits=edits).logits) < 1e-5


def test_names_pairs_sets_and_masks_mean_the_same() -> None:
    mask = np.zeros((3, 4), bool)
    mask[[0, 1, 2], [3, 0, 2]] = True
    given = ("0.3 1.0 2.2", [(0, 3), (1, 0), (2, 2)], ji.heads("0.3 1.0 2.2"), mask, jnp.asarray(mask))
    for heads in given:
        assert (pruned_layout(LLAMA, heads).removed_heads == mask).all()


# --------------------------------------------------------------------------------------------------------------- layout


def grouped(n_heads: int, n_kv_heads: int, **fields: Any) -> TransformerConfig:
    return LLAMA.replace(n_heads=n_heads, n_kv_heads=n_kv_heads, n_layers=2, **fields)


@pytest.mark.parametrize(
    ("config", "lost", "heads", "kv_heads"),
    [
        # one of every pair: as many key/value heads, one query head each
        (grouped(4, 2), "0.0 0.3 1.1 1.2", [[1, 2], [0, 3]], [[0, 1], [0, 1]]),
        # a whole group, another one in each layer
        (grouped(4, 2), "0.0 0.1 1.2 1.3", [[2, 3], [0, 1]], [[1], [0]]),
        # three of one group against one of each: the first group's keys stand twice, with two places behind each
        (grouped(6, 2), "0.3 0.4 0.5 1.1 1.2 1.3 1.4", [[0, 1, 2, -1], [0, -1, 5, -1]], [[0, 0], [0, 1]]),
        # one head is left of either group: a key/value head of its own for each, and a filler in the layer that lost all
        (grouped(6, 2), [(0, h) for h in range(6)] + [(1, h) for h in (0, 1, 3, 4)], [[-1, -1], [2, 5]], [[-1, -1], [0, 1]]),
        # ALiBi: head 1 goes where both layers lose it, head 2 leaves a place that holds nothing
        (grouped(4, 1, positions="alibi", rotary=()), "0.1 0.2 1.1", [[0, -1, 3], [0, 2, 3]], [[0], [0]]),
    ],
)
def test_known_layouts(config: TransformerConfig, lost: Any, heads: list[list[int]], kv_heads: list[list[int]]) -> None:
    layout = pruned_layout(config, lost)
    assert layout.heads.tolist() == heads and layout.kv_heads.tolist() == kv_heads
    assert (layout.after.n_heads, layout.after.n_kv_heads) == (len(heads[0]), len(kv_heads[0]))
    assert layout.fillers["heads"] == sum(row.count(-1) for row in heads)


def test_alibi_slopes_go_with_their_heads() -> None:
    config = grouped(4, 1, positions="alibi", rotary=())
    slopes = [2.0 ** (-2 * (head + 1)) for head in range(4)]
    assert pruned_layout(config, "0.1 0.2 1.1").after.alibi_slopes == (slopes[0], slopes[2], slopes[3])
    assert pruned_layout(config, "0.1").after == config


@pytest.mark.parametrize("seed", range(20))
def test_every_remaining_head_has_one_place_behind_its_own_key_and_no_layout_is_smaller(seed: int) -> None:
    random = np.random.default_rng(seed)
    groups, share, layers = int(random.integers(1, 5)), int(random.integers(1, 5)), int(random.integers(1, 4))
    config = LLAMA.replace(n_layers=layers, n_heads=groups * share, n_kv_heads=groups)
    kept = random.random((layers, groups * share)) < random.random((layers, 1))
    layout = pruned_layout(config, ~kept)
    shared = layout.after.n_heads // layout.after.n_kv_heads
    for layer in range(layers):
        places = np.flatnonzero(layout.heads[layer] >= 0)
        old = layout.heads[layer][places]
        assert sorted(old) == np.flatnonzero(kept[layer]).tolist()
        assert (layout.kv_heads[layer][places // shared] == old // share).all()

    def holds(n_kv_heads: int, behind: int) -> bool:
        counts = kept.reshape(layers, groups, share).sum(axis=2)
        return bool((np.ceil(counts / behind).sum(axis=1) <= n_kv_heads).all())

    sizes = [g * (r + 1) for g, r in itertools.product(range(1, groups * share + 1), range(1, share + 1)) if holds(g, r)]
    assert layout.after.n_kv_heads * (shared + 1) == min(sizes)


def test_neurons_keep_their_order_and_shorter_layers_are_filled_up() -> None:
    config = LLAMA.replace(d_mlp=5)
    layout = pruned_layout(config, neurons={0: [0, 2], 1: [1, 2, 3, 4], 2: range(5)})
    assert [layer.tolist() for layer in layout.neurons] == [[1, 3, 4], [0, -1, -1], [-1, -1, -1]]
    assert layout.after == config.replace(d_mlp=3) and layout.fillers["neurons"] == 5
    assert [np.flatnonzero(layer).tolist() for layer in layout.removed_neurons] == [[0, 2], [1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert pruned_layout(config, neurons=np.ones((3, 5), bool)).after.d_mlp == 1
    experts = tiny.CONFIGS["moe"]
    lost = np.random.default_rng(0).random((3, 6, 10)) < 0.6
    assert pruned_layout(experts, neurons=lost).after.axis_sizes["M"] == (~lost).sum(axis=2).max()


# --------------------------------------------------------------------------------------------------- what it is good for


def test_results_read_back_by_the_record() -> None:
    """A sweep over the new heads finds what a sweep over the old ones finds in the zeroed model."""
    lm, lost = model(LLAMA), {"heads": "0.0 0.3 1.1 1.2 2.0 2.2", "neurons": {0: [1, 2], 1: [5, 6], 2: [0, 19]}}
    layout, tokens = pruned_layout(LLAMA, **lost), tiny.prompts(LLAMA, (7,))
    metric = ji.metrics.cross_entropy()
    new = ji.ablate(prune(lm, **lost), tokens, metric).effects
    old = ji.ablate(lm, tokens, metric, edits=layout.ablation()).effects
    for layer, head in np.ndindex(new.shape):
        np.testing.assert_allclose(new[layer, head], old[layer, layout.heads[layer, head]], rtol=1e-3, atol=2e-5)
    assert abs(new).max() > 0.01


def test_it_writes_what_the_zeroed_model_writes_from_either_layout_of_weights() -> None:
    lm, lost = model(LLAMA), {"heads": [(layer, head) for layer in range(3) for head in (0, 1)], "neurons": np.eye(3, 20, dtype=bool)}
    tokens = tiny.prompts(LLAMA, (5,))
    wanted = ji.generate(lm, tokens, 8, edits=pruned_layout(LLAMA, **lost).ablation(), stop_tokens=()).ids
    stacked, by_layer = prune(lm, **lost), prune(lm.by_layer(), **lost)
    assert isinstance(by_layer.params["blocks"][0], tuple) and not isinstance(stacked.params["blocks"][0], tuple)
    for small in (stacked, by_layer):
        assert (ji.generate(small, tokens, 8, stop_tokens=()).ids == wanted).all()


def test_nothing_given_is_changed_and_types_stay() -> None:
    lm = model(LLAMA, jnp.bfloat16)
    digest = lm.digest()
    heads = np.zeros((3, 4), bool)
    heads[:, [0, 2]] = True
    small = prune(lm, heads=heads)
    assert lm.digest() == digest and heads.sum() == 6
    assert {leaf.dtype for leaf in jax.tree.leaves(small.params)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("config", "lost", "file"),
    [
        (LLAMA, {"heads": "0.0 0.3 1.1 1.2 2.0 2.2", "neurons": {layer: [layer, 9] for layer in range(3)}}, "config.json"),
        (GPT2, {"neurons": {layer: [layer, 9] for layer in range(3)}}, "config.json"),
        (GPT2, {"heads": "0.0 1.1 2.2"}, "jaxinterp.json"),
        (tiny.CONFIGS["bloom"].replace(n_kv_heads=4), {"heads": "0.1 1.1 2.1"}, "jaxinterp.json"),
    ],
)
def test_it_saves_and_loads(config: TransformerConfig, lost: dict[str, Any], file: str, tmp_path: Path) -> None:
    """In HF layout where the family can say the sizes; Llama names its head's width, GPT-2 divides."""
    small = prune(model(config), **lost)
    folder = ji.save(small, tmp_path / "small")
    again = load(folder)
    assert (folder / file).exists() and again.config == small.config and again.digest() == small.digest()


def test_a_table_of_the_heads() -> None:
    pytest.importorskip("pandas")
    frame = pruned_layout(grouped(6, 2), "0.3 0.4 0.5 1.1 1.2 1.3 1.4").to_dataframe()
    assert list(frame.columns) == ["layer", "head", "kv_head", "old_head", "old_kv_head"]
    assert frame.iloc[2].tolist() == [0, 2, 1, 2, 0] and len(frame) == 8


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("llama", {}, "say what to remove"),
        ("llama", {"heads": "3.0"}, "Head 3.0 does not exist: this model has layers 0 to 2 and heads 0 to 3"),
        ("llama", {"heads": "0.4"}, "Head 0.4 does not exist"),
        ("llama", {"heads": np.ones((3, 2), bool)}, r"expected \[L H\] = \[3, 4\]"),
        ("llama", {"neurons": np.ones((3, 4), bool)}, r"expected a boolean mask \[L M\] = \[3, 20\]"),
        ("llama", {"neurons": {3: [0]}}, "layer 3 does not exist"),
        ("llama", {"neurons": {0: [20]}}, "from 0 to 19"),
        ("llama", {"neurons": {(0, 1): [2]}}, "since it has no experts"),
        ("moe", {"neurons": {0: [2]}}, r"expected \(layer, expert\) with experts 0 to 5"),
        ("mixed", {"neurons": np.ones((3, 10), bool)}, "since some layers have experts and others none"),
        ("olmo2", {"heads": "0.0"}, "qk_norm='whole'"),
        ("solu", {"neurons": {0: [0]}}, "softmax over all neurons"),
        ("attention", {"neurons": {0: [0]}}, "attention only"),
    ],
)
def test_what_cannot_be_removed_is_refused(name: str, lost: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pruned_layout(tiny.CONFIGS[name], **lost)


def test_it_says_when_nothing_gets_smaller() -> None:
    lm = model(LLAMA)
    with pytest.warns(UserWarning, match="not smaller"):
        same = prune(lm, heads="0.0")
    tokens = tiny.prompts(LLAMA, (7,))
    assert same.config == LLAMA
    assert apart(ji.run(same, tokens).logits, ji.run(lm, tokens, edits=ji.edits.zero("z", where=ji.heads("0.0"))).logits) < 1e-5
