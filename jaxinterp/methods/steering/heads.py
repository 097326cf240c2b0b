"""head_directions: the attention heads that tell two sets of texts apart, and a direction in each (inference-time intervention).

    probe        of every head (l, h): logistic regression of the label on z_lh, one token of each text
    chosen       the heads whose probes tell held-out texts apart best
    v_lh         s u, u = (m+ - m-) / |m+ - m-| (or the probe's weights, of length one), s = standard deviation of z_lh . u over all texts

Added to z at every token, alpha v moves each chosen head alpha standard deviations along its direction (Li et al. 2023,
arXiv:2306.03341, who took 48 of 1024 heads and alpha = 15, along the mean difference). Accuracy is by cross-validation; the texts of a
pair are in one fold. Cost: one forward pass a text, and a small regression for each head and fold, all in one program. Misleads where
there are few texts: the best of many heads is well over one half by chance alone, so compare with `chance`, which is the best head
under shuffled labels, and judge the vector on other texts; and where a head that tells the sets apart does not act on it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinterp.errors import InputError
from jaxinterp.methods import linear
from jaxinterp.methods.results import How, frame, write
from jaxinterp.methods.steering.contrast import Contrast, read_contrast
from jaxinterp.methods.steering.fitting import _folds
from jaxinterp.methods.steering.vector import SteeringVector, make_vector
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.selection import Heads
from jaxinterp.model.selection import heads as heads_of
from jaxinterp.runs.progress import Progress

DIRECTIONS = ("mass_mean", "probe")
ROUNDING = 1e-6
"""Share of the norm of z up to which a difference of two sets is rounding."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["vector", "accuracy", "spread", "chance"], meta_fields=["chosen", "layers", "how"]
)
@dataclasses.dataclass(frozen=True)
class HeadDirections:
    """Which heads tell two sets of texts apart, and the vector that acts on the best of them.

    Attributes:
        vector: a SteeringVector at "z", of the layers that have a chosen head; the other heads are zero and are not edited.
        accuracy: [L H], of each head's probe on held-out texts, mean of both classes: 0.5 is chance for one head.
        spread: [L H], the standard deviation of z along each head's direction; strength 1 is one of them.
        chance: [R], the accuracy of the best head under R shufflings of the labels.
        chosen: (layer, head), the most accurate first; where two are equal, the one that is surer.
        layers: the layers of `accuracy`.
        how: how it was made.
    """

    vector: SteeringVector
    accuracy: Any
    spread: Any
    chance: Any
    chosen: tuple[tuple[int, int], ...]
    layers: tuple[int, ...]
    how: How = ()

    @property
    def heads(self) -> Heads:
        """The chosen heads as a set, for `where=` of any edit at "z"."""
        return heads_of(self.chosen)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each head: accuracy, spread, and whether it is chosen."""
        layer, head = (np.ravel(part) for part in np.meshgrid(self.layers, np.arange(np.shape(self.accuracy)[1]), indexing="ij"))
        taken = [pair in set(self.chosen) for pair in zip(layer.tolist(), head.tolist(), strict=True)]
        return frame({"layer": layer, "head": head, "accuracy": np.ravel(self.accuracy), "spread": np.ravel(self.spread), "chosen": taken})

    def view(self, title: str = "heads that tell the texts apart") -> Any:
        """The accuracy of each head as a heat-map that begins at the best of chance; the chosen ones are marked."""
        from jaxinterp.views import heatmap

        marks = np.full(np.shape(self.accuracy), "", object)
        for layer, head in self.chosen:
            marks[self.layers.index(layer), head] = "*"
        least = float(np.mean(self.chance)) if np.size(self.chance) else 0.5
        unit = f"held-out accuracy, from the best head of shuffled labels ({least:.2f}) to 1; * is part of the vector"
        about: dict[str, Any] = {"labels": {"layer": [str(layer) for layer in self.layers]}, "provenance": dict(self.how)}
        colours: dict[str, Any] = {"scale": "sequential", "limits": (least, 1.0), "texts": marks.tolist(), "normalisation": unit}
        return heatmap(title, np.asarray(self.accuracy), ("layer", "head"), **colours, **about)

    def show(self) -> None:
        """Prints the heat-map in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes numbers and directions (.safetensors), or the picture (.html, .png, .json, .txt); `vector.save` is what can be loaded."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        arrays = {"directions": self.vector.values, **{name: getattr(self, name) for name in ("accuracy", "spread", "chance")}}
        return write(path, arrays, {"chosen": self.chosen, "layers": self.layers, "vector layers": self.vector.layers}, self.how)

    def __repr__(self) -> str:
        accuracy = np.asarray(self.accuracy)
        at = [accuracy[self.layers.index(layer), head] for layer, head in self.chosen]
        names = " ".join(f"{layer}.{head}" for layer, head in self.chosen[:4]) + (" ..." if len(self.chosen) > 4 else "")
        chance = f"; best by chance {np.mean(self.chance):.0%}" if np.size(self.chance) else ""
        told = f"held-out accuracy {min(at):.0%} to {max(at):.0%}{chance}"
        return f"HeadDirections({len(self.chosen)} of {accuracy.size} heads: {names}; {told})"


