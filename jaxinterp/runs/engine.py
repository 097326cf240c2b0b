"""The sweep engine: many cells in one compiled program that computes only what each of them changes.

The base prompts run once, keeping their residual stream, keys and values. The changed tokens of all cells stand in one
sequence (see `layout`); on the way up the layers a cell's tokens join at its first edited layer with the base's residual
stream there. A layer is one loop over the blocks of tokens that have joined, so projections and MLPs see the changed
tokens and no others, and one compiled step serves all layers and grids. Attention of a token sees the keys and values of
its own cell where they changed, and the base's where they did not. At the end only the columns and positions that the
metrics read are unembedded. All of it is exact.

Cells whose edits mix positions or prompts, act before the blocks, or call functions, and models that are not causal, run
as a batch of whole runs that begin at the first layer that any of them changes; the results are the same.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.model.attention import Pack, layer_place
from jaxinterp.model.block import Block
from jaxinterp.model.config import Group, TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.position import rotary_tables
from jaxinterp.model.selection import At, Rows
from jaxinterp.model.sites import SITES
from jaxinterp.model.stack import cast, run_blocks
from jaxinterp.model.tap import Tap
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import embed, forward
from jaxinterp.runs.cells import AFTER_BLOCKS, BEFORE_BLOCKS, Cells, FromRun
from jaxinterp.runs.layout import Layout
from jaxinterp.runs.local import View, cut, local_edits
from jaxinterp.runs.reading import Acting, Side, read_metrics

STATIC = ("config", "precision")


def can_pack(base_edits: Sequence[Edit], cell_edits: Sequence[Edit], metrics: Sequence[Any], config: TransformerConfig) -> bool:
    """Whether cells with these edits may be packed."""
    every = [*base_edits, *cell_edits]
    simple = all(edit.broadcasts and set(edit.mixes) <= {"neuron"} and not _looks_ahead(edit) for edit in every)
    inside = not any(edit.site in BEFORE_BLOCKS or (edit.site in AFTER_BLOCKS and _from_run(edit)) for edit in cell_edits)
    plain = config.causal and config.final_dense is None and config.unembed != "none"
    return simple and inside and plain and not any(metric.sites for metric in metrics)


def _looks_ahead(edit: Edit) -> bool:
    """Whether an edit may give weight to keys that a query does not see: their values would not be those of the cell's own run."""
    return edit.site == "pattern" and not (edit.name in ("zero", "scale") or _from_run(edit))


def _from_run(edit: Edit) -> bool:
    return bool(edit.arguments) and all(isinstance(argument, FromRun) for argument in edit.arguments)


# ------------------------------------------------------------------------------------------------------ the programs


def _runs(
    params: Any, base: Tokens, other: Tokens | None, edits: Sequence[Edit], other_edits: Sequence[Edit] | None, sites: dict[str, At],
    config: TransformerConfig, precision: Any,
) -> tuple[dict[str, Array], dict[str, Array] | None]:  # fmt: skip
    """Activations of the base run and of the other one, up to the last residual stream; one batch of both where neither has edits."""
    kept = {"resid_pre": At(), "k_rot": At(), "v": At()}

    def run(tokens: Tokens, edits: Sequence[Edit], wanted: dict[str, At]) -> dict[str, Array]:
        tokens = jax.tree.map(jnp.asarray, tokens)
        make_tap = functools.partial(Tap, tokens, config, edits=edits, requests=wanted)
        resid = embed(params, tokens, config, make_tap(), params["embed"]["W_E"].dtype)
        last, found, _ = run_blocks(params["blocks"], resid, tokens, config, make_tap, 0, None, edits, wanted)
        return {**found, "last": last}

    if other is None:
        return run(base, edits, kept), None
    if edits or other_edits:
        late = edits if other_edits is None else other_edits
        return run(base, edits, kept), run(other, late, sites)
    # the base's rows come first, so what is read of it by row needs no cutting
    both = run(jax.tree.map(lambda *pair: jnp.concatenate(pair), base, other), (), kept | sites)
    batch = base.ids.shape[0]
    return both, {site: both[site][:, batch:] for site in sites} | {"last": both["last"][batch:]}


