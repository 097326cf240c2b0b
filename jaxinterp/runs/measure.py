"""Measuring cells: the engine's door. Binds metrics, sizes chunks, runs them, and keeps what is finished."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.selection import POSITIONAL
from jaxinterp.model.stack import check_stacked
from jaxinterp.model.tokens import Tokens, check_ids
from jaxinterp.runs.cells import Cells, FromRun, gather_cells, reach
from jaxinterp.runs.cost import Cost
from jaxinterp.runs.engine import can_pack, can_resume, packed_program, whole_program
from jaxinterp.runs.kept import ADDRESS, Kept, code_of, digest_of
from jaxinterp.runs.layout import Reach, lay_out, tokens_of
from jaxinterp.runs.plan import free_memory
from jaxinterp.runs.program import bucket
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.provenance import record
from jaxinterp.runs.run import pad_edit

BLOCKS = {"cpu": (32, 64, 128)}
"""Tokens of the sequence computed at once, by platform: the largest that leaves at least BLOCKS_LEAST of them, so that few places are
empty and matrix products are still large; 512 elsewhere."""

BLOCKS_LEAST = 6

BUDGET = 1 << 30
"""Bytes that a chunk of cells may take, at most a third of what is free."""

WORK = {"cpu": 1e12}
"""Operations of a chunk, by platform, so that progress is seen and kept every few seconds; 1e15 elsewhere."""

ABOVE_BASE = 64
"""A chunk is not cut below so many times the base runs, which every chunk repeats, as far as memory allows."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A metric of every cell.

    Attributes:
        values: [C B]; NaN where a prompt does not have the position that a cell edits.
        base: [B], of the base run.
        other: [B], of the other run, or None.
        how: how it was made: cells, packed or whole runs, and what `runs.provenance.record` says.
    """

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
    align: np.ndarray | None = None,
    edits: Sequence[Edit] = (),
    other_edits: Sequence[Edit] | None = None,
    batch_size: int | None = None,
    precision: str | None = "highest",
    out: str | Path | None = None,
    title: str = "cells",
) -> Any:
    """Runs cells of one form over base prompts, with values from another run where edits ask for them.

    Args:
        lm: the model.
        base: prompts that cells edit.
        other: prompts whose values cells write (`cells.FromRun`); or None.
        cells: edits of each cell, C of them.
        metric: a metric, or {name: metric}; bound here to the base prompts.
        same_until: [B], positions before which both runs are equal.
        align: [B P], for each position of a base prompt the position of the other whose values it takes, -1 for none; None
            where positions agree.
        edits: of the base run, and so of every cell.
        other_edits: of the other run; None: those of the base run.
        batch_size: cells run at once.
        precision: as for `run`.
        out: a folder that keeps finished chunks.
        title: what the progress bar says.

    Returns:
        Measured, or {name: Measured}.

    Raises:
        InputError: prompts or edits that do not fit the model, no metric, no cell, or a `batch_size` below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1 cell, or None.")
    job = _prepare(lm, base, other, cells, metric, same_until, align, edits, other_edits, precision)
    shape = (len(job.metrics), len(cells), base.ids.shape[0])
    values, done = np.full(shape, np.nan, precise(lm)), np.zeros(len(cells), bool)
    kept = None if out is None else Kept(out, job.digest())
    sides: dict[str, np.ndarray] = {}
    for part in kept.read() if kept else ():
        values[:, part["cells"]], done[part["cells"]], sides = part["values"], True, part
    with Progress(title, len(cells), "cells") as progress:
        progress.advance(int(done.sum()))
        progress.phase("compiling")
        for chunk in job.chunks(np.flatnonzero(~done), batch_size):
            part = job.run(chunk, lambda: progress.phase(""))
            new = ~done[part["cells"]]
            part |= {"cells": part["cells"][new], "values": part["values"][:, new]}
            values[:, part["cells"]], done[part["cells"]], sides = part["values"], True, part
            if kept is not None:
                kept.write(part, int(part["cells"].min()))
            progress.advance(len(part["cells"]))
    values[:, _beyond(cells, np.asarray(job.base.lengths))] = np.nan
    how = (("cells", str(len(cells))), ("run", "packed" if job.columns is not None else "whole runs"))
    made = functools.partial(record, lm, base, other=other, edits=edits, other_edits=other_edits, align=align)
    measured = [
        Measured(values[i], sides["base"][i], sides["other"][i] if "other" in sides else None, (*how, *made(metric=each)))
        for i, each in enumerate(job.metrics)
    ]
    return dict(zip(metric, measured, strict=True)) if isinstance(metric, Mapping) else measured[0]


