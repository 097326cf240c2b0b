"""Function vectors: prompts without test pairs, head means, effects and what heads add against plain runs, and a task that works."""

from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.data.in_context import WORD_PAIRS, in_context, word_pairs
from jaxinterp.errors import InputError
from jaxinterp.methods.steering import function_vectors, task_heads
from jaxinterp.methods.steering.function_vectors import function_vector
from jaxinterp.methods.steering.task_heads import head_effects, task_means, written
from tests import tiny
from tests.data import vocabularies


def model(name: str) -> ji.LanguageModel:
    return ji.LanguageModel(tiny.params(tiny.CONFIGS[name]), tiny.CONFIGS[name])


@pytest.fixture(scope="module")
def words() -> ji.LanguageModel:
    """A random model whose tokenizer knows the words of the lists."""
    lm = vocabularies.model()
    return lm.replace(params=tiny.params(lm.config))


# ---------------------------------------------------------------------------------------------------------------- prompts


def test_a_prompt_shows_other_pairs_and_ends_where_the_answer_begins(words: ji.LanguageModel) -> None:
    pairs = word_pairs(words, "plural")[:6]
    made = in_context(words, pairs, pairs[:2], shots=2, seed=1)
    for prompt, (question, output), answer, token in zip(made.prompts, pairs, made.answers, made.ids, strict=False):
        *shown, last = prompt.split("\n\n")
        assert last == f"Q: {question}\nA:" and answer == f" {output}" and token == words.to_id(answer)
        assert len(shown) == 2 and {tuple(one.removeprefix("Q: ").split("\nA: ")) for one in shown} <= set(pairs) - {(question, output)}
    assert in_context(words, pairs, pairs[:1], shots=0).prompts == ("Q: key\nA:",)
    other = in_context(words, pairs[1:2], pairs[:1], shots=1, template="{input} means {output}. ")
    assert other.prompts == ("book means books. key means",) and other.answers == (" keys",)


def test_shuffled_outputs_all_leave_their_inputs(words: ji.LanguageModel) -> None:
    pairs = word_pairs(words, "plural")
    for seed in range(5):
        prompt = in_context(words, pairs[1:], pairs[:1], shots=4, shuffled=True, seed=seed).prompts[0]
        shown = [tuple(one.removeprefix("Q: ").split("\nA: ")) for one in prompt.split("\n\n")[:-1]]
        assert not set(shown) & set(pairs)
        assert {output for _, output in shown} == {dict(pairs)[question] for question, _ in shown}


def test_outputs_of_several_tokens_are_left_out() -> None:
    lm = vocabularies.model(without=("keys", "books"))
    assert word_pairs(lm, "plural")[0] == ("boy", "boys")
    with pytest.raises(InputError, match="is one token after its prompt"):
        word_pairs(lm, [("key", "keys"), ("book", "books")])
    with pytest.raises(InputError, match="' keys' is not one token"):
        in_context(lm, [], [("key", "keys")], shots=0)
    with pytest.raises(InputError, match="'key' comes twice"):
        word_pairs(lm, [("key", "boys"), ("key", "girls")])
    with pytest.raises(InputError, match="with text between them"):
        word_pairs(lm, "plural", template="{output}: {input}")