def packed_program(*args: Any, **static: Any) -> tuple[list[Array], list[Array], list[Array]]:
    """`sweep_program`, compiled for where it runs."""
    return jitted()(*args, **static)


def jitted() -> Any:
    """The jitted `sweep_program`."""
    return _ON_CPU if jax.default_backend() == "cpu" else _ELSEWHERE


def sweep_program(
    params: Any, tokens: Tokens, other: Tokens | None, align: Any, cells: Cells, layout: Layout, base_edits: Sequence[Edit],
    other_edits: Sequence[Edit] | None, metrics: Sequence[Any], config: TransformerConfig, precision: Any,
) -> tuple[list[Array], list[Array], list[Array]]:  # fmt: skip
    """Metrics of every cell [C B], of the base run [B] and, where there is one, of the other run [B].

    Args:
        params: the weights.
        tokens: the base prompts.
        other: the prompts of another run, whose values cells write, or None.
        align: [B P], the column of the other prompt whose values each column of a base prompt takes; None: the same one.
        cells: the edits of C cells.
        layout: where their changed tokens stand.
        base_edits: edits of the base run.
        other_edits: edits of the other run; None: those of the base run.
        metrics: bound ones.
        config: static.
        precision: static.
    """
    sites = {kind.site: At() for kind in cells.kinds if isinstance(kind, FromRun)}
    with jax.default_matmul_precision(precision or "highest"):
        ours, theirs = _runs(params, tokens, other, base_edits, other_edits, sites, config, precision)
        edits, kinds = _forms(cells, theirs, align)
        plain = [jax.tree.map(lambda _: "shared", edit) for edit in base_edits]
        every, every_kind = [*base_edits, *edits], [*plain, *kinds]
        final = _climb(params, ours, tokens, layout, every, every_kind, config)
        sides = [Side(ours["last"], tokens)]
        if theirs is not None and other is not None:
            sides.append(Side(theirs["last"], other))
        acting = [Acting(base_edits, plain, (True, True, other_edits is None)), Acting(edits, kinds, (True, False, False))]
        if other_edits is not None:
            acting.append(Acting(other_edits, [jax.tree.map(lambda _: "shared", edit) for edit in other_edits], (False, False, True)))
        return read_metrics(params, metrics, sides, final, jnp.asarray(layout.read), acting, config)


_ON_CPU = jax.jit(sweep_program, static_argnames=STATIC, compiler_options={"xla_backend_optimization_level": 1})
"""Matrix products, which are the time, are not LLVM's: optimising the rest less compiles a quarter faster and runs within 2 %."""
_ELSEWHERE = jax.jit(sweep_program, static_argnames=STATIC)


def _forms(cells: Cells, source: Mapping[str, Array] | None, align: Any) -> tuple[list[Edit], list[Edit]]:
    """The cells' edits with their arrays, and with the kind of each array in its place."""
    arrays = [
        _aligned(source[kind.site], kind.site, align) if isinstance(kind, FromRun) and source else array
        for array, kind in zip(cells.arrays, cells.kinds, strict=True)
    ]
    kinds = ["shared" if isinstance(kind, FromRun) else kind for kind in cells.kinds]
    return list(jax.tree.unflatten(cells.tree, arrays)), list(jax.tree.unflatten(cells.tree, kinds))


def _aligned(value: Array, site: str, align: Any) -> Array:
    """A captured value with its positions in the order of the base prompts'."""
    if align is None:
        return value
    axes = SITES[site].axes
    batch, along = axes.index("B"), axes.index("P")
    shape = [1] * value.ndim
    shape[batch], shape[along] = align.shape
    return jnp.take_along_axis(value, jnp.asarray(align).reshape(shape), axis=along)


