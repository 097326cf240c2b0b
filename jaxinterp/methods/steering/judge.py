"""cross_validate: how good a way of making vectors is, judged on pairs that each vector was not made from.

    accuracy(l) = share of held-out pairs with v_l . x_l(positive) > v_l . x_l(negative)          0.5 is chance
    margin(l, s) = mean over held-out pairs of log P(positive answer | prompt) - log P(negative answer | prompt), steered at l by s

Pairs are dealt into k folds; the vector of a fold is made from the other folds' pairs, and each pair is judged once, by the one vector
that has not seen it. Exact otherwise. Cost: k makings, one reading of all texts, and for margins one sweep in which every pair is
steered by its own fold's vector. Misleads where pairs are near copies of one another: give `groups`, so that copies share a fold. A
direction that tells texts apart need not change what the model writes: accuracy and margin are two questions.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.results import How, frame, write
from jaxinterp.methods.steering.contrast import Texts, read, spots, texts_from
from jaxinterp.methods.steering.grid import filled
from jaxinterp.methods.steering.operations import STRENGTHS, levels_of
from jaxinterp.methods.steering.vector import SteeringVector, check_held_out
from jaxinterp.model import edits
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.measure import run_cells
from jaxinterp.runs.metrics.distributions import ContinuationLogProbability
from jaxinterp.runs.provenance import RECORD, fingerprint_of_weights

Make = Callable[[LanguageModel, list[Any], list[Any]], SteeringVector]
"""make(lm, positive, negative) -> a vector: a function of `ji.steering`, or one of your own."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["accuracy", "by_fold", "margins", "effects", "per_example", "base", "folds"],
    meta_fields=["layers", "strengths", "how"],
)
@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """How vectors did on pairs held out from them.

    Attributes:
        accuracy: [L], share of pairs whose positive text lies further along its fold's direction than the negative one.
        by_fold: [F L], the same of each fold.
        margins: [L S], log P(positive answer) - log P(negative answer) in nats, steered, mean over pairs; None for texts alone.
        effects: [L S], margins - that of the plain run.
        per_example: [N L S], the margin of each pair.
        base: [N], that of the plain run.
        folds: [N], the fold in which a pair is held out.
        layers: labels of L.
        strengths: labels of S; () for texts alone.
        how: how it was made.
    """

    accuracy: Any
    by_fold: Any
    margins: Any
    effects: Any
    per_example: Any
    base: Any
    folds: Any
    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    how: How = ()

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each layer (and strength)."""
        size = len(self.strengths) or 1
        columns = {"layer": np.repeat(self.layers, size), "accuracy": np.repeat(self.accuracy, size)}
        if self.strengths:
            columns |= {"strength": np.tile(self.strengths, len(self.layers))}
            columns |= {"margin": np.ravel(self.margins), "effect": np.ravel(self.effects)}
        return frame(columns)

    def view(self, title: str = "Steering, held-out pairs") -> Any:
        """Accuracy by layer, and the effect on the margin by layer and strength."""
        from jaxinterp.views import Section, heatmap, line, report

        layers = [str(layer) for layer in self.layers]
        views: list[Any] = [
            line("Held-out accuracy", {"pairs told apart": np.asarray(self.accuracy)}, x_labels=layers, normalisation="share")
        ]
        if self.strengths:
            labels = {"layer": layers, "strength": [f"{strength:+g}" for strength in self.strengths]}
            unit = "change of log P(positive) - log P(negative) in nats"
            views.append(
                heatmap("Margin of the answers", np.asarray(self.effects), ("layer", "strength"), labels=labels, normalisation=unit)
            )
        made = {name: value for name, value in self.how if name not in RECORD}
        return report(title, [Section(f"{len(self.folds)} pairs in {len(self.by_fold)} folds", "", tuple(views))], provenance=made)

    def show(self) -> None:
        """Prints the picture in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors, with axes and provenance in its header), or the picture (.html, .png, .json, .txt)."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        arrays = {name: getattr(self, name) for name in ("accuracy", "by_fold", "margins", "effects", "per_example", "base", "folds")}
        return write(path, arrays, {"layers": self.layers, "strengths": self.strengths}, self.how)

    def __repr__(self) -> str:
        accuracy = np.asarray(self.accuracy)
        best = f"tells {accuracy.max():.0%} apart at layer {self.layers[int(accuracy.argmax())]}"
        if self.strengths:
            row, column = np.unravel_index(int(np.argmax(self.effects)), np.shape(self.effects))
            best += f", margin {float(self.effects[row, column]):+.3g} at layer {self.layers[row]}, strength {self.strengths[column]:+g}"
        return f"CrossValidation({len(self.folds)} held-out pairs, {len(self.by_fold)} folds: {best})"


