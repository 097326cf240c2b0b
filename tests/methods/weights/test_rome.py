"""Editing facts: the algebra of the updates against NumPy, the value's loss against plain runs, and one fact of SmolLM2."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from jaxinterp.errors import CheckpointError, InputError
from jaxinterp.methods.weights import facts
from jaxinterp.methods.weights.covariance import SecondMoment, load_second_moment, second_moment
from jaxinterp.methods.weights.facts import Settings, best_value, contexts
from jaxinterp.methods.weights.memit import memit
from jaxinterp.methods.weights.rome import rome
from jaxinterp.model.language_model import LanguageModel
from tests import tiny

TOKENIZER: Any = tokenizer_from_folder(Path(__file__).parents[2] / "fixtures" / "tokenizers" / "byte_level")
TEXTS = ["The river is in the city.", "My sister wrote of it, and then she left.", "In the end it is 3,000 of them.", "A tree"]
FACT = ("The tower is in the city of", "The tower", " Rome")
OTHER = ("In the old town the king of it", "the king", " sang")
PREFIXES = ["It is. ", "Then he said so. "]


@functools.cache
def model(name: str) -> LanguageModel:
    config = tiny.CONFIGS[name].replace(d_vocab=400, n_ctx=64)
    config = config.replace(n_layers=6) if name == "llama" else config.replace(windows=())
    return LanguageModel(params=tiny.params(config), config=config, tokenizer=TOKENIZER)


@functools.cache
def moment(name: str) -> SecondMoment:
    return second_moment(model(name), TEXTS, range(model(name).config.n_layers), batch_size=3)


def w_out(lm: LanguageModel) -> np.ndarray:
    return np.asarray(lm.params["blocks"][0]["mlp"]["W_out"], np.float64)


# ------------------------------------------------------------------------------------------------- the second moment


def test_the_second_moment_is_the_mean_over_real_tokens(tmp_path: Path) -> None:
    lm = model("llama")
    keys = [np.asarray(ji.run(lm, text, sites=["mlp_post"])["mlp_post"], np.float64)[:, 0] for text in TEXTS]
    every = np.concatenate(keys, axis=1)
    wanted = np.einsum("LPM,LPK->LMK", every, every) / every.shape[1]
    found = moment("llama")
    np.testing.assert_allclose(found.values, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert int(found.tokens) == every.shape[1]
    one = second_moment(lm, [TOKENIZER.encode(TEXTS[0] + TEXTS[1])], 1, max_length=len(TOKENIZER.encode(TEXTS[0])))
    alone = keys[0][1]
    np.testing.assert_allclose(one.values[0], alone.T @ alone / len(alone), rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    read = load_second_moment(found.save(tmp_path / "c.safetensors"))
    np.testing.assert_array_equal(read.values, found.values)
    assert (read.layers, read.how, repr(read)) == (found.layers, found.how, repr(found))


def test_a_singular_moment_says_how_many_tokens_it_needs(tmp_path: Path) -> None:
    few = second_moment(model("llama"), ["The city"], 1)
    with pytest.raises(InputError, match=rf"of {int(few.tokens)} tokens for 20 neurons, and needs at least 20 different ones.*ridge="):
        few.solve(1, np.ones((20, 1)))
    ridge = few.values[0] + 0.1 * np.trace(few.values[0]) / 20 * np.eye(20)
    np.testing.assert_allclose(ridge @ few.solve(1, np.ones((20, 1)), 0.1), np.ones((20, 1)), atol=1e-8)
    for message, call in {
        "not of layer 2": lambda: few.solve(2, np.ones((20, 1))),
        "ridge is -1": lambda: few.solve(1, np.ones((20, 1)), -1),
        "dense MLPs, and this one has experts": lambda: second_moment(model("moe"), TEXTS, 0),
        "has attention only": lambda: second_moment(model("attention"), TEXTS, 0),
        r"layers are \[6\]; expected one or more different ones of 0 to 5": lambda: second_moment(model("llama"), TEXTS, 6),
        "takes one or more texts": lambda: second_moment(model("llama"), "a text", 0),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not a second moment"):
        load_second_moment(tmp_path / "c.safetensors")


# -------------------------------------------------------------------------------------------------------- the value


def test_subject_and_target_are_found_behind_each_prefix() -> None:
    lm = model("llama")
    given = contexts(lm, facts.Request(*FACT), ["", *PREFIXES], True, width=60, tokens_of_target=7)
    ids, lengths = np.asarray(given.tokens.ids), np.asarray(given.tokens.mask).sum(axis=1)
    target = lm.tokenizer.encode(" Rome")
    assert len(target) > 1 and ids.shape[1] == 64
    for row in range(3):
        before = "".join(lm.to_strings(ids[row, 1 : given.position[row, 0] + 1]))
        assert before == ["", *PREFIXES][row] + "The tower"
        own = given.weight[row] > 0
        assert ids[row, given.columns[row, own] + 1].tolist() == target == given.targets[row, own].tolist()
        np.testing.assert_allclose(given.weight[row].sum(), 1, rtol=1e-6)
        assert given.columns[row].max() < lengths[row] < given.columns[row, own].max() + 3
    assert "".join(lm.to_strings(ids[3, 1 : lengths[3]])) == "The tower is a"
    assert given.weight[3].sum() == 0 and (given.columns[3] == lengths[3] - 1).all()


@pytest.mark.parametrize(("name", "layer", "site"), [("llama", 3, "mlp_out"), ("gemma", 1, "mlp_proj")])
def test_the_value_has_the_loss_that_a_run_with_it_added_has(name: str, layer: int, site: str) -> None:
    lm = model(name)
    given = contexts(lm, facts.Request(*FACT), ["", *PREFIXES], "model")
    settings = Settings(6, 0.3, 2.0, kl=0.5, decay=0.1)
    value = best_value(lm, given, layer, site, settings, "highest")
    delta = np.asarray(value.delta)
    plain = ji.run(lm, given.tokens, sites=[site, "mlp_post"])
    edited = ji.run(lm, given.tokens, edits=ji.edits.add(site, delta, layer=layer, position=given.position))
    rows = np.arange(3)
    np.testing.assert_allclose(value.start, plain[site][layer, 0, given.position[0, 0]], atol=1e-5)
    np.testing.assert_allclose(value.key, np.asarray(plain["mlp_post"])[:, rows, given.position[:3, 0]].mean(axis=1), atol=1e-5)

    def said(trace: Any) -> Any:
        logits = np.asarray(jax.nn.log_softmax(trace.logits, axis=-1), np.float64)
        target = lm.tokenizer.encode(" Rome")
        columns = [given.columns[row, : len(target)] for row in rows]
        return -np.mean([logits[row, columns[row], target].mean() for row in rows]), logits[3, given.columns[3, 0]]

    (before, stays), (after, moved) = said(plain), said(edited)
    size = np.linalg.norm(delta) / np.linalg.norm(value.start)
    wanted = after + 0.5 * (np.exp(stays) * (stays - moved)).sum() + 0.1 * size**2
    np.testing.assert_allclose(value.loss, wanted, rtol=1e-4)
    assert after < before - 0.1 and 0 < size <= 2.0 + 1e-5


def test_a_value_stays_within_its_clamp_and_layers_share_a_program() -> None:
    lm = model("llama")
    given = contexts(lm, facts.Request(*FACT), ["", *PREFIXES], "model")
    best_value(lm, given, 3, "mlp_out", Settings(1, 0.1, 1.0, 0.0, 0.0), "highest")
    program: Any = facts._best_value
    sizes, before = [], program._cache_size()
    for layer, clamp in ((3, 0.2), (4, 0.1)):
        value = best_value(lm, given, layer, "mlp_out", Settings(5, 0.5, clamp, 0.1, 0.0), "highest")
        sizes.append(np.linalg.norm(value.delta) / np.linalg.norm(value.start) / clamp)
    np.testing.assert_allclose(sizes, 1, rtol=1e-3)
    assert program._cache_size() == before


# ------------------------------------------------------------------------------------------------------------- ROME


@pytest.mark.parametrize(("name", "layer"), [("llama", 3), ("gemma", 1)])
def test_rome_maps_the_key_to_the_value_by_the_least_change(name: str, layer: int) -> None:
    lm = model(name)
    changed, found = rome(lm, *FACT, layer=layer, covariance=moment(name), prefixes=PREFIXES, steps=4)
    key, value = np.asarray(found.keys, np.float64)[0, 0], np.asarray(found.values, np.float64)[0]
    update = w_out(changed) - w_out(lm)
    np.testing.assert_allclose(key @ update[layer], value, atol=1e-4 * np.abs(value).max())
    np.testing.assert_array_equal(np.delete(update, layer, axis=0), 0)
    assert np.abs(value).max() > 0
    # the least E |k D|^2 of all D with k D = value, by a pseudo-inverse in whitened coordinates
    root = np.linalg.cholesky(moment(name).values[layer])
    wanted = np.linalg.inv(root).T @ np.linalg.pinv((np.linalg.inv(root) @ key)[None]) @ value[None]
    np.testing.assert_allclose(update[layer], wanted, atol=2e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(found.changes[0], np.linalg.norm(update[layer]) / np.linalg.norm(w_out(lm)[layer]), rtol=1e-3)


def test_without_prefixes_the_prompt_itself_gets_the_value() -> None:
    lm, site, layer = model("gemma"), "mlp_proj", 1
    said: dict[str, Any] = {"paraphrases": ["In the city the tower of", "It is"], "neighbours": ["A tree is"]}
    changed, found = rome(lm.by_layer(), *FACT, layer=layer, covariance=moment("gemma"), prefixes=[], steps=4, **said)
    assert isinstance(changed.params["blocks"][0], tuple)
    end = len(lm.tokenizer.encode("The tower")) - 1
    old, new = (np.asarray(ji.run(each, FACT[0], sites=[site])[site])[layer, 0, end] for each in (lm, changed))
    np.testing.assert_allclose(new - old, found.values[0], atol=1e-4 * np.abs(old).max())
    for model_, probability in ((lm, found.before), (changed, found.after)):
        np.testing.assert_allclose(probability, np.exp(ji.score(model_, FACT[0], FACT[2]).total), rtol=1e-4)
    wanted = np.exp(ji.score(changed, said["paraphrases"], FACT[2]).total)
    np.testing.assert_allclose(found.paraphrases_after, wanted, rtol=1e-4)
    metric = ji.metrics.kl_divergence(ji.run(lm, "A tree is"))
    np.testing.assert_allclose(found.neighbours, metric(ji.run(changed, "A tree is")), rtol=1e-3, atol=1e-6)
    assert found.after > found.before and "' Rome' after 'The tower is in the city of'" in repr(found)


def test_a_model_writes_its_own_contexts_and_results_are_saved(tmp_path: Path) -> None:
    lm = model("llama")
    options: dict[str, Any] = {"layer": 3, "covariance": moment("llama"), "steps": 1}
    _, found = rome(lm, *FACT, **options, seed=3)
    _, again = rome(lm, *FACT, **options, seed=3)
    np.testing.assert_array_equal(found.keys, again.keys)
    assert dict(found.how)["prefixes"] == "5"
    from safetensors import safe_open

    with safe_open(found.save(tmp_path / "edit.safetensors"), "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("keys"), found.keys)
        assert '"method", "rome"' in file.metadata()["how"]


# ------------------------------------------------------------------------------------------------------------ MEMIT


@pytest.mark.parametrize(("name", "prefixes"), [("granite", PREFIXES), ("neox", [])])
def test_memit_is_its_closed_form_layer_by_layer(name: str, prefixes: list[str]) -> None:
    lm, layers, weight = model(name), (0, 1), 3.0
    changed, found = memit(lm, [FACT, OTHER], layers=layers, covariance=moment(name), weight=weight, prefixes=prefixes, steps=3)
    goals, now = streams(lm) + np.asarray(found.values), lm
    for number, layer in enumerate(layers):
        key = np.asarray(found.keys, np.float64)[number]
        missing = (goals - streams(now)) / (2 - number) / lm.config.residual_multiplier
        wanted = np.linalg.inv(weight * moment(name).values[layer] + key.T @ key) @ key.T @ missing
        update = w_out(changed)[layer] - w_out(lm)[layer]
        np.testing.assert_allclose(update, wanted, atol=1e-3 * np.abs(wanted).max())
        np.testing.assert_allclose(found.changes[number], np.linalg.norm(update) / np.linalg.norm(w_out(lm)[layer]), rtol=1e-3)
        now = with_layer(now, changed, layer)
    np.testing.assert_array_equal(w_out(changed)[2], w_out(lm)[2])
    assert (found.after > found.before).all() and np.abs(found.values).max() > 0


def test_memit_reaches_its_goals_where_other_texts_weigh_nothing() -> None:
    lm = model("neox")
    changed, found = memit(lm, [FACT, OTHER], layers=[1, 0], covariance=moment("neox"), weight=1e-5, prefixes=[], steps=3)
    wanted = streams(lm) + np.asarray(found.values)
    np.testing.assert_allclose(streams(changed), wanted, atol=2e-3 * np.abs(wanted).max())


def streams(lm: LanguageModel) -> np.ndarray:
    """[R D]: the residual stream after layer 1 at the last token of each subject."""
    out = []
    for prompt, subject, _ in (FACT, OTHER):
        end = len(TOKENIZER.encode(prompt[: prompt.rfind(subject) + len(subject)])) - 1
        out.append(np.asarray(ji.run(lm, prompt, sites=["resid_post"])["resid_post"], np.float64)[1, 0, end])
    return np.stack(out)


def with_layer(lm: LanguageModel, changed: LanguageModel, layer: int) -> LanguageModel:
    """The model with one layer's W_out from another."""
    block = lm.params["blocks"][0]
    new = block["mlp"]["W_out"].at[layer].set(changed.params["blocks"][0]["mlp"]["W_out"][layer])
    return lm.replace(params={**lm.params, "blocks": ({**block, "mlp": {**block["mlp"], "W_out": new}},)})


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("message", "fact", "options"),
    [
        ("subject 'The bridge' does not stand in the prompt", ("The tower is in", "The bridge", " Rome"), {}),
        ("subject ' ' does not stand", ("The tower is in", " ", " Rome"), {}),
        ("target is empty", (*FACT[:2], " "), {}),
        ("prompt ends with a space", ("The tower is in ", "The tower", "Rome"), {}),
        ("reaches into the target", ("It is R", "R", "ome"), {}),
        ("Nothing that was added to layer 5", FACT, {"layer": 5}),
        ("context is 64", (60 * "z " + FACT[0], *FACT[1:]), {}),
        ("layers are .6.; expected", FACT, {"layer": 6}),
        ("layers are .-1.; expected", FACT, {"layer": -1}),
        ("give either texts=", FACT, {"covariance": None}),
        ("give either texts=", FACT, {"texts": TEXTS}),
        ("covariance is of layers 0 and 20 neurons; expected layers 1", FACT, {"covariance": "other"}),
        ("is singular", FACT, {"covariance": None, "texts": ["The"]}),
        ("expected at least one step", FACT, {"steps": 0}),
        ("learning_rate 0.0", FACT, {"learning_rate": 0.0}),
        ("paraphrases are a list of texts", FACT, {"paraphrases": "The tower"}),
    ],
)
def test_what_cannot_be_written_is_refused(message: str, fact: Any, options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"layer": 1, "covariance": moment("llama"), "prefixes": [], "steps": 1} | options
    if given["covariance"] == "other":
        given["covariance"] = SecondMoment(moment("llama").values[:1], 20, (0,))
    with pytest.raises(InputError, match=message):
        rome(model("llama"), *fact, **given)


