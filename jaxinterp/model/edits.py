"""Edits: interventions as data. An edit says where (site and selection) and what (a pure function and its arrays).

The static part is the site and the operation; layers, positions, heads and values are arrays. Another layer or value is
therefore the same compiled program, and a sweep is `vmap` over the arrays. Edits act in the order given, and what is
captured is the value after them.

    import jaxinterp as ji
    edit = ji.edits.zero("z", layer=23, head=3)
    trace = ji.run(lm, prompt, edits=[edit])

Every operation is the same record: `replace`, `add` and the others are `apply` with a function from this file. A value
broadcasts against the site's axes without L; with one more axis it holds a value for each layer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.model import directions
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.selection import SELECTORS, Heads, Rows, check_selection, pick, selection_mask
from jaxinterp.model.sites import SITES, Site, check_site, site_of
from jaxinterp.model.tokens import Tokens, concrete

When = Literal["all", "prompt", "new"] | tuple[int, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["select", "where", "arguments"],
    meta_fields=["site", "name", "function", "reads", "mixes", "broadcasts", "per_layer", "when"],
)
@dataclasses.dataclass(frozen=True)
class Edit:
    """One intervention; made by the functions of this module.

    Attributes:
        select: indices by selector name ("layer", "position", "head" ...), see `selection`.
        where: a mask over the site's leading axes, `Heads`, or None.
        arguments: arrays passed to the function after the values that it reads.
        site: the site that is changed.
        name: the operation's name, for messages.
        function: (value, *arguments) -> new value; with `reads`, (*values of those sites, *arguments) -> new value.
        reads: sites of the same block that the function reads instead of the value.
        mixes: selectors along which the function is not pointwise.
        broadcasts: whether arguments broadcast against the site's axes (else they are passed as they are).
        per_layer: whether arguments that do not broadcast have a leading layer axis.
        when: in generation, which tokens it acts on: "all", "prompt", "new" or a tuple of steps.
    """

    select: dict[str, Any]
    where: Any
    arguments: tuple[Any, ...]
    site: str
    name: str
    function: Callable[..., Array]
    reads: tuple[str, ...] = ()
    mixes: tuple[str, ...] = ()
    broadcasts: bool = True
    per_layer: bool = False
    when: When = "all"

    def scanned(self, config: TransformerConfig) -> tuple[bool, ...]:
        """For each argument, whether it holds one entry for each layer that has the site."""
        site = site_of(self.site, config)
        if not self.broadcasts:
            return (self.per_layer,) * len(self.arguments)
        return tuple(site.per_layer and np.ndim(argument) == len(site.axes) for argument in self.arguments)


def _edit(site: str, name: str, function: Callable[..., Array], arguments: Sequence[Any], selection: dict[str, Any], **fields: Any) -> Edit:
    """An edit whose selection is checked for words that no site knows, and whose arrays are arrays."""
    if site not in SITES:
        raise InputError(f"There is no site {site!r}. Sites: {', '.join(SITES)}.")
    where, when = selection.pop("where", None), selection.pop("when", "all")
    unknown = set(selection) - set(SELECTORS)
    if unknown:
        raise InputError(f"{name}(): unknown selection {', '.join(sorted(unknown))}; expected {', '.join(SELECTORS)}, where or when.")
    if isinstance(when, str) and when not in ("all", "prompt", "new"):
        raise InputError(f"{name}(): when is {when!r}; expected 'all', 'prompt', 'new' or a set of steps.")
    moment: Any = when if isinstance(when, str) else tuple(sorted(int(step) for step in when))
    if where is not None and not isinstance(where, Heads | jax.Array):
        where = np.asarray(where, bool)
    arrays = tuple(argument if isinstance(argument, jax.Array) else np.asarray(argument) for argument in arguments)
    arrays = tuple(
        a.astype(np.float32) if isinstance(a, np.ndarray) and fields.get("broadcasts", True) and a.dtype.kind in "iub" else a
        for a in arrays
    )
    return Edit(pick(**selection), where, arrays, site, name, function, when=moment, **fields)


# ------------------------------------------------------------------------------------------------------- operations


def replace(site: str, value: Any, **selection: Any) -> Edit:
    """The selected part becomes `value`.

    Args:
        site: the site to change.
        value: broadcasts against the site's axes without L; with one more axis, one for each layer.
        **selection: layer, position, head, neuron, query, key, batch, expert, where, when: see `selection`.
    """
    return _edit(site, "replace", _replace, (value,), selection)


def add(site: str, value: Any, **selection: Any) -> Edit:
    """`value` is added to the selected part; shapes as for `replace`."""
    return _edit(site, "add", _add, (value,), selection)


def scale(site: str, factor: Any, **selection: Any) -> Edit:
    """The selected part is multiplied by `factor`; shapes as for `replace`."""
    return _edit(site, "scale", _scale, (factor,), selection)


def zero(site: str, **selection: Any) -> Edit:
    """The selected part becomes 0."""
    return _edit(site, "zero", _zero, (), selection)


def steer(site: str, direction: Any, strength: Any, *, relative: bool = False, **selection: Any) -> Edit:
    """The selected part moves along a direction: x + strength d; relative to its own norm: x + strength |x| d / |d|.

    It is `add` with the strength apart, so that a sweep or a gradient of strengths shares the direction.

    Args:
        site: the site to change.
        direction: along the site's last axis; shapes as for `replace`.
        strength: a number, [B 1 1] for one of each prompt, or anything else that broadcasts.
        relative: whether the step is a multiple of the value's norm at each position, over the last axis.
        **selection: as for `replace`.
    """
    function = directions.shift_relative if relative else directions.shift
    return _edit(site, "steer", function, (_direction("steer", direction), strength), selection, mixes=_last_axis(site))


def steer_if(site: str, direction: Any, strength: Any, condition: Any, threshold: Any, *, below: bool = False, **selection: Any) -> Edit:
    """`steer` only at positions where the value's cosine with `condition` is over (or `below`) a threshold from -1 to 1.

    After conditional activation steering (Lee et al. 2024, arXiv:2409.05907), a token at a time. A step has no slope along
    the condition; see `ji.steering.gate` for one decision a prompt.

    Args:
        site: the site to change.
        direction: as for `steer`.
        strength: as for `steer`.
        condition: a direction, in the same way.
        threshold: from -1 to 1.
        below: whether it acts under the threshold instead of over it.
        **selection: as for `replace`.
    """
    function = directions.shift_below if below else directions.shift_above
    given = (_direction("steer_if", direction), strength, _direction("steer_if", condition), threshold)
    return _edit(site, "steer_if", function, given, selection, mixes=_last_axis(site))


def project_out(site: str, direction: Any, **selection: Any) -> Edit:
    """The component along `direction` is removed: x - (x . d) d with d of unit length, over the site's last axis."""
    return _edit(site, "project_out", directions.project_out, (_direction("project_out", direction),), selection, mixes=_last_axis(site))


