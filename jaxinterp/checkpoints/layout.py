"""Layouts: how the axes of a tensor in a file relate to the axes of our parameter, written as "(H E) D -> D H E".

Left of the arrow stands the file's tensor, right of it our parameter; without an arrow they are the same. Letters are
the axis letters of `sizes_of`, a number is an axis of that size, and round brackets join several into one axis. Square
brackets list what is fused along an axis, in parts of equal or unequal size, of which a rule picks one:

    "([H E|H E|H E]) D -> D H E"   all queries, then all keys, then all values (GPT-2, Phi-3 with [H E|G E|G E])
    "(H [1|1|1] E) D -> D H E"     a head at a time: its query, its key, its value (GPT-NeoX)
    "(G [R|1|1] E) D -> D (G R) E" a group at a time: its R queries, its key, its value (Falcon)

All of it is numpy views: a tensor is read and written through the same one, in opposite directions.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from jaxinterp.model.config import TransformerConfig

Sizes = Mapping[str, int]


def sizes_of(config: TransformerConfig) -> dict[str, int]:
    """Sizes of the axis letters; beside the config's own: R = H / G, J = H / 4, F = E / 2, P rows of learned positions, T token types,
    C width of a projected token embedding, U neurons of the shared expert. M are those of an expert where there are any, N
    those of a dense MLP. O are the outputs of a dense layer [D D].
    """
    return config.axis_sizes | {
        "R": config.n_heads // config.n_kv_heads,
        "J": config.n_heads // 4,
        "F": config.d_head // 2,
        "P": config.n_ctx + config.position_offset,
        "T": config.n_token_types,
        "O": config.d_model,
        "C": config.d_embed or config.d_model,
        "U": config.experts.d_shared if config.experts else 0,
    }


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a file's tensor: the letters joined in it, with those of each fused part after the first few.

    Attributes:
        before: letters in front of the fused parts; all letters where nothing is fused.
        parts: the letters of each fused part.
        after: letters behind the fused parts.
    """

    before: tuple[str, ...]
    parts: tuple[tuple[str, ...], ...] = ()
    after: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """A parsed layout: the axes of the file's tensor and the letters of our parameter, in order."""

    file: tuple[Axis, ...]
    ours: tuple[tuple[str, ...], ...]

    def file_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of the whole tensor in the file, every fused part included."""
        return tuple(
            _product(axis.before, sizes) * (sum(_product(part, sizes) for part in axis.parts) or 1) * _product(axis.after, sizes)
            for axis in self.file
        )

    def our_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape of our parameter."""
        return tuple(_product(letters, sizes) for letters in self.ours)

    def pieces(self, part: int, sizes: Sizes) -> tuple[int, int, int]:
        """How the rows of the file's first axis fall into pieces that can be read alone: (first row, rows each, pieces)."""
        axis = self.file[0]
        if not axis.parts or axis.before:
            count = _size(axis.before[0], sizes)
            return 0, self.file_shape(sizes)[0] // count, count
        letters = axis.parts[part] + axis.after
        count = _size(letters[0], sizes)
        return sum(_product(other, sizes) for other in axis.parts[:part]) * _product(axis.after, sizes), _product(letters[1:], sizes), count

    def view(self, tensor: np.ndarray, part: int, sizes: Sizes, pieces: int | None = None) -> np.ndarray:
        """Our part of the file's tensor with an axis a letter, in the order of our parameter.

        Args:
            tensor: of shape `file_shape`; or, with `pieces`, the rows of so many pieces only.
            part: which of the fused parts is ours.
            sizes: of the letters.
            pieces: how many pieces of the first axis `tensor` holds; None for all of the tensor.
        """
        split: list[int] = []
        index: list[slice] = []
        named: list[tuple[str, int]] = []
        for number, axis in enumerate(self.file):
            if pieces is not None and number == 0 and axis.parts and not axis.before:
                axis = Axis(axis.parts[part] + axis.after)
            for letter in axis.before:
                size = _size(letter, sizes) if pieces is None or split else pieces
                split, index, named = [*split, size], [*index, slice(None)], [*named, (letter, size)]
            if axis.parts:
                ends = np.cumsum([0] + [_product(other, sizes) for other in axis.parts]).tolist()
                split, index = [*split, ends[-1]], [*index, slice(ends[part], ends[part + 1])]
                named += [(letter, _size(letter, sizes)) for letter in axis.parts[part]]
            for letter in axis.after:
                size = _size(letter, sizes)
                split, index, named = [*split, size], [*index, slice(None)], [*named, (letter, size)]
        letters = [letter for letter, _ in named]
        order = [letters.index(letter) for group in self.ours for letter in group]
        return tensor.reshape(split)[tuple(index)].reshape([size for _, size in named]).transpose(order)

    def our_view(self, parameter: np.ndarray, part: int, sizes: Sizes, start: int = 0, count: int | None = None) -> np.ndarray:
        """Our parameter with an axis a letter, as `view` returns it; with `count`, that many pieces from `start` only."""
        letters = [letter for group in self.ours for letter in group]
        axis = self.file[0]
        first = letters.index((axis.before or (axis.parts[part] + axis.after))[0])
        stop = None if count is None else start + count
        return parameter.reshape([_size(letter, sizes) for letter in letters])[(slice(None),) * first + (slice(start, stop),)]


@functools.cache
def parse(text: str) -> Layout:
    """The layout written in `text`; see the module's first lines for the notation."""
    file, _, ours = (side.strip() for side in text.partition("->"))
    axes = tuple(_parse_axis(group) for group in _groups(file))
    return Layout(axes, tuple(_parse_axis(group).before for group in _groups(ours)) if ours else tuple(axis.before for axis in axes))


def _groups(side: str) -> list[str]:
    return re.findall(r"\([^)]*\)|\w+", side)


def _parse_axis(group: str) -> Axis:
    before, _, rest = group.strip("()").partition("[")
    if not rest:
        return Axis(tuple(before.split()))
    inside, _, after = rest.partition("]")
    # a part written "1" has no axis of its own: a single query, key or value
    parts = tuple(tuple(letter for letter in part.split() if letter != "1") for part in inside.split("|"))
    return Axis(tuple(before.split()), parts, tuple(after.split()))


def _size(letter: str, sizes: Sizes) -> int:
    return int(letter) if letter.isdigit() else sizes[letter]


def _product(letters: tuple[str, ...], sizes: Sizes) -> int:
    return math.prod(_size(letter, sizes) for letter in letters)
