"""Generation: with a cache or without, in a batch or alone, under edits: the same tokens and the same values."""

import dataclasses
import functools
import itertools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from jaxinterp.model.decode import prefill, step
from jaxinterp.model.parameters import by_layer, stacked
from jaxinterp.runs import decoding
from jaxinterp.runs.generate import generate, stream
from jaxinterp.runs.score import score
from jaxinterp.runs.wording import Wording
from jaxinterp.runs.writing import Writing
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

KINDS = ("qwen3", "gemma", "bloom", "oss", "mixed")  # the others, and every family, with `make parity`
CAUSAL = [pytest.param(name, marks=[] if name in KINDS else pytest.mark.parity) for name, config in CONFIGS.items() if config.causal]
ALONE = ("gemma", "mixed", "oss")  # also with weights a layer at a time: rings of their own sizes, groups, sinks
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
NEW = 7


def apart(ours: Any, theirs: Any) -> float:
    """The largest relative error of any token."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float((np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).max())


def continued(tokens: ji.Tokens, new: np.ndarray) -> ji.Tokens:
    """The prompts with new tokens after them, as generation plans them."""
    ids = np.concatenate([tokens.ids, new], axis=1)
    made = ji.Tokens.from_ids(ids, np.concatenate([tokens.mask, np.ones(new.shape, bool)], axis=1))
    return dataclasses.replace(made, planned=tokens.lengths + new.shape[1])


def cached(config: ji.TransformerConfig, weights: Any, tokens: ji.Tokens, new: np.ndarray, layouts: tuple[Any, ...]) -> list[np.ndarray]:
    """Logits [B n+1 V] at the last prompt token and at each new one: of the whole text at once, then through the cache for each layout."""
    whole = continued(tokens, new)
    tokens = dataclasses.replace(tokens, planned=whole.planned)

    def through(weights: Any, tokens: ji.Tokens, new: Any) -> Any:
        first, cache, _ = prefill(weights, tokens, config, whole.ids.shape[1])

        def one(cache: Any, ids: Any) -> Any:
            logits, cache, _ = step(weights, ids, cache, config)
            return cache, logits

        rest = jax.lax.scan(one, cache, jnp.moveaxis(new, 0, 1))[1]
        return jnp.concatenate([first[:, None], jnp.moveaxis(rest, 0, 1)], axis=1)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(weights: Any, tokens: ji.Tokens, whole: ji.Tokens, new: Any) -> Any:
        exact = ji.forward(weights, whole, config).logits[:, tokens.ids.shape[1] - 1 :]
        with jax.default_matmul_precision("highest"):
            return [exact, *(through(layout(weights), tokens, new) for layout in layouts)]

    return [np.asarray(logits) for logits in both(weights, tokens.arrays_only(), whole.arrays_only(), jnp.asarray(new, jnp.int32))]


@pytest.mark.parametrize("name", CAUSAL)
def test_the_cache_gives_what_a_run_of_the_whole_text_gives(name: str) -> None:
    config = CONFIGS[name]
    tokens = prompts(config, (6, 3), left=True)
    new = np.random.default_rng(1).integers(0, config.d_vocab, (2, NEW))
    exact, *found = cached(config, params(config), tokens, new, (dict, by_layer) if name in ALONE else (dict,))
    for logits in found:
        assert apart(logits, exact) < 1e-5


def test_weights_a_layer_at_a_time_give_the_same_run_and_go_back() -> None:
    config = CONFIGS["mixed"]
    lm = ji.LanguageModel(params(config), config)
    apart_ = lm.by_layer()
    assert apart_.by_layer() is apart_ and lm.stacked() is lm and apart_.n_params == lm.n_params
    jax.tree.map(np.testing.assert_array_equal, stacked(apart_.params), lm.params)
    tokens = prompts(config, (5, 4))
    sites: Any = {"resid_post": ji.at(layer=[0, 2]), "mlp_out": None, "mlp_post": None}
    edits = [ji.edits.scale("z", 1 + np.arange(3.0)[:, None, None, None, None])]
    ours, theirs = (ji.run(model, tokens, sites=sites, edits=edits, stop=None) for model in (apart_, lm))
    for site in sites:
        assert ours.layers_of(site) == theirs.layers_of(site)
        np.testing.assert_allclose(ours[site], theirs[site], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=2e-5)
    with pytest.raises(ji.InputError, match="a layer at a time"):
        ji.run(apart_, tokens, start=(1, np.zeros((2, 5, 24), np.float32)))


# --------------------------------------------------------------------------------------------------------- generate

CONFIG = CONFIGS["qwen3"].replace(n_ctx=64)
LM = ji.LanguageModel(params(CONFIG), CONFIG)
PROMPTS = prompts(CONFIG, (7, 4))


def test_greedy_tokens_are_the_likeliest_of_a_run_and_sites_those_of_that_run() -> None:
    sites: Any = {"logits": None, "k_rot": None, "pattern": ji.at(head=[1]), "resid_post": ji.at(layer=[0, 2]), "z": ji.at(layer=1)}
    found = generate(LM, PROMPTS, NEW, sites=sites)
    assert found.ids.shape == (2, NEW) and found.lengths.tolist() == [NEW, NEW] and found.ended == ("length", "length")
    run = ji.run(LM, found.tokens, sites=sites)
    mask = np.asarray(found.tokens.mask)
    logits = np.asarray(run.logits)
    np.testing.assert_array_equal(found.ids, logits[:, 6:-1].argmax(axis=-1))
    assert apart(np.asarray(found.trace.logits)[mask], logits[mask]) < 1e-5
    own = np.asarray(jax.nn.log_softmax(logits[:, 6:-1], axis=-1))
    np.testing.assert_allclose(found.log_probabilities, np.take_along_axis(own, found.ids[:, :, None], axis=2)[..., 0], atol=1e-5)
    assert found.trace is not None and found.trace.layers == run.layers and found.trace.axes == run.axes
    for site, axis in {"k_rot": 1, "resid_post": 1, "z": 0, "pattern": 1}.items():
        ours, theirs = (np.asarray(trace[site]) for trace in (found.trace, run))
        ours, theirs = (np.moveaxis(value, -2, 2) if site == "pattern" else value for value in (ours, theirs))  # queries after B
        real = (slice(None),) * axis + (mask,)
        np.testing.assert_allclose(ours[real], theirs[real], rtol=1e-4, atol=1e-5, err_msg=site)
    last = found.trace.at("resid_post", position=-1)
    np.testing.assert_allclose(last, run.at("resid_post", position=-1), rtol=1e-4, atol=1e-5)


def test_a_prompt_gives_the_same_alone_padded_either_way_and_a_layer_at_a_time() -> None:
    found = generate(LM, PROMPTS, NEW)
    alone = generate(LM, np.asarray(PROMPTS.ids)[1:, :4], NEW)
    left = generate(LM.by_layer(), prompts(CONFIG, (7, 4), width=9, left=True), NEW)
    np.testing.assert_array_equal(alone.ids[0], found.ids[1])
    np.testing.assert_array_equal(left.ids, found.ids)
    np.testing.assert_allclose(alone.log_probabilities[0], found.log_probabilities[1], atol=1e-5)
    np.testing.assert_allclose(left.log_probabilities, found.log_probabilities, atol=1e-5)
    assert found.trace is None and found.text == ()


VECTOR = np.random.default_rng(0).normal(size=24) * 2
EVERY = ("k_rot", "v", "resid_post", "logits")


def where_of(found: Any, chosen: Any) -> np.ndarray:
    """[1 B P]: the tokens of the text that `chosen(step)` names, -1 being the prompt's."""
    mask = np.asarray(found.tokens.mask)
    steps = np.maximum(np.arange(mask.shape[1]) - (mask.shape[1] - found.ids.shape[1]), -1)
    return (mask & np.asarray([chosen(step) for step in steps])[None])[None]


