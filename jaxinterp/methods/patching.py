"""Activation patching: which activations carry what differs between two prompts (Meng et al. 2022, arXiv:2202.05262).

A cell of the grid runs one prompt with one activation taken from the run on the other:

    denoise    run corrupt, patch in clean:     effect = (metric - corrupt) / (clean - corrupt)
    noise      run clean, patch in corrupt:     effect = (metric - clean) / (corrupt - clean)

Exact: no approximation, every cell is a run. Cost: one program for the whole grid, which computes only what each cell
changes (`runs.engine`). Misleads where a component's absence is made up for by others (self-repair), and where the
corrupt prompt changes more than what is asked about.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.grid import Axis, Points, axes_of, component_masks, strings_of
from jaxinterp.methods.pairs import check_pairs, same_until
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.sites import Site, check_site
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.cells import FromRun
from jaxinterp.runs.measure import Measured, run_cells
from jaxinterp.runs.results import GridResult, grid_result, stacked

Mode = Literal["denoise", "noise"]


def patch(
    lm: LanguageModel,
    clean: Prompts,
    corrupt: Prompts,
    metric: Any,
    site: str = "resid_pre",
    over: Sequence[str] | Mapping[str, Points] = ("layer", "position"),
    mode: Mode = "denoise",
    *,
    sites: Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    components: Any = None,
    position_map: Any = None,
    edits: Sequence[Edit] = (),
    clean_edits: Sequence[Edit] = (),
    corrupt_edits: Sequence[Edit] = (),
    batch_size: int | None = None,
    out: str | Path | None = None,
    bos: str | bool = "model",
    precision: str | None = "highest",
) -> Any:
    """Patches every cell of a grid.

    Args:
        lm: the model.
        clean: prompts of the behaviour, one or many.
        corrupt: as many prompts; without a `position_map` each has as many tokens as its clean one.
        metric: what is measured, such as `ji.metrics.logit_difference(" Mary", " John")`; or {name: metric}.
        site: the site that is patched.
        over: axes of the grid by selector ("layer", "position", "head", "neuron", "query", "key", "expert"), or {axis: the
            indices to visit}. Positions may be named by role, {"position": {"S2": [B], "END": [B]}}, each prompt's own. What
            is not an axis is patched as a whole.
        mode: "denoise" patches clean values into the corrupt run, "noise" the other way round.
        sites: several sites, each swept over the same axes; the result's first axis is then "site".
        at: fixed selections beside the axes, such as {"position": -1} or {"position": an array [B n]}.
        components: a list (or {name: ...}) of sets of components that are patched together, one cell each: `ji.heads(...)`,
            masks [L H] (at a site without heads [L]). They are an axis "component", before those of `over`, which is then
            empty unless given as a mapping.
        position_map: [B P], for each position of a clean prompt the corrupt position that corresponds to it, -1 for none (a
            list a pair will do). Positions are then those of the prompt that is run; those without a counterpart are NaN.
        edits: act in both runs and in every cell, before the patch.
        clean_edits: act in the run on the clean prompts only (and in its cells under "noise").
        corrupt_edits: likewise for the corrupt prompts.
        batch_size: cells run at once; None fits them to memory.
        out: a folder that keeps finished chunks; the same call goes on from them after a crash or Ctrl-C.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A GridResult: `.values` and `.effects` on the axes of the grid, `.per_example` [B ...], `.clean` and `.corrupt` [B].
        With several metrics, {name: GridResult}.

    Raises:
        InputError: prompts that do not pair up, a site or axis that the model lacks, indices out of range, or runs whose
            metric is the same on both sides, so that effects have no scale.

    Example:
        >>> result = ji.patch(lm, clean, corrupt, ji.metrics.logit_difference(" Mary", " John"), "z", over=("layer", "head"))
        >>> result.effects.shape
        (30, 9)
    """
    if mode not in ("denoise", "noise"):
        raise InputError(f"mode is {mode!r}; expected 'denoise' or 'noise'.")
    pair = Pair.of(lm, clean, corrupt, position_map, mode, bos)
    own, others = (corrupt_edits, clean_edits) if mode == "denoise" else (clean_edits, corrupt_edits)
    edited = bool(clean_edits or corrupt_edits)
    options = {
        "edits": (*edits, *own), "other_edits": (*edits, *others) if edited else None, "align": pair.align,
        "batch_size": batch_size, "precision": precision,
        "same_until": None if edited else same_until(pair.base, pair.other, lm.config, pair.align),
    }  # fmt: skip
    if components is not None and not isinstance(over, Mapping):
        over = ()
    found = []
    for name in sites or (site,):
        place = check_site(name, lm.config)
        axes = axes_of("patch()", place, over, lm, pair.base)
        masks = component_masks("patch()", components, place, lm.config)
        folder = None if out is None else Path(out) / name if sites else out
        check_edits([edit_makers.zero(name, **dict(at or {}))], lm.config, pair.base)
        cells = _cells(place, axes, masks, dict(at or {}), pair.mapped)
        measured = run_cells(lm, pair.base, pair.other, cells, metric, **options, out=folder, title=f"patching {name}")
        labels = tuple((axis.name, axis.labels) for axis in ([masks] if masks else []) + axes)
        found.append(_results(measured, pair, labels, mode, (("site", name), ("bos", pair.base.bos)), strings_of(lm, pair.base)))
    if sites is None:
        return found[0]
    if isinstance(found[0], dict):
        return {key: stacked([result[key] for result in found], "site", tuple(sites)) for key in found[0]}
    return stacked(found, "site", tuple(sites))


def _cells(site: Site, axes: Sequence[Axis], masks: Axis | None, at: dict[str, Any], mapped: np.ndarray | None) -> list[list[Edit]]:
    """The patch of each cell: at its coordinates, where its components and mapped positions are."""
    twice = [axis.name for axis in axes if axis.name in at]
    if twice:
        raise InputError(f"patch(): {twice[0]!r} is in `over` and in `at`.")
    ndim, cells = len(site.axes), []
    everywhere = mapped_mask(site, mapped)
    for where in masks.values if masks else (None,):
        both = where if everywhere is None or where is None else np.logical_and(*np.broadcast_arrays(where, everywhere))
        mask = everywhere if where is None else both
        for point in itertools.product(*(axis.values for axis in axes)):
            chosen = at | {axis.name: value for axis, value in zip(axes, point, strict=True)}
            made = edit_makers.replace(site.name, np.zeros((1,) * ndim), where=mask, **chosen)
            cells.append([dataclasses.replace(made, arguments=(FromRun(site.name, ndim),))])
    return cells


def mapped_mask(site: Site, mapped: np.ndarray | None) -> np.ndarray | None:
    """Positions that take a value, as a mask over all axes of a site; None where all do."""
    if mapped is None:
        return None
    if "P" not in site.axes:
        raise InputError(f"patch(): a position_map cannot be used at site {site.name!r}, which has the axes {' '.join(site.axes)}.")
    shape = [1] * len(site.axes)
    shape[site.axes.index("B")], shape[site.axes.index("P")] = mapped.shape
    return mapped.reshape(shape)


def _results(
    found: Any, pair: "Pair", axes: tuple[tuple[str, tuple[Any, ...]], ...], mode: str, how: tuple[tuple[str, str], ...],
    tokens: tuple[str, ...],
) -> Any:  # fmt: skip
    def one(measured: Measured) -> GridResult:
        values = measured.values
        if pair.mapped is not None:
            values = pair.without_unmapped(values, axes)
        return grid_result(values, measured.base, measured.other, axes, mode, (*how, *measured.how), tokens)

    return {name: one(measured) for name, measured in found.items()} if isinstance(found, dict) else one(found)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The prompts that are run and those whose values are patched in.

    Attributes:
        base: the prompts that cells run.
        other: the others, of the same padded length.
        align: [B P], for each position of a base prompt the other's, -1 for none; None where they agree.
        mapped: [B P], which positions have a counterpart; None where all do.
    """

    base: Tokens
    other: Tokens
    align: np.ndarray | None
    mapped: np.ndarray | None

    @classmethod
    def of(cls, lm: LanguageModel, clean: Prompts, corrupt: Prompts, position_map: Any, mode: str, bos: str | bool) -> "Pair":
        """Pairs the prompts up."""
        good, bad = lm.to_tokens(clean, bos=bos), lm.to_tokens(corrupt, bos=bos)
        a, b = np.asarray(good.lengths), np.asarray(bad.lengths)
        check_pairs(good, bad, mapped=position_map is not None, hint=", or a position_map must say which positions correspond")
        width = max(good.ids.shape[1], bad.ids.shape[1])
        good, bad = good.padded(width), bad.padded(width)
        base, other = (bad, good) if mode == "denoise" else (good, bad)
        if position_map is None:
            return cls(base, other, None, None)
        forward = _position_map(position_map, a, b, width)
        align = forward if mode == "noise" else _inverse(forward)
        real = np.arange(width)[None] < np.asarray(base.lengths)[:, None]
        return cls(base, other, align, (align >= 0) & real)

    def without_unmapped(self, values: np.ndarray, axes: tuple[tuple[str, tuple[Any, ...]], ...]) -> np.ndarray:
        """[C B] with NaN where a cell's only position has no counterpart."""
        assert self.mapped is not None
        names = [name for name, _ in axes]
        if "position" not in names:
            return values
        shape = [len(labels) for _, labels in axes]
        where = names.index("position")
        out = values.reshape(*shape, values.shape[1]).copy()
        lengths = np.asarray(self.base.lengths)
        for i, position in enumerate(axes[where][1]):
            if isinstance(position, str):
                continue
            column = np.where(position < 0, lengths + position, position)
            inside = (column >= 0) & (column < self.mapped.shape[1])
            lacking = ~(inside & self.mapped[np.arange(len(lengths)), np.clip(column, 0, self.mapped.shape[1] - 1)])
            index: list[Any] = [slice(None)] * len(shape)
            index[where] = i
            out[(*index, lacking)] = np.nan
        return out.reshape(values.shape)


