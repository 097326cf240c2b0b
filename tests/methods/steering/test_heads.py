"""Head directions: a planted head is found, accuracy is held out, and the edit is the formula at exactly the chosen heads."""

from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.data.sentiment import sentiment
from jaxinterp.errors import InputError
from jaxinterp.methods.steering.heads import HeadDirections, head_directions
from tests import tiny

PLANTED = (2, 1)
CONFIG = tiny.CONFIGS["attention"].replace(n_kv_heads=4)


def planted() -> ji.LanguageModel:
    """A model whose tokens have a sign in their first feature, which one head of the last layer reads, and no other does."""
    params: Any = tiny.params(CONFIG)
    block = {name: np.array(value) for name, value in params["blocks"][0]["attn"].items()}
    embedding, positions = np.array(params["embed"]["W_E"]), np.array(params["embed"]["W_pos"])
    embedding[:, 0], positions[:, 0] = np.where(np.arange(50) < 25, 1.0, -1.0), 0
    block["W_V"][:, 0], block["W_O"][..., 0] = 0, 0  # nobody reads the first feature or writes to it
    block["W_V"][PLANTED[0], 0, PLANTED[1]] = 3.0
    return ji.LanguageModel({**params, "embed": {"W_E": embedding, "W_pos": positions}, "blocks": ({"attn": block},)}, CONFIG)


