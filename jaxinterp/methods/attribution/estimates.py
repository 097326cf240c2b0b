"""AttributionResult: estimates of patching effects on the axes of the exact grid, and the exact cells that check them."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.compare import Comparison, comparison
from jaxinterp.methods.grid import Axis
from jaxinterp.methods.patching import Pair, mapped_mask
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import site_of
from jaxinterp.runs.cells import FromRun
from jaxinterp.runs.measure import Measured, run_cells
from jaxinterp.runs.results import GridResult, check_comparable, grid_result


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """The cells of one site, as an exact sweep makes them.

    Attributes:
        site: the site.
        axes: of the grid.
        sets: sets of components, or None.
        at: selections that all cells share.
    """

    site: str
    axes: tuple[Axis, ...]
    sets: Axis | None
    at: Mapping[str, Any]

    @property
    def labels(self) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        """(name, labels) of each axis of the grid."""
        return tuple((axis.name, axis.labels) for axis in (*([self.sets] if self.sets else []), *self.axes))

    def cell(self, number: int, lm: LanguageModel, mapped: np.ndarray | None) -> list[Edit]:
        """The patch of a cell, by its number in the order of the grid."""
        place = site_of(self.site, lm.config)
        point: list[Any] = list(np.unravel_index(number, [len(labels) for _, labels in self.labels]))
        where = mapped_mask(place, mapped)
        if self.sets is not None:
            inside = self.sets.values[point.pop(0)]
            where = inside if where is None else np.logical_and(*np.broadcast_arrays(inside, where))
        chosen = dict(self.at) | {axis.name: axis.values[i] for axis, i in zip(self.axes, point, strict=True)}
        made = edit_makers.replace(place.name, np.zeros((1,) * len(place.axes)), where=where, **chosen)
        return [dataclasses.replace(made, arguments=(FromRun(place.name, len(place.axes)),))]


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What was asked for, kept so that exact cells can be run; compared by identity, and no part of the result's arrays.

    Attributes:
        lm: the model.
        pair: the prompts, base and other.
        metric: what is measured.
        places: the cells of each site.
        options: of `run_cells`.
    """

    lm: LanguageModel
    pair: Pair
    metric: Any
    places: tuple[Places, ...]
    options: Mapping[str, Any]

    def exact(self, cells: Sequence[int]) -> Measured:
        """The metric of these cells of the (stacked) grid, each run exactly."""
        size = int(np.prod([len(labels) for _, labels in self.places[0].labels]))
        values = np.full((len(cells), len(self.pair.base.lengths)), np.nan)
        found: Any = None
        for number, place in enumerate(self.places):
            rows = [row for row, cell in enumerate(cells) if cell // size == number]
            if rows:
                edits = [place.cell(cells[row] % size, self.lm, self.pair.mapped) for row in rows]
                found = run_cells(self.lm, self.pair.base, self.pair.other, edits, self.metric, **self.options, title="verifying")
                values[rows] = found.values
        return dataclasses.replace(found, values=values)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "effects", "per_example", "clean", "corrupt"],
    meta_fields=["axes", "mode", "how", "tokens", "call"],
)
@dataclasses.dataclass(frozen=True)
class AttributionResult(GridResult):
    """Estimates of patching effects; `.values`, `.effects` and `.per_example` mean what they mean in the exact grid.

    Attributes:
        call: what the estimates are of, for `verify`.
    """

    call: Any = None

    @property
    def signed(self) -> bool:
        """Whether estimates have a sign; else they are sizes (GradDrop)."""
        return dict(self.how).get("sign") != "size"

    def compare(self, exact: GridResult, *, k: int = 10) -> Comparison:
        """Holds the estimates against the exact sweep of the same grid, `ji.patch(...)` with the same arguments.

        Args:
            exact: the exact grid.
            k: how many cells are the top.

        Raises:
            InputError: the two were made with other weights, prompts, edits, metric, site, mode or axes.
        """
        check_comparable(self, exact)
        sites = [dict(result.how).get("site") for result in (self, exact)]
        if sites[0] != sites[1]:
            raise InputError(f"compare(): the estimates are of site {sites[0]!r} and the exact effects of {sites[1]!r}.")
        return comparison(np.asarray(self.effects), np.asarray(exact.effects), self.cells, k=k, signed=self.signed)

    @property
    def cells(self) -> tuple[str, ...]:
        """The name of each cell, in the order of the grid: "layer 23, head 3"."""
        points = itertools.product(*(labels for _, labels in self.axes))
        return tuple(", ".join(f"{name} {label}" for (name, _), label in zip(self.axes, point, strict=True)) for point in points)

    def verify(self, top: int = 20) -> "Verification":
        """Runs the exact cells with the largest estimates, and no others.

        Args:
            top: how many.

        Returns:
            Verification: the exact GridResult of those cells, their estimates, and how far they agree.

        Raises:
            InputError: `top` is below 2, or the result was loaded or rebuilt without its call.
        """
        if self.call is None:
            raise InputError("verify(): this result does not hold the call that made it; use compare() with the exact sweep.")
        if top < 2:
            raise InputError(f"verify(): top is {top}; expected at least 2 cells.")
        effects = np.ravel(np.asarray(self.effects, np.float64))
        order = np.argsort(-np.where(np.isfinite(effects), abs(effects), -1), kind="stable")
        cells = [int(cell) for cell in order[: min(top, int(np.isfinite(effects).sum()))]]
        measured = self.call.exact(cells)
        names = tuple(self.cells[cell] for cell in cells)
        exact = grid_result(measured.values, measured.base, measured.other, (("cell", names),), self.mode, self.how)
        return Verification(exact, effects[cells], comparison(effects[cells], np.asarray(exact.effects), names, signed=self.signed))

    def save(self, path: str | Path) -> Path:
        """Writes the arrays or the picture, as for a GridResult."""
        return super(AttributionResult, dataclasses.replace(self, call=None)).save(path)


@dataclasses.dataclass(frozen=True)
class Verification:
    """Exact effects of chosen cells beside their estimates.

    Attributes:
        exact: GridResult over the axis "cell", in the order of the estimates' size.
        estimates: [n], effects as estimated.
        comparison: how far they agree.
    """

    exact: GridResult
    estimates: Any
    comparison: Comparison

    def view(self, title: str = "the largest estimates, run exactly") -> Any:
        """A table of the cells: estimate, exact effect."""
        from jaxinterp.views import table

        names = self.exact.axes[0][1]
        return table(title, {"cell": ("text", names), "estimate": ("signed", self.estimates), "exact": ("signed", self.exact.effects)})

    def show(self) -> None:
        """Prints the table in the terminal."""
        self.view().show()


def attribution_result(grid: GridResult, call: Call) -> AttributionResult:
    """A grid of estimates as a result that can be held against exact cells."""
    return AttributionResult(**{field.name: getattr(grid, field.name) for field in dataclasses.fields(GridResult)}, call=call)
