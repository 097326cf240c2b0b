"""Layer conductance and internal influence: how much of a metric's change from a baseline flows through each node inside the model.

    layer conductance     sum over a of w  d metric / d y . d y / d a      (Dhamdhere et al. 2018, arXiv:1805.12233)
    internal influence    sum over a of w  d metric / d y                  (Leino et al. 2018, arXiv:1802.03788)

on the embeddings x' + a (x - x') of a straight path from a baseline x' to the prompt x, y being the node. The conductances of all
nodes of a cut through the model (a residual stream at all positions) sum to metric(x) - metric(x'): what the sum over points
misses of that is reported. Cost: a forward, a backward and a forward-mode pass a point, batched. They mislead as every
integral along such a path does: its points are embeddings of no text, and the answer is relative to the baseline.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.activations import Over
from jaxinterp.methods.attribution.baselines import baseline_of
from jaxinterp.methods.attribution.cells import beyond, select
from jaxinterp.methods.attribution.path_slopes import cells_of, input_path, summed
from jaxinterp.methods.attribution.points import Case, chunk_size
from jaxinterp.methods.attribution.quadrature import quadrature
from jaxinterp.methods.grid import axes_of, component_masks
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.edits import check_edits
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.sites import check_site
from jaxinterp.runs.results import mean_of


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["scores", "per_example", "values", "baseline", "missed"],
    meta_fields=["axes", "how", "tokens"],
)
@dataclasses.dataclass(frozen=True)
class PathScores:
    """Scores of nodes along a path from a baseline to prompts; arrays have the axes of `axes`, in order.

    Attributes:
        scores: the mean over the prompts that have the cell.
        per_example: [B, ...]; NaN where a prompt does not have the cell's position.
        values: [B], the metric of each prompt.
        baseline: [B], the metric of the baseline.
        missed: [B], what the sum over the path's points misses of values - baseline.
        axes: (name, labels) of each axis.
        how: how it was made.
        tokens: token strings of the first prompt, where it is the only one.
    """

    scores: Any
    per_example: Any
    values: Any
    baseline: Any
    missed: Any
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    how: tuple[tuple[str, str], ...]
    tokens: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """The largest |missed| as a share of its prompt's |values - baseline|."""
        change = np.abs(np.asarray(self.values) - np.asarray(self.baseline))
        return float((np.abs(np.asarray(self.missed)) / np.where(change == 0, np.nan, change)).max())

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(labels)} {name}" for name, labels in self.axes)
        return f"{dict(self.how)['method']}({shape}, site={dict(self.how)['site']}, error {self.error:.2%})"

    def view(self, title: str = "") -> Any:
        """The scores as a heat-map of the last two axes, the first point of the others."""
        from jaxinterp.views import heatmap

        axes: list[Any] = list(self.axes) if len(self.axes) > 1 else [("", ("",)), *self.axes]
        (rows, row_labels), (columns, column_labels) = axes[-2:]
        labels = {rows: list(map(str, row_labels)), columns: self._shown(columns, column_labels)}
        values = np.asarray(self.scores, np.float64).reshape(-1, len(row_labels), len(column_labels))[0]
        return heatmap(title or f"{dict(self.how)['method']} at {dict(self.how)['site']}", values, (rows, columns), labels=labels)

    def _shown(self, name: str, labels: tuple[Any, ...]) -> list[str]:
        named = self.tokens if name == "position" else ()
        return [
            f"{label} {named[label]}" if isinstance(label, int) and -len(named) <= label < len(named) else str(label) for label in labels
        ]

    def show(self) -> None:
        """Prints the heat-map in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors, with axes and provenance in its header), or the picture (.html, .png, .json, .txt)."""
        from safetensors.numpy import save_file

        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ("scores", "per_example", "values", "baseline", "missed")}
        axes = json.dumps([[name, [str(label) for label in labels]] for name, labels in self.axes])
        save_file(arrays, str(path), metadata={"axes": axes, **dict(self.how)})
        return Path(path)


def layer_conductance(
    lm: LanguageModel, prompts: Prompts, metric: Any, site: str = "resid_post", over: Over = ("layer", "position"), *,
    baseline: Any = "zero", steps: int = 32, at: Mapping[str, Any] | None = None, components: Any = None, rules: Rules | None = None,
    bos: str | bool = "model", precision: str | None = "highest",
) -> PathScores:  # fmt: skip
    """The part of metric(prompt) - metric(baseline) that flows through each node of a site.

    score = integral over a of d metric / d y . d y / d a. Source: Dhamdhere et al. 2018, arXiv:1805.12233. Cost and when it
    misleads: see the module.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is explained.
        site: where.
        over: axes of the grid, as for `ji.patch`: scores of what is not an axis are summed.
        baseline: "zero", "mean", "pad", a token's id, prompts as long as these (such as corrupt ones), or embeddings.
        steps: Gauss-Legendre points of the path.
        at: selections that all cells share, as for `ji.patch`.
        components: sets of components, as for `ji.patch`.
        rules: what the backward pass holds constant.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        PathScores, with `.error`.

    Raises:
        InputError: a site or axis that the model lacks, a baseline that does not fit, a metric without a slope, or no step.

    Example:
        >>> ji.layer_conductance(lm, clean, difference, "mlp_post", ("layer", "neuron"), baseline=corrupt).scores.shape
        (30, 1536)
    """
    return _scores("layer conductance", "tangent", lm, prompts, metric, site, over, baseline, steps, at, components, rules, bos, precision)


