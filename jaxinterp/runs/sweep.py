"""sweep: a grid of edited runs in one compiled program, exactly, at close to the fewest operations that it needs."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.selection import POSITIONAL
from jaxinterp.model.tokens import Tokens, check_ids
from jaxinterp.runs.cells import Reach, gather_cells, lay_out, reach
from jaxinterp.runs.engine import can_pack, packed_program, whole_program
from jaxinterp.runs.plan import free_memory
from jaxinterp.runs.program import bucket
from jaxinterp.runs.results import GridResult

BUDGET = 1 << 30  # bytes of temporaries that a chunk of cells may take, at most a third of what is free


def sweep(
    lm: LanguageModel,
    prompts: Prompts,
    metric: Any,
    make_edits: Callable[..., Sequence[Edit] | Edit],
    over: Mapping[str, Sequence[Any]],
    *,
    edits: Sequence[Edit] = (),
    batch_size: int | None = None,
    bos: str | bool = "model",
    precision: str | None = "highest",
) -> GridResult:
    """Runs every cell of a product grid of coordinates, each with its own edits, in one compiled program.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: a metric; strings are bound here.
        make_edits: coordinates (by name) -> edits of that cell. Called once a cell with plain values; all cells must make
            edits of one form, so that only the values of their arrays differ.
        over: {name: values} of the grid's axes.
        edits: base edits that act in the base run and in every cell, before the cell's own.
        batch_size: cells run at once; None fits them to memory.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A GridResult; `effects` are values - base.

    Raises:
        InputError: an empty grid, edits of different forms, or edits that do not fit the model.

    Example:
        >>> silence = lambda layer, head: ji.edits.zero("z", layer=layer, head=head)
        >>> ji.sweep(lm, prompt, metric, silence, {"layer": range(30), "head": range(9)}).effects.shape
    """
    tokens = lm.to_tokens(prompts, bos=bos)
    grid = {name: list(values) for name, values in over.items()}
    if not grid or not all(grid.values()):
        raise InputError("sweep(): the grid is empty; give at least one axis with at least one value.")
    cells = []
    for point in itertools.product(*grid.values()):
        made = make_edits(**dict(zip(grid, point, strict=True)))
        cells.append([made] if isinstance(made, Edit) else list(made))
        check_edits([*edits, *cells[-1]], lm.config, tokens)
    found = run_cells(lm, tokens, None, cells, metric, edits=edits, batch_size=batch_size, precision=precision)
    shape = tuple(len(values) for values in grid.values())
    per_example = found.values.T.reshape(-1, *shape)
    values = per_example.mean(axis=0)
    axes = tuple((name, tuple(points)) for name, points in grid.items())
    return GridResult(values, values - found.base.mean(), per_example, found.base, None, axes, "sweep", found.how)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A metric of every cell [C B], of the base run [B] and of the other run [B] (or None), and how it was made."""

    values: np.ndarray
    base: np.ndarray
    other: np.ndarray | None
    how: tuple[tuple[str, str], ...]


