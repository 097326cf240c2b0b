"""Path patching: the effect of one component on another's input alone, exactly (Goldowsky-Dill et al. 2023, arXiv:2304.05969).

A cell of the grid is a path from a sender (a head, an MLP, the embedding) to a receiver (a head's queries, keys or values, or
the logits). As Wang et al. 2022 (arXiv:2211.00593) define it, in three runs:

    1. run both prompts
    2. run the first with the sender's output taken from the second and every other head held at the first run's output; with
       through="direct" every other MLP is held too, with through="mlps" MLPs are computed anew
    3. run the first once more with the receiver's input taken from 2 (q, k or v of a head); everything after it is computed anew.
       For the logits, 2 is the answer already

    noise      first clean, second corrupt:     effect = (metric - clean) / (corrupt - clean)
    denoise    first corrupt, second clean:     effect = (metric - corrupt) / (clean - corrupt)

Exact: no approximation. Cost: two runs, one sublayer for each sender (with "mlps": the MLPs above it, at the positions of the path),
and a sweep of the engine from each receiver's layer up. Misleads where a definition other than the intended one is used: through
what, with which norms and key/value heads changes sign and size, so they stand in the call and in the result; and where a path
that was cut is made up for by others.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.pairs import check_pairs
from jaxinterp.methods.path_cells import Cell, Paths, path_positions
from jaxinterp.methods.path_nodes import Ends, receiver_ends, sender_ends
from jaxinterp.methods.path_streams import Setting
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.stack import check_stacked
from jaxinterp.model.tokens import check_ids
from jaxinterp.runs.measure import Measured, precise, run_cells
from jaxinterp.runs.program import bucket
from jaxinterp.runs.results import grid_result

CHOICES = {"through": ("direct", "mlps"), "norm": ("recompute", "freeze"), "kv": ("kv_head", "query_head"), "mode": ("noise", "denoise")}
BUDGET = 1 << 28  # bytes of receivers' inputs that wait for the engine


def path_patch(
    lm: LanguageModel,
    clean: Prompts,
    corrupt: Prompts,
    metric: Any,
    senders: Any = "all heads",
    receivers: Any = "logits",
    *,
    through: Literal["direct", "mlps"] = "direct",
    norm: Literal["recompute", "freeze"] = "recompute",
    kv: Literal["kv_head", "query_head"] = "kv_head",
    mode: Literal["noise", "denoise"] = "noise",
    position: Any = None,
    batch_size: int | None = None,
    out: str | Path | None = None,
    bos: str | bool = "model",
    precision: str | None = "highest",
) -> Any:
    """Patches every path from a sender to a receiver.

    Args:
        lm: the model.
        clean: prompts of the behaviour, one or many.
        corrupt: as many prompts, each of the length of its clean one.
        metric: what is measured, such as `ji.metrics.logit_difference(" Mary", " John")`; or {name: metric}.
        senders: whose output is taken from the other run: "all heads", "mlps", "embed" (embedding and positions), names
            ("5.5 6.9 mlp3"), `ji.heads(...)`, or a list of these, each node a sender of its own. A dict {label: any of these}
            makes each entry one sender, whose nodes are patched together.
        receivers: whose input changes: "logits", or ("q", heads), ("k", heads), ("v", heads), where heads are named as above;
            or a list of these, each node a receiver of its own. A dict {label: any of these} makes each entry one receiver.
        through: "direct" goes through the residual stream alone. "mlps" goes through it and the MLPs between sender and
            receiver, which are computed anew; other heads are held either way.
        norm: "recompute" takes each norm on the way of the changed stream. "freeze" keeps every denominator of the base run (of
            the norms before MLPs and receivers, after sublayers, and the final one), so that direct paths to the logits
            add up. Either way a sender under a norm of its own adds post(raw + change) - post(raw). Norms of queries and
            keys belong to the receiving head and are always computed anew.
        kv: with grouped queries, who sees a changed k or v. "kv_head": every query head of the group; heads of k and v
            are key/value heads. "query_head": one query head, by which k and v are then named.
        mode: "noise" runs clean with paths from corrupt, "denoise" the other way round.
        position: the positions of the path, an int, [n] or [B n]; None is all. A path does not move between positions.
        batch_size: cells run at once; None fits them to memory.
        out: a folder that keeps finished chunks; the same call goes on from them after a crash or Ctrl-C. Senders are run again.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A GridResult: `.values` and `.effects` (ratio of means) on the axis "receiver", which a bare one ("logits", or one head in
        a pair) has not, and then the senders' axes: "layer", "head" for "all heads", "layer" for "mlps", else "sender".
        `.per_example` is [B ...]. NaN where there is no path: a head or an MLP sends to later layers only. With several
        metrics, {name: GridResult}.

    Raises:
        InputError: ends that the model lacks, prompts that do not pair up, no path at all, a metric without scale, or a joint
            receiver whose keys or values one query head shall see while its queries change too.

    Example:
        >>> metric = ji.metrics.logit_difference(" Mary", " John")
        >>> ji.path_patch(lm, clean, corrupt, metric).effects.shape                      # every head to the logits
        (30, 9)
        >>> ji.path_patch(lm, clean, corrupt, metric, "all heads", ("q", "23.3"), through="mlps", position=-1).effects.shape
        (30, 9)
    """
    check_stacked(lm.params, "path_patch()")
    config = lm.config
    given = {"through": through, "norm": norm, "kv": kv, "mode": mode}
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise InputError(f"path_patch(): {name} is {value!r}; expected {' or '.join(map(repr, CHOICES[name]))}.")
    sources, targets = sender_ends(senders, config), receiver_ends(receivers, config, kv)
    shared = kv == "query_head" and config.n_kv_heads < config.n_heads
    _check_joint(targets, shared)
    good, bad = lm.to_tokens(clean, bos=bos), lm.to_tokens(corrupt, bos=bos)
    check_pairs(good, bad)
    for tokens in (good, bad):
        check_ids(tokens, config.d_vocab, config.n_ctx)
    width = bucket(max(good.ids.shape[1], bad.ids.shape[1]), config.n_ctx)
    good, bad = good.padded(width), bad.padded(width)
    base, other = (good, bad) if mode == "noise" else (bad, good)
    metrics = dict(metric) if isinstance(metric, Mapping) else {"": metric}
    metrics = {name: each if each.bound else each.bind(lm, base) for name, each in metrics.items()}
    setting = Setting(config, through, norm == "freeze", precision)
    positions = path_positions(base, other, list(metrics.values()), config, targets, position)
    paths = Paths(lm, base, other, positions, sources, setting, shared)
    values = np.full((len(metrics), len(targets.sets), len(sources.sets), base.ids.shape[0]), np.nan, precise(lm))
    found: dict[str, Measured] = {}
    for piece, group in enumerate(_batches(paths.cells(targets))):
        found = run_cells(
            lm, base, other, [cell.edits for cell in group], metrics, batch_size=batch_size, precision=precision,
            out=None if out is None else Path(out) / f"paths {piece + 1}", title="patching paths",
        )  # fmt: skip
        for number, measured in enumerate(found.values()):
            values[number, [cell.receiver for cell in group], [cell.sender for cell in group]] = measured.values
    if not found:
        raise InputError("path_patch(): there is no path: every sender stands at or above every receiver, and sends to later layers only.")
    axes = (*targets.axes, *sources.axes)
    how = (("method", "path_patch"), *((name, given[name]) for name in ("through", "norm", "kv")), ("bos", good.bos))
    results = {
        name: grid_result(grid.reshape(-1, grid.shape[-1]), measured.base, measured.other, axes, mode, (*how, *measured.how[1:]))
        for grid, (name, measured) in zip(values, found.items(), strict=True)
    }
    return results if isinstance(metric, Mapping) else results[""]


def _check_joint(targets: Ends, shared: bool) -> None:
    """Refuse joint receivers in which one query head's view of a k or v would depend on another change of the same set."""
    for nodes in targets.sets if shared else ():
        inputs = [node for node in nodes if node.part != "logits"]
        alone = len({node.layer for node in inputs}) <= 1 and len({node.head for node in inputs}) == len(inputs)
        if {node.part for node in inputs} & {"k", "v"} and not alone:
            raise InputError(
                f"path_patch(): the joint receiver {', '.join(node.label for node in nodes)} has keys or values for one query head "
                "together with inputs of another layer, or with other inputs of that head; "
                'expected kv="kv_head", or these as receivers of their own.'
            )


def _batches(cells: Iterable[Cell]) -> Iterable[list[Cell]]:
    """Cells that edit the same sites, in groups whose values take about BUDGET bytes."""
    waiting: dict[tuple[str, ...], list[Cell]] = {}
    size: dict[tuple[str, ...], int] = {}
    for cell in cells:
        form = tuple(edit.site for edit in cell.edits)
        waiting.setdefault(form, []).append(cell)
        size[form] = size.get(form, 0) + sum(edit.arguments[0].nbytes for edit in cell.edits)
        if size[form] > BUDGET:
            yield waiting.pop(form)
            size[form] = 0
    yield from waiting.values()
