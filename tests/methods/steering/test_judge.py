"""Cross-validation: no pair is judged by a vector that saw it, and margins are those of runs steered by each pair's own fold."""

from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.steering.difference import mean_difference
from jaxinterp.methods.steering.judge import cross_validate
from jaxinterp.methods.steering.vector import SteeringVector
from tests.tiny import CONFIGS, params

CONFIG = CONFIGS["llama"]
LM = ji.LanguageModel(params(CONFIG), CONFIG)


def ids_of(number: int, *last: int) -> list[int]:
    """A text of its own, with the same last tokens as others."""
    return [*np.random.default_rng(number).integers(10, 50, 4).tolist(), *last]


PAIRS = ([ids_of(i, 1) for i in range(9)], [ids_of(i, 2) for i in range(9)])


def ids_only(lm: Any, positive: list[Any], negative: list[Any]) -> SteeringVector:
    return mean_difference(lm, np.asarray(positive), np.asarray(negative), folds=0)


def test_no_pair_is_judged_by_a_vector_that_saw_it() -> None:
    seen: list[tuple[int, ...]] = []

    def make(lm: Any, positive: Any, negative: Any) -> SteeringVector:
        seen.append(tuple(PAIRS[0].index(text) for text in positive))
        assert [PAIRS[1].index(text) for text in negative] == list(seen[-1])
        return ids_only(lm, positive, negative)

    found = cross_validate(LM, make, *PAIRS, folds=4)
    assert len(seen) == 4 and sorted(np.bincount(found.folds).tolist()) == [2, 2, 2, 3]
    for fold, kept in enumerate(seen):
        assert sorted({*range(9)} - {*kept}) == np.flatnonzero(found.folds == fold).tolist()
    assert found.accuracy[0] == 1 and found.by_fold.shape == (4, 3)  # the last tokens differ, so they are told apart
    together = cross_validate(LM, ids_only, *PAIRS, folds=4, groups=[0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert all(len(set(together.folds[begin : begin + 3])) == 1 for begin in (0, 3, 6)) and len(set(together.folds)) == 3


def test_a_vector_that_remembers_its_texts_is_at_chance_on_others() -> None:
    """Labels that mean nothing: a vector tells the 12 pairs of random texts apart that it was made from, and no others."""
    sides = [[ids_of(100 * side + i) for i in range(12)] for side in (1, 2)]
    vector = ids_only(LM, *sides)
    values = [np.asarray(ji.run(LM, np.asarray(side), ("resid_post",)).at("resid_post", position=-1)) for side in sides]
    own = np.einsum("LBD,LD->LB", values[0] - values[1], np.asarray(vector.values)) > 0
    found = cross_validate(LM, ids_only, *sides, folds=12)
    assert found.accuracy.mean() < own.mean() - 0.15 and found.accuracy.mean() < 0.75


def test_margins_are_those_of_runs_steered_by_each_pairs_own_fold() -> None:
    """Answers of one and two tokens; the same prompt for both sides."""
    answers = [([1], [2, 3]), ([4, 5], [6]), ([7], [8]), ([9, 1], [2, 2])]
    sides = [[(ids_of(i), pair[side]) for i, pair in enumerate(answers)] for side in (0, 1)]
    vectors: list[SteeringVector] = []

    def make(lm: Any, positive: Any, negative: Any) -> SteeringVector:
        vectors.append(mean_difference(lm, [p + a for p, a in positive][0:1], [p + a for p, a in negative][0:1], folds=0))
        return vectors[-1]

    found = cross_validate(LM, make, *sides, folds=2, strengths=(0.0, 1.5))
    assert found.margins.shape == (3, 2) and found.effects[:, 0].tolist() == [0, 0, 0]
    for row, (prompt, _) in enumerate(sides[0]):
        vector = vectors[int(found.folds[row])]
        for layer in (0, 2):
            edit = vector.add(1.5, layer=layer)
            told = [ji.score(LM, np.asarray([prompt]), [pair[row][1]], edits=edit).total[0] for pair in sides]
            np.testing.assert_allclose(found.per_example[row, layer, 1], told[0] - told[1], rtol=1e-3, atol=1e-4)
    assert [view.kind for view in found.view().sections[0].views] == ["line", "heatmap"] and "4 held-out pairs" in repr(found)


@pytest.mark.parametrize(
    ("sides", "options", "message"),
    [
        ((PAIRS[0], PAIRS[1][:3]), {}, "as many texts of both kinds"),
        (PAIRS, {"folds": 1}, "two or more of both"),
        (PAIRS, {"groups": [1, 2]}, "2 labels for 9 pairs"),
        (([*PAIRS[0], PAIRS[0][0]], [*PAIRS[1], PAIRS[1][0]]), {"folds": 10}, "the vector was made from"),
        (([(text, [1]) for text in PAIRS[0]], PAIRS[1]), {}, "on both sides, or on neither"),
    ],
)
def test_what_cannot_be_cross_validated_is_refused(sides: Any, options: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        cross_validate(LM, ids_only, *sides, **options)
