"""Sources: what a weight file is to the rest of the package, a set of named tensors that can be read a few rows at a time."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a file says about one of its tensors, before any of it is read.

    Attributes:
        shape: sizes of its axes.
        dtype: how it is stored, in the file's own words ("BF16", "Q4_K").
        file: where it lies, for messages.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str


@runtime_checkable
class Source(Protocol):
    """One or several weight files, memory-mapped: listing costs nothing and only what is read is brought in."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What it holds, by name."""
        ...

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of a tensor's first axis, in a floating type; read-only."""
        ...