def cross_validate(
    lm: LanguageModel, make: Make, positive: Sequence[Any], negative: Sequence[Any], *, folds: int = 5, groups: Any = None,
    strengths: Sequence[float] = STRENGTHS, position: Any = -1, seed: int = 0, batch_size: int | None = None,
    bos: str | bool = "model", precision: str | None = "highest",
) -> CrossValidation:  # fmt: skip
    """Makes a vector for each fold of the pairs from the other folds, and judges it on that fold.

    Args:
        lm: the model.
        make: from the pairs of the other folds to a vector, such as `ji.steering.mean_difference`, or a lambda with its options.
        positive: texts, or (prompt, answer) tuples.
        negative: as many; entry i of both is a pair. Of tuples, margins are measured too.
        folds: k, at most the number of pairs (or of groups): then each is held out alone.
        groups: [N], a label for each pair; pairs of one label are held out together.
        strengths: at which margins are measured.
        position: where texts are read for accuracy, as for `mean_difference`.
        seed: of the folds.
        batch_size: cells of the sweep run at once; None fits them to memory.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A CrossValidation: `.accuracy` [L]; with answers also `.margins` and `.effects` [L S].

    Raises:
        InputError: unequal numbers of texts, fewer than two pairs or folds, a text that stands in two folds, vectors of different
            sites or layers, or as `make`.

    Example:
        >>> data = ji.data.sentiment(lm)
        >>> ji.steering.cross_validate(lm, ji.steering.mean_difference, data.positive, data.negative).accuracy.shape
        (30,)
    """
    pairs = (list(positive), list(negative))
    dealt = _deal(len(pairs[0]), len(pairs[1]), folds, groups, seed)
    sides = [texts_from(lm, side, bos, f"cross_validate(): {name}") for name, side in zip(("positive", "negative"), pairs, strict=True)]
    both = _together(sides)
    vectors = []
    for fold in range(int(dealt.max()) + 1):
        vectors.append(make(lm, *([text for text, at in zip(side, dealt, strict=True) if at != fold] for side in pairs)))
        held = np.tile(dealt == fold, 2)
        check_held_out(vectors[-1], Tokens.from_ids(both.tokens.ids[held], both.tokens.mask[held]))
    first = vectors[0].check(lm)
    if both.answers is not None and np.ndim(first.values) > 2:
        raise InputError(
            f"cross_validate(): margins are of vectors with one direction a layer; at {first.site!r} there is one for each head."
        )
    if any((vector.site, vector.layers) != (first.site, first.layers) for vector in vectors):
        raise InputError("cross_validate(): make gave vectors of different sites or layers for different folds; expected the same.")
    directions = np.stack([np.asarray(vector.values) for vector in vectors], axis=1)[:, dealt]  # [L N ...]
    right = _told_apart(lm, first, both, directions, position, precision)
    by_fold = np.stack([right[:, dealt == fold].mean(axis=1) for fold in range(len(vectors))])
    how = (
        ("make", getattr(make, "__name__", type(make).__name__)), ("site", first.site), ("pairs", str(len(dealt))),
        ("folds", str(len(vectors))), ("seed", str(seed)), ("weights", fingerprint_of_weights(lm.params)), ("bos", both.tokens.bos),
    )  # fmt: skip
    if both.answers is None:
        return CrossValidation(right.mean(axis=1), by_fold, None, None, None, None, dealt, first.layers, (), how)
    levels = levels_of(strengths, "add", False)
    values, base = _margins(lm, first, both, directions, levels, batch_size, precision)
    margins = values.mean(axis=0)
    return CrossValidation(
        right.mean(axis=1), by_fold, margins, margins - base.mean(), values, base, dealt, first.layers, levels, how
    )  # fmt: skip


