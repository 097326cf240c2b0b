"""The sweep engine: many cells in one compiled program that computes only what each of them changes.

The base prompts run once, keeping their residual stream, keys and values. The changed tokens of all cells stand in one
sequence (see `cells.Layout`); on the way up the layers a cell's tokens join at its first edited layer with the base's
residual stream there. Projections and MLPs see exactly these tokens. Attention of a unit sees its own changed tokens and
the base's keys and values for the others, cell by cell. At the end only the columns and positions that the metrics read
are unembedded. All of it is exact.

Cells whose edits mix positions or prompts, act before the blocks, or call functions, and models that are not causal, run
as a batch of whole runs that begin at the first layer that any of them changes; the results are the same.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.model.attention import Pack, layer_place
from jaxinterp.model.block import Block
from jaxinterp.model.config import Group, TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.position import rotary_tables
from jaxinterp.model.selection import POSITIONAL, At, Heads, Rows, at
from jaxinterp.model.sites import site_of
from jaxinterp.model.stack import cast
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.model.transformer import forward, unembed
from jaxinterp.runs.cells import AFTER_BLOCKS, BEFORE_BLOCKS, Cells, FromRun, Layout

STATIC = ("config", "precision")


def can_pack(edits: Sequence[Edit], metrics: Sequence[Any], config: TransformerConfig) -> bool:
    """Whether cells with these edits may be packed."""
    simple = all(edit.broadcasts and edit.site not in BEFORE_BLOCKS and set(edit.mixes) <= {"neuron"} for edit in edits)
    return simple and config.causal and config.final_dense is None and not any(metric.sites for metric in metrics)


# ------------------------------------------------------------------------------------------------ edits of one chunk


class View:
    """Rows of a packed value: which cell, prompt and column each stands for.

    Attributes:
        cell, row: [N 1], of each row.
        column: [N m], of each entry along the axis P or Q.
        lengths: [N], tokens of each row's prompt.
    """

    def __init__(self, cell: Array, row: Array, column: Array, lengths: Array) -> None:
        self.cell, self.row, self.column, self.lengths = cell[:, None], row[:, None], column, lengths

    def localised(self, array: Array, axes: str, varying: bool) -> Array:
        """An array over a site's inner axes (and C first, where it varies) as one over the rows' axes: B is N, P or Q is m."""
        wide = array.shape[1:] if varying else array.shape
        along = max(axes.find("P"), axes.find("Q"))
        if not varying and wide[0] == 1 and (along < 0 or wide[along] == 1):
            return array
        index: list[Any] = [self.cell] if varying else []
        for i, letter in enumerate(axes):
            if letter == "B":
                index.append(self.row if wide[i] > 1 else jnp.zeros_like(self.row))
            elif i == along:
                index.append(self.column if wide[i] > 1 else jnp.zeros_like(self.column))
            else:
                index.append(slice(None))
        # Indexed axes that are not neighbours come first; moving the others before indexing keeps the order plain.
        lead = [i for i, entry in enumerate(index) if not isinstance(entry, slice)]
        rest = [i for i, entry in enumerate(index) if isinstance(entry, slice)]
        out = jnp.transpose(array, [*lead, *rest])[tuple(index[i] for i in lead)]  # [N m] or [N 1], then the rest
        if along < 0:
            return out[:, 0]
        order = [letter for i, letter in enumerate(axes) if letter != "B" and i != along]
        source = {letter: 2 + i for i, letter in enumerate(order)} | {"B": 0, axes[along]: 1}
        return jnp.transpose(out, [source[letter] for letter in axes])

    def indices(self, name: str, index: Array, varying: bool) -> Array:
        """A selector's index as [N n], negative positions resolved."""
        index = jnp.asarray(index)
        if varying:
            index = index[self.cell[:, 0], self.row[:, 0]] if index.ndim == 3 else index[self.cell[:, 0]]
            index = index.reshape(index.shape[0], -1)
        elif index.ndim == 2:
            index = index[self.row[:, 0]] if index.shape[0] > 1 else index
        else:
            index = index.reshape(1, -1)
        return jnp.where(index < 0, self.lengths[:, None] + index, index) if name in POSITIONAL else index


