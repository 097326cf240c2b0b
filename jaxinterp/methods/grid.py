"""The axes of a grid over a site: what each is called, the labels that it shows, and the indices of its cells."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.selection import POSITIONAL, SELECTORS, Heads, axis_of, check_selection, pick
from jaxinterp.model.sites import Site
from jaxinterp.model.tokens import Tokens, check_positions

Points = Sequence[int] | Mapping[str, Any]
"""Indices to visit, or {role: the position of each prompt, [B]}."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of a grid.

    Attributes:
        name: the selector.
        labels: what each point shows.
        values: what each point selects: an int, [B 1] for a role, or a mask.
    """

    name: str
    labels: tuple[Any, ...]
    values: tuple[Any, ...]


def axes_of(what: str, site: Site, over: Sequence[str] | str | Mapping[str, Points], lm: LanguageModel, tokens: Tokens) -> list[Axis]:
    """The axes of a grid, checked.

    Args:
        what: the call, for messages.
        site: the site that cells act on.
        over: selectors, or {selector: indices or roles}.
        lm: the model.
        tokens: the prompts that cells run.

    Raises:
        InputError: an axis that the site lacks, or indices out of range.
    """
    names = [over] if isinstance(over, str) else list(over)
    if len(set(names)) < len(names):
        raise InputError(f"{what}: an axis is named twice in {', '.join(names)}.")
    return [_axis(what, name, site, over[name] if isinstance(over, Mapping) else None, lm, tokens) for name in names]


def _axis(what: str, name: str, site: Site, points: Points | None, lm: LanguageModel, tokens: Tokens) -> Axis:
    axis = axis_of(name, site.axes) if name in SELECTORS else -1
    if axis < 0:
        usable = [n for n, letters in SELECTORS.items() if set(letters) & set(site.axes)]
        raise InputError(f"{what}: site {site.name!r} has no axis {name!r}; it has {', '.join(usable)}.")
    if isinstance(points, Mapping):
        return _roles(what, name, points, tokens)
    longest = int(np.asarray(tokens.lengths).max())
    sizes = lm.config.axis_sizes | dict.fromkeys("PQK", longest) | {"B": tokens.ids.shape[0]}
    sizes["S"] = sizes["X"] if name == "expert" else sizes["S"]
    whole = list(site.layers(lm.config)) if name == "layer" else list(range(sizes[site.axes[axis]]))
    chosen = whole if points is None else [int(i) for i in points]
    if not chosen:
        raise InputError(f"{what}: axis {name!r} has no indices.")
    if name not in POSITIONAL:
        check_selection(pick(**{name: chosen}), None, site, lm.config, tokens, what)
    elif max(chosen) >= longest or min(chosen) < -longest:
        raise InputError(f"{what}: {name} {max(chosen, key=abs)} is out of range; the longest prompt has {longest} tokens.")
    return Axis(name, tuple(chosen), tuple(chosen))


def _roles(what: str, name: str, roles: Mapping[str, Any], tokens: Tokens) -> Axis:
    if name not in POSITIONAL:
        raise InputError(f"{what}: axis {name!r} takes indices; roles {', '.join(roles)} name positions.")
    if not roles:
        raise InputError(f"{what}: axis {name!r} has no roles.")
    values = []
    for role, position in roles.items():
        where = np.asarray(position)
        where = np.broadcast_to(where.reshape(-1), (tokens.ids.shape[0],)) if where.size == 1 else where
        if where.shape != (tokens.ids.shape[0],) or where.dtype.kind not in "iu":
            raise InputError(
                f"{what}: role {role!r} must hold a position for each of the {tokens.ids.shape[0]} prompts; got shape {list(where.shape)}."
            )
        check_positions(where[:, None], tokens, f"{what}: role {role!r}")
        values.append(where[:, None])
    return Axis(name, tuple(roles), tuple(values))


def component_masks(what: str, components: Any, site: Site, config: TransformerConfig) -> Axis | None:
    """Sets of components as an axis of masks over all axes of a site; None where none are given.

    Args:
        what: the call, for messages.
        components: a list or mapping of `ji.heads(...)` or masks over [L] or [L H].
        site: the site.
        config: the architecture.

    Raises:
        InputError: no components, or a mask of another shape.
    """
    if components is None:
        return None
    named = dict(components) if isinstance(components, Mapping) else {_label(item, i): item for i, item in enumerate(components)}
    if not named:
        raise InputError(f"{what}: components is empty; give at least one set.")
    return Axis("component", tuple(named), tuple(component_mask(what, item, site, config) for item in named.values()))


def _label(item: Any, number: int) -> str:
    if not isinstance(item, Heads):
        return str(number)
    return " ".join(f"{layer}.{head}" for layer, head in zip(item.layer, item.head, strict=True))


def component_mask(what: str, item: Any, site: Site, config: TransformerConfig) -> np.ndarray:
    """One set of components as a mask over all axes of a site, 1 along those that it does not tell apart."""
    head = axis_of("head", site.axes)
    shape = [1] * len(site.axes)
    layers = list(site.layers(config))
    shape[0] = len(layers)
    if isinstance(item, Heads):
        check_selection({}, item, site, config, Tokens.from_ids(np.zeros((1, 1), np.int32)), what)
        shape[head] = config.axis_sizes[site.axes[head]]
        mask = np.zeros(shape, bool)
        for layer, number in zip(np.asarray(item.layer), np.asarray(item.head), strict=True):
            index = [0] * len(shape)
            index[0], index[head] = layers.index(int(layer)), number
            mask[tuple(index)] = True
        return mask
    given = np.asarray(item)
    shape[head] = config.axis_sizes[site.axes[head]] if head >= 0 else shape[head]
    expected = (config.n_layers, shape[head]) if head >= 0 else (config.n_layers,)
    if not site.per_layer or given.dtype != bool or given.shape not in (expected, expected[:1]):
        raise InputError(
            f"{what}: a set of components at site {site.name!r} must be ji.heads(...) or a boolean mask of shape {list(expected)}; "
            f"got {given.dtype} of shape {list(given.shape)}."
        )
    given = given[layers]
    expected = (len(layers), *expected[1:])
    return np.broadcast_to(given.reshape(-1, *(1,) * (len(expected) - 1)) if given.ndim == 1 else given, expected).reshape(shape)


def strings_of(lm: LanguageModel, tokens: Tokens) -> tuple[str, ...]:
    """Token strings of the first prompt, for pictures; none without a tokenizer."""
    if lm.tokenizer is None:
        return ()
    return tuple(lm.to_strings(np.asarray(tokens.ids)[0][np.asarray(tokens.mask)[0]]))