def clamp(site: str, direction: Any, low: Any, high: Any, **selection: Any) -> Edit:
    """The coordinate along the unit vector of `direction` is clipped to [low, high]: x + (clip(x . d) - x . d) d."""
    return _edit(site, "clamp", directions.clamp, (_direction("clamp", direction), low, high), selection, mixes=_last_axis(site))


def swap(site: str, a: Any, b: Any, **selection: Any) -> Edit:
    """The coordinates along two directions change places: the reflection that maps one unit vector to the other.

    x - 2 (x . u) u with u the unit vector of a/|a| - b/|b|; what is orthogonal to both stays. Equal directions change nothing.
    """
    return _edit(site, "swap", directions.swap, (_direction("swap", a), _direction("swap", b)), selection, mixes=_last_axis(site))


def knockout(
    *, query: Any = None, key: Any = None, layer: Any = None, head: Any = None, batch: Any = None, where: Any = None, when: Any = "all"
) -> Edit:
    """Attention from the query positions to the key positions is removed: their scores become -inf before the softmax.

    The other keys of the row share the weight. A row with every key knocked out attends to nothing: its pattern is zero.
    """
    selection = {"query": query, "key": key, "layer": layer, "head": head, "batch": batch, "where": where, "when": when}
    return _edit("scores", "knockout", _replace, (-np.inf,), selection)


