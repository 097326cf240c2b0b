"""unsupervised: directions whose addition at one layer changes a later layer most, without anyone saying what to look for (MELBO).

    max over |theta| = R of   mean over prompts of ( sum over tokens of |h_target(x + theta) - h_target(x)|^p )^(1/q)

theta is added to the residual stream leaving `layer`, at every token; each direction is orthogonal to those before it (Mack and Turner
2024, "Mechanistically Eliciting Latent Behaviors in Language Models", AI Alignment Forum). Projected gradient ascent: Adam on the
sphere, the best step kept. With compare="unit" h is first divided by its length, as the norm of the layer that reads it does.
Cost: count x steps forward and backward passes through the layers between, compiled once a layer and target. Misleads: a large change
need not be a behaviour, and an ascent ends at a peak that need not be the highest (the next direction may be found to do more). With
compare="raw" and a large radius it is mostly a few tokens thrown to the norm of the first one (a sink, a hundred times the others');
the objective says so where it is far over the norms of the stream, and a smaller radius or compare="unit" helps. What a direction does is
read in what the model then writes. Random directions of the same length show what "most" means.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.results import How, frame, write
from jaxinterp.methods.steering.ascent import Change, ascend, changes, plain
from jaxinterp.methods.steering.contrast import Texts, _shown, spots
from jaxinterp.methods.steering.vector import SteeringVector, make_vector, texts_of
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import at
from jaxinterp.model.transformer import check_run
from jaxinterp.runs.plan import check_fits
from jaxinterp.runs.program import bucket
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.provenance import fingerprint_of_weights

RADIUS = 0.1
"""The length of a direction where none is given, as a share of the stream's mean norm at the tokens read."""

Compare = Literal["raw", "unit"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["vectors", "objective", "random", "history"],
    meta_fields=["layer", "target", "radius", "how"],
)
@dataclasses.dataclass(frozen=True)
class SteeringVectors:
    """Directions of one layer, that which changes the target most first.

    Attributes:
        vectors: n SteeringVectors at "resid_post", orthogonal to one another and of one length.
        objective: [n], how much each changes the target layer.
        random: [R], how much random directions of the same length do.
        history: [n S], the objective at each step of the ascent.
        layer: where they are added.
        target: the layer whose change is measured.
        radius: their length.
        how: how they were made.
    """

    vectors: tuple[SteeringVector, ...]
    objective: Any
    random: Any
    history: Any
    layer: int
    target: int
    radius: float
    how: How = ()

    def __getitem__(self, index: int) -> SteeringVector:
        return self.vectors[index]

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[SteeringVector]:
        return iter(self.vectors)

    @property
    def values(self) -> np.ndarray:
        """[n D]: the directions."""
        return np.concatenate([np.asarray(vector.values) for vector in self.vectors])

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each direction: its objective, and in units of the mean of random ones."""
        objective = np.asarray(self.objective)
        columns = {"direction": np.arange(len(self)), "objective": objective}
        return frame(columns | ({"of random": objective / np.mean(self.random)} if np.size(self.random) else {}))

    def view(self, title: str = "directions that change a later layer most") -> Any:
        """Lines: the objective of each direction, and the mean and largest of random ones."""
        from jaxinterp.views import line

        series = {"found": np.asarray(self.objective)}
        if np.size(self.random):
            series |= {f"random, {name}": np.full(len(self), of(self.random)) for name, of in (("mean", np.mean), ("largest", np.max))}
        unit = f"change at layer {self.target} from a step of {self.radius:.3g} at layer {self.layer}"
        return line(title, series, x="direction", normalisation=unit, provenance=dict(self.how))

    def show(self) -> None:
        """Prints the lines in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes all numbers (.safetensors), or the picture (.html, .png, .json, .txt); `found[0].save` writes what can be loaded."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        arrays = {name: getattr(self, name) for name in ("values", "objective", "random", "history")}
        return write(path, arrays, {name: getattr(self, name) for name in ("layer", "target", "radius")}, self.how)

    def __repr__(self) -> str:
        objective = np.asarray(self.objective)
        random = f", random {np.mean(self.random):.3g}" if np.size(self.random) else ""
        told = (
            f"layer {self.layer} -> {self.target}, length {self.radius:.3g}: change {objective.max():.3g} to {objective.min():.3g}{random}"
        )
        return f"SteeringVectors({len(self)} at resid_post, {told})"