def local_edits(
    edits: Sequence[Edit], kinds: Sequence[Edit], layer: Any, rows: View, units: View, config: TransformerConfig
) -> tuple[list, list]:
    """The edits of a packed step, and their arrays.

    Args:
        edits: of the cells, their arrays [C ...] or shared.
        kinds: the same edits with "varying", "shared" or a FromRun in the place of each array.
        layer: the layer, or None outside the blocks.
        rows: of values with an axis P.
        units: of values with axes Q and K.
        config: the architecture.
    """
    out, arguments = [], []
    for edit, kind in zip(edits, kinds, strict=True):
        site = site_of(edit.site, config)
        view = units if "Q" in site.axes else rows
        select = {name: view.indices(name, index, kind.select[name] == "varying") for name, index in edit.select.items() if name != "batch"}
        where = _local_where(edit, kind, layer, view, config)
        given = []
        for array, told in zip(edit.arguments, kind.arguments, strict=True):
            varying = told == "varying"
            array = jnp.asarray(array)
            array = array.reshape(array.shape[:varying] + (1,) * (len(site.axes) - array.ndim + varying) + array.shape[varying:])
            given.append(view.localised(_at_layer(array, site, layer, varying, config), site.inner_axes, varying))
        out.append(Edit(select, where, tuple(given), edit.site, edit.name, edit.function, (), edit.mixes, True, False, edit.when))
        arguments.append(given)
    return out, arguments


def _at_layer(array: Array, site: Any, layer: Any, varying: bool, config: TransformerConfig) -> Array:
    """A full-rank array without its layer axis."""
    if not site.per_layer:
        return array
    axis = int(varying)
    if array.shape[axis] == 1:
        return array.reshape(array.shape[:axis] + array.shape[axis + 1 :])
    layers = site.layers(config)
    slot = layer if len(layers) == config.n_layers else jnp.searchsorted(jnp.asarray(layers), layer)
    return jax.lax.dynamic_index_in_dim(array, slot, axis, keepdims=False)


def _local_where(edit: Edit, kind: Edit, layer: Any, view: View, config: TransformerConfig) -> Any:
    """An edit's mask, and its selection of prompts, over the rows."""
    site = site_of(edit.site, config)
    where = edit.where
    if isinstance(where, Heads):
        varying = kind.where.layer == "varying"  # type: ignore[union-attr]
        here = jnp.asarray(where.layer), jnp.asarray(where.head)
        return Heads(*(a[view.cell[:, 0]] if varying else a for a in here))
    if where is not None:
        varying = kind.where == "varying"
        where = jnp.asarray(where)
        where = where.reshape(where.shape + (1,) * (len(site.axes) + varying - where.ndim))
        where = view.localised(_at_layer(where, site, layer, varying, config), site.inner_axes, varying)
    if "batch" in edit.select:
        chosen = jnp.asarray(edit.select["batch"])
        chosen = chosen.reshape(chosen.shape[0], -1)[view.cell[:, 0]] if kind.select["batch"] == "varying" else chosen.reshape(1, -1)
        hit = (chosen == view.row).any(axis=1).reshape(-1, *(1,) * (len(site.inner_axes) - 1))
        where = hit if where is None else where & hit
    return where if where is None or not site.per_layer else where[None]


# ------------------------------------------------------------------------------------------------------ the programs


def _base(params: Any, tokens: Tokens, edits: Sequence[Edit], config: TransformerConfig, precision: Any, sites: dict[str, At]) -> Trace:
    """A run up to the last residual stream, with what cells start from."""
    wanted = {"resid_pre": At(), "k_rot": At(), "v": At(), "resid_post": at(layer=config.n_layers - 1)} | sites
    if "resid_post" in sites:
        wanted["resid_post"] = At()
    return forward(params, tokens, config, sites=wanted, edits=edits, stop=config.n_layers, precision=precision)


def _last(trace: Trace, sites: dict[str, At]) -> Array:
    value = trace.padded["resid_post"]
    return value[-1] if "resid_post" in sites else value


