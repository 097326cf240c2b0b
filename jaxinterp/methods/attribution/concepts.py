"""Concept sensitivity: does moving an activation along a concept's direction raise a metric? (TCAV, Kim et al. 2018, arXiv:1711.11279.)

    direction v:   from activations of prompts with the concept and without it; logistic regression or the difference of means
    sensitivity:   S(prompt) = d metric / d activation . v / |v|;      score = share of prompts with S > 0

A score means nothing by itself: directions fitted to the same examples with shuffled labels show what chance gives, and the
accuracy on examples held out shows whether there is a direction at all. All layers are read and differentiated at once. Cost: a
forward pass of the examples, and a forward and a backward pass of the prompts. Misleads where the direction follows what goes
with the concept in the examples (their topic, their length), and where the metric's slope says nothing about larger moves.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.linear import logistic
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.selection import at
from jaxinterp.model.sites import check_site
from jaxinterp.runs.gradients import gradients
from jaxinterp.runs.run import run

Fit = Literal["logistic", "mean_difference"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scores", "sensitivity", "accuracy", "directions", "chance", "p"],
    meta_fields=["layers", "how"],
)
@dataclasses.dataclass(frozen=True)
class ConceptSensitivity:
    """How a metric responds to a concept, layer by layer.

    Attributes:
        scores: [L], the share of prompts whose metric rises along the direction.
        sensitivity: [L B], the slope along the unit direction, in units of the metric for one unit of activation.
        accuracy: [L], of the direction on examples held out, balanced over both classes; 0.5 is chance.
        directions: [L D], unit vectors, towards the concept.
        chance: [L R], scores of R directions fitted to shuffled labels.
        p: [L], two-sided: the share of shuffled directions (and the real one) with a score at least as far from a half.
        layers: which layers.
        how: how it was made.
    """

    scores: Any
    sensitivity: Any
    accuracy: Any
    directions: Any
    chance: Any
    p: Any
    layers: tuple[int, ...]
    how: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        best = int(np.argmax(self.accuracy))
        return (
            f"ConceptSensitivity({len(self.layers)} layers, {np.shape(self.sensitivity)[1]} prompts; most separable at layer "
            f"{self.layers[best]}: accuracy {self.accuracy[best]:.0%}, score {self.scores[best]:.0%}, p {self.p[best]:.2f})"
        )

    def view(self, title: str = "concept sensitivity") -> Any:
        """Score, mean score of shuffled directions and held-out accuracy by layer."""
        from jaxinterp.views import line

        series = {"score": self.scores, "shuffled labels": np.mean(self.chance, axis=1), "held-out accuracy": self.accuracy}
        return line(title, series, x_labels=[str(layer) for layer in self.layers], normalisation="share")

    def show(self) -> None:
        """Prints the lines in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors) or the picture (.html, .png, .json, .txt)."""
        from safetensors.numpy import save_file

        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        names = ("scores", "sensitivity", "accuracy", "directions", "chance", "p")
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in names}
        save_file(arrays, str(path), metadata={"layers": json.dumps(self.layers), **dict(self.how)})
        return Path(path)


def concept_sensitivity(
    lm: LanguageModel, prompts: Prompts, metric: Any, positive: Prompts, negative: Prompts, site: str = "resid_post", *,
    position: Any = -1, example_position: Any = -1, fit: Fit = "logistic", strength: float = 1e-2, held_out: float = 0.3,
    shuffles: int = 30, seed: int = 0, bos: str | bool = "model", precision: str | None = "highest",
) -> ConceptSensitivity:  # fmt: skip
    """The share of prompts whose metric rises along a concept's direction, at every layer of a site.

    Equation, source, cost and when it misleads: see the module.

    Args:
        lm: the model.
        prompts: prompts on which the metric is differentiated.
        metric: what is differentiated.
        positive: examples of the concept.
        negative: examples without it.
        site: a site of the blocks with the axes L B P and features, such as "resid_post" or "mlp_out".
        position: where the metric is differentiated, an int or [B 1].
        example_position: where examples are read.
        fit: "logistic" regression, or "mean_difference".
        strength: of the logistic regression's L2 penalty, for features scaled to a mean square of 1 a coordinate.
        held_out: share of the examples that the accuracy is measured on.
        shuffles: directions fitted to shuffled labels.
        seed: of the split and the shuffles.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        ConceptSensitivity.

    Raises:
        InputError: a site without features at positions, too few examples to hold some out, or a metric without a slope.

    Example:
        >>> found = ji.concept_sensitivity(lm, prompts, metric, [" happy", " glad", " merry"], [" sad", " grim", " glum"])
        >>> found.scores.shape
        (30,)
    """
    place = check_site(site, lm.config)
    if len(place.axes) != 4 or not place.axes.startswith("LBP"):
        raise InputError(f"concept_sensitivity(): expected a site with axes L B P and features; {site!r} has {' '.join(place.axes)}.")
    if fit not in ("logistic", "mean_difference") or not 0 < held_out < 1 or shuffles < 1:
        raise InputError(
            f"concept_sensitivity(): fit is {fit!r}, held_out {held_out} and shuffles {shuffles}; expected 'logistic' or "
            "'mean_difference', a share between 0 and 1, and at least 1."
        )
    options: dict[str, Any] = {"bos": bos, "precision": precision}
    found = gradients(lm, prompts, metric, {site: at(position=_column(position))}, **options)
    slopes = np.asarray(found[site])
    slopes = slopes.reshape(*slopes.shape[:2], -1)
    examples = {site: at(position=_column(example_position))}
    sides = [np.asarray(run(lm, group, sites=examples, **options)[site]) for group in (positive, negative)]
    x = np.concatenate([side.reshape(*side.shape[:2], -1) for side in sides], axis=1)
    labels = np.repeat([True, False], [side.shape[1] for side in sides])
    train = _split(labels, held_out, np.random.default_rng(seed))
    random = np.random.default_rng([seed, 1])
    drawn = np.stack([labels, *(random.permutation(labels) for _ in range(shuffles))])
    directions, middles = directions_program(x, drawn, train, strength, fit=fit)
    every = np.einsum("LBD,RLD->RLB", slopes, np.asarray(directions))
    scores = (every > 0).mean(axis=2)
    right = (np.einsum("LND,LD->LN", x, np.asarray(directions[0])) > np.asarray(middles[0])[:, None]) == labels
    accuracy = np.mean([right[:, ~train & (labels == side)].mean(axis=1) for side in (True, False)], axis=0)
    far = abs(scores - 0.5)
    how = (
        ("site", site), ("fit", fit), ("examples", f"{labels.sum()} + {(~labels).sum()}"), ("held out", str(held_out)), ("seed", str(seed)),
        ("bos", found.trace.tokens.bos),
    )  # fmt: skip
    return ConceptSensitivity(
        scores[0], every[0], accuracy, np.asarray(directions[0]), scores[1:].T, (far >= far[0] - 1e-9).mean(axis=0),
        place.layers(lm.config), how,
    )  # fmt: skip


def _column(position: Any) -> np.ndarray:
    """A position as an index that keeps its axis: [1], or [B 1]."""
    return np.reshape(position, (-1, 1)) if np.size(position) > 1 else np.reshape(position, (1,))


def _split(labels: Bool[np.ndarray, "N"], share: float, random: np.random.Generator) -> Bool[np.ndarray, "N"]:
    """Which examples are fitted to: the same share of both classes is left out, at least one and not all."""
    train = np.ones(len(labels), bool)
    for side in (True, False):
        rows = np.flatnonzero(labels == side)
        left = max(1, round(share * len(rows)))
        if len(rows) - left < 1:
            raise InputError(f"concept_sensitivity(): {len(rows)} examples of a class; expected at least 2, so that some can be held out.")
        train[random.permutation(rows)[:left]] = False
    return train


@functools.partial(jax.jit, static_argnames=("fit",))
def directions_program(
    x: Float[Array, "L N D"], labels: Bool[Array, "R N"], train: Bool[Array, "N"], strength: Any, *, fit: str
) -> tuple[Float[Array, "R L D"], Float[Array, "R L"]]:
    """Unit directions towards the examples labelled True, and where along them the classes are told apart.

    Args:
        x: activations of the examples.
        labels: R labellings of them.
        train: which examples are fitted to.
        strength: of the penalty.
        fit: "logistic" or "mean_difference".
    """
    own = train.astype(x.dtype)

    def one(x: Array, labels: Array) -> tuple[Array, Array]:
        centre = (own[:, None] * x).sum(axis=0, keepdims=True) / own.sum()
        centred = x - centre
        y = labels.astype(x.dtype)
        if fit == "mean_difference":
            sides = [(own * side)[:, None] for side in (y, 1 - y)]
            means = [(side * centred).sum(axis=0) / jnp.maximum(side.sum(), 1) for side in sides]
            direction, bias = means[0] - means[1], -((means[0] - means[1]) * (means[0] + means[1])).sum() / 2
        else:
            direction, bias = logistic(centred, y, own, strength)
        size = jnp.linalg.norm(direction)
        unit = direction / jnp.where(size == 0, 1, size)
        return unit, (unit * centre[0]).sum() - bias / jnp.where(size == 0, 1, size)

    return jax.vmap(lambda labels: jax.vmap(lambda x: one(x, labels))(x))(labels)