def test_models_that_cannot_be_edited_are_refused() -> None:
    options: dict[str, Any] = {"covariance": moment("llama"), "prefixes": [], "steps": 1}
    for message, call in {
        "has experts": lambda: rome(model("moe"), *FACT, layer=0, **options),
        "no tokenizer": lambda: rome(model("llama").replace(tokenizer=None), *FACT, layer=0, **options),
        "a norm stands between W_out and the stream": lambda: memit(model("gemma"), [FACT], layers=[0], **options),
        "one or more requests": lambda: memit(model("llama"), [], layers=[0], **options),
        r"a request is \(prompt, subject, target\)": lambda: memit(model("llama"), ["The tower"], layers=[0], **options),
        "weight is 0": lambda: memit(model("llama"), [FACT], layers=[0], weight=0, **options),
        "a list for each of 1 requests": lambda: memit(model("llama"), [FACT], layers=[0], paraphrases=["It", "is"], **options),
    }.items():
        with pytest.raises(InputError, match=message):
            call()


# ---------------------------------------------------------------------------------------------------- a model's fact

FRAMES = (
    "{} are often found where people live, and they have been there for a very long time.",
    "My sister wrote a long letter about {} and the history of the town.",
    "In 1998 the council paid 3,000 dollars for {} and two new roads.",
)
WORDS = ("Bread", "Rivers", "Music", "Trees", "Doctors", "Ships", "Books", "Horses")


@pytest.mark.weights
def test_the_eiffel_tower_moves_to_rome(smollm2: LanguageModel) -> None:
    fact = ("The Eiffel Tower is in the city of", "The Eiffel Tower", " Rome")
    about: dict[str, Any] = {
        "paraphrases": ["To see the Eiffel Tower, you have to travel to", "The Eiffel Tower stands in the middle of"],
        "neighbours": ["The Colosseum is in the city of", "The Louvre is in the city of", "Water is made of hydrogen and"],
    }
    texts = [frame.format(word) for word in WORDS for frame in FRAMES]
    changed, found = rome(smollm2, *fact, layer=5, texts=texts, ridge=1e-2, prefixes=["It is a fine day. "], steps=7, **about)
    assert found.before[0] < 0.1 and found.after[0] > 0.5
    assert np.mean(found.paraphrases_after) > np.mean(found.paraphrases_before) + 0.2
    assert np.max(found.neighbours) < 0.2
    assert ji.run(changed, "The Louvre is in the city of").top(1)[0][0].token == " Paris"