def _position_map(given: Any, clean: np.ndarray, corrupt: np.ndarray, width: int) -> np.ndarray:
    """[B P] of corrupt positions for clean ones, -1 for none, checked."""
    rows = [np.asarray(row) for row in given]
    if len(rows) != len(clean) or any(row.ndim != 1 or row.dtype.kind not in "iu" for row in rows):
        raise InputError(f"position_map: expected a list of whole numbers for each of the {len(clean)} pairs.")
    out = np.full((len(rows), width), -1, np.int32)
    for pair, row in enumerate(rows):
        used = row[: clean[pair]]
        real = used[used >= 0]
        if len(row) < clean[pair] or (real >= corrupt[pair]).any() or (used < -1).any():
            raise InputError(
                f"position_map: pair {pair} has {clean[pair]} clean and {corrupt[pair]} corrupt tokens; expected for each clean position "
                f"one of 0 to {corrupt[pair] - 1}, or -1; got {row.tolist()}."
            )
        if len(set(real.tolist())) < len(real):
            raise InputError(f"position_map: pair {pair} maps two clean positions to one corrupt position: {row.tolist()}.")
        out[pair, : len(used)] = used
    return out


def _inverse(forward: np.ndarray) -> np.ndarray:
    """[B P]: the clean position of each corrupt one, -1 for none."""
    out = np.full_like(forward, -1)
    rows, columns = np.nonzero(forward >= 0)
    out[rows, forward[rows, columns]] = columns
    return out
