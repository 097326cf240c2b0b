"""Conditions: steering only the prompts that are about something, decided once a prompt from its own run (CAST).

    x' = x + g a v,     g = 1 where cos(h, c) > t, else 0;      h = mean of the site's value over the prompt's tokens but the first

Conditional activation steering (Lee et al. 2024, arXiv:2409.05907): c is a condition vector, fitted to prompts of a class against
others, and v what is added to the prompts of that class. The paper compares h with its projection on c, whose cosine is the size of
cos(h, c); its sign is kept here, so that one threshold tells both ends apart. Layer, threshold and side are found by a search on
labelled prompts. Cost: one forward pass a prompt, before the steered run. Misleads where prompts are of other kinds than those that
the threshold was fitted to: a cosine is mostly the direction that all texts share, so thresholds do not carry over to other tokens.
`SteeringVector.add_if` decides at each position instead, from the steered run itself.

    found = ji.steering.best_threshold(lm, condition, harmful, harmless)
    gate = ji.steering.gate(lm, prompts, condition, found.threshold, layer=found.layer, below=found.below)
    ji.generate(lm, prompts, 20, edits=[refusal.add(2.0 * gate[:, None, None], layer=12)])
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.steering.contrast import read, spots, texts_from
from jaxinterp.methods.steering.vector import SteeringVector, check_held_out
from jaxinterp.model.language_model import LanguageModel, Prompts


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["threshold", "score", "held_out", "scores", "thresholds"],
    meta_fields=["layer", "below", "by", "layers", "how"],
)
@dataclasses.dataclass(frozen=True)
class Threshold:
    """Where a condition vector tells two kinds of prompts apart best.

    Attributes:
        threshold: of the cosine, from -1 to 1.
        score: on the prompts that it was chosen on.
        held_out: the same score of the chosen layer and threshold on prompts held out.
        scores: [N], the best score at each layer of the condition, on the prompts that it was chosen on.
        thresholds: [N], the threshold that has it.
        layer: the best layer.
        below: whether the condition holds under the threshold.
        by: "f1" of the positive prompts, or "accuracy", the mean over both kinds.
        layers: those of the condition.
        how: how it was found.
    """

    threshold: Any
    score: Any
    held_out: Any
    scores: Any
    thresholds: Any
    layer: int
    below: bool
    by: str
    layers: tuple[int, ...]
    how: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        side = "below" if self.below else "above"
        return (
            f"Threshold({side} {float(self.threshold):.4f} at layer {self.layer}; {self.by} {float(self.score):.2f}, "
            f"held out {float(self.held_out):.2f})"
        )


def gate(
    lm: LanguageModel, prompts: Prompts, condition: SteeringVector, threshold: float, *, layer: int, position: Any = "all",
    below: bool = False, force: bool = False, bos: str | bool = "model", precision: str | None = "highest",
) -> Bool[np.ndarray, "B"]:  # fmt: skip
    """Which prompts a condition holds for: those whose cosine with the condition vector is over (`below`) a threshold.

    Args:
        lm: the model.
        prompts: as for `run`.
        condition: a vector whose direction at `layer` is compared.
        threshold: from -1 to 1.
        layer: a layer of the condition.
        position: the tokens whose mean is compared: "all" but the first, or as for `mean_difference`.
        below: whether the condition holds under the threshold.
        force: whether a condition of other weights is let through, see `SteeringVector.check`.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        [B] bool; `vector.add(strength * gate[:, None, None])` steers these prompts and leaves the others as they are.

    Raises:
        InputError: a condition of another model, a layer that it lacks, or a threshold that is no cosine.

    Example:
        >>> chosen = ji.steering.gate(lm, ["How are you?", "Bonjour"], condition, 0.1, layer=6)
    """
    if not -1 <= threshold <= 1:
        raise InputError(f"gate(): the threshold is {threshold}; a cosine is from -1 to 1.")
    if not isinstance(layer, int | np.integer):
        raise InputError(f"gate(): layer is {layer!r}; expected one layer of the condition.")
    found = cosines(lm, prompts, condition.at(int(layer)), position=position, force=force, bos=bos, precision=precision)[0]
    return found < threshold if below else found > threshold


def cosines(
    lm: LanguageModel, prompts: Prompts, condition: SteeringVector, *, position: Any = "all", force: bool = False,
    bos: str | bool = "model", precision: str | None = "highest",
) -> Float[np.ndarray, "N B"]:  # fmt: skip
    """The cosine of each prompt's mean activation with a vector, at each of the vector's layers; arguments as for `gate`."""
    condition.check(lm, force=force)
    texts = texts_from(lm, prompts, bos, "prompts")
    order = np.argsort(condition.layers)
    layers = tuple(condition.layers[row] for row in order)
    values, _ = read(lm, texts.tokens, spots(texts, position, "prompts"), condition.site, layers, precision=precision)
    along = np.asarray(condition.values, np.float64)[order].reshape(len(layers), 1, -1)
    flat = values.reshape(*values.shape[:2], -1).astype(np.float64)
    size = np.linalg.norm(flat, axis=2) * np.linalg.norm(along, axis=2)
    found = (flat * along).sum(axis=2) / np.where(size == 0, 1, size)
    return np.clip(found, -1, 1)[np.argsort(order)]


def best_threshold(
    lm: LanguageModel, condition: SteeringVector, positive: Prompts, negative: Prompts, *, by: Literal["f1", "accuracy"] = "f1",
    position: Any = "all", held_out: float = 0.3, seed: int = 0, force: bool = False, bos: str | bool = "model",
    precision: str | None = "highest",
) -> Threshold:  # fmt: skip
    """The layer, threshold and side at which a condition vector tells two kinds of prompts apart best.

    All layers of the condition, every threshold between two cosines that occur, and both sides are tried on a part of the prompts;
    of equal ones the layer whose two kinds are further apart, for the spread within them. The rest says how well the choice holds.

    Args:
        lm: the model.
        condition: a vector, made from other prompts than these.
        positive: prompts that the condition is to hold for, three or more.
        negative: prompts that it is not to hold for, three or more.
        by: "f1" of the positive prompts, as in the paper, or "accuracy", the mean over both kinds.
        position: as for `gate`.
        held_out: the share of prompts of each kind that the choice does not see.
        seed: of the split.
        force: as for `gate`.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        Threshold: `.layer`, `.threshold`, `.below`, and `.held_out`, the score on prompts that were not seen.

    Raises:
        InputError: too few prompts, or one that the condition was made from.

    Example:
        >>> found = ji.steering.best_threshold(lm, condition, questions, statements)
        >>> ji.steering.gate(lm, prompts, condition, found.threshold, layer=found.layer, below=found.below)
    """
    if by not in ("f1", "accuracy") or not 0 < held_out < 1:
        raise InputError(f"best_threshold(): by is {by!r} and held_out {held_out}; expected 'f1' or 'accuracy', and a share of 0 to 1.")
    sides = [lm.to_tokens(prompts, bos=bos) for prompts in (positive, negative)]
    for side in sides:
        check_held_out(condition, side)
    found = [cosines(lm, side, condition, position=position, force=force, bos=bos, precision=precision) for side in sides]
    random = np.random.default_rng(seed)
    parts = [_parts(side, held_out, random) for side in found]
    best = [_best(a, b, by) for a, b in zip(*(seen for seen, _ in parts), strict=True)]
    scores, thresholds, below, apart = (np.asarray(column) for column in zip(*best, strict=True))
    row = int(np.lexsort((apart, scores))[-1])
    positive_holds, negative_holds = (_holds(rest[row], thresholds[row], below[row]) for _, rest in parts)
    held = _score(positive_holds, negative_holds, by)
    how = (
        ("condition", dict(condition.how).get("method", "directions")), ("site", condition.site), ("position", str(position)),
        ("prompts", f"{found[0].shape[1]} + {found[1].shape[1]}"), ("held out", str(held_out)), ("seed", str(seed)), ("bos", sides[0].bos),
    )  # fmt: skip
    return Threshold(
        thresholds[row], scores[row], held, scores, thresholds, condition.layers[row], bool(below[row]), by, condition.layers, how
    )


def _parts(cosines: np.ndarray, share: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """[N b] and [N b]: the prompts that the choice sees, two at least, and the others."""
    number = cosines.shape[1]
    left = max(1, round(share * number))
    if number - left < 2:
        raise InputError(f"best_threshold(): {number} prompts of a kind; expected enough to choose on two and to hold {left} out.")
    order = random.permutation(number)
    return cosines[:, order[left:]], cosines[:, order[:left]]


def _best(positive: np.ndarray, negative: np.ndarray, by: str) -> tuple[float, float, bool, float]:
    """The best score of one layer, its threshold and side, and how far apart the kinds are."""
    known = np.unique(np.concatenate([positive, negative]))
    # of equally good thresholds the one in the widest gap
    tried = [
        (_score(_holds(positive, middle, below), _holds(negative, middle, below), by), gap, middle, below)
        for below in (False, True)
        for middle, gap in zip((known[1:] + known[:-1]) / 2, np.diff(known), strict=True)
    ] or [(0.0, 0.0, known[0], False)]
    score, _, middle, below = max(tried)
    spread = np.sqrt((positive.var() + negative.var()) / 2)
    return score, float(middle), below, float(abs(positive.mean() - negative.mean()) / max(spread, 1e-12))


def _holds(cosines: np.ndarray, threshold: Any, below: Any) -> np.ndarray:
    return cosines < threshold if below else cosines > threshold


def _score(positive: np.ndarray, negative: np.ndarray, by: str) -> float:
    """F1 of the positive prompts, or the mean accuracy of both kinds, where the condition holds as given."""
    if by == "accuracy":
        return float((positive.mean() + (~negative).mean()) / 2)
    return float(2 * positive.sum() / max(len(positive) + positive.sum() + negative.sum(), 1))
