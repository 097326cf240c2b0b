"""Integrals along a path of runs: fixed rules of nodes, and panels that are bisected where their own error is largest.

The error of a stretch [a, b] of the path is known without another rule: the slope along it integrates to f(b) - f(a).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

Path = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From shares of the path [n B] to the metric there [n B] and its slope along the path, token by token [n B P]."""

LEAST = 1e-4  # the share of the path above which logarithmic spacing is even in the logarithm
FIRST_STEPS = 16  # where the number of nodes is chosen by doubling
FIRST_ENDS = (0.0, 1 / 64, 1 / 16, 1 / 4, 1.0)  # panels that an adaptive integral begins with
LOBATTO = np.asarray([-1.0, -np.sqrt(3 / 7), 0.0, np.sqrt(3 / 7), 1.0])  # exact to degree 7, with the ends among its nodes
LOBATTO_WEIGHTS = np.asarray([1 / 10, 49 / 90, 32 / 45, 49 / 90, 1 / 10])
FRESH = 6  # points of a bisection: each half has its ends from the whole
AT_ONCE = 3  # bisections of a prompt in one batched run
NARROWEST = 2.0**-12  # of the path: a panel as narrow is not bisected
FEWEST = 4 * (len(FIRST_ENDS) - 1) + 1


@dataclasses.dataclass(frozen=True)
class Integral:
    """Integrals along the paths of a batch: scores [B P], the metric at both ends [B], points used [B]."""

    scores: np.ndarray
    first: np.ndarray
    last: np.ndarray
    steps: np.ndarray