@functools.partial(jax.jit, static_argnames=STATIC)
def packed_program(
    params: Any, tokens: Tokens, other: Tokens | None, cells: Cells, layout: Layout, base_edits: Sequence[Edit],
    other_edits: Sequence[Edit], metrics: Sequence[Any], config: TransformerConfig, precision: Any,
) -> tuple[list[Array], list[Array], list[Array] | None]:  # fmt: skip
    """Metrics of every cell [C B], of the base run [B] and, where there is one, of the other run [B].

    Args:
        params: the weights.
        tokens: the base prompts.
        other: the prompts of another run, whose values cells write, or None.
        cells: the edits of C cells.
        layout: where their changed tokens stand.
        base_edits: edits of the base run.
        other_edits: edits of the other run.
        metrics: bound ones.
        config: static.
        precision: static.
    """
    sites = {kind.site: At() for kind in cells.kinds if isinstance(kind, FromRun)}
    with jax.default_matmul_precision(precision or "highest"):
        base = _base(params, tokens, base_edits, config, precision, {})
        source = None if other is None else _base(params, other, other_edits, config, precision, sites)
        edits, kinds = _forms(cells, source)
        plain = [jax.tree.map(lambda _: "shared", edit) for edit in base_edits]
        every, every_kind = [*base_edits, *edits], [*plain, *kinds]
        final = _climb(params, base, tokens, layout, every, every_kind, config)
        n_cells = layout.read.shape[0]
        ours, theirs, values = [], [], []
        stream = _last(base, {})
        after = 0
        for metric in metrics:
            columns, vocabulary = metric.reads(tokens, config)
            columns = jnp.broadcast_to(columns, (tokens.ids.shape[0], columns.shape[1]))
            ours.append(_metric_of(params, stream, columns, vocabulary, metric, tokens, base_edits, config))
            if source is not None and other is not None:
                theirs.append(
                    _metric_of(params, _last(source, sites), metric.reads(other, config)[0], vocabulary, metric, other, other_edits, config)
                )
            read = jnp.asarray(layout.read)[:, :, after : after + columns.shape[1]]
            after += columns.shape[1]
            values.append(
                _cell_values(params, final, stream, read, columns, vocabulary, metric, tokens, every, every_kind, n_cells, config)
            )
    return values, ours, theirs if source is not None else None


def _forms(cells: Cells, source: Trace | None) -> tuple[list[Edit], list[Edit]]:
    """The cells' edits with their arrays, and with the kind of each array in its place."""
    arrays = [
        source.padded[kind.site] if isinstance(kind, FromRun) and source else a for a, kind in zip(cells.arrays, cells.kinds, strict=True)
    ]
    kinds = ["shared" if isinstance(kind, FromRun) else kind for kind in cells.kinds]
    return list(jax.tree.unflatten(cells.tree, arrays)), list(jax.tree.unflatten(cells.tree, kinds))


def _climb(
    params: Any, base: Trace, tokens: Tokens, layout: Layout, edits: Sequence[Edit], kinds: Sequence[Edit], config: TransformerConfig
) -> Float[Array, "W D"]:
    """The last residual stream of every packed token."""
    dtype = base.padded["resid_pre"].dtype
    resid = jnp.zeros((0, 1, config.d_model), dtype)
    for begin, end, width, n_units in layout.segments:
        resid = jnp.concatenate([resid, jnp.zeros((width - resid.shape[0], 1, config.d_model), dtype)])
        stretch = _Stretch(layout, width, n_units, tokens, base, edits, kinds, config)
        for group, stack in zip(config.groups, params["blocks"], strict=True):
            layers = range(max(begin, group.start), min(end, group.stop))
            if layers:
                resid, _ = jax.lax.scan(stretch.stepper(group, stack), resid, jnp.arange(layers.start, layers.stop))
    rest = slice(resid.shape[0], None)
    unit = jnp.asarray(layout.unit)[rest]
    unchanged = _last(base, {})[jnp.asarray(layout.row)[unit], jnp.asarray(layout.column)[rest]]
    return jnp.concatenate([resid[:, 0], unchanged.astype(dtype)])


