"""Key maps: tables from OUR parameter names to tensors of a file, checked as a whole and read tensor by tensor.

A table holds every parameter that a family may have; which of them a model does have follows from its config. Checking
asks three things at once: is every parameter filled, is every tensor of the file accounted for, do the shapes agree.
Whatever is wrong is shown together.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from jaxinterp.checkpoints.layout import Layout, Sizes, parse
from jaxinterp.checkpoints.source import Source
from jaxinterp.errors import CheckpointError

PIECE_ELEMENTS = 1 << 18
"""Elements read at a time: temporaries stay within a few MB however large a tensor is."""

SHOWN = 12
"""Names shown of one kind of problem; the rest are counted."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where one of our parameters stands in a file.

    Attributes:
        key: the tensor's name, with {l} for the layer; several names are alternatives, the first is the one written. With {x}
            for the expert (or head), there is a tensor for each, and together they fill the leaf's axis behind the layer axis.
        layout: its axes and ours (see `layout`); without the axes that {l} and {x} stand for.
        part: which of the fused parts is ours.
        add: added to every value while reading, in float32 at least (a gain stored as 1 + w: -1).
    """

    key: str | tuple[str, ...]
    layout: str
    part: int = 0
    add: float = 0.0

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key


Table = Mapping[str, Weight]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the parameter tree and the tensors that fill it.

    Attributes:
        path: "blocks.0.attn.W_Q"; the number is that of the stack.
        shape: its shape, the layer axis included.
        tensors: a file's tensor for each layer, or for each expert of each (one for a leaf without a layer axis).
        layout, part, add: as in `Weight`; of one tensor.
        sizes: of the layout's letters.
        stacked: leading axes of the leaf that the file's tensors lack: 0, 1 (layer) or 2 (layer and expert).
    """

    path: str
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    layout: Layout
    part: int
    add: float
    sizes: Sizes
    stacked: int

    @property
    def file_shape(self) -> tuple[int, ...]:
        return self.layout.file_shape(self.sizes)

    def parts(self, array: np.ndarray) -> np.ndarray:
        """The leaf with one axis in front for its tensors, in their order; a view."""
        return array.reshape(len(self.tensors), *self.shape[self.stacked :])


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of a parameter tree (arrays, or shapes) by dotted path, stacks numbered: {"blocks.0.attn.W_Q": ...}."""
    flat = {}
    for name, value in tree.items():
        for inner, child in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            prefix = name if inner is None else f"{name}.{inner}"
            flat |= {f"{prefix}.{key}": leaf for key, leaf in flatten(child).items()} if isinstance(child, Mapping) else {prefix: child}
    return flat


def unflatten(flat: Mapping[str, object]) -> dict:
    """The tree of `flatten`'s paths; "blocks" becomes a tuple of stacks."""
    tree: dict = {}
    for path, leaf in flat.items():
        *folders, name = path.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    tree["blocks"] = tuple(tree["blocks"][key] for key in sorted(tree["blocks"], key=int))
    return tree


def plan(shapes: Mapping, table: Table, sizes: Sizes, names: Iterable[str] = ()) -> list[Leaf]:
    """For each leaf of a parameter tree, the tensors that fill it.

    Args:
        shapes: the tree of `parameter_shapes`.
        table: the family's rules, keyed by path without the number of the stack.
        sizes: of the axis letters.
        names: tensors that a file holds; decides between the alternatives of a rule.

    Raises:
        CheckpointError: a parameter has no rule.
    """
    names = set(names)
    flat = flatten(shapes)
    rules = {path: table.get(re.sub(r"^blocks\.\d+\.", "blocks.", path)) for path in flat}
    missing = [path for path, rule in rules.items() if rule is None]
    if missing:
        raise CheckpointError(f"This file format has no place for {_some(missing)}, which the model's config asks for.")
    first_layer = _first_layers(flat)
    leaves = []
    for path, struct in flat.items():
        rule, shape = rules[path], tuple(struct.shape)
        assert rule is not None
        stacked = ("{x}" in rule.keys[0]) + 1 if path.startswith("blocks.") else 0
        start = first_layer[path.split(".")[1]] if stacked else 0
        layers = range(start, start + shape[0]) if stacked else (None,)
        experts = range(shape[1]) if stacked == 2 else (None,)
        places = [{"l": layer, "x": expert} for layer in layers for expert in experts]
        tensors = tuple(_choose([key.format(**place) for key in rule.keys], names) for place in places)
        leaves.append(Leaf(path, shape, tensors, parse(rule.layout), rule.part, rule.add, sizes, stacked))
    return leaves