def _climb(
    params: Any, base: Mapping[str, Array], tokens: Tokens, layout: Layout, edits: Sequence[Edit], kinds: Sequence[Edit],
    config: TransformerConfig,
) -> Float[Array, "W D"]:  # fmt: skip
    """The last residual stream of every packed token."""
    sequence = _Sequence(layout, tokens, base, edits, kinds, config)
    rows = {"resid_pre": layout.cell.shape[0], "k_rot": layout.window, "v": layout.window}
    state = tuple(jnp.zeros((size, *base[site].shape[3:]), base[site].dtype) for site, size in rows.items())
    first = jnp.asarray(layout.start).min(initial=config.n_layers)
    for group, stack in zip(config.groups, params["blocks"], strict=True):
        step = sequence.stepper(group, stack)
        state = jax.lax.fori_loop(jnp.maximum(first, group.start), group.stop, step, state)
    unchanged = base["last"][layout.row, layout.column].astype(state[0].dtype)
    return jnp.where((layout.start < config.n_layers)[:, None], state[0], unchanged)


class _Sequence:
    """The packed tokens, and the step that carries them up one layer, block by block."""

    def __init__(
        self, layout: Layout, tokens: Tokens, base: Mapping[str, Array], edits: Sequence[Edit], kinds: Sequence[Edit],
        config: TransformerConfig,
    ) -> None:  # fmt: skip
        self.layout, self.config, self.base, self.edits, self.kinds = layout, config, base, edits, kinds
        self.tokens: Tokens = jax.tree.map(jnp.asarray, tokens)
        self.lengths = self.tokens.lengths
        self.wide = jnp.promote_types(base["resid_pre"].dtype, jnp.float32)
        # [R 2 B P F]; tokens of the pack stand where the base's do
        positions = self.tokens.positions
        self.rotary = rotary_tables(config, positions, self.lengths, self.wide) if config.positions == "rotary" else None
        self.unit, self.column = (jnp.pad(values, (layout.window, 0), constant_values=-1) for values in (layout.unit, layout.column))

    def stepper(self, group: Group, stack: Any) -> Callable[[Any, Any], Any]:
        """One layer for every block that has joined."""

        def step(layer: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            here = {site: jax.lax.dynamic_index_in_dim(self.base[site], layer, keepdims=False) for site in ("resid_pre", "k_rot", "v")}
            weights = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, layer - group.start, keepdims=False), stack)
            weights = cast(weights, state[0].dtype)
            edits = cut(self.edits, self.kinds, layer, self.config)
            block = functools.partial(self._block, group=group, layer=layer, here=here, weights=weights, edits=edits)
            return jax.lax.fori_loop(0, jnp.asarray(self.layout.active)[layer], block, state)

        return step

    def _block(
        self, number: Array, state: tuple[Array, Array, Array], *, group: Group, layer: Array, here: dict[str, Array], weights: Any,
        edits: Sequence[Edit],
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """One layer of one block: tokens that join here start from the base's residual stream."""
        layout, config = self.layout, self.config
        begin = number * layout.block
        part = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=begin, slice_size=layout.block)
        row, column, start = part(layout.row), part(layout.column), part(layout.start)
        position = part(layout.position)[:, None]
        view = View(part(layout.cell), row, column, self.lengths[row])
        keys, is_key = self.tokens.positions[row], self.tokens.mask[row]
        lane_row = jax.lax.dynamic_slice_in_dim(layout.lane_row, number * layout.lanes, layout.lanes)
        pack = self._pack(begin, state, here, lane_row, part(layout.first), keys, is_key)
        rotary = None if self.rotary is None else self._turns(row, column)
        allowed = (is_key & (keys <= position))[:, None, None, :]
        place = layer_place(config, layer, self.wide, queries=position, keys=keys, allowed=allowed, rotary=rotary, pack=pack)
        token = Tokens(jnp.zeros_like(position), jnp.ones(position.shape, bool), position)
        local, arguments = local_edits(edits, self.kinds, view, config)
        rows = Rows(token, token, Tokens(jnp.zeros_like(keys), is_key, keys))
        kept = {"k_rot": At(), "v": At()}
        tap = Tap(token, config, edits=local, arguments=arguments, requests=kept, layer=layer, rows=rows)
        resid = jnp.where((start == layer)[:, None], here["resid_pre"][row, column], part(state[0]))[:, None]
        out: Any = Block(config, group.experts).apply({"params": weights}, resid, place, tap)
        # the next block may go on with this one's last unit, whose keys and values it needs
        k, v = (
            jnp.concatenate([old, out[1][site][:, 0].astype(old.dtype)])[layout.block :]
            for old, site in zip(state[1:], ("k_rot", "v"), strict=True)
        )
        return jax.lax.dynamic_update_slice_in_dim(state[0], out[0][:, 0], begin, 0), k, v

    def _turns(self, row: Array, column: Array) -> Array:
        """[R 2 W 1 F]: the cosines and sines of tokens."""
        assert self.rotary is not None
        shared = self.rotary.shape[2] == 1
        return self.rotary[:, :, jnp.zeros_like(row) if shared else row, column][:, :, :, None]

    def _pack(
        self, begin: Array, state: tuple[Array, Array, Array], here: dict[str, Array], lane_row: Array, first: Array, keys: Array,
        is_key: Array,
    ) -> Pack:  # fmt: skip
        """Where the tokens of a block find the keys of their own run."""
        layout = self.layout
        size = layout.window + layout.block
        unit = jax.lax.dynamic_slice_in_dim(self.unit, begin, size)
        mine = unit[layout.window :]
        own = mine[:, None] + keys - first[:, None] - (begin - layout.window)
        return Pack(
            here["k_rot"][lane_row], here["v"][lane_row], state[1], state[2],
            changed=is_key & (keys >= first[:, None]),
            own=jnp.clip(own, 0, size - 1),
            same=mine[:, None] == unit[None],
            column=jnp.maximum(jax.lax.dynamic_slice_in_dim(self.column, begin, size), 0),
        )  # fmt: skip


