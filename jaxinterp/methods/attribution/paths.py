"""Integrated gradients of nodes: slopes gathered along a path between two runs, which saturation at one end cannot hide.

    path="activations"   estimate = (other - base) . integral over a of d metric / d activation at base + a (other - base),
                         one layer's site at a time, all of its nodes moved together
    path="inputs"        estimate = (other - base) . integral over a of d metric / d activation on the embeddings
                         embed_base + a (embed_other - embed_base)      (EAP-IG, Hanna et al. 2024, arXiv:2403.17806)

Along activations the estimates of a layer's nodes sum to what patching the layer's whole site does, a completeness whose error
is reported. Along inputs no such sum exists away from the embedding; what is reported is how well the points integrate the
metric's own change along the path.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.activations import Job, Over, by_run, places_of
from jaxinterp.methods.attribution.estimates import AttributionResult
from jaxinterp.methods.attribution.path_slopes import activation_path, cells_of, depth_of, input_path, summed, values_at
from jaxinterp.methods.attribution.points import chunk_size, embeddings
from jaxinterp.methods.attribution.quadrature import quadrature
from jaxinterp.methods.patching import Mode, Pair
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.sites import site_of
from jaxinterp.runs.run import pad_edit

Route = Literal["activations", "inputs"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "effects", "per_example", "clean", "corrupt", "missed", "change"],
    meta_fields=["axes", "mode", "how", "tokens", "call"],
)
@dataclasses.dataclass(frozen=True)
class PathResult(AttributionResult):
    """Estimates integrated along a path, with what the sum over its points misses.

    Attributes:
        missed: [layers B] (path="activations") or [B]: the metric's change along the path less the sum over the points.
        change: of the same shape, the metric's change along the path.
    """

    missed: Any = None
    change: Any = None

    @property
    def error(self) -> float:
        """The largest |missed|, as a share of the largest |change| of its prompt."""
        scale = np.abs(np.asarray(self.change)).reshape(-1, np.shape(self.change)[-1]).max(axis=0)
        return float((np.abs(np.asarray(self.missed)) / np.where(scale == 0, np.nan, scale)).max())


def integrated_attribution(
    lm: LanguageModel, clean: Prompts, corrupt: Prompts, metric: Any, site: str = "resid_pre", over: Over = ("layer", "position"),
    mode: Mode = "denoise", *, path: Route = "activations", steps: int = 8, at: Mapping[str, Any] | None = None, components: Any = None,
    edits: Sequence[Edit] = (), clean_edits: Sequence[Edit] = (), corrupt_edits: Sequence[Edit] = (), rules: Rules | None = None,
    bos: str | bool = "model", precision: str | None = "highest",
) -> PathResult:  # fmt: skip
    """Estimates every cell of a patching grid by slopes integrated along a path from the base run to the other.

    Equations and sources: see the module. Cost: path="activations" (steps + 1) forward and backward passes for each layer,
    batched; path="inputs" steps + 1 of them for all layers together. It misleads where the path leaves what the model knows, as a
    half of two activations may, and along activations a node's share of its layer's effect is not its effect alone.

    Args:
        lm: the model.
        clean: prompts of the behaviour, one or many.
        corrupt: as many prompts, each as long as its clean one.
        metric: what is differentiated.
        site: the site whose patching is estimated.
        over: axes of the grid, as for `ji.patch`.
        mode: "denoise": from the corrupt run to the clean one. "noise": the other way round.
        path: what moves, "activations" or "inputs".
        steps: Gauss-Legendre points of the path.
        at: as for `ji.patch`; all nodes of the site move, whatever cells select.
        components: as for `ji.patch`.
        edits: act in both runs.
        clean_edits: act in the run on the clean prompts only.
        corrupt_edits: likewise for the corrupt prompts.
        rules: what the backward pass holds constant.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        PathResult: an AttributionResult with `.missed` and `.error`.

    Raises:
        InputError: what `attribution_patch` refuses, or fewer than one step.

    Example:
        >>> found = ji.integrated_attribution(lm, clean, corrupt, difference, "z", over=("layer", "head"), path="inputs")
        >>> found.error
    """
    if path not in ("activations", "inputs") or steps < 1 or mode not in ("denoise", "noise"):
        raise InputError(
            f"path is {path!r}, steps {steps} and mode {mode!r}; expected 'activations' or 'inputs', at least 1, and 'denoise' or 'noise'."
        )
    pair = Pair.of(lm, clean, corrupt, None, mode, bos)
    places = places_of(lm, pair, {site: over}, dict(at or {}), components)
    if site_of(site, lm.config).axes.find("S") >= 0:
        raise InputError(f"integrated_attribution(): entries of {site!r} belong to other experts in the other run; use ji.patch.")
    job = Job.of(lm, pair, places, metric, by_run(mode, edits, clean_edits, corrupt_edits), rules or Rules(), "linear", "base", precision)
    run = _activations if path == "activations" else _inputs
    estimate, ends, missed, change = run(job, steps)
    grid = job.result(places[0], estimate, *ends, mode, False)
    made = {"estimator": f"integrated gradients along {path}", "steps": str(steps), "slopes": f"{steps} Gauss-Legendre points"}
    how = tuple((dict(grid.how) | made).items())
    fields: dict[str, Any] = {field.name: getattr(grid, field.name) for field in dataclasses.fields(grid)} | {"how": how}
    return PathResult(**fields, missed=missed, change=change)


def _points(steps: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and their weights, and the end of the path, which has none."""
    nodes, weights = quadrature(steps, "linear", "gauss_legendre")
    return np.append(nodes, 1.0).astype(dtype), np.append(weights, 0.0).astype(dtype)