def quadrature(steps: int, spacing: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [0, 1] and weights of a rule; for "log" of the integral over t with a = s ((1 + 1/s)^t - 1), s = LEAST."""
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        nodes, weights = (nodes + 1) / 2, weights / 2
    else:
        nodes, weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    if spacing == "log":
        growth = (1 + 1 / LEAST) ** nodes
        nodes, weights = LEAST * (growth - 1), weights * LEAST * np.log(1 + 1 / LEAST) * growth
    return nodes, weights


def fixed(path: Path, batch: int, spacing: str, rule: str, steps: int | None, tolerance: float, max_steps: int) -> Integral:
    """The integral by a rule of `steps` nodes; or doubled, each prompt keeping the first count of nodes within the tolerance.

    The ends are run beside the nodes, so that one program does both.
    """
    n = steps or min(FIRST_STEPS, max_steps)
    scores, used, done = None, np.full(batch, n), np.zeros(batch, bool)
    while True:
        nodes, weights = quadrature(n, spacing, rule)
        values, parts = path(np.broadcast_to(np.concatenate([nodes, [0.0, 1.0]])[:, None], (n + 2, batch)))
        first, last = values[-2:]
        change = last - first
        new = np.einsum("n,nBP->BP", weights, parts[:-2])
        scores = new if scores is None else np.where(done[:, None], scores, new)
        used = np.where(done, used, n)
        done |= np.abs(new.sum(axis=1) - change) <= tolerance * np.abs(change)
        if steps is not None or done.all() or 2 * n > max_steps:
            return Integral(scores, first, last, used)
        n *= 2


@dataclasses.dataclass(frozen=True)
class Panel:
    """A stretch of a path: where its five nodes are, and the metric [5] and slopes [5 P] there."""

    low: float
    high: float
    values: np.ndarray
    parts: np.ndarray

    @property
    def sum(self) -> np.ndarray:
        """[P]: the integral over the stretch by the rule."""
        return (self.high - self.low) / 2 * (LOBATTO_WEIGHTS @ self.parts)

    @property
    def change(self) -> float:
        """The metric's change over the stretch: what the integral sums to."""
        return float(self.values[-1] - self.values[0])

    @property
    def error(self) -> float:
        """What the sum misses of the change, in size."""
        return abs(self.change - float(self.sum.sum()))

    @property
    def narrow(self) -> bool:
        """Whether the stretch is too short to be bisected."""
        return self.high - self.low <= NARROWEST

    @property
    def scores(self) -> np.ndarray:
        """[P]: the sum; nothing where the metric jumps within a narrow panel, so that its slopes say less than nothing of the change."""
        return np.zeros_like(self.sum) if self.narrow and self.error > abs(self.change) else self.sum

    def halves(self) -> list[np.ndarray]:
        """The inner nodes of both halves: what a bisection must run."""
        middle = (self.low + self.high) / 2
        return [inner_nodes(self.low, middle), inner_nodes(middle, self.high)]

    def bisected(self, values: np.ndarray, parts: np.ndarray) -> "list[Panel]":
        """Both halves, from what the runs at their inner nodes gave: values [6], parts [6 P]."""
        middle = (self.low + self.high) / 2

        def half(low: float, high: float, ends: tuple[int, int], inner: slice) -> Panel:
            def joined(old: np.ndarray, new: np.ndarray) -> np.ndarray:
                return np.concatenate([old[ends[0]][None], new[inner], old[ends[1]][None]])

            return Panel(low, high, joined(self.values, values), joined(self.parts, parts))

        return [half(self.low, middle, (0, 2), slice(0, 3)), half(middle, self.high, (2, 4), slice(3, 6))]


def inner_nodes(low: float, high: float) -> np.ndarray:
    """[3]: the nodes of a panel between its ends."""
    return (low + high) / 2 + (high - low) / 2 * LOBATTO[1:-1]


def adaptive(path: Path, batch: int, tolerance: float, most: int) -> Integral:
    """The integral by panels of five Lobatto nodes, bisected until the sizes of their errors sum to `tolerance` of the change.

    A panel of 1/4096 of the path is not bisected again: where the metric still jumps within one (as it does next to embeddings
    of exactly zero, on every scale), more points do not help, and its change is left to the reported error.
    Each prompt has panels of its own, so that a batch gives what its prompts give one by one. The metric's values at the ends
    of a panel say exactly what its sum misses.

    Args:
        path: the slopes along the paths.
        batch: how many prompts.
        tolerance: wanted share of |f(1) - f(0)|.
        most: points a prompt, at most.
    """
    panels = _first_panels(path, batch)
    used = np.full(batch, FEWEST)
    while True:
        chosen = [_worst(panels[b], tolerance, int(most - used[b]) // FRESH) for b in range(batch)]
        if not any(chosen):
            break
        shares = np.ones((FRESH * AT_ONCE, batch))
        for b, some in enumerate(chosen):
            points = [nodes for i in some for nodes in panels[b][i].halves()]
            shares[: FRESH * len(some), b] = np.concatenate(points) if points else []
        values, parts = path(shares)
        for b, some in enumerate(chosen):
            halves = []
            for k, i in enumerate(some):
                rows = slice(FRESH * k, FRESH * (k + 1))
                halves += panels[b][i].bisected(values[rows, b], parts[rows, b])
            panels[b] = [panel for i, panel in enumerate(panels[b]) if i not in some] + halves
            used[b] += FRESH * len(some)
    ends = [sorted(row, key=lambda panel: panel.low) for row in panels]
    scores = np.stack([np.sum([panel.scores for panel in row], axis=0) for row in ends])
    return Integral(scores, np.asarray([row[0].values[0] for row in ends]), np.asarray([row[-1].values[-1] for row in ends]), used)


def _first_panels(path: Path, batch: int) -> list[list[Panel]]:
    """The panels that every prompt begins with, run in as many points as a round of bisections, so that one program does both."""
    spans = list(itertools.pairwise(FIRST_ENDS))
    nodes = np.concatenate([[0.0], *([*inner_nodes(low, high), high] for low, high in spans)])
    nodes = np.concatenate([nodes, np.ones(max(FRESH * AT_ONCE - len(nodes), 0))])
    values, parts = path(np.broadcast_to(nodes[:, None], (len(nodes), batch)))
    rows = [slice(4 * i, 4 * i + 5) for i in range(len(spans))]
    return [[Panel(*span, values[at, b], parts[at, b]) for span, at in zip(spans, rows, strict=True)] for b in range(batch)]


def _worst(panels: Sequence[Panel], tolerance: float, room: int) -> list[int]:
    """Which panels are bisected next: those with the largest errors, as long as all errors together are too large."""
    change = abs(sum(panel.change for panel in panels))
    errors = np.asarray([0.0 if panel.narrow else panel.error for panel in panels])
    order = np.argsort(-errors, kind="stable")
    left = errors.sum() - np.concatenate([[0.0], np.cumsum(errors[order])])  # if the first 0, 1, 2 ... were without error
    needed = int((left > tolerance * change).sum())
    return order[: min(needed, AT_ONCE, max(room, 0))].tolist()