# ------------------------------------------------------------------------------------------------------ means and effects


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "olmo2", "granite"])
def test_heads_together_add_what_attention_adds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_heads, "ROWS", 2)
    lm = model(name)
    prompts = tiny.prompts(lm.config, (7, 5, 6, 7, 4))
    trace = ji.run(lm, prompts, sites=["z", "attn_out", "resid_post"])
    answers = np.asarray([trace.logits[row, length - 1].argmax() for row, length in enumerate((7, 5, 6, 7, 4))])
    wrong = np.asarray([False, True, False, False, True])
    means = task_means(lm, prompts, np.where(wrong, (answers + 1) % 50, answers), precision="highest")
    np.testing.assert_array_equal(means.right, ~wrong)
    at = {site: np.asarray(trace.at(site, position=-1))[:, ~wrong] for site in ("z", "attn_out", "resid_post")}
    np.testing.assert_allclose(means.z, at["z"].mean(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(means.norms, np.linalg.norm(at["resid_post"], axis=-1).mean(axis=1), rtol=1e-4)
    bias = np.asarray(lm.params["blocks"][0]["attn"].get("b_O", np.zeros((3, 24))))
    for layer in range(3):
        total = written(lm, means.added, [(layer, head) for head in range(4)]) + bias[layer]
        np.testing.assert_allclose(total, at["attn_out"][layer].mean(axis=0), rtol=1e-3, atol=1e-4)


def test_effects_are_those_of_one_head_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_heads, "ROWS", 2)
    lm = model("llama")
    prompts = tiny.prompts(lm.config, (7, 5, 6))
    answers, z = np.asarray([3, 14, 15], np.int32), np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    found = head_effects(lm, prompts, answers, z, precision="highest")
    metric = ji.metrics.probability(answers)
    base = np.asarray(metric(ji.run(lm, prompts)))
    for layer, head in np.ndindex(3, 4):
        edit = ji.edits.replace("z", z[layer, head], layer=layer, head=head, position=-1)
        expected = np.asarray(metric(ji.run(lm, prompts, edits=[edit]))) - base
        np.testing.assert_allclose(found[layer, head], expected, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ the method


@pytest.mark.weights
def test_a_task_is_done_zero_shot(smollm2: ji.LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    calls: list[tuple[set[Any], set[Any]]] = []

    def recorded(lm: Any, shown: Any, asked: Any, **options: Any) -> Any:
        calls.append((set(shown) if options["shots"] else set(), set(asked)))
        return in_context(lm, shown, asked, **options)

    monkeypatch.setattr(function_vectors, "in_context", recorded)
    options: Any = {"shots": 3, "prompts": 12, "trials": 4, "strengths": 2.0, "split": (0.5, 0.1, 0.3)}
    found = function_vector(smollm2, "plural", layer=16, **options)
    # adding the vector raises zero-shot accuracy on pairs that nothing was made from
    plain, steered = found.accuracy[0]
    assert plain <= 0.05 and steered >= 0.5
    assert found.accuracy[2, 0] > 0.9 and found.accuracy[1, 1] > found.accuracy[1, 0]
    assert (20, 5) in found.heads and found.layer == 16 and found.strength == 2.0
    make, choose, test = map(set, found.pairs)
    assert not make & choose and not make & test and not choose & test
    assert all(shown <= make for shown, _ in calls) and [bool(asked & test) for _, asked in calls] == [False] * 3 + [True] * 3
    # the vector is the heads' sum, the same at every layer, and its edit acts in generation
    np.testing.assert_array_equal(found.vector.values, np.tile(found.vector.values[:1], (30, 1)))
    question, output = found.pairs[2][int(np.flatnonzero(found.right[0, 1])[0])]
    assert ji.generate(smollm2, f"Q: {question}\nA:", 1, edits=[found.edit()]).text[0] == f" {output}"
    assert found.save(tmp_path / "found.safetensors").exists() and "zero-shot 0%" in repr(found) and found.view().kind == "report"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 13}, "1 to 12 heads"),
        ({"shots": 1}, "2 shots or more"),
        ({"layer": 3}, "layers is 3"),
        ({"strengths": ()}, "finite numbers"),
        ({"task": WORD_PAIRS["plural"][:8]}, "expected at least 6"),
        ({"split": (0.5, 0.5, 0.5)}, "at most 1"),
        ({"prompts": 4}, "none of 4 in-context prompts"),
    ],
)
def test_what_does_not_fit_is_refused(words: ji.LanguageModel, options: dict[str, Any], said: str) -> None:
    given: Any = {"task": "plural"} | options
    with pytest.raises(InputError, match=said):
        function_vector(words, given.pop("task"), **given)


def test_an_encoder_is_refused() -> None:
    with pytest.raises(InputError, match="this model is an encoder"):
        function_vector(model("bert"), "plural")