def head_directions(
    lm: LanguageModel, positive: Any, negative: Any, *, heads: int = 48, direction: Literal["mass_mean", "probe"] = "mass_mean",
    layers: Any = None, position: Any = -1, penalty: float = 1e-2, folds: int | None = None, shuffles: int = 3, seed: int = 0,
    bos: str | bool = "model", precision: str | None = "highest",
) -> HeadDirections:  # fmt: skip
    """The heads that best tell positive texts from negative ones, and a direction in each, in standard deviations.

    Equations, source, cost and when it misleads: see the module.

    Args:
        lm: the model.
        positive: texts that the directions point to, two or more: strings, `Tokens`, ids [B P], or (prompt, answer) tuples.
        negative: texts that they point away from; as many (text i of both are then a pair, and held out together) or not.
        heads: how many are chosen.
        direction: "mass_mean", the mean difference, or "probe", the probe's weights.
        layers: among the heads of a layer, of some, or None for all.
        position: the token that is read, as for `mean_difference`.
        penalty: of a probe's squared weights, a text, for features scaled to a mean square of 1 a coordinate.
        folds: of the cross-validation, 2 or more; None is 5, fewer where there are fewer texts.
        shuffles: shufflings of the labels for `chance`, within pairs where there are pairs; 0 is none.
        seed: of folds and shufflings.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        HeadDirections: `.vector`, `.accuracy` [L H], `.chance`, `.chosen`, `.heads`.

    Raises:
        InputError: too few texts, more heads than there are, or sets that are the same at a chosen head.

    Example:
        >>> data = ji.data.sentiment(lm)
        >>> found = ji.steering.head_directions(lm, data.positive, data.negative, heads=16)
        >>> ji.generate(lm, "I think that", 20, edits=[found.vector.add(5.0)])
    """
    config = lm.config
    if direction not in DIRECTIONS or not 0 < penalty < np.inf or shuffles < 0 or folds == 0:
        raise InputError(
            f"head_directions(): direction is {direction!r}, penalty {penalty}, shuffles {shuffles} and folds {folds}; expected "
            "'mass_mean' or 'probe', a number over 0, 0 or more, and 2 folds or more, since heads are chosen by what is held out."
        )
    contrast = read_contrast(
        lm, positive, negative, method="head_directions", site="z", layers=layers, position=position, bos=bos, precision=precision, least=2
    )
    total = len(contrast.layers) * config.n_heads
    if not 1 <= heads <= total:
        raise InputError(
            f"head_directions(): heads is {heads}; expected 1 to {total}, which is all heads of {len(contrast.layers)} layers."
        )
    tests = _folds(contrast, folds, seed, 1, "head_directions")
    labels = np.stack([contrast.positive, *_shuffled(contrast, shuffles, seed)])
    x = contrast.values.reshape(*contrast.values.shape[:2], config.n_heads, -1)
    found = _every_layer(x, labels, tests, penalty, DIRECTIONS.index(direction))
    accuracy, surety = _scores(found["margins"], labels)
    order = np.lexsort((-surety[0].reshape(-1), -accuracy[0].reshape(-1)))[:heads]
    rows, columns = np.unravel_index(order, accuracy[0].shape)
    directions, norms = found["direction"], np.linalg.norm(found["direction"], axis=-1)
    same = norms[rows, columns] <= ROUNDING * contrast.norms[rows]
    if same.any():
        layer, head = contrast.layers[int(rows[same.argmax()])], int(columns[same.argmax()])
        raise InputError(f"head_directions(): both sets are the same at head {head} of layer {layer}: take fewer heads, or other texts.")
    unit = directions / np.where(norms == 0, 1, norms)[..., None]
    spread = np.einsum("LNHE,LHE->LNH", x, unit).std(axis=1)
    values = np.zeros_like(directions)
    values[rows, columns] = (unit * spread[..., None])[rows, columns]
    held = sorted(set(rows.tolist()))
    chosen = tuple((contrast.layers[int(row)], int(column)) for row, column in zip(rows, columns, strict=True))
    how = (
        *contrast.how, ("heads", str(heads)), ("direction", direction), ("penalty", str(penalty)), ("folds", str(len(tests))),
        ("seed", str(seed)),
    )  # fmt: skip
    vector = make_vector(lm, "z", [contrast.layers[row] for row in held], values[held], norms=contrast.norms[held], how=how)
    arrays = [array.astype(np.float32) for array in (accuracy[0], spread, accuracy[1:].max(axis=(1, 2)))]
    told = tuple(entry for entry in how if entry[0] != "texts")  # a digest a text: the vector keeps them
    return HeadDirections(vector, arrays[0], arrays[1], arrays[2], chosen, contrast.layers, told)


