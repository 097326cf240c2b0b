"""Comparison: estimates held against exact effects, cell by cell.

What is asked of an estimate differs: to find the strongest cells (overlap of the top k), to rank them (Spearman), to have the
right direction (sign agreement), or to be right in size (Pearson, slope, mean error by decile). All of them are given.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxinterp.errors import InputError

SMALL = 0.01
"""Signs are compared where the exact effect is at least this share of the largest."""

POINTS = 3000
"""At most so many cells are drawn, so that a picture of every neuron stays small."""


@dataclasses.dataclass(frozen=True)
class Decile:
    """A tenth of the cells, in the order of their estimates.

    Attributes:
        estimate: their mean estimate.
        exact: their mean exact effect.
        error: the mean of estimate - exact.
        cells: how many.
    """

    estimate: float
    exact: float
    error: float
    cells: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far estimates can be trusted.

    Attributes:
        pearson: correlation of estimate and exact effect, -1 to 1; NaN where either does not vary.
        spearman: correlation of their ranks.
        sign_agreement: share of the cells with an exact effect of at least 1 % of the largest whose estimate has its sign; NaN
            for unsigned estimates, which are held against the sizes of the exact effects.
        overlap: share of the k cells with the largest exact effects (by size) that are among the k largest estimates.
        k: how many.
        slope: of the least-squares line exact = slope * estimate + intercept: 1 where estimates are right in size, below 1
            where they are too large.
        intercept: of that line.
        mean_error: mean of |estimate - exact|.
        deciles: the same by size of the estimate, from the most negative to the most positive.
        estimate: [n], the cells that both have.
        exact: [n].
        labels: the name of each cell.
        signed: whether estimates have a sign.
    """

    pearson: float
    spearman: float
    sign_agreement: float
    overlap: float
    k: int
    slope: float
    intercept: float
    mean_error: float
    deciles: tuple[Decile, ...]
    estimate: Any
    exact: Any
    labels: tuple[str, ...]
    signed: bool

    def __repr__(self) -> str:
        return (
            f"Comparison({len(self.estimate)} cells: Pearson {self.pearson:.3f}, Spearman {self.spearman:.3f}, signs "
            f"{self.sign_agreement:.0%}, top-{self.k} overlap {self.overlap:.0%}, slope {self.slope:.2f})"
        )

    def view(self, title: str = "estimates against exact effects") -> Any:
        """Estimates against exact effects as points; and the measures, the estimate beside the exact effect by decile, and the cells
        with the largest errors as tables. Of more than 3000 cells, the points are the 3000 with the largest estimate or effect.
        """
        from jaxinterp.views import Section, report, scatter, table

        measures = {
            "Pearson correlation": self.pearson, "Spearman correlation": self.spearman, "sign agreement": self.sign_agreement,
            f"top-{self.k} overlap": self.overlap, "slope of exact on estimate": self.slope, "mean error": self.mean_error,
        }  # fmt: skip
        known = {name: value for name, value in measures.items() if np.isfinite(value)}
        tenths = {name: ("signed", [getattr(tenth, name) for tenth in self.deciles]) for name in ("estimate", "exact", "error")}
        worst = np.argsort(-abs(self.estimate - self.exact), kind="stable")[: self.k]
        furthest = {"estimate": ("signed", self.estimate[worst]), "exact": ("signed", self.exact[worst])}
        count = len(self.estimate)
        drawn = np.sort(np.argsort(-np.maximum(abs(self.estimate), abs(self.exact)), kind="stable")[:POINTS])
        picture = scatter(
            "Each cell",
            self.estimate[drawn],
            self.exact[drawn],
            names=("estimate", "exact effect" if self.signed else "size of the exact effect"),
            labels=[self.labels[i] for i in drawn],
            line=(self.slope, self.intercept) if np.isfinite(self.slope) else None,
            normalisation=f"the {POINTS} largest of {count} cells" if count > POINTS else "",
        )
        tables = (
            table("agreement", {"measure": ("text", list(known)), "value": ("number", list(known.values()))}),
            table("by decile of the estimate", tenths),
            table("largest errors", {"cell": ("text", [self.labels[i] for i in worst]), **furthest}),
        )
        return report(title, [Section(f"{count} cells", "", (picture,)), Section("Agreement", "", tables)])

    def show(self) -> None:
        """Prints the picture and the tables in the terminal."""
        self.view().show()


def comparison(
    estimate: Float[np.ndarray, "..."], exact: Float[np.ndarray, "..."], labels: tuple[str, ...], *, k: int = 10, signed: bool = True
) -> Comparison:
    """Holds estimates against exact effects.

    Args:
        estimate: of any shape; NaN where a cell has none.
        exact: of the same shape.
        labels: the name of each cell, in order.
        k: how many cells are the top.
        signed: whether estimates have a sign; else sizes are compared.

    Raises:
        InputError: shapes differ, k is below 1, or fewer than two cells have both.
    """
    if estimate.shape != exact.shape:
        raise InputError(f"Estimates have shape {list(estimate.shape)} and exact effects {list(exact.shape)}; expected one grid.")
    x, y = np.ravel(estimate).astype(np.float64), np.ravel(exact).astype(np.float64)
    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() < 2 or k < 1:
        raise InputError(f"{there.sum()} cells have an estimate and an exact effect and k is {k}; expected at least 2 cells and 1.")
    x, y = x[there], y[there] if signed else abs(y[there])
    k = min(k, len(x))
    top = [set(np.argsort(-abs(values), kind="stable")[:k].tolist()) for values in (x, y)]
    large = abs(y) >= SMALL * abs(y).max()
    slope, intercept = np.polyfit(x, y, 1) if np.ptp(x) > 0 else (np.nan, np.nan)
    return Comparison(
        pearson=_correlation(x, y),
        spearman=_correlation(ranks(x), ranks(y)),
        sign_agreement=float((np.sign(x) == np.sign(y))[large].mean()) if signed else float("nan"),
        overlap=len(top[0] & top[1]) / k,
        k=k,
        slope=float(slope),
        intercept=float(intercept),
        mean_error=float(abs(x - y).mean()),
        deciles=tuple(
            Decile(float(x[part].mean()), float(y[part].mean()), float((x - y)[part].mean()), len(part))
            for part in np.array_split(np.argsort(x, kind="stable"), min(10, len(x)))
        ),
        estimate=x,
        exact=y,
        labels=tuple(label for label, keep in zip(labels, there, strict=True) if keep),
        signed=signed,
    )


def ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The rank of each value, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")