def internal_influence(
    lm: LanguageModel, prompts: Prompts, metric: Any, site: str = "mlp_post", over: Over = ("layer", "neuron"), *,
    baseline: Any = "zero", steps: int = 32, at: Mapping[str, Any] | None = None, components: Any = None, rules: Rules | None = None,
    bos: str | bool = "model", precision: str | None = "highest",
) -> PathScores:  # fmt: skip
    """The mean slope of a metric at each node over a path from a baseline to the prompt: the distribution of interest is that path.

    score = integral over a of d metric / d y, summed over what the cell selects. Source: Leino et al. 2018, arXiv:1802.03788. A
    slope says what a change would do, not what the node's activation did: cells that are single numbers (neurons) can be read,
    sums over a direction's coordinates can hardly be. Arguments, cost and errors as for `layer_conductance`.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is explained.
        site: where.
        over: axes of the grid.
        baseline: as for `layer_conductance`, as are the others.
        steps: points of the path.
        at: shared selections.
        components: sets of components.
        rules: of the backward pass.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        PathScores; `.error` is that of the path's integral of the metric.

    Raises:
        InputError: as for `layer_conductance`.

    Example:
        >>> ji.internal_influence(lm, clean, difference, baseline=corrupt).scores.shape
        (30, 1536)
    """
    return _scores("internal influence", "one", lm, prompts, metric, site, over, baseline, steps, at, components, rules, bos, precision)


def _scores(
    method: str, kind: str, lm: LanguageModel, prompts: Prompts, metric: Any, site: str, over: Over, baseline: Any, steps: int,
    at: Mapping[str, Any] | None, components: Any, rules: Rules | None, bos: str | bool, precision: str | None,
) -> PathScores:  # fmt: skip
    place, what = check_site(site, lm.config), method.replace(" ", "_") + "()"
    case, start, name = prepared(lm, prompts, metric, baseline, steps, bos, precision)
    over = () if components is not None and not isinstance(over, Mapping) else over
    axes, sets = axes_of(what, place, over, lm, case.tokens), component_masks(what, components, place, lm.config)
    check_edits([edit_makers.zero(site, **dict(at or {}))], lm.config, case.tokens)
    grid = select(place, axes, sets, dict(at or {}), None, case.batch, lm.config)
    if grid.chooses(lm.config):
        raise InputError(f"{what}: the experts of {site!r} are other ones at each point of the path, so they are no axis here.")
    nodes, weights = quadrature(steps, "linear", "gauss_legendre")
    nodes, weights = np.append(nodes, [1, 0]).astype(case.x.dtype), np.append(weights, [0, 0]).astype(case.x.dtype)
    program = functools.partial(
        input_path, lm.params, case.batch, case.metric, (grid,), {}, start, case.x, (), rules or Rules(), config=lm.config,
        precision=precision, kind=kind,
    )  # fmt: skip
    sums, values, slopes = summed(program, (nodes,), weights, chunk_size(lm, case.shape, len(nodes), True))
    case.metric.check_slope(values[-2])
    cells = np.array(cells_of(grid, sums[site], config=lm.config))
    cells = np.where(beyond(axes, sets, dict(at or {}), np.asarray(case.tokens.lengths)), np.nan, cells.reshape(-1, cells.shape[-1]))
    labels = tuple((axis.name, axis.labels) for axis in ([sets] if sets else []) + axes)
    per_example = cells.T.reshape(-1, *(len(names) for _, names in labels))
    how = (
        ("method", method), ("site", site), ("baseline", name), ("steps", str(steps)), ("bos", case.tokens.bos),
        ("rules", repr(rules or Rules())),
    )  # fmt: skip
    strings = tuple(lm.to_strings(case.tokens)[0]) if lm.tokenizer is not None and len(per_example) == 1 else ()
    missed = values[-2] - values[-1] - weights @ slopes
    return PathScores(mean_of(per_example), per_example, values[-2], values[-1], missed, labels, how, strings)


def prepared(
    lm: LanguageModel, prompts: Prompts, metric: Any, baseline: Any, steps: int, bos: str | bool, precision: str | None
) -> tuple[Case, Any, str]:
    """What is explained, the baseline's embeddings and their name."""
    if steps < 1:
        raise InputError(f"steps is {steps}; expected at least 1.")
    case = Case.of(lm, prompts, metric, None, bos=bos, precision=precision)
    case.metric.check_slope(None)
    return case, *baseline_of(case, baseline)
