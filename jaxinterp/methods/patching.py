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
from typing import Any, Literal

import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.selection import SELECTORS, axis_of, check_selection, pick
from jaxinterp.model.sites import Site, check_site
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.cells import FromRun
from jaxinterp.runs.results import GridResult
from jaxinterp.runs.sweep import run_cells


def patch(
    lm: LanguageModel,
    clean: Prompts,
    corrupt: Prompts,
    metric: Any,
    site: str = "resid_pre",
    over: Sequence[str] | Mapping[str, Sequence[int]] = ("layer", "position"),
    mode: Literal["denoise", "noise"] = "denoise",
    *,
    at: Mapping[str, Any] | None = None,
    edits: Sequence[Edit] = (),
    batch_size: int | None = None,
    bos: str | bool = "model",
    precision: str | None = "highest",
) -> GridResult:
    """Patches every cell of a grid at one site.

    Args:
        lm: the model.
        clean: prompts of the behaviour, one or many.
        corrupt: as many prompts, each of the length of its clean one.
        metric: what is measured, such as `ji.metrics.logit_difference(" Mary", " John")`.
        site: the site that is patched.
        over: axes of the grid by selector ("layer", "position", "head", "neuron", "query", "key", "expert"), or {axis: the
            indices to visit}. What is not an axis is patched as a whole.
        mode: "denoise" patches clean values into the corrupt run, "noise" the other way round.
        at: fixed selections beside the axes, such as {"position": -1}.
        edits: act in both runs and in every cell, before the patch.
        batch_size: cells run at once; None fits them to memory.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A GridResult: `.values` and `.effects` on the axes of `over`, `.per_example` [B ...], `.clean` and `.corrupt` [B].

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
    good, bad = lm.to_tokens(clean, bos=bos), lm.to_tokens(corrupt, bos=bos)
    _check_pairs(good, bad)
    width = max(good.ids.shape[1], bad.ids.shape[1])
    good, bad = good.padded(width), bad.padded(width)
    place = check_site(site, lm.config)
    grid = _grid(place, over, lm, good)
    base, other = (bad, good) if mode == "denoise" else (good, bad)
    ndim = len(place.axes)
    cells = []
    for point in itertools.product(*grid.values()):
        made = edit_makers.replace(site, np.zeros((1,) * ndim), **(dict(at or {}) | dict(zip(grid, point, strict=True))))
        cells.append([dataclasses.replace(made, arguments=(FromRun(site, ndim),))])
    found = run_cells(
        lm, base, other, cells, metric, same_until=_same_until(base, other), edits=edits, other_edits=edits, batch_size=batch_size,
        precision=precision,
    )  # fmt: skip
    per_example = found.values.T.reshape(-1, *(len(points) for points in grid.values()))
    values = _mean(per_example)
    assert found.other is not None
    start, end = float(found.base.mean()), float(found.other.mean())
    if start == end:
        raise InputError(f"The metric is {start:.4g} on the clean and on the corrupt prompts, so effects have no scale.")
    sides = (found.other, found.base) if mode == "denoise" else (found.base, found.other)
    axes = tuple((name, tuple(points)) for name, points in grid.items())
    how = (("site", site), *found.how[:-1], ("bos", good.bos))
    return GridResult(values, (values - start) / (end - start), per_example, *sides, axes, mode, how)


def _mean(per_example: np.ndarray) -> np.ndarray:
    """The mean over prompts that have the cell; NaN where none has."""
    there = ~np.isnan(per_example)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, per_example, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _check_pairs(clean: Tokens, corrupt: Tokens) -> None:
    a, b = np.asarray(clean.lengths), np.asarray(corrupt.lengths)
    if len(a) != len(b):
        raise InputError(f"There are {len(a)} clean and {len(b)} corrupt prompts; expected as many of both.")
    if (a != b).any():
        pair = int((a != b).argmax())
        raise InputError(f"Pair {pair} has {a[pair]} clean and {b[pair]} corrupt tokens; the prompts of a pair must have one length.")


def _same_until(base: Tokens, other: Tokens) -> np.ndarray:
    """[B]: the first position at which two batches differ; before it their runs are equal."""
    rows = []
    for ids, mask, ids_b, mask_b in zip(base.ids, base.mask, other.ids, other.mask, strict=True):
        different = np.asarray(ids)[np.asarray(mask)] != np.asarray(ids_b)[np.asarray(mask_b)]
        rows.append(int(different.argmax()) if different.any() else len(different))
    return np.asarray(rows)


def _grid(site: Site, over: Sequence[str] | Mapping[str, Sequence[int]], lm: LanguageModel, tokens: Tokens) -> dict[str, list[int]]:
    """The indices of each axis, checked."""
    names = [over] if isinstance(over, str) else list(over)
    sizes = lm.config.axis_sizes | {axis: int(np.asarray(tokens.lengths).max()) for axis in "PQK"} | {"B": tokens.ids.shape[0]}
    grid = {}
    for name in names:
        axis = axis_of(name, site.axes) if name in SELECTORS else -1
        if axis < 0:
            usable = [n for n, letters in SELECTORS.items() if set(letters) & set(site.axes)]
            raise InputError(f"patch(): site {site.name!r} has no axis {name!r}; it has {', '.join(usable)}.")
        if name == "expert" and "S" in site.axes:
            sizes["S"] = sizes["X"]
        whole = list(site.layers(lm.config)) if name == "layer" else list(range(sizes[site.axes[axis]]))
        grid[name] = [int(i) for i in over[name]] if isinstance(over, Mapping) else whole
        if not grid[name]:
            raise InputError(f"patch(): axis {name!r} has no indices.")
        if name not in ("position", "query", "key"):
            check_selection(pick(**{name: grid[name]}), None, site, lm.config, tokens, "patch()")
        elif max(grid[name]) >= sizes["P"] or min(grid[name]) < -sizes["P"]:
            raise InputError(f"patch(): {name} {max(grid[name], key=abs)} is out of range; the longest prompt has {sizes['P']} tokens.")
    return grid
