"""run: buckets, trimming, programs shared by all that is data, meshes, memory, and one sentence for each bad input."""

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.runs import plan as planning
from jaxinterp.runs.program import bucket
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

LLAMA = CONFIGS["llama"]
LM = ji.LanguageModel(params(LLAMA), LLAMA)


def ids(length: int, seed: int = 0, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, LLAMA.d_vocab, (batch, length))


def test_buckets_grow_by_at_most_a_quarter_and_never_pass_the_context() -> None:
    sizes = [bucket(n, 2048) for n in range(1, 2049)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    steps = sorted(set(sizes))
    assert all(b <= 1.25 * a for a, b in itertools.pairwise(steps[7:]))
    assert (bucket(14, 2048), bucket(256, 2048), bucket(30, 31)) == (14, 256, 31)


def test_a_run_in_a_bucket_is_trimmed_and_equals_forward() -> None:
    tokens = ids(9)
    trace = ji.run(LM, tokens, sites="all")
    exact = ji.forward(LM.params, tokens, LLAMA, sites="all")
    assert trace.padded_logits.shape[1] == 10
    for site in exact.activations:
        assert trace[site].shape == exact[site].shape, site
        np.testing.assert_allclose(trace[site], exact[site], rtol=1e-4, atol=2e-5, err_msg=site)
    np.testing.assert_allclose(trace.logits, exact.logits, rtol=1e-4, atol=2e-5)
    assert trace.tokens.shape == (2, 9)
    np.testing.assert_allclose(trace.at("resid_post", position=-1), exact["resid_post"][:, :, -1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(
        trace.at("z", position=[[0], [1]], head=2, layer=1),
        jnp.stack([exact["z"][1, 0, :1, 2], exact["z"][1, 1, 1:2, 2]]),
        rtol=1e-4,
        atol=2e-5,
    )


def test_trace_reads_each_prompts_own_last_token_mean_and_predictions() -> None:
    tokens = prompts(LLAMA, (5, 7), width=9, left=True)
    trace = ji.run(LM, tokens, sites=("resid_post",))
    whole, mask = np.asarray(trace["resid_post"]), np.asarray(tokens.mask)
    np.testing.assert_array_equal(trace.at("resid_post", position=-1), whole[:, :, -1])
    np.testing.assert_array_equal(trace.at("resid_post", position=0), np.stack([whole[:, 0, 4], whole[:, 1, 2]], 1))
    np.testing.assert_allclose(trace.mean("resid_post"), whole[:, mask].mean(1), rtol=1e-4, atol=1e-5)
    top = trace.top(3)
    row = np.asarray(trace.logits)[1, -1]
    assert [prediction.id for prediction in top[1]] == np.argsort(-row)[:3].tolist()
    np.testing.assert_allclose(top[1][0].probability, np.exp(row.max() - np.log(np.exp(row - row.max()).sum()) - row.max()), rtol=1e-5)


def test_what_changes_from_run_to_run_compiles_nothing() -> None:
    """Prompts, nearby lengths, layers, positions, heads, values, answers, other checkpoints and second loads are data."""
    other = ji.LanguageModel(params(LLAMA, seed=1), ji.TransformerConfig(**{f: getattr(LLAMA, f) for f in LLAMA.__dataclass_fields__}))

    def once(lm: ji.LanguageModel, n: int, length: int) -> None:
        edits = [
            ji.edits.replace("resid_pre", np.full(24, float(n)), layer=n % 3, position=[n % 5]),
            ji.edits.zero("z", layer=n % 2, head=n % 4),
            ji.edits.knockout(query=-1, key=n % 4, layer=n % 3),
            ji.edits.add("z", 0.1 * n, where=ji.heads([(n % 3, n % 4), (0, 1)])),
        ]
        sites = {"resid_post": ji.at(position=n % 5), "z": ji.at(head=[n % 4])}
        trace = ji.run(lm, ids(length, n), sites=sites, edits=edits, rules=ji.Rules(detach={"z": np.arange(3) == n % 3}))
        jax.block_until_ready(ji.metrics.logit_difference(n % 7, n % 11)(trace))

    once(LM, 0, 9)
    with compiled() as events:
        for n in range(1, 100):
            once(LM if n % 2 else other, n, 9 + n % 2)
    assert not events


def test_any_starting_layer_is_one_program_and_its_trace_has_the_layers_run() -> None:
    tokens = ids(9)
    whole = ji.run(LM, tokens, sites=("resid_pre", "z"))
    for layer in range(3):
        trace = ji.run(LM, tokens, sites=("z",), start=(layer, whole["resid_pre"][layer]))
        assert trace.layers_of("z") == tuple(range(layer, 3))
        np.testing.assert_allclose(trace["z"], whole["z"][layer:], rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(trace.logits, whole.logits, rtol=1e-4, atol=2e-5)
    resid = np.asarray(whole["resid_pre"])
    ji.run(LM, tokens, start=(0, resid[0]))
    with compiled() as events:
        for layer in range(3):
            ji.run(LM, tokens, start=(layer, resid[layer]))
    assert not events


def test_values_and_masks_that_span_positions_follow_the_bucket() -> None:
    tokens = ids(9)
    value = np.random.default_rng(0).normal(size=(2, 9, 24)).astype(np.float32)
    where = np.zeros((3, 2, 9), bool)
    where[1, :, 8] = True
    edits = [ji.edits.replace("resid_pre", value, where=where), ji.edits.add("pattern", np.full((9, 9), 0.1), layer=0)]
    np.testing.assert_allclose(
        ji.run(LM, tokens, edits=edits).logits, ji.forward(LM.params, tokens, LLAMA, edits=edits).logits, rtol=1e-4, atol=2e-5
    )


def test_activations_streams_in_order_with_one_program_a_bucket() -> None:
    lengths = [3, 9, 5, 12, 9, 3, 11, 4, 9, 2, 12]
    texts = [ids(length, seed, 1)[0].tolist() for seed, length in enumerate(lengths)]
    sites = {"resid_post": None, "z": ji.at(position=-1)}
    out = list(ji.activations(LM, iter(texts), sites, batch_size=2))
    assert [trace.tokens.shape[1] for trace in out] == lengths
    for text, trace in zip(texts, out, strict=True):
        want = ji.run(LM, [text], sites=sites)
        np.testing.assert_allclose(trace["resid_post"], want["resid_post"], rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(trace["z"], want["z"], rtol=1e-4, atol=2e-5)
        assert trace.logits is None
    with compiled() as events:
        list(ji.activations(LM, texts, sites, batch_size=2))
    assert not events


def test_activations_streams_an_endless_source_in_flat_memory() -> None:
    def endless() -> Iterator[list[int]]:
        n = 0
        while True:
            n += 1
            yield ids(5 + n % 4, n, 1)[0].tolist()

    stream = ji.activations(LM, endless(), ("resid_post",), batch_size=2)
    for _ in range(40):
        next(stream)
    gc.collect()
    before = len(jax.live_arrays())
    for _ in range(200):
        next(stream)
    gc.collect()
    assert len(jax.live_arrays()) <= before + 2


def test_a_mesh_of_eight_devices_gives_what_one_gives() -> None:
    config = CONFIGS["llama"].replace(n_heads=8, n_kv_heads=4)
    weights = params(config)
    tokens = prompts(config, (7,) * 4)
    mesh = jax.make_mesh((2, 4), ("data", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = ji.partition_specs(config, {"H": "heads", "G": "heads", "M": "heads"})
    placed = jax.tree.map(lambda w, spec: jax.device_put(w, jax.NamedSharding(mesh, spec)), weights, specs)
    batch = jax.tree.map(lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))), tokens)
    run = jax.jit(lambda weights, tokens: ji.forward(weights, tokens, config, sites=("z", "resid_post", "pattern")))
    sharded, single = run(placed, batch), run(weights, tokens)
    assert len(placed["blocks"][0]["attn"]["W_Q"].sharding.device_set) == 8
    assert not placed["blocks"][0]["attn"]["W_Q"].sharding.is_fully_replicated
    for site in ("z", "resid_post", "pattern"):
        np.testing.assert_allclose(sharded[site], single[site], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(sharded.logits, single.logits, rtol=1e-4, atol=2e-5)


def test_plan_counts_what_a_run_needs_and_a_run_that_cannot_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ids(14)
    plan = ji.plan(LM, tokens, sites=("resid_post", "pattern"), compile=True)
    trace = ji.run(LM, tokens, sites=("resid_post", "pattern"))
    assert plan.captured == {site: trace.padded[site].nbytes for site in ("resid_post", "pattern")}
    assert plan.logits == trace.padded_logits.nbytes
    assert plan.weights == sum(leaf.nbytes for leaf in jax.tree.leaves(LM.params))
    assert plan.measured
    assert plan.operations > 2 * 28 * LM.n_params * 0.5
    assert ji.plan(LM, tokens, sites={"pattern": ji.at(layer=[1], query=-1)}).captured["pattern"] == 2 * 4 * 14 * 4
    monkeypatch.setattr(planning, "free_memory", lambda: (40_000, "cpu"))
    with pytest.raises(ji.MemoryPlanError, match=r"but 39.1 KiB is free on cpu: .*ji.activations"):
        ji.run(LM, tokens, sites="all")
    room = ji.plan(LM, tokens, sites="all").needed * 2 // 3
    monkeypatch.setattr(planning, "free_memory", lambda: (room, "cpu"))
    with pytest.raises(ji.MemoryPlanError, match=r"run 1 of the 2 prompts at a time"):
        ji.run(LM, tokens, sites="all")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ji.run(LM, ids(5), sites=("resid",)), "no site 'resid'"),
        (lambda: ji.run(LM, ids(5), sites="pos_embed"), "positions are rotary, not learned"),
        (lambda: ji.run(LM, ids(5), sites={"z": ji.at(head=4)}), "head 4 is out of range"),
        (lambda: ji.run(LM, ids(5), sites={"z": ji.at(layer=[0, 3])}), "layer 3 is out of range"),
        (lambda: ji.run(LM, ids(5), sites={"pattern": ji.at(position=0)}), "use query= and key="),
        (lambda: ji.run(LM, ids(33)), "context is 32"),
        (lambda: ji.run(LM, ids(5) + 50), "ids 0 to 49"),
        (lambda: ji.run(LM, ids(5) - 50), "out of range"),
        (lambda: ji.run(LM, np.zeros((1, 0), int)), "A prompt is empty"),
        (lambda: ji.run(LM, ids(5) * 0.5), "must be integers"),
        (lambda: ji.run(LM, [[1, 2], [3]]), "one length"),
        (lambda: ji.run(LM, "text"), "no tokenizer"),
        (lambda: ji.run(LM, []), "the list is empty"),
        (lambda: ji.run(LM, ids(5), stop=4), "from 0 to 3"),
        (lambda: ji.run(LM, ids(5), start=(7, np.zeros((2, 5, 24), np.float32))), "start is layer 7"),
        (lambda: ji.run(LM, ids(5), inputs=np.zeros((2, 5, 23), np.float32)), r"inputs must be \[B P D\]"),
        (lambda: ji.run(LM, ids(5), dtype="float64"), "x64 mode"),
        (lambda: ji.run(LM, ids(5), dtype="int8"), "expected 'float32'"),
        (lambda: ji.run(LM, ids(5))["z"], "was not captured"),
        (lambda: ji.run(LM, ids(5), sites=("z",)).at("z", position=5), "position 5 is out of range"),
        (lambda: ji.run(LM, ids(5), sites=("z",), stop=2).at("z", layer=2), "Layer 2 of 'z' was not captured"),
        (lambda: ji.run(LM, ids(5), stop=2).top(), "stopped before the unembedding"),
        (lambda: next(ji.activations(LM, ["text"], "z")), "Text 0: This model has no tokenizer"),
        (lambda: next(ji.activations(LM, "text", "z")), "put a single one in a list"),
        (lambda: next(ji.activations(LM, [ids(40)[0]], "z")), "Text 0: .*context is 32|Text 0 has 40 tokens"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_clear_sentence(call: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        call()