def texts(number: int, low: int, high: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (number, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def found() -> tuple[ji.LanguageModel, HeadDirections]:
    lm = planted()
    return lm, head_directions(lm, texts(60, 0, 25, 0), texts(60, 25, 50, 1), heads=3, shuffles=4)


def test_a_planted_head_is_found_first(found: tuple[ji.LanguageModel, HeadDirections]) -> None:
    _, made = found
    assert made.chosen[0] == PLANTED and made.accuracy[PLANTED] > 0.9 and made.accuracy.shape == (3, 4)
    others = np.delete(made.accuracy.reshape(-1), PLANTED[0] * 4 + PLANTED[1])
    assert others.max() < made.accuracy[PLANTED] and (np.diff([made.accuracy[pair] for pair in made.chosen]) <= 0).all()
    assert made.chance.shape == (4,) and made.chance.max() < 0.75


def test_the_accuracy_of_noise_is_chance() -> None:
    # 10 features of a head tell 16 texts apart whatever their labels are: only what is held out is one half
    lm = ji.LanguageModel(tiny.params(tiny.CONFIGS["one"]), tiny.CONFIGS["one"])
    noise = [head_directions(lm, texts(8, 0, 50, seed), texts(8, 0, 50, seed + 50), heads=1, shuffles=0).accuracy for seed in range(16)]
    assert abs(np.mean(noise) - 0.5) < 0.08
    # the texts of a pair are nearly the same: in two folds, a probe would call each by the label of the other
    same = texts(40, 0, 50, 1)
    nearly = same.copy()
    nearly[:, 1] = texts(40, 0, 50, 2)[:, 0]
    assert abs(head_directions(lm, same, nearly, heads=1, shuffles=0).accuracy.mean() - 0.5) < 0.07


def test_the_edit_is_the_formula_at_the_chosen_heads(found: tuple[ji.LanguageModel, HeadDirections]) -> None:
    lm, made = found
    sides = [np.asarray(ji.run(lm, side, sites=["z"]).at("z", position=-1)) for side in (texts(60, 0, 25, 0), texts(60, 25, 50, 1))]
    difference = sides[0].mean(axis=1) - sides[1].mean(axis=1)
    unit = difference / np.linalg.norm(difference, axis=-1, keepdims=True)
    sigma = np.einsum("LNHE,LHE->LNH", np.concatenate(sides, axis=1), unit).std(axis=1)
    np.testing.assert_allclose(made.spread, sigma, rtol=1e-4)
    prompts = tiny.prompts(CONFIG, (7, 5))
    plain = np.asarray(ji.run(lm, prompts, sites=["z"])["z"])
    for layer in made.vector.layers:
        edited = np.asarray(ji.run(lm, prompts, sites=["z"], edits=[made.vector.add(2.5, layer=layer)])["z"])[layer]
        taken = [head for at, head in made.chosen if at == layer]
        expected = plain[layer].copy()
        expected[:, :, taken] += 2.5 * (sigma[layer][:, None] * unit[layer])[None, None, taken]
        np.testing.assert_allclose(edited, expected, rtol=1e-4, atol=1e-5)
        assert sorted(set(np.argwhere(edited != plain[layer])[:, 2])) == sorted(taken)


def test_a_probes_direction_is_its_weights() -> None:
    lm = planted()
    made = head_directions(lm, texts(30, 0, 25, 0), texts(20, 25, 50, 1), heads=1, direction="probe", penalty=0.1, shuffles=1)
    layer, head = made.chosen[0]
    sides = [
        np.asarray(ji.run(lm, side, sites=["z"]).at("z", position=-1))[layer, :, head]
        for side in (texts(30, 0, 25, 0), texts(20, 25, 50, 1))
    ]
    x, y = np.concatenate(sides).astype(np.float64), np.repeat([1.0, 0.0], (30, 20))
    x = x - x.mean(axis=0)
    x = x / np.sqrt((x**2).mean())
    x = np.concatenate([x, np.ones((50, 1))], axis=1)
    w = np.zeros(x.shape[1])
    for _ in range(20000):
        w -= 0.1 * (x.T @ (1 / (1 + np.exp(-x @ w)) - y) / 50 + 0.1 * w)
    direction = made.vector.values[0, head]
    cosine = direction @ w[:-1] / np.linalg.norm(direction) / np.linalg.norm(w[:-1])
    assert cosine > 0.9999
    np.testing.assert_allclose(np.linalg.norm(direction), made.spread[layer, head], rtol=1e-5)


def test_it_is_shown_and_saved(found: tuple[ji.LanguageModel, HeadDirections], tmp_path: Any) -> None:
    from safetensors.numpy import load_file

    _, made = found
    kept = load_file(made.save(tmp_path / "heads.safetensors"))
    np.testing.assert_array_equal(kept["accuracy"], made.accuracy)
    assert "2.1" in repr(made) and repr(made.heads).startswith("heads('2.1")
    assert (np.asarray(made.view().arrays["texts"]) >= 0).sum() == 3  # one mark a chosen head


def test_a_table_has_a_row_a_head(found: tuple[ji.LanguageModel, HeadDirections]) -> None:
    pytest.importorskip("pandas")
    table = found[1].to_dataframe()
    assert len(table) == 12 and table["chosen"].sum() == 3 and table[table["chosen"]]["accuracy"].max() == found[1].accuracy.max()


@pytest.mark.weights
def test_a_step_along_them_moves_sentiment_either_way(smollm2: ji.LanguageModel) -> None:
    data = sentiment(smollm2)
    made = head_directions(smollm2, data.positive, data.negative, heads=12, layers=range(13, 22), shuffles=1)
    metric = ji.metrics.log_odds([data.good], [data.bad])
    low, plain, high = (
        np.asarray(metric(ji.run(smollm2, list(data.prompts), edits=[made.vector.add(strength)]))) for strength in (-8.0, 0.0, 8.0)
    )
    assert (high > plain).mean() > 0.9 and (low < plain).mean() > 0.9  # prompts and words that are in no pair


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 13}, "expected 1 to 12"),
        ({"heads": 5, "layers": 1}, "expected 1 to 4"),
        ({"penalty": 0.0}, "a number over 0"),
        ({"folds": 0}, "2 folds or more"),
        ({"negative": texts(1, 0, 50, 3)}, "at least 2 texts"),
        ({"negative": texts(4, 0, 50, 0), "positive": texts(4, 0, 50, 0)}, "the same at head"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    given: Any = {"positive": texts(4, 0, 50, 0), "negative": texts(4, 0, 50, 1), "heads": 2} | options
    with pytest.raises(InputError, match=said):
        head_directions(planted(), **given)