class _Stretch:
    """A stretch of layers of one width: where its tokens stand, and the step that carries them up one layer."""

    def __init__(
        self, layout: Layout, width: int, n_units: int, tokens: Tokens, base: Trace, edits: Sequence[Edit], kinds: Sequence[Edit],
        config: TransformerConfig,
    ) -> None:  # fmt: skip
        array = jnp.asarray
        self.config, self.base, self.edits, self.kinds, self.slots = config, base, edits, kinds, layout.slots
        self.unit, self.slot, self.column = array(layout.unit)[:width], array(layout.slot)[:width], array(layout.column)[:width]
        self.start, position = array(layout.start)[:width], array(layout.position)[:width]
        self.unit_row, lengths = array(layout.row)[:n_units], array(tokens.lengths)
        self.row = array(layout.row)[self.unit]
        blank = jnp.zeros((n_units, layout.slots), jnp.int32)
        queries = blank.at[self.unit, self.slot].set(position)
        is_query = jnp.zeros(blank.shape, bool).at[self.unit, self.slot].set(True)
        keys, is_key = array(tokens.positions)[self.unit_row], array(tokens.mask)[self.unit_row]
        causal = keys[:, None, None, :] <= queries[:, None, :, None]
        self.wide = jnp.promote_types(base.padded["resid_pre"].dtype, jnp.float32)
        self.shared = {
            "queries": queries,
            "keys": keys,
            "allowed": is_query[:, None, :, None] & is_key[:, None, None, :] & causal,
            "rotary": rotary_tables(config, position[:, None], lengths[self.row], self.wide) if config.positions == "rotary" else None,
        }
        self.token = Tokens(jnp.zeros((width, 1), jnp.int32), jnp.ones((width, 1), bool), position[:, None])
        self.rows = Rows(self.token, Tokens(blank, is_query, queries), Tokens(jnp.zeros(keys.shape, jnp.int32), is_key, keys))
        cell = array(layout.cell)
        self.of_rows = View(cell[self.unit], self.row, self.column[:, None], lengths[self.row])
        query_columns = blank.at[self.unit, self.slot].set(self.column)
        self.of_units = View(cell[:n_units], self.unit_row, query_columns, lengths[self.unit_row])

    def stepper(self, group: Group, stack: Any) -> Callable[[Array, Array], tuple[Array, None]]:
        """One layer for every token that has joined; those that join here start from the base's residual stream."""

        def step(resid: Array, layer: Array) -> tuple[Array, None]:
            at_layer = functools.partial(jax.lax.dynamic_index_in_dim, index=layer, keepdims=False)
            resid_pre, k, v = (at_layer(self.base.padded[site]) for site in ("resid_pre", "k_rot", "v"))
            resid = jnp.where((self.start == layer)[:, None, None], resid_pre[self.row, self.column][:, None], resid)
            pack = Pack(self.unit, self.slot, self.column, k[self.unit_row], v[self.unit_row], self.slots)
            place = layer_place(self.config, layer, self.wide, **self.shared, pack=pack)
            edits, arguments = local_edits(self.edits, self.kinds, layer, self.of_rows, self.of_units, self.config)
            tap = Tap(self.token, self.config, edits=edits, arguments=arguments, layer=layer, rows=self.rows)
            weights = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, layer - group.start, keepdims=False), stack)
            out: Any = Block(self.config, group.experts).apply({"params": cast(weights, resid.dtype)}, resid, place, tap)
            return out[0], None

        return step