@functools.partial(jax.jit, static_argnames=(*STATIC, "resume"))
def whole_program(
    params: Any, tokens: Tokens, other: Tokens | None, align: Any, cells: Cells, start: Any, base_edits: Sequence[Edit],
    other_edits: Sequence[Edit] | None, metrics: Sequence[Any], config: TransformerConfig, precision: Any, resume: bool,
) -> tuple[list[Array], list[Array], list[Array]]:  # fmt: skip
    """What `packed_program` gives, by whole runs, for cells that cannot be packed; with `resume` they begin at layer `start`."""
    sites = {kind.site: At() for kind in cells.kinds if isinstance(kind, FromRun)}
    read = {site: request for metric in metrics for site, request in metric.sites.items()}
    run = functools.partial(forward, config=config, precision=precision)
    base = run(params, tokens, edits=base_edits, sites=read | ({"resid_pre": At()} if resume else {}))
    source = None if other is None else run(params, other, edits=base_edits if other_edits is None else other_edits, sites=read | sites)
    edits, kinds = _forms(cells, None if source is None else source.padded, align)
    axes = jax.tree.map(lambda kind: 0 if kind == "varying" else None, tuple(kinds))
    layer = jnp.minimum(start, config.n_layers - 1)
    begin = (layer, jax.lax.dynamic_index_in_dim(base.padded["resid_pre"], layer, keepdims=False)) if resume else None

    def one(edits: Sequence[Edit]) -> list[Array]:
        trace = run(params, tokens, edits=[*base_edits, *edits], sites=read, start=begin)
        return [metric._read(trace) for metric in metrics]

    count = next((a.shape[0] for a, kind in zip(cells.arrays, cells.kinds, strict=True) if kind == "varying"), 1)
    values = jax.vmap(one, in_axes=(axes,), axis_size=count)(tuple(edits))
    return values, [metric._read(base) for metric in metrics], [] if source is None else [metric._read(source) for metric in metrics]


def can_resume(cell_edits: Sequence[Edit], metrics: Sequence[Any]) -> bool:
    """Whether whole runs may begin at the first layer that a cell changes."""
    return not any(edit.site in BEFORE_BLOCKS for edit in cell_edits) and not any(metric.sites for metric in metrics)