def run_cells(
    lm: LanguageModel,
    base: Tokens,
    other: Tokens | None,
    cells: Sequence[Sequence[Edit]],
    metric: Any,
    *,
    same_until: np.ndarray | None = None,
    edits: Sequence[Edit] = (),
    other_edits: Sequence[Edit] = (),
    batch_size: int | None = None,
    precision: str | None = "highest",
) -> Measured:
    """The engine's door: cells of one form over base prompts, with values from another run where edits ask for them.

    Args:
        lm: the model.
        base: prompts that cells edit.
        other: prompts whose values cells write (`cells.FromRun`), of the same shape; or None.
        cells: edits of each cell.
        metric: bound here to the base prompts.
        same_until: [B], positions before which both runs are equal.
        edits: of the base run, and so of every cell.
        other_edits: of the other run.
        batch_size: cells run at once.
        precision: as for `run`.
    """
    check_ids(base, lm.config.d_vocab, lm.config.n_ctx)
    bound = metric if metric.bound else metric.bind(lm, base)
    width = bucket(base.ids.shape[1], lm.config.n_ctx)
    base = base.padded(width).arrays_only()
    other = None if other is None else other.padded(width).arrays_only()
    every = [edit for group in (edits, other_edits, cells[0]) for edit in group]
    packed = can_pack(every, [bound], lm.config)
    found = reach(cells, lm.config, base, same_until)
    columns = _columns(bound, base, lm) if packed else None
    order = np.argsort(found.start, kind="stable")
    gathered = gather_cells(cells)
    values = np.empty((len(cells), base.ids.shape[0]), np.float32)
    ours = theirs = None
    for chunk in _chunks(order, found, lm, base, packed, batch_size):
        part = gathered.take(chunk)
        fixed: dict[str, Any] = {"config": lm.config, "precision": precision}
        given = (tuple(edits), tuple(other_edits), (bound,))
        if packed and columns is not None:
            layout = lay_out(Reach(found.start[chunk], found.first[chunk]), base, columns, lm.config.n_layers)
            out, ours, theirs = packed_program(lm.params, base, other, part, layout, *given, **fixed)
        else:
            first = min(int(found.start[chunk].min()), lm.config.n_layers)
            out, ours, theirs = whole_program(lm.params, base, other, part, *given, **fixed, start=first)
        values[chunk] = np.asarray(out[0])
    assert ours is not None
    values[_beyond(cells, np.asarray(base.lengths))] = np.nan
    how = (("cells", str(len(cells))), ("run", "packed" if packed else "whole runs"), ("bos", base.bos))
    return Measured(values, np.asarray(ours[0]), None if theirs is None else np.asarray(theirs[0]), how)


def _columns(metric: Any, tokens: Tokens, lm: LanguageModel) -> np.ndarray:
    """[B n]: the columns of the tokens that a metric reads."""
    columns = np.asarray(metric.reads(tokens, lm.config)[0])
    return np.broadcast_to(columns, (tokens.ids.shape[0], columns.shape[1]))


def _chunks(order: np.ndarray, found: Reach, lm: LanguageModel, base: Tokens, packed: bool, batch_size: int | None) -> list[np.ndarray]:
    """Cells in the order of their first layer, in chunks whose temporaries fit the budget."""
    config = lm.config
    width = base.ids.shape[1]
    wide = 4 if jax.tree.leaves(lm.params)[0].dtype.itemsize <= 4 else 8
    tokens = np.maximum(np.asarray(base.lengths)[None] - found.first, 0).sum(axis=1) if packed else np.full(len(order), base.ids.size)
    neurons = config.axis_sizes["M"] * max(config.axis_sizes["S"], 1)
    a_token = wide * (8 * config.d_model + 4 * neurons + 4 * config.n_heads * config.d_head + 3 * config.n_heads * width)
    a_cell = wide * base.ids.shape[0] * width * 2 * config.n_kv_heads * config.d_head
    free, _ = free_memory()
    budget = min(BUDGET, (free or BUDGET * 3) // 3)
    cost = np.cumsum(tokens[order] * a_token + a_cell)
    pieces = np.ceil(cost / budget).astype(int) if batch_size is None else np.arange(len(order)) // max(batch_size, 1)
    return [order[pieces == piece] for piece in np.unique(pieces)]


def _beyond(cells: Sequence[Sequence[Edit]], lengths: np.ndarray) -> np.ndarray:
    """[C B]: cells none of whose selected positions a prompt has."""
    out = np.zeros((len(cells), len(lengths)), bool)
    for number, edits in enumerate(cells):
        for edit in edits:
            for name in POSITIONAL:
                if name in edit.select:
                    index = np.asarray(edit.select[name])
                    index = index.reshape(1, -1) if index.ndim < 2 else index
                    out[number] |= ((index >= lengths[:, None]) | (index < -lengths[:, None])).all(axis=1)
    return out
