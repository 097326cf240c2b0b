"""SteeringSweep: the effect and the costs of a vector over layers and strengths, the best of them, and what it writes there."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.results import How, frame, write
from jaxinterp.methods.steering.operations import BLOWN
from jaxinterp.methods.steering.side_by_side import SideBySide, side_by_side
from jaxinterp.methods.steering.vector import SteeringVector, ranges
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.runs.provenance import RECORD

Cost = Literal["neutral_kl", "perplexity", "kl", "norm_ratio"]
COSTS = ("neutral_kl", "perplexity", "kl", "norm_ratio")

SHOWN = 12
"""Cells in the table of a picture."""


class Choice(NamedTuple):
    """A cell that was chosen.

    Attributes:
        layer: which.
        strength: which.
        effect: the change of the metric.
        costs: by name: "neutral_kl" (nats a token), "perplexity" (times the plain run's), "kl" (nats), "norm_ratio".
    """

    layer: int
    strength: float
    effect: float
    costs: dict[str, float]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "values", "effects", "per_example", "base", "kl", "neutral_kl", "loss", "plain_loss", "step", "norm_ratio", "vector",
    ],
    meta_fields=["layers", "strengths", "operation", "relative", "how"],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class SteeringSweep:
    """What a vector does at every layer L and strength S, and what it costs.

    Attributes:
        values: [L S], the metric of each cell, mean over the prompts.
        effects: [L S], values - the plain run's.
        per_example: [B L S], the metric of each prompt.
        base: [B], that of the plain run.
        kl: [L S], KL(plain || steered) of the next token after the prompts, in nats, mean over them.
        neutral_kl: [L S], the same on neutral texts, mean over all their tokens; NaN where none were given.
        loss: [L S], cross-entropy of the neutral texts in nats a token.
        plain_loss: that of the plain run.
        step: [L S], length of the change at the last position over the norm there, mean over prompts.
        norm_ratio: [L S], the steered norm there over the plain one.
        vector: what was swept.
        layers: labels of L.
        strengths: labels of S.
        operation: "add", "replace" or "project_out".
        relative: whether strengths are in units of the value's norm.
        how: how it was made.
    """

    values: Any
    effects: Any
    per_example: Any
    base: Any
    kl: Any
    neutral_kl: Any
    loss: Any
    plain_loss: Any
    step: Any
    norm_ratio: Any
    vector: SteeringVector
    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    operation: str
    relative: bool
    how: How = ()

    @property
    def axes(self) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        """(name, labels) of the axes of the grid."""
        return (("layer", self.layers), ("strength", self.strengths))

    @property
    def perplexity(self) -> Any:
        """[L S]: perplexity of the neutral texts over the plain run's; 1 is no harm."""
        return np.exp(np.asarray(self.loss) - np.asarray(self.plain_loss))

    @property
    def blown(self) -> Any:
        """[L S] bool: where the steered norm is over BLOWN times the usual one."""
        return np.asarray(self.norm_ratio) > BLOWN

    @property
    def warning(self) -> str:
        """One sentence on cells that blow the norm up, or ""."""
        blown = self.blown
        if not blown.any():
            return ""
        layers = ranges([layer for layer, some in zip(self.layers, blown.any(axis=1), strict=True) if some])
        least = min(abs(strength) for strength, some in zip(self.strengths, blown.any(axis=0), strict=True) if some)
        return (
            f"{blown.sum()} of {blown.size} cells (layers {layers}, from strength {least:g} in size) make the norm over {BLOWN:g} times "
            "the usual one, where text falls apart whatever the metric says."
        )

    def best(self, budget: float | None = None, *, by: Cost = "neutral_kl", lowest: bool = False) -> Choice:
        """The cell with the largest effect whose cost is within a budget.

        Args:
            budget: the most that it may cost, in the units of `Choice.costs`; None is any.
            by: which cost.
            lowest: whether the most negative effect is wanted.

        Raises:
            InputError: an unknown cost, one that was not measured, or no cell within the budget.
        """
        if by not in COSTS:
            raise InputError(f"best(): by is {by!r}; expected {', '.join(COSTS[:-1])} or {COSTS[-1]}.")
        cost, effects = np.asarray(getattr(self, by)), np.asarray(self.effects)
        within = np.ones(cost.shape, bool) if budget is None else cost <= budget
        if budget is not None and np.isnan(cost).all():
            raise InputError(f"best(): {by} was not measured, since there were no neutral texts: use by='kl', or sweep with neutral texts.")
        if not within.any():
            raise InputError(f"best(): no cell has {by} of {budget:g} or less; the least is {np.nanmin(cost):.3g}.")
        signed = np.where(within, -effects if lowest else effects, -np.inf)
        row, column = np.unravel_index(int(signed.argmax()), signed.shape)
        costs = {name: float(np.asarray(getattr(self, name))[row, column]) for name in COSTS}
        return Choice(self.layers[int(row)], self.strengths[int(column)], float(effects[row, column]), costs)

    def examples(
        self, lm: LanguageModel, prompts: Prompts, max_new_tokens: int = 20, *, layer: int | None = None,
        strengths: Any = None, budget: float | None = None, by: Cost = "neutral_kl", **settings: Any,
    ) -> SideBySide:  # fmt: skip
        """What the model writes plainly, and steered at the best cell and at the ends of the strengths, by `ji.generate`.

        Args:
            lm: the model.
            prompts: to continue.
            max_new_tokens: of each text.
            layer: None is that of the best cell.
            strengths: None is the lowest, the best and the highest.
            budget: of the best cell, see `best`.
            by: likewise.
            **settings: as for `side_by_side`: when, seed, temperature ...
        """
        if layer is None or strengths is None:
            best = self.best(budget, by=by)
            layer = best.layer if layer is None else layer
            strengths = sorted({min(self.strengths), best.strength, max(self.strengths)}) if strengths is None else strengths
        fixed: dict[str, Any] = {"operation": self.operation, "relative": self.relative}
        return side_by_side(lm, self.vector, prompts, strengths, layer=layer, max_new_tokens=max_new_tokens, **fixed, **settings)

    def _columns(self) -> dict[str, np.ndarray]:
        """Everything by cell, in rows of layers."""
        size = len(self.strengths)
        named = {"layer": np.repeat(self.layers, size), "strength": np.tile(self.strengths, len(self.layers))}
        measured = ("values", "effects", "kl", "neutral_kl", "loss", "perplexity", "step", "norm_ratio", "blown")
        return named | {
            name.removesuffix("s") if name in ("values", "effects") else name: np.ravel(getattr(self, name)) for name in measured
        }

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each cell."""
        return frame(self._columns())

    def table(self, count: int = SHOWN) -> Any:
        """The cells with the largest effects of either sign, as a view."""
        from jaxinterp.views import table

        columns = self._columns()
        order = np.argsort(-abs(columns["effect"]), kind="stable")[:count]
        shown: dict[str, Any] = {name: ("text", [f"{one:g}" for one in columns[name][order]]) for name in ("layer", "strength")}
        shown |= {"effect": ("signed", columns["effect"][order])}
        shown |= {name.replace("_", " "): ("number", columns[name][order]) for name in COSTS}
        shown |= {"": ("text", ["norm!" if blown else "" for blown in columns["blown"][order]])}
        unit = "effect: of the metric; KL in nats (a token); perplexity and norm as times the plain run's"
        return table("The largest effects", shown, normalisation=unit)

    def view(self, title: str = "Steering by layer and strength") -> Any:
        """Heat-maps of effect, cost and norm, the effect against the cost, and the largest effects."""
        from jaxinterp.views import Section, heatmap, report, scatter

        labels = {"layer": [str(layer) for layer in self.layers], "strength": [f"{strength:+g}" for strength in self.strengths]}
        axes = ("layer", "strength")
        neutral = not np.isnan(np.asarray(self.neutral_kl)).all()
        cost, where = (self.neutral_kl, "neutral texts, nats a token") if neutral else (self.kl, "next token after the prompts, nats")
        maps = (
            heatmap("Effect", np.asarray(self.effects), axes, labels=labels, normalisation="metric - that of the plain run"),
            heatmap("KL(plain || steered)", np.asarray(cost), axes, labels=labels, scale="sequential", normalisation=where),
            heatmap(
                "Norm",
                np.asarray(self.norm_ratio),
                axes,
                labels=labels,
                scale="sequential",
                normalisation="steered over plain, last position",
            ),
        )
        names = [f"{layer} {strength}" for layer in labels["layer"] for strength in labels["strength"]]
        points = scatter(
            "Effect against cost", np.ravel(cost), np.ravel(self.effects), names=("KL(plain || steered)", "effect"), labels=names,
            identity=False, normalisation=f"a point is a layer and a strength; KL: {where}",
        )  # fmt: skip
        sections = [Section("What it does, and what it costs", self.warning, maps), Section("Which to choose", "", (points, self.table()))]
        return report(title, sections, provenance={name: value for name, value in self.how if name not in RECORD})

    def show(self) -> None:
        """Prints the picture in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors, with axes and provenance in its header), or the picture (.html, .png, .json, .txt)."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        names = ("values", "effects", "per_example", "base", "kl", "neutral_kl", "loss", "plain_loss", "step", "norm_ratio")
        arrays = {name: getattr(self, name) for name in names} | {"vector": self.vector.values}
        about = {"axes": self.axes, "vector_layers": self.vector.layers}
        return write(path, arrays, about, self.how)

    def __repr__(self) -> str:
        best = self.best()
        tail = f"; {self.warning}" if self.warning else ""
        return (
            f"SteeringSweep({len(self.layers)} layers x {len(self.strengths)} strengths at {self.vector.site}, largest effect "
            f"{best.effect:+.3g} at layer {best.layer}, strength {best.strength:+g}{tail})"
        )