def _shuffled(contrast: Contrast, number: int, seed: int) -> Sequence[np.ndarray]:
    """So many labellings that mean nothing: the texts of each pair change places or not, or all labels are shuffled."""
    random, size = np.random.default_rng([seed, 1]), len(contrast.positive)
    if not contrast.paired:
        return [random.permutation(contrast.positive) for _ in range(number)]
    flips = random.integers(0, 2, (number, size // 2)).astype(bool)
    return list(np.tile(flips, (1, 2)) ^ contrast.positive[None])


def _scores(margins: Float[np.ndarray, "L R N H"], labels: Bool[np.ndarray, "R N"]) -> tuple[np.ndarray, np.ndarray]:
    """[R L H]: balanced accuracy of the held-out log-odds, and the mean log-probability of the label."""
    sign = np.where(labels, 1.0, -1.0)[None, :, :, None]
    sides = [side[None, :, :, None] / side.sum(axis=1)[None, :, None, None] / 2 for side in (labels, ~labels)]
    right, sure = ((values * (sides[0] + sides[1])).sum(axis=2) for values in (margins * sign > 0, -np.logaddexp(0, -margins * sign)))
    return np.moveaxis(right, 1, 0), np.moveaxis(sure, 1, 0)


def _every_layer(
    x: Float[np.ndarray, "L N H E"], labels: Bool[np.ndarray, "R N"], tests: Bool[np.ndarray, "K N"], penalty: float, probe: int
) -> dict[str, np.ndarray]:
    """ "margins" [L R N H], the held-out log-odds of each text by each head's probe, and "direction" [L H E]; one program for all."""
    found = []
    with Progress("probing heads", len(x), "layers") as progress:
        for layer in x:
            found.append(jax.device_get(_program(layer, labels, tests, np.float32(penalty), np.bool_(probe))))
            progress.advance(1)
    return {name: np.stack([part[name] for part in found]) for name in found[0]}


@jax.jit
def _program(
    x: Float[Array, "N H E"], labels: Bool[Array, "R N"], tests: Bool[Array, "K N"], penalty: Float[Array, ""], probe: Bool[Array, ""]
) -> dict[str, Array]:
    """Of one layer; fold by fold, and all heads at once."""
    heads, real = jnp.moveaxis(x, 1, 0), x.dtype

    def fit(x: Array, y: Array, weight: Array) -> tuple[Array, Array]:
        """Weights of the probe of one head, and its log-odds for every text."""
        centre = (weight[:, None] * x).sum(axis=0) / weight.sum()
        centred = x - centre[None]
        direction, bias = linear.logistic(centred, y, weight, penalty)
        return direction, centred @ direction + bias

    def held_out(labels: Array) -> Array:
        y = labels.astype(real)
        fold = lambda test: jax.vmap(lambda x: fit(x, y, (~test).astype(real))[1])(heads)  # noqa: E731
        return jnp.where(tests[:, None], jax.lax.map(fold, tests), 0).sum(axis=0)  # each text is in one fold

    with jax.default_matmul_precision("highest"):
        y = labels[0].astype(real)
        weights = jax.vmap(lambda x: fit(x, y, jnp.ones_like(y))[0])(heads)
        means = [jnp.einsum("HNE,N->HE", heads, side / side.sum()) for side in (y, 1 - y)]
        direction = jnp.where(probe, weights, means[0] - means[1])
        margins = jax.lax.map(held_out, labels)  # [R H N]
    return {"margins": jnp.moveaxis(margins, 1, 2), "direction": direction}