def unsupervised(
    lm: LanguageModel, prompts: Prompts, *, layer: int, target: int | None = None, radius: float | None = None, count: int = 8,
    steps: int = 100, position: Any = "all", compare: Compare = "raw", power: float = 2.0, root: float | None = None, random: int = 32,
    seed: int = 0, remat: bool = False, bos: str | bool = "model", precision: str | None = "highest",
) -> SteeringVectors:  # fmt: skip
    """Directions whose addition at a layer changes a later layer most, one after the other, orthogonal to those before.

    Equation, source, cost and when it misleads: see the module.

    Args:
        lm: the model.
        prompts: one or a few.
        layer: whose "resid_post" they are added to, at every token.
        target: the later layer whose "resid_post" should change; None is three quarters up the model.
        radius: their length, the choice that matters most; None is a tenth of the stream's mean norm at the tokens read.
        count: how many, at most d_model.
        steps: of the ascent, for each.
        position: the tokens whose change counts: an int, [n] or [B n]; "all" is every token but the first.
        compare: "raw" values, or "unit": each divided by its length.
        power: p; larger ones reward a large change at few tokens.
        root: q; None is p.
        random: random directions of the same length to compare with.
        seed: of where the ascents begin, and of the random directions.
        remat: as for `forward`: less memory, a third more time.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        SteeringVectors: `found[0]` is the first SteeringVector; `.objective` [n], `.random` [R].

    Raises:
        InputError: a target that is not above the layer, a prompt without tokens to read, or numbers out of range.

    Example:
        >>> found = ji.steering.unsupervised(lm, "I think that this film is", layer=7, compare="unit")
        >>> [ji.generate(lm, "I think that this film is", 20, edits=[vector.add()]).text for vector in found]
    """
    config = lm.config
    target = max(layer + 1, 3 * config.n_layers // 4) if target is None else target
    _check(config, layer, target, radius, count, steps, compare, power, root, random)
    tokens = lm.to_tokens(prompts, bos=bos)
    index, weight = spots(Texts(tokens), position, "unsupervised()")
    check_run(config, tokens, {}, (), Rules(), None, None, None)
    batch = tokens.padded(bucket(tokens.ids.shape[1], config.n_ctx))
    check_fits(lm, batch.ids.shape[0], batch.ids.shape[1], {"resid_post": at(layer=[layer])}, target + 1, None, None)
    there = (np.asarray(batch.positions)[:, None, :] == index[:, :, None]) & (weight > 0)[:, :, None]
    read = there.any(axis=1) & np.asarray(batch.mask)
    arrays = batch.arrays_only()
    fixed: dict[str, Any] = {"config": config, "layer": layer, "target": target, "precision": precision}
    begin, end, norm = plain(lm.params, arrays, read, **fixed)
    radius = RADIUS * float(norm) if radius is None else float(radius)
    power, root = float(power), float(power if root is None else root)
    numbers = [np.float32(number) for number in (radius, power, root)]
    change = Change(arrays, begin, end, read, numbers[0], numbers[1], numbers[2], np.bool_(compare == "unit"))
    keys = jax.random.split(jax.random.key(seed), 2)
    found, objective, history = np.zeros((count, config.d_model), np.float32), [], []
    with Progress("unsupervised directions", count, "directions") as progress:
        for number in range(count):
            start = jax.random.normal(jax.random.fold_in(keys[0], number), (config.d_model,))
            best, value, values = ascend(lm.params, change, found, start, **fixed, steps=steps, remat=remat)
            found[number] = np.asarray(best)
            objective.append(float(value))
            history.append(np.asarray(values))
            progress.advance(1)
    others = jax.random.normal(keys[1], (random, config.d_model))
    chance = np.asarray(changes(lm.params, change, others, **fixed)) if random else np.zeros(0, np.float32)
    how = (
        ("method", "unsupervised"), ("site", "resid_post"), ("layer", str(layer)), ("target", str(target)), ("radius", f"{radius:.6g}"),
        ("compare", compare), ("power", f"{power:g}"), ("root", f"{root:g}"), ("steps", str(steps)), ("position", _shown(position)),
        ("seed", str(seed)), ("bos", tokens.bos), ("weights", fingerprint_of_weights(lm.params)),
    )  # fmt: skip
    made = (*how, texts_of(tokens))
    order = np.argsort(-np.asarray(objective), kind="stable")  # an ascent may end at a lower peak than a later one
    vectors = tuple(make_vector(lm, "resid_post", [layer], radius * one[None], norms=[float(norm)], how=made) for one in found[order])
    arrays = [np.asarray(array, np.float32)[order] for array in (objective, history)]
    return SteeringVectors(vectors, arrays[0], chance, arrays[1], layer, target, radius, how)


def _check(
    config: TransformerConfig, layer: int, target: int, radius: float | None, count: int, steps: int, compare: str, power: float,
    root: float | None, random: int,
) -> None:  # fmt: skip
    """Refuse what is out of range."""
    if not 0 <= layer < target < config.n_layers:
        raise InputError(
            f"unsupervised(): layer is {layer} and target {target}; expected two layers of 0 to {config.n_layers - 1}, the target above."
        )
    if not 1 <= count <= config.d_model or steps < 1 or random < 0 or compare not in ("raw", "unit"):
        raise InputError(
            f"unsupervised(): count is {count}, steps {steps}, random {random} and compare {compare!r}; expected 1 to {config.d_model} "
            "(d_model) directions, 1 step or more, 0 or more, and 'raw' or 'unit'."
        )
    positive = {"radius": radius, "power": power, "root": root}
    bad = [f"{name} {value}" for name, value in positive.items() if value is not None and not 0 < value < np.inf]
    if bad:
        raise InputError(f"unsupervised(): {bad[0]} is not a number over 0.")