def _first_layers(flat: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    """For each stack, by its number, the index of its first layer in the whole model."""
    depth = {path.split(".")[1]: struct.shape[0] for path, struct in flat.items() if path.startswith("blocks.")}
    stacks = sorted(depth, key=int)
    return {stack: sum(depth[other] for other in stacks[:number]) for number, stack in enumerate(stacks)}


def _choose(alternatives: list[str], names: set[str]) -> str:
    return next((key for key in alternatives if key in names), alternatives[0])


def check(leaves: list[Leaf], source: Source, *, ignorable: Iterable[str] = (), copies: Mapping[str, str] | None = None) -> None:
    """Checks a whole file against a whole parameter tree.

    Args:
        leaves: of `plan`.
        source: the file.
        ignorable: patterns (regular expressions, searched for) of tensors that hold no parameters.
        copies: tensors that may stand in the file if they equal another one (a tied unembedding).

    Raises:
        CheckpointError: with everything that is missing, extra, misshapen or unequal.
    """
    copies = {copy: original for copy, original in (copies or {}).items() if {copy, original} <= source.tensors.keys()}
    wanted: dict[str, list[str]] = {}
    misshapen = []
    for leaf in leaves:
        expected = leaf.file_shape
        for name in leaf.tensors:
            wanted.setdefault(name, []).append(leaf.path)
            got = source.tensors[name].shape if name in source.tensors else expected
            if got != expected:
                misshapen.append(f"{name} is {list(got)}, expected {list(expected)} for {leaf.path}")
    missing = [f"{name} (for {', '.join(paths)})" for name, paths in wanted.items() if name not in source.tensors]
    patterns = [re.compile(pattern) for pattern in ignorable]
    extra = [name for name in source.tensors if name not in wanted and name not in copies and not any(p.search(name) for p in patterns)]
    problems = [("missing", missing), ("not understood", extra), ("of another shape", misshapen)]
    if not any(found for _, found in problems):
        different = {copy: original for copy, original in copies.items() if not equal(source, copy, original)}
        unequal = [f"{copy} differs from {original}, though the config ties them" for copy, original in different.items()]
        problems.append(("unequal", unequal))
    lines = [f"  {kind}: {_some(found)}" for kind, found in problems if found]
    if lines:
        file = next((info.file for info in source.tensors.values()), "an empty checkpoint")
        raise CheckpointError("\n".join([f"The tensors of {file} do not fit the model that its config describes.", *lines]))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more


def equal(source: Source, first: str, second: str) -> bool:
    """Whether two tensors of a file hold the same values."""
    a, b = source.tensors[first], source.tensors[second]
    if a.shape != b.shape:
        return False
    step = max(1, PIECE_ELEMENTS // max(1, math.prod(a.shape[1:])))
    return all(
        np.array_equal(source.read(first, row, min(row + step, a.shape[0])), source.read(second, row, min(row + step, a.shape[0])))
        for row in range(0, a.shape[0], step)
    )


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that starts at a multiple of 64 bytes, which JAX takes over on CPU without a copy."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


def fill(leaves: list[Leaf], source: Source, dtype: np.dtype) -> dict[str, jax.Array]:
    """Reads every leaf, the largest first, straight into its stacked array.

    Only pieces of a tensor are ever held beside the arrays, so the anonymous memory stays at the model's own size. On CPU
    JAX takes the arrays over as they are, and nothing here writes to them afterwards.

    Returns:
        Arrays by path, of `dtype`.
    """
    filled = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for leaf in sorted(leaves, key=lambda leaf: -math.prod(leaf.shape)):
            array = aligned(leaf.shape, dtype)
            parts = zip(leaf.tensors, leaf.parts(array), strict=True)
            work = [(name, part, *piece) for name, part in parts for piece in _pieces(leaf)]
            for done in [pool.submit(_fill_piece, leaf, source, *item) for item in work]:
                done.result()
            # where it does cross to an accelerator, wait: the host then never holds more than one leaf
            filled[leaf.path] = jax.device_put(array).block_until_ready()
            del array, parts, work
    return {leaf.path: filled[leaf.path] for leaf in leaves}


def _pieces(leaf: Leaf) -> Iterator[tuple[int, int]]:
    """(first piece, pieces) of one tensor, of about PIECE_ELEMENTS each; a vector is read whole."""
    shape = leaf.file_shape
    _, rows, count = leaf.layout.pieces(leaf.part, leaf.sizes)
    step = count if len(shape) == 1 else max(1, PIECE_ELEMENTS // (rows * math.prod(shape[1:])))
    return ((start, min(step, count - start)) for start in range(0, count, step))


def _fill_piece(leaf: Leaf, source: Source, name: str, ours: np.ndarray, start: int, count: int) -> None:
    first, rows, _ = leaf.layout.pieces(leaf.part, leaf.sizes)
    values = source.read(name, first + start * rows, first + (start + count) * rows)
    if leaf.add:
        values = values.astype(np.promote_types(np.float32, values.dtype)) + np.float32(leaf.add)
    target = leaf.layout.our_view(ours, leaf.part, leaf.sizes, start, count)
    _cast_into(target, leaf.layout.view(values, leaf.part, leaf.sizes, count), name)


def _cast_into(target: np.ndarray, values: np.ndarray, name: str) -> None:
    try:
        with np.errstate(over="raise"):
            np.copyto(target, values, casting="unsafe")
    except FloatingPointError:
        raise CheckpointError(f"{name} holds values too large for {target.dtype}: use dtype='float32' or 'bfloat16'.") from None


def file_tensors(leaves: list[Leaf]) -> dict[str, list[tuple[Leaf, int]]]:
    """For each tensor of a file, the leaves (with its place among the tensors of each) that it is written from."""
    writers: dict[str, list[tuple[Leaf, int]]] = {}
    for leaf in leaves:
        for place, name in enumerate(leaf.tensors):
            writers.setdefault(name, []).append((leaf, place))
    return writers


def assemble(writers: list[tuple[Leaf, int]], params: Mapping[str, Any], dtype: np.dtype) -> np.ndarray:
    """One tensor as the file holds it, from the leaves (by path in `params`) that share it."""
    tensor = np.empty(writers[0][0].file_shape, dtype)
    for leaf, place in writers:
        # a jax array keeps its copy on the host, so a stack crosses from an accelerator once and not once a layer
        ours = leaf.parts(np.asarray(params[leaf.path]))[place]
        _cast_into(leaf.layout.view(tensor, leaf.part, leaf.sizes), leaf.layout.our_view(ours, leaf.part, leaf.sizes), leaf.path)
    return tensor