def apply(
    site: str, function: Callable[..., Array], *arrays: Any, mixes: Iterable[str] = (), per_layer: bool = False, **selection: Any
) -> Edit:
    """Any pure function of the value: function(value, *arrays) -> new value of the same shape.

    Args:
        site: the site to change; the function sees its axes without L.
        function: compiled once a function, so pass a module-level one and give what changes as `arrays`. At layers that
            are not selected it does not run.
        *arrays: passed as they are.
        mixes: selectors along which the function is not pointwise, of "batch", "position", "query", "key", "head" and
            "neuron". It may always mix d_model and d_head.
        per_layer: whether the arrays have a leading layer axis, of which the function sees its own layer's entry.
        **selection: as for `replace`.
    """
    return _edit(site, "apply", function, arrays, selection, mixes=_names(mixes), broadcasts=False, per_layer=per_layer)


def rewire(
    reads: str | Iterable[str],
    write: str,
    function: Callable[..., Array],
    *arrays: Any,
    mixes: Iterable[str] = (),
    per_layer: bool = False,
    **selection: Any,
) -> Edit:
    """A site becomes a function of other sites of the same block: function(*values read, *arrays) -> new value of `write`.

    A transcoder reads "mlp_in" and writes "mlp_out". A read site must come before `write` in the block; naming `write`
    itself among `reads` gives its value before this edit. Arguments otherwise as for `apply`.
    """
    names = (reads,) if isinstance(reads, str) else tuple(reads)
    for name in names:
        if name not in SITES or not SITES[name].per_layer:
            raise InputError(
                f"rewire(): cannot read {name!r}; expected sites of a block: {', '.join(n for n, s in SITES.items() if s.per_layer)}."
            )
    if not names or not SITES.get(write, SITES["embed"]).per_layer:
        raise InputError(
            f"rewire(): expected one or more sites to read and a site of a block to write; got reads={names!r}, write={write!r}."
        )
    return _edit(write, "rewire", function, arrays, selection, reads=names, mixes=_names(mixes), broadcasts=False, per_layer=per_layer)


def _names(mixes: Iterable[str]) -> tuple[str, ...]:
    names = (mixes,) if isinstance(mixes, str) else tuple(mixes)
    if set(names) - set(SELECTORS):
        raise InputError(f"mixes is {names!r}; expected names of {', '.join(SELECTORS)}.")
    return names


def _last_axis(site: str) -> tuple[str, ...]:
    """Operations on directions mix the last axis, which `neuron` selects at MLP sites."""
    return ("neuron",) if site in SITES and SITES[site].axes[-1] in SELECTORS["neuron"] else ()


def _direction(name: str, direction: Any) -> Any:
    if concrete(direction):
        norms = np.linalg.norm(np.asarray(direction, np.float64), axis=-1)
        if not np.isfinite(norms).all() or (norms == 0).any():
            raise InputError(f"{name}(): a direction has norm zero or is not finite; expected vectors along the site's last axis.")
    return direction


def _replace(x: Array, value: Array) -> Array:
    return value


def _add(x: Array, value: Array) -> Array:
    return x + value.astype(x.dtype)


def _scale(x: Array, factor: Array) -> Array:
    return x * factor.astype(x.dtype)


def _zero(x: Array) -> Array:
    return jnp.zeros_like(x)


# ---------------------------------------------------------------------------------------------------------- applying


def apply_edit(
    edit: Edit, arguments: Sequence[Array], inputs: Sequence[Array], value: Array, layer: Int[Array, ""] | None, tokens: Tokens | Rows,
    site: Site, chosen: Int[Array, "B P S"] | None = None, slot: Int[Array, ""] | None = None,
) -> Array:  # fmt: skip
    """The value of a site after one edit.

    Args:
        edit: the edit.
        arguments: its arrays, cut to this layer.
        inputs: what its function reads: the value itself, or the sites of `edit.reads`.
        value: the site's value before the edit.
        layer: the layer it belongs to, or None at a site outside the blocks.
        tokens: the prompts.
        site: the site as it is on this model.
        chosen: [B P S], the experts that the entries of an axis S belong to.
        slot: the layer's number among those that have the site; None is the layer itself.
    """
    mask = selection_mask(edit.select, edit.where, site, value.shape, layer, tokens, chosen, slot)
    if edit.broadcasts:
        arguments = [_broadcast(jnp.asarray(argument), value, edit, site.inner_axes) for argument in arguments]

    def edited() -> Array:
        if mask is None:
            return _fitting(edit.function(*inputs, *arguments), value, edit)
        rows = _rows(mask, edit, site)
        guarded = [_guard(rows, x) for x in inputs]
        if edit.reads:
            guarded = [_guard_foreign(rows, x, site, SITES[name]) for x, name in zip(inputs, edit.reads, strict=True)]
        given = [_guard(rows, argument) for argument in arguments] if edit.broadcasts else arguments
        return jnp.where(mask, _fitting(edit.function(*guarded, *given), value, edit), value)

    if edit.broadcasts or "layer" not in edit.select:
        return edited()
    return jax.lax.cond((jnp.asarray(edit.select["layer"]) == layer).any(), edited, lambda: value)