def _runs(job: Job, sites: tuple[str, ...]) -> tuple[tuple[Edit, ...], Any, Any]:
    """Edits of the base run, and the sites' values and the metric of the base and of the other run."""
    config, size, width = job.lm.config, job.pair.base.ids.shape[1], job.base.ids.shape[1]
    own = tuple(pad_edit(edit, size, width, config) for edit in job.edits)
    others = own if job.other_edits is None else tuple(pad_edit(edit, size, width, config) for edit in job.other_edits)
    fixed: dict[str, Any] = {"config": config, "precision": job.precision}
    ours, theirs = (
        values_at(job.lm.params, tokens, job.metric, acting, sites=sites, **fixed)
        for tokens, acting in ((job.base, own), (job.other, others))
    )
    job.metric.check_slope(np.asarray(ours[1]))
    return own, ours, theirs


def _activations(job: Job, steps: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Estimates [C B], the metric of both runs, what each layer's sum misses [layers B], and each layer's change."""
    (grid,), lm = job.grids, job.lm
    own, (_, base), (theirs, other) = _runs(job, (grid.site,))
    nodes, weights = _points(steps, base.dtype)
    depth, n = depth_of(grid, lm.config), len(nodes)
    layers = np.repeat(np.arange(depth, dtype=np.int32), n)
    program = functools.partial(
        activation_path, lm.params, job.base, job.metric, grid, theirs[grid.site], own, job.rules, config=lm.config, precision=job.precision
    )
    size = chunk_size(lm, job.base.ids.shape, depth * n, True)
    sums, values, slopes = summed(program, (layers, np.tile(nodes, depth)), np.tile(weights, depth), size)
    value = sums if site_of(grid.site, lm.config).per_layer else sums[0]
    estimate = np.asarray(cells_of(grid, value, config=lm.config))
    change = values.reshape(depth, n, -1)[:, -1] - np.asarray(base)
    missed = change - np.einsum("n,lnB->lB", weights, slopes.reshape(depth, n, -1))
    return estimate.reshape(-1, estimate.shape[-1]), (np.asarray(base), np.asarray(other)), missed, change


def _inputs(job: Job, steps: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Estimates [C B], the metric of both runs, what the sum over the path misses [B], and the metric's change along it."""
    (grid,), lm = job.grids, job.lm
    own, (ours, base), (theirs, other) = _runs(job, (grid.site,))
    start, end = (embeddings(lm.params, tokens, config=lm.config, dtype=None, precision=job.precision) for tokens in (job.base, job.other))
    nodes, weights = _points(steps, base.dtype)
    program = functools.partial(
        input_path, lm.params, job.base, job.metric, job.grids, {grid.site: theirs[grid.site] - ours[grid.site]}, start, end, own,
        job.rules, config=lm.config, precision=job.precision, kind="given",
    )  # fmt: skip
    sums, values, slopes = summed(program, (nodes,), weights, chunk_size(lm, job.base.ids.shape, len(nodes), True))
    estimate = np.asarray(cells_of(grid, sums[grid.site], config=lm.config))
    change = values[-1] - np.asarray(base)
    return estimate.reshape(-1, estimate.shape[-1]), (np.asarray(base), np.asarray(other)), change - weights @ slopes, change