def _deal(count: int, others: int, folds: int, groups: Any, seed: int) -> Int[np.ndarray, "N"]:
    """The fold of each pair: groups in random order, dealt one after the other."""
    if count != others or count < 2:
        raise InputError(f"cross_validate() needs two or more pairs, as many texts of both kinds; got {count} and {others}.")
    labels = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    if len(labels) != count:
        raise InputError(f"cross_validate(): groups has {len(labels)} labels for {count} pairs; expected one for each.")
    kinds = int(labels.max()) + 1
    if folds < 2 or kinds < 2:
        raise InputError(f"cross_validate(): {folds} folds of {kinds} pairs or groups; expected two or more of both.")
    order = np.random.default_rng(seed).permutation(kinds)
    return (np.argsort(order) % min(folds, kinds))[labels]


def _together(sides: list[Texts]) -> Texts:
    """Positive texts and then negative ones, as one batch."""
    width = max(side.tokens.ids.shape[1] for side in sides)
    padded = [side.tokens.padded(width) for side in sides]
    ids, mask = (np.concatenate([np.asarray(getattr(each, name)) for each in padded]) for name in ("ids", "mask"))
    if (sides[0].answers is None) != (sides[1].answers is None):
        raise InputError("cross_validate(): give (prompt, answer) tuples on both sides, or on neither.")
    answers = None if sides[0].answers is None else np.concatenate([np.asarray(side.answers) for side in sides])
    return Texts(Tokens.from_ids(ids, mask, bos=padded[0].bos), answers)


def _told_apart(
    lm: LanguageModel, vector: SteeringVector, both: Texts, directions: Float[np.ndarray, "L N ..."], position: Any, precision: str | None
) -> Float[np.ndarray, "L N"]:
    """1 where a pair's positive text lies further along its direction, 0 where the negative one does, 1/2 where both lie equal."""
    where = spots(both, position, "cross_validate()")
    values, _ = read(lm, both.tokens, where, vector.site, vector.layers, precision=precision)
    apart = values[:, : directions.shape[1]] - values[:, directions.shape[1] :]
    along = (apart * directions).reshape(*directions.shape[:2], -1).sum(axis=-1)
    return 0.5 + 0.5 * np.sign(along)


def _margins(
    lm: LanguageModel, vector: SteeringVector, both: Texts, directions: Float[np.ndarray, "L N ..."], levels: tuple[float, ...],
    batch_size: int | None, precision: str | None,
) -> tuple[Float[np.ndarray, "N L S"], Float[np.ndarray, "N"]]:  # fmt: skip
    """Margins of every pair, each steered by its own fold's direction; and those of the plain run."""
    assert both.answers is not None
    whole = np.ones((vector.depth, *directions.shape[1:]), directions.dtype)
    whole[list(vector.layers)] = directions
    own = np.concatenate([whole, whole], axis=1)[:, :, None]  # [L B 1 ...]
    cells = [(layer, strength) for layer in vector.layers for strength in levels if strength != 0]
    made = [[edits.steer(vector.site, own, strength, layer=layer)] for layer, strength in cells]
    metric = ContinuationLogProbability(both.answers.astype(np.int32), (), int(both.answers.max()))
    found = run_cells(lm, both.tokens, None, made, metric, batch_size=batch_size, precision=precision, title="held-out pairs")
    grid, base = filled(found, cells, vector.layers, levels), found.base
    count = directions.shape[1]
    return grid[:count] - grid[count:], base[:count] - base[count:]