def precise(lm: LanguageModel) -> Any:
    """The type in which a metric of a model is kept: float64 where the weights are, else float32."""
    return np.float64 if jax.tree.leaves(lm.params)[0].dtype.itemsize > 4 else np.float32


@dataclasses.dataclass(frozen=True)
class _Job:
    """A sweep whose metrics are bound and whose cells are arrays.

    Attributes:
        lm, base, other, cells, metrics, edits, other_edits, precision: as for `run_cells`, prompts padded to their bucket.
        align: [B P], columns of the other run whose values each column of the base takes, or None.
        found: what each cell changes first.
        columns: [B n], columns of the tokens that metrics read; None: cells cannot be packed.
        resume: whether whole runs may begin at the first layer that cells change.
    """

    lm: LanguageModel
    base: Tokens
    other: Tokens | None
    align: np.ndarray | None
    cells: Cells
    found: Reach
    columns: np.ndarray | None
    resume: bool
    metrics: tuple[Any, ...]
    edits: tuple[Edit, ...]
    other_edits: tuple[Edit, ...] | None
    precision: str | None

    def digest(self) -> str:
        """A hash of everything that decides the values."""
        edits = (jax.tree.unflatten(self.cells.tree, self.cells.kinds), self.edits, self.other_edits or ())
        named = [*(edit.function for group in edits for edit in group), *(getattr(metric, "function", None) for metric in self.metrics)]
        arrays = (self.base, self.other, self.align, self.cells.arrays, self.metrics, self.edits, self.other_edits)
        about = (str(self.cells.tree), self.cells.kinds, self.lm.config, self.precision, [code_of(function) for function in named])
        return digest_of(self.lm.params, arrays, ADDRESS.sub("", repr(about)))

    def cost(self, block: int) -> Cost:
        """Operations and bytes of cells, where so many tokens are computed at once."""
        whole = any(metric.reads(self.base, self.lm.config)[1] is None for metric in self.metrics) if self.columns is not None else True
        sites = tuple({kind.site for kind in self.cells.kinds if isinstance(kind, FromRun)})
        return Cost(self.lm, self.base, self.columns, whole, 2 if self.other is not None else 1, block, sites)

    def chunks(self, cells: np.ndarray, batch_size: int | None) -> list[np.ndarray]:
        """The cells in the order of their first layer, in pieces that fit memory.

        They are of one size, so that one program runs them: the last one takes some cells of the piece before it again. Where the
        caller chose the size the last piece is what is left.
        """
        if not len(cells):
            return []
        order = cells[np.argsort(self.found.start[cells], kind="stable")]
        if batch_size is None:
            cost, platform, tokens = self.cost(self.block(order)), jax.default_backend(), self.tokens(order)
            operations = np.cumsum(cost.operations(tokens, self.found.start[order]))
            free, _ = free_memory()
            budget = min(BUDGET, (free or BUDGET * 3) // 3)
            work = max(WORK.get(platform, 1e15), ABOVE_BASE * cost.base_operations)
            pieces = max(1, int(np.ceil(operations[-1] / work)))
            while pieces < len(order) and cost.bytes(-(-len(order) // pieces), int(tokens.sum()) // pieces) > budget:
                pieces = pieces + -(-pieces // 4)
            batch_size = -(-len(order) // pieces)
            last = len(order) - batch_size
            return [order[begin : begin + batch_size] for begin in np.minimum(np.arange(0, len(order), batch_size), last)]
        return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]

    def tokens(self, cells: np.ndarray) -> np.ndarray:
        """[c]: tokens that each of these cells changes."""
        if self.columns is None:
            return np.full(len(cells), self.base.ids.size)
        return tokens_of(self.found.take(cells), self.base, self.columns).sum(axis=1)

    def block(self, chunk: np.ndarray) -> int:
        """Tokens computed at once."""
        sizes = BLOCKS.get(jax.default_backend(), (512,))
        return max([size for size in sizes if size * BLOCKS_LEAST <= self.tokens(chunk).sum()], default=sizes[0])

    def run(self, chunk: np.ndarray, started: Any) -> dict[str, np.ndarray]:
        """The metrics of a chunk: "values" [metrics c B] of "cells" [c], "base" and "other" [metrics B]."""
        lm, fixed = self.lm, {"config": self.lm.config, "precision": self.precision}
        given = (self.edits, self.other_edits, self.metrics)
        part = self.cells.take(chunk)
        if self.columns is not None:
            layout = lay_out(self.found.take(chunk), self.base, self.columns, lm.config, self.block(chunk))
            out = packed_program(lm.params, self.base, self.other, self.align, part, layout, *given, **fixed)
        else:
            start = np.int32(self.found.start[chunk].min())
            out = whole_program(lm.params, self.base, self.other, self.align, part, start, *given, **fixed, resume=self.resume)
        started()
        values, base, other = jax.tree.map(np.asarray, out)
        sides = {"base": np.stack(base)} | ({"other": np.stack(other)} if other else {})
        return {"cells": chunk, "values": np.stack(values), **sides}


def _prepare(
    lm: LanguageModel, base: Tokens, other: Tokens | None, cells: Sequence[Sequence[Edit]], metric: Any, same_until: np.ndarray | None,
    align: np.ndarray | None, edits: Sequence[Edit], other_edits: Sequence[Edit] | None, precision: str | None,
) -> _Job:  # fmt: skip
    check_stacked(lm.params, "A sweep")
    for tokens, group in ((base, edits), (other, other_edits or ())):
        if tokens is not None:
            check_ids(tokens, lm.config.d_vocab, lm.config.n_ctx)
            check_edits(group, lm.config, tokens)
    metrics = tuple(metric.values()) if isinstance(metric, Mapping) else (metric,)
    if not metrics or not cells:
        raise InputError(f"There are {len(metrics)} metrics and {len(cells)} cells; expected at least one of each.")
    bound = tuple(m if m.bound else m.bind(lm, base) for m in metrics)
    longest = max(tokens.ids.shape[1] for tokens in (base, other) if tokens is not None)
    width = bucket(longest, lm.config.n_ctx)
    cells, edits, other_edits = _padded(base.ids.shape[1], width, lm.config, cells, edits, other_edits)
    base = base.padded(width).arrays_only()
    other = None if other is None else other.padded(width).arrays_only()
    columns = None
    if can_pack(edits, cells[0], bound, lm.config):
        columns = np.asarray(_columns_read(bound, base, lm.config))
    return _Job(
        lm=lm,
        base=base,
        other=other,
        align=None if align is None or other is None else _columns(align, base, other),
        cells=gather_cells(cells),
        found=reach(cells, lm.config, base, same_until),
        columns=columns,
        resume=can_resume(cells[0], bound),
        metrics=bound,
        edits=tuple(edits),
        other_edits=None if other_edits is None else tuple(other_edits),
        precision=precision,
    )


@functools.partial(jax.jit, static_argnames=("config",))
def _columns_read(metrics: Sequence[Any], tokens: Tokens, config: TransformerConfig) -> Any:
    """[B n]: columns of the tokens that metrics read, one metric after the other."""
    read = [metric.reads(tokens, config)[0] for metric in metrics]
    return jnp.concatenate([jnp.broadcast_to(columns, (tokens.ids.shape[0], columns.shape[1])) for columns in read], axis=1)


def _padded(
    size: int, width: int, config: TransformerConfig, cells: Sequence[Sequence[Edit]], edits: Sequence[Edit],
    other_edits: Sequence[Edit] | None,
) -> tuple[Sequence[Sequence[Edit]], Sequence[Edit], Sequence[Edit] | None]:  # fmt: skip
    """Edits whose values span `size` positions, widened to `width`; an array that several share stays one."""
    if size == width:
        return cells, edits, other_edits
    shared: dict[int, tuple[Any, Any]] = {}

    def one(edit: Edit) -> Edit:
        wide = pad_edit(edit, size, width, config)
        pairs = zip((*edit.arguments, edit.where), (*wide.arguments, wide.where), strict=True)
        *arguments, where = (shared.setdefault(id(old), (old, new))[1] for old, new in pairs)
        return dataclasses.replace(wide, arguments=tuple(arguments), where=where)

    others = None if other_edits is None else [one(edit) for edit in other_edits]
    return [[one(edit) for edit in cell] for cell in cells], [one(edit) for edit in edits], others


def _columns(align: np.ndarray, base: Tokens, other: Tokens) -> np.ndarray:
    """[B P]: for each column of a base prompt, the column of the other prompt whose values it takes (any, where it takes none)."""
    positions = np.asarray(base.positions)
    reachable = np.minimum(np.maximum(positions, 0), align.shape[1] - 1)
    wanted = np.maximum(np.take_along_axis(align, reachable, axis=1), 0)
    column_of = np.argsort(~np.asarray(other.mask), axis=1, kind="stable")
    return np.take_along_axis(column_of, wanted, axis=1).astype(np.int32)


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