@pytest.mark.parametrize(
    ("when", "chosen"),
    [
        ("all", lambda step: True), ("prompt", lambda step: step < 0), ("new", lambda step: step >= 0),
        ({1, 4}, lambda step: step in (1, 4)),
    ],
    ids=["all", "prompt", "new", "steps"],
)  # fmt: skip
def test_an_edit_acts_on_the_tokens_that_its_when_names(when: Any, chosen: Any) -> None:
    """As a run of the whole text gives it with the edit at exactly those positions."""
    found = generate(LM, PROMPTS, NEW, edits=[ji.edits.add("resid_pre", VECTOR, layer=1, when=when)], sites=EVERY)
    edit = ji.edits.add("resid_pre", VECTOR, layer=1, where=where_of(found, chosen))
    run = ji.run(LM, found.tokens, sites=EVERY, edits=edit)
    mask = np.asarray(found.tokens.mask)
    for site in ("resid_post", "v"):
        np.testing.assert_allclose(np.asarray(found.trace[site])[:, mask], np.asarray(run[site])[:, mask], rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(found.ids, np.asarray(run.logits)[:, 6:-1].argmax(axis=-1))


def test_an_edit_of_new_tokens_leaves_the_prompt_as_it_is_to_the_bit() -> None:
    plain = generate(LM, PROMPTS, NEW, sites=EVERY)
    edited = generate(LM, PROMPTS, NEW, sites=EVERY, edits=ji.edits.add("resid_pre", VECTOR, layer=1, when="new"))
    for site in EVERY:
        axis = 1 if site == "logits" else 2
        ours, theirs = (np.take(found.trace[site], range(7), axis=axis) for found in (edited, plain))
        np.testing.assert_array_equal(ours, theirs)
    assert edited.ids[:, 0].tolist() == plain.ids[:, 0].tolist() and (edited.ids != plain.ids).any()


def test_edits_select_positions_from_the_beginning_heads_keys_and_values_of_each_prompt_position() -> None:
    rng = np.random.default_rng(3)
    value = rng.normal(size=(2, 7, 24))
    edits = [
        ji.edits.scale("z", 3.0, layer=0, head=[1, 2], position=[[-1, 8], [0, 5]]),
        ji.edits.knockout(query=[8, 9], key=2, layer=[0, 2]),
        ji.edits.add("resid_mid", value, layer=1, when="prompt"),
    ]
    found = generate(LM, PROMPTS, NEW, edits=edits, sites=("resid_post",))
    spread = np.zeros((2, 7 + NEW, 24))
    spread[0, :7], spread[1, 3:7] = value[0], value[1, :4]
    same = [
        ji.edits.scale("z", 3.0, layer=0, head=[1, 2], position=[[6, 8], [0, 5]]), edits[1],
        ji.edits.add("resid_mid", spread, layer=1),
    ]  # fmt: skip
    run = ji.run(LM, found.tokens, sites=("resid_post",), edits=same)
    mask = np.asarray(found.tokens.mask)
    np.testing.assert_allclose(np.asarray(found.trace["resid_post"])[:, mask], np.asarray(run["resid_post"])[:, mask], rtol=1e-4, atol=2e-5)


def test_what_changes_from_call_to_call_compiles_nothing() -> None:
    vector = np.random.default_rng(0).normal(size=24)

    def once(n: int) -> None:
        edit = ji.edits.add("resid_pre", vector * n, layer=n % 3, when={n % 5, 2})
        ids = np.random.default_rng(n).integers(0, 50, (2, 9 + n % 2))
        sampled: Any = {"temperature": 0.5 * (n % 3), "top_k": n % 4, "top_p": 1 - 0.1 * (n % 3), "seed": n}
        generate(LM, ids, 6 - n % 2, edits=edit, stop_tokens=[n % 50], **sampled)

    once(1)
    with compiled() as events:
        for n in range(2, 12):
            once(n)
    assert not events


def test_layers_with_a_window_keep_a_ring_and_memory_is_as_planned() -> None:
    run = Writing(LM.by_layer(), PROMPTS, 40)
    run.advance(40)
    state = run._state
    assert [kept.shape[1] for kept in state.cache.k] == [64, 3, 64] and state.cache.nbytes == sum(run.planned.values())
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    live = len(jax.live_arrays())
    result = run.result()
    np.testing.assert_array_equal(result.ids, generate(LM, PROMPTS, 40).ids)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(run._state)) == stored and len(jax.live_arrays()) <= live + 12


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_token_is_written_into_the_cache_in_place(by_layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled loop holds no copy of an array of the cache: it would be made for every token."""
    texts, program = [], decoding.decode_program

    def kept(*args: Any, **static: Any) -> Any:
        texts.append((program.lower(*args, **static).compile().as_text(), args[1].cache.k[0].shape))
        return program(*args, **static)

    monkeypatch.setattr("jaxinterp.runs.writing.decode_program", kept)
    lm = ji.LanguageModel(params(CONFIGS["llama"]), CONFIGS["llama"])
    generate(lm.by_layer() if by_layer else lm, np.ones((5, 4), np.int32), 3)
    text, shape = texts[0]
    shown = re.escape(f"f32[{','.join(map(str, shape))}]")
    assert re.search(rf"{shown}\S* (fusion|dynamic-update-slice)\(", text) and not re.search(rf"{shown}\S* copy\(", text)


def test_attention_looks_at_no_more_slots_than_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths grow as the text does, and change nothing."""
    plain = generate(LM, PROMPTS, 40)
    monkeypatch.setattr(decoding, "NARROWEST", 8)
    widths = []
    program = decoding.decode_program

    def seen(*args: Any, **static: Any) -> Any:
        widths.append(args[1].cache.k[0].shape[-2])
        return program(*args, **static)

    monkeypatch.setattr("jaxinterp.runs.writing.decode_program", seen)
    np.testing.assert_array_equal(generate(LM, PROMPTS, 40).ids, plain.ids)
    assert widths == [8, 16, 32, 64]


# ------------------------------------------------------------------------------------------------------ text and ends

FOLDER = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level"
TOKENIZER: Any = tokenizer_from_folder(FOLDER)
WORDS = CONFIGS["llama"].replace(d_vocab=TOKENIZER.vocab_size, n_ctx=96)
READER = ji.LanguageModel(params(WORDS), WORDS, TOKENIZER)
HOT: dict[str, Any] = {"temperature": 1.0, "seed": 5}


def test_the_pieces_of_a_stream_are_the_text_and_its_result_that_of_generate() -> None:
    whole = generate(READER, "Mary gave John", 24, stop_tokens=(), **HOT)
    written = stream(READER, "Mary gave John", 24, stop_tokens=(), **HOT)
    pieces = list(written)
    assert "".join(pieces) == whole.text[0] and len(pieces) > 5
    np.testing.assert_array_equal(written.result().ids, whole.ids)


def test_stop_strings_and_tokens_end_a_row_and_no_other() -> None:
    texts = ["Mary gave John", "When"]
    plain = generate(READER, texts, 24, stop_tokens=(), **HOT)
    stop = plain.text[0][9:13]
    first = plain.text[0].index(stop)
    found = generate(READER, texts, 24, stop=[stop, "never to be seen"], stop_tokens=(), **HOT)
    assert found.text == (plain.text[0][:first], plain.text[1]) and found.ended == ("stop string", "length")
    length = int(found.lengths[0])
    decoded = [TOKENIZER.decode(plain.ids[0, :n].tolist()) for n in (length - 1, length)]
    assert stop not in decoded[0] and stop in decoded[1]
    assert np.isnan(found.log_probabilities[0, length:]).all() and not found.tokens.mask[0, len(found.tokens.mask[0]) - 24 + length :].any()
    pieces = list(stream(READER, texts[0], 24, stop=stop, stop_tokens=(), **HOT))
    assert "".join(pieces) == plain.text[0][:first]
    token = int(plain.ids[1, 6])
    ended = generate(READER, texts, 24, stop_tokens=[token], sites=("resid_post",), **HOT)
    length = plain.ids[1].tolist().index(token) + 1
    assert ended.ended[1] == "stop token" and int(ended.lengths[1]) == length
    run = ji.run(READER, ended.tokens, sites=("resid_post",))
    np.testing.assert_allclose(ended.trace.at("resid_post", position=-1), run.at("resid_post", position=-1), rtol=1e-4, atol=1e-5)


def test_a_row_draws_the_same_whatever_stands_beside_it_and_however_it_is_cut() -> None:
    texts = ["Mary gave John", "When"]
    every = generate(READER, texts, 12, temperature=1.0, seed=[3, 4])
    for row, (text, seed) in enumerate(zip(texts, (3, 4), strict=True)):
        alone = generate(READER, text, 12, temperature=1.0, seed=seed)
        np.testing.assert_array_equal(alone.ids[0, : alone.lengths[0]], every.ids[row, : every.lengths[row]])
    twins = generate(READER, ["When"] * 2, 12, temperature=1.0, seed=3)
    assert (twins.ids[0] != twins.ids[1]).any()
    cold = generate(READER, ["When"] * 2, 12, temperature=[1.0, 0.0], seed=3)
    np.testing.assert_array_equal(cold.ids[0], twins.ids[0])
    np.testing.assert_array_equal(cold.ids[1], generate(READER, "When", 12).ids[0])


def test_a_chat_is_continued_and_a_run_of_its_tokens_gives_the_same() -> None:
    tokens = READER.chat([{"role": "user", "content": "to"}])
    found = generate(READER, tokens, 4, stop_tokens=())
    assert found.tokens.roles == ("user",) and found.tokens.spans is not None
    logits = np.asarray(ji.run(READER, found.tokens).logits)
    np.testing.assert_array_equal(found.ids[0], logits[0, -5:-1].argmax(axis=-1))


def test_score_gives_the_log_probabilities_of_a_run_on_the_joint_text() -> None:
    found = score(READER, "Mary gave", [" John a drink", " John", "n"])
    tokens = READER.to_tokens([f"Mary gave{text}" for text in (" John a drink", " John", "n")])
    logits = ji.run(READER, tokens).logits
    for row, last in enumerate(tokens.last):
        own = np.asarray(jax.nn.log_softmax(logits[row], axis=-1))
        n = int(found.lengths[row])
        wanted = [own[i - 1, tokens.ids[row, i]] for i in range(last + 1 - n, last + 1)]
        np.testing.assert_allclose(found.log_probabilities[row, :n], wanted, atol=1e-5)
        assert np.isnan(found.log_probabilities[row, n:]).all()
        assert found.total[row] == pytest.approx(sum(wanted), abs=1e-5) and found.mean[row] == pytest.approx(sum(wanted) / n, abs=1e-5)
    assert "".join(found.strings[0]) == " John a drink"
    text = generate(READER, "Mary gave", 6, stop_tokens=())
    again = score(READER, np.asarray(READER.to_tokens("Mary gave").ids), [text.ids[0].tolist()])
    np.testing.assert_allclose(again.log_probabilities, text.log_probabilities, atol=1e-5)
    edit = ji.edits.zero("mlp_out", layer=1)
    assert abs(score(READER, "Mary gave", " John", edits=edit).total - found.total[1]) > 1e-3


def test_results_show_save_and_tabulate(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    found = generate(READER, ["Mary gave John", "When"], 6, sites=("resid_post",), stop_tokens=(), **HOT)
    assert repr(found).startswith("Generation(2 x 6 new tokens: ")
    kept = load_file(found.save(tmp_path / "text.safetensors"))
    np.testing.assert_array_equal(kept["ids"], found.ids)
    np.testing.assert_array_equal(kept["value.resid_post"], found.trace["resid_post"])
    assert kept["mask"].sum() == found.tokens.lengths.sum() and "scores" not in kept
    assert jax.tree.structure(found) == jax.tree.structure(jax.tree.map(lambda x: x, found))
    assert dict(found.how)["temperature"] == "1.0" and repr(score(READER, "to", " John")).startswith("Score(1 continuations: -")


ENCODER = ji.LanguageModel(params(CONFIGS["bert"]), CONFIGS["bert"])
HEADLESS = ji.LanguageModel({}, CONFIG.replace(unembed="none"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate(ENCODER, [[1, 2]], 3), "is an encoder"),
        (lambda: generate(HEADLESS, [[1, 2]], 3), "no unembedding"),
        (lambda: generate(LM, [[1] * 60], 5), "context is 64. Ask for at most 4 new tokens"),
        (lambda: generate(LM, [[1] * 65], 5), "context is 64"),
        (lambda: generate(LM, [[1, 2]], 0), "max_new_tokens is 0; expected at least 1"),
        (lambda: generate(LM, [[1, 2]], 3, temperature=-1), "temperature is -1; expected 0"),
        (lambda: generate(LM, [[1, 2]], 3, temperature=float("nan")), "temperature is nan"),
        (lambda: generate(LM, [[1, 2]], 3, top_k=-1), "top_k is -1; expected 0"),
        (lambda: generate(LM, [[1, 2]], 3, top_k=1.5), "expected a whole number"),
        (lambda: generate(LM, [[1, 2]], 3, top_p=0), "top_p is 0; expected above 0 and at most 1"),
        (lambda: generate(LM, [[1, 2]], 3, top_p=1.1), "top_p is 1.1"),
        (lambda: generate(LM, [[1, 2]], 3, min_p=2), "min_p is 2; expected from 0 to 1"),
        (lambda: generate(LM, [[1, 2]], 3, repetition_penalty=0), "repetition_penalty is 0; expected above 0"),
        (lambda: generate(LM, [[1, 2]], 3, frequency_penalty=float("inf")), "frequency_penalty is inf"),
        (lambda: generate(LM, [[1, 2]], 3, temperature=[1, 1]), r"one for each of 1 prompts"),
        (lambda: generate(LM, [[1, 2]], 3, seed=-1), "seed is -1"),
        (lambda: generate(LM, [[1, 2]], 3, logit_bias={50: 1}), "token id 50 is out of range"),
        (lambda: generate(LM, [[1, 2]], 3, logit_bias=np.zeros(3)), r"an array \[V\] = \[50\]"),
        (lambda: generate(LM, [[1, 2]], 3, stop_tokens=[50]), "stop_tokens: id 50"),
        (lambda: generate(LM, [[1, 2]], 3, stop="x"), "no tokenizer, so there is no text in which"),
        (lambda: generate(READER, "to", 3, stop=""), "strings that are not empty"),
        (lambda: generate(LM, [[1, 2]], 3, sites={"z": ji.at(position=-1)}), "every token is captured"),
        (lambda: generate(LM, [[1, 2]], 3, sites="pos_embed"), "positions are rotary"),
        (lambda: generate(LM, [[1, 2]], 3, edits=ji.edits.zero("z", when={3})), "when names step 3; with 3 new tokens, steps are 0 to 2"),
        (lambda: generate(LM, [[1, 2]], 3, edits=ji.edits.zero("z", position=5)), "position 5 is out of range"),
        (lambda: generate(LM, [[1, 2]], 3, edits=ji.edits.zero("z", position=-3)), "position -3 is out of range for prompt 0"),
        (lambda: generate(LM, [[1, 2]], 3, edits=ji.edits.add("resid_pre", np.ones((2, 24)))), "a value or mask for each position"),
        (lambda: generate(LM, [[1, 2]], 3, edits=ji.edits.apply("z", jnp.flip, mixes="position")), "a function that mixes positions"),
        (lambda: stream(READER, ["to", "When"], 3), "stream\\(\\) writes one text; got 2"),
        (lambda: stream(LM, [[1, 2]], 3), "there is no text to stream"),
        (lambda: stream(READER, "to", 3, beams=2), "unknown setting 'beams'"),
        (lambda: score(READER, ["to", "When"], [" a", " b", " c"]), "3 continuations for 2 prompts"),
        (lambda: score(READER, "to", ""), "is empty"),
        (lambda: score(READER, "to", []), "there is no continuation"),
        (lambda: score(READER, "to", [[1]]), "must both be strings, or both ids"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_clear_sentence(call: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        call()


def test_a_generation_that_cannot_fit_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxinterp.runs.writing.free_memory", lambda: (10_000, "cpu"))
    with pytest.raises(ji.MemoryPlanError, match=r"This generation needs .* but 9.8 KiB is free on cpu"):
        generate(LM, [[1, 2]], 30, sites="resid_post")


def test_a_space_at_the_end_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="ends with a space"):
        score(READER, "Mary gave ", "John")


def test_what_is_shown_of_a_text_never_changes_later() -> None:
    """A character of several tokens comes whole, and the beginning of a stop string waits."""
    ids = TOKENIZER.encode("drink \u20ac to John")
    words = Wording(TOKENIZER, TOKENIZER.encode("Mary gave a"), ["John went"], [])
    shown = [words.certain(ids[:n]) for n in range(len(ids) + 1)]
    assert all(later.startswith(sooner) for sooner, later in itertools.pairwise(shown))
    assert not any("\ufffd" in text for text in shown) and "\u20ac" in shown[-1]
    assert shown[-1] == "drink \u20ac to " and words.text(ids) == "drink \u20ac to John"
    longer = ids + TOKENIZER.encode(" went")
    assert words.text(longer) == "drink \u20ac to " and words.end(longer, 0) == words.end(longer, len(ids)) == len(longer)
    assert words.end(ids, 0) is None
