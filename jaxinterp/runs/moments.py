"""When edits act in generation: which of them see the prompt, which see new tokens, and at which steps, as data.

An edit that does not act on the prompt is not part of the program that runs it, so that prompt logits and the prompt's cache
are those of a run without it, to the bit. Which steps an edit acts on is a table of booleans: another set compiles nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit, check_edits
from jaxinterp.model.selection import POSITIONAL, Heads
from jaxinterp.model.sites import check_site, site_of
from jaxinterp.model.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Moments:
    """The edits of a generation.

    Attributes:
        prompt: those that act on the prompt, over its columns as they stand in the cache.
        new: those that act on new tokens.
        acts: [n steps] bool, at which new tokens each of `new` acts.
    """

    prompt: tuple[Edit, ...]
    new: tuple[Edit, ...]
    acts: np.ndarray


def aligned(tokens: Tokens) -> Tokens:
    """The prompts with all padding on the left, as wide as the longest."""
    ids, mask = np.asarray(tokens.ids), np.asarray(tokens.mask)
    order, padding = _columns(mask)
    out = np.where(padding, 0, np.take_along_axis(ids, order, axis=1))
    types = None if tokens.types is None else np.where(padding, 0, np.take_along_axis(np.asarray(tokens.types), order, axis=1))
    made = Tokens.from_ids(out, ~padding, bos=tokens.bos)
    return dataclasses.replace(made, types=types, spans=tokens.spans, roles=tokens.roles)


def _columns(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B P]: for each column of the aligned prompts the given one, and whether it is padding."""
    lengths = mask.sum(axis=1)
    place = np.arange(lengths.max())[None] - (lengths.max() - lengths)[:, None]
    order = np.argsort(~mask, axis=1, kind="stable")
    return np.take_along_axis(order, np.maximum(place, 0), axis=1), place < 0


def moments(edits: Sequence[Edit], tokens: Tokens, steps: int, config: TransformerConfig) -> Moments:
    """Sorts edits by when they act.

    Args:
        edits: in the order in which they act.
        tokens: the prompts as they were given.
        steps: new tokens at most.
        config: the architecture.

    Raises:
        InputError: an edit that does not fit the model or the prompts, or that cannot act on one new token at a time.
    """
    mask = np.asarray(tokens.mask)
    lengths = mask.sum(axis=1)
    whole = np.arange(lengths.max() + steps)[None] >= (lengths.max() - lengths)[:, None]
    everything = Tokens.from_ids(np.zeros(whole.shape, np.int32), whole)
    prompt, new, acts = [], [], []
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InputError(f"edits must be made by ji.edits; got {type(edit).__name__}.")
        check_site(edit.site, config)
        what = f"{edit.name} at {edit.site!r}"
        on_prompt, on_new = edit.when in ("all", "prompt"), _steps(edit, steps, what)
        spans = _spans(edit, config)
        if on_new.any() and (spans or {"position", "query"} & set(edit.mixes)):
            raise InputError(
                f"{what} has {'a value or mask for each position' if spans else 'a function that mixes positions'}, so it cannot act on "
                "new tokens, which run one at a time: give it when='prompt'."
            )
        edit = dataclasses.replace(edit, select=_from_start(edit.select, lengths, what), when="all")
        check_edits([edit], config, tokens if spans else everything)
        if on_prompt:
            prompt.append(_moved(edit, mask, config) if spans else edit)
        if on_new.any():
            new.append(edit)
            acts.append(on_new)
    return Moments(tuple(prompt), tuple(new), np.asarray(acts, bool).reshape(len(new), steps))


def _steps(edit: Edit, steps: int, what: str) -> np.ndarray:
    """[steps] bool: the new tokens that an edit acts on."""
    if isinstance(edit.when, str):
        return np.full(steps, edit.when in ("all", "new"))
    bad = [step for step in edit.when if not 0 <= step < steps]
    if bad:
        raise InputError(f"{what}: when names step {bad[0]}; with {steps} new tokens, steps are 0 to {steps - 1}.")
    return np.isin(np.arange(steps), edit.when)


def _from_start(select: dict[str, Any], lengths: np.ndarray, what: str) -> dict[str, Any]:
    """A selection whose negative positions, which count from the end of each prompt, count from its beginning."""
    out = dict(select)
    for name in POSITIONAL:
        if name not in select or not (np.asarray(select[name]) < 0).any():
            continue
        index = np.asarray(select[name])
        rows = index.reshape(1, -1) if index.ndim < 2 else index
        rows = np.where(rows < 0, lengths[:, None] + rows, rows)
        if (rows < 0).any():
            row = int((rows < 0).any(axis=1).argmax())
            raise InputError(f"{what}: {name} {int(index.min())} is out of range for prompt {row}, which has {lengths[row]} tokens.")
        out[name] = rows
    return out


def _spans(edit: Edit, config: TransformerConfig) -> bool:
    """Whether a value or a mask holds something for each position."""
    axes = site_of(edit.site, config).axes
    arrays = [(a, axes[len(axes) - np.ndim(a) :]) for a in edit.arguments] if edit.broadcasts else []
    if edit.where is not None and not isinstance(edit.where, Heads):
        arrays.append((edit.where, axes))
    return any(size > 1 and letter in "PQK" for array, letters in arrays for size, letter in zip(np.shape(array), letters, strict=False))


def _moved(edit: Edit, mask: np.ndarray, config: TransformerConfig) -> Edit:
    """The edit with what it holds for each position in the columns of the aligned prompts."""
    order, _ = _columns(mask)
    if order.shape == mask.shape and (order == np.arange(mask.shape[1])[None]).all():
        return edit
    site = site_of(edit.site, config)
    arguments, where = edit.arguments, edit.where
    if edit.broadcasts:
        inner = len(site.inner_axes)
        wide = (a.reshape((1,) * (inner - np.ndim(a)) + np.shape(a)) for a in arguments)
        arguments = tuple(_taken(a, site.axes[-a.ndim :], order) for a in wide)
    if where is not None and not isinstance(where, Heads):
        where = _taken(where, site.axes[: np.ndim(where)], order)
    return dataclasses.replace(edit, arguments=arguments, where=where)


def _taken(array: Any, letters: str, order: np.ndarray) -> Any:
    """An array over the axes `letters`, its positions taken in the order [B P] for each prompt."""
    array, batch = jnp.asarray(array), letters.index("B")
    for axis, letter in enumerate(letters):
        if letter not in "PQK" or array.shape[axis] == 1:
            continue
        array = jnp.broadcast_to(array, tuple(len(order) if i == batch else size for i, size in enumerate(array.shape)))
        shape = [1] * array.ndim
        shape[batch], shape[axis] = order.shape
        array = jnp.take_along_axis(array, jnp.asarray(order).reshape(shape), axis=axis)
    return array