def _rows(mask: Array, edit: Edit, site: Site) -> Array:
    """What the function may see of the value: the mask, whole along the axes that it mixes; d_model and d_head are always whole."""
    mixed = tuple(i for i, letter in enumerate(site.inner_axes) if letter in "DE" or any(letter in SELECTORS[name] for name in edit.mixes))
    return mask.any(axis=mixed, keepdims=True) if mixed else mask


def _guard(rows: Array, x: Array) -> Array:
    """X with 1 where nothing is selected, so that no NaN from there reaches a gradient."""
    return jnp.where(rows, x, jnp.ones((), x.dtype))


def _guard_foreign(rows: Array, x: Array, written: Site, read: Site) -> Array:
    """The same for a value of another site, which has B and P in common with the written one, or nothing that is known."""
    if not all(site.inner_axes.startswith("BP") for site in (written, read)):
        return x
    rows = rows.any(axis=tuple(range(2, rows.ndim)))
    return _guard(rows.reshape(rows.shape + (1,) * (x.ndim - 2)), x)


def _fits(shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    return len(shape) <= len(full) and all(size in (1, want) for size, want in zip(shape[::-1], full[::-1], strict=False))


def _fitting(new: Array, value: Array, edit: Edit) -> Array:
    new = jnp.asarray(new)
    if not _fits(new.shape, value.shape):
        raise InputError(f"{edit.name} at {edit.site!r}: the function returned shape {list(new.shape)}; expected {list(value.shape)}.")
    return jnp.broadcast_to(new, value.shape).astype(value.dtype)


def _broadcast(argument: Array, value: Float[Array, "..."], edit: Edit, axes: str) -> Array:
    _check_value(argument.shape, value.shape, edit, axes)
    return argument.reshape((1,) * (value.ndim - argument.ndim) + argument.shape)


def _check_value(shape: tuple[int, ...], full: tuple[int, ...], edit: Edit, axes: str) -> None:
    if not _fits(shape, full):
        raise InputError(
            f"{edit.name} at {edit.site!r}: a value of shape {list(shape)} does not broadcast against the site's axes "
            f"{' '.join(axes)} = {list(full)}; a value for each layer has all of these axes and L before them."
        )


def check_edits(edits: Sequence[Edit], config: TransformerConfig, tokens: Tokens) -> None:
    """Refuse edits of sites that the model lacks, selections out of range and values that do not fit.

    Raises:
        InputError: naming the edit, what was expected and what came.
    """
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InputError(f"edits must be made by ji.edits; got {type(edit).__name__}.")
        site = check_site(edit.site, config)
        if site.read_only:
            raise InputError(f"Site {edit.site!r} is read-only: {site.definition}. Edit router_logits or expert_weights instead.")
        for name in edit.reads:
            check_site(name, config)
        what = f"{edit.name} at {edit.site!r}"
        check_selection(edit.select, edit.where, site, config, tokens, what)
        full = site.shape(config, *tokens.ids.shape)
        depth = len(site.layers(config))
        for argument, scanned in zip(edit.arguments, edit.scanned(config), strict=True):
            if scanned and np.shape(argument)[:1] != (depth,):
                raise InputError(f"{what}: a value for each layer needs {depth} of them; got shape {list(np.shape(argument))}.")
            if edit.broadcasts:
                _check_value(np.shape(argument)[scanned:], full[site.per_layer :], edit, site.inner_axes)