def _cell_values(
    params: Any, final: Array, stream: Array, read: Array, columns: Array, vocabulary: Any, metric: Any, tokens: Tokens,
    edits: Sequence[Edit], kinds: Sequence[Edit], n_cells: int, config: TransformerConfig,
) -> Float[Array, "C B"]:  # fmt: skip
    """A metric of every cell, read where its tokens changed from the pack, elsewhere from the base."""
    batch, n = columns.shape
    base = stream[jnp.arange(batch)[:, None], columns]  # [B n D]
    changed = jnp.concatenate([final, jnp.zeros((1, final.shape[1]), final.dtype)])[read]
    resid = jnp.where((read < final.shape[0])[..., None], changed, base[None])
    rows = n_cells * batch * n
    cell = jnp.repeat(jnp.arange(n_cells), batch * n)
    row = jnp.tile(jnp.repeat(jnp.arange(batch), n), n_cells)
    column = jnp.tile(columns.reshape(-1), n_cells)
    late = [(edit, kind) for edit, kind in zip(edits, kinds, strict=True) if edit.site in AFTER_BLOCKS]
    token = Tokens(jnp.zeros((rows, 1), jnp.int32), jnp.ones((rows, 1), bool), jnp.asarray(tokens.positions)[row, column][:, None])
    view = View(cell, row, column[:, None], jnp.asarray(tokens.lengths)[row])
    here, arguments = local_edits([edit for edit, _ in late], [kind for _, kind in late], None, view, view, config)
    tap = Tap(token, config, edits=here, arguments=arguments)
    words = None if vocabulary is None else jnp.broadcast_to(vocabulary, (batch, vocabulary.shape[-1]))[row]
    whole = vocabulary is None or any(edit.site.startswith("logits") for edit, _ in late)
    logits: Any = unembed(params, resid.reshape(rows, 1, -1), config, tap, None if whole else words)
    if whole and words is not None:
        logits = jnp.take_along_axis(logits, words[:, None, :], axis=2)
    return jax.vmap(lambda selected: metric.from_logits(selected, tokens))(logits.reshape(n_cells, batch, n, -1))


def _metric_of(
    params: Any,
    stream: Array,
    columns: Array,
    vocabulary: Any,
    metric: Any,
    tokens: Tokens,
    edits: Sequence[Edit],
    config: TransformerConfig,
) -> Float[Array, "B"]:
    """A metric of a plain run, from its last residual stream."""
    plain = [jax.tree.map(lambda _: "shared", edit) for edit in edits]
    columns = jnp.broadcast_to(columns, (tokens.ids.shape[0], columns.shape[1]))
    nowhere = jnp.full((1, *columns.shape), 1, jnp.int32)
    empty = jnp.zeros((0, stream.shape[-1]), stream.dtype)
    return _cell_values(params, empty, stream, nowhere, columns, vocabulary, metric, tokens, edits, plain, 1, config)[0]


@functools.partial(jax.jit, static_argnames=(*STATIC, "start"))
def whole_program(
    params: Any, tokens: Tokens, other: Tokens | None, cells: Cells, base_edits: Sequence[Edit], other_edits: Sequence[Edit],
    metrics: Sequence[Any], config: TransformerConfig, precision: Any, start: int,
) -> tuple[list[Array], list[Array], list[Array] | None]:  # fmt: skip
    """What `packed_program` gives, by whole runs that begin at layer `start`; for cells that cannot be packed."""
    sites = {kind.site: At() for kind in cells.kinds if isinstance(kind, FromRun)}
    read = {site: request for metric in metrics for site, request in metric.sites.items()}
    late = start if start > 0 and not any(site in BEFORE_BLOCKS for site in read) else 0
    run = functools.partial(forward, config=config, precision=precision)
    base = run(params, tokens, edits=base_edits, sites=read | ({"resid_pre": at(layer=late)} if late else {}))
    source = None if other is None else run(params, other, edits=other_edits, sites=read | sites)
    edits, kinds = _forms(cells, source)
    axes = jax.tree.map(lambda kind: 0 if kind == "varying" else None, tuple(kinds))
    begin = (late, base.padded["resid_pre"]) if late else None

    def one(edits: Sequence[Edit]) -> list[Array]:
        trace = run(params, tokens, edits=[*base_edits, *edits], sites=read, start=begin)
        return [metric._read(trace) for metric in metrics]

    count = next((a.shape[0] for a, kind in zip(cells.arrays, cells.kinds, strict=True) if kind == "varying"), 1)
    values = jax.vmap(one, in_axes=(axes,), axis_size=count)(tuple(edits))
    return values, [metric._read(base) for metric in metrics], None if source is None else [metric._read(source) for metric in metrics]
