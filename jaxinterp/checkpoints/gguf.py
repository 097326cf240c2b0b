"""GGUF files: llama.cpp's format, dequantised a few rows at a time by the `gguf` package, and its metadata as a config.json."""

import dataclasses
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from jaxinterp.checkpoints.families import GGUF_FAMILIES
from jaxinterp.checkpoints.families.family import GgufFormat
from jaxinterp.checkpoints.fields import Fields
from jaxinterp.checkpoints.gguf_header import Described, read_header
from jaxinterp.checkpoints.source import TensorInfo
from jaxinterp.errors import CheckpointError

HARMLESS = ("rope.scaling.finetuned", "tensor_data_layout")
"""Metadata that changes nothing about what a forward pass computes."""


@dataclasses.dataclass(frozen=True)
class Entry(TensorInfo):
    """A tensor with the place of its bytes in the file, their number, and that of one row (0 for a vector)."""

    kind: GGMLQuantizationType = GGMLQuantizationType.F32
    start: int = 0
    size: int = 0
    row: int = 0


class GgufSource:
    """Tensors of one GGUF file (see `source.Source`).

    Attributes:
        fields: the metadata, name -> Python value.
        tensors: what the file holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 24:
            raise CheckpointError(f"{path} is not a GGUF file: it has {size} bytes.")
        with path.open("rb") as file:
            self._buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = read_header(path, self._buffer)
        self.fields = header.fields
        parts = self.fields.get("split.count", 1)
        if parts not in (0, 1):
            raise CheckpointError(f"{path} is one of {parts} parts; join them first: llama-gguf-split --merge {path.name} whole.gguf")
        self.tensors: dict[str, Entry] = {name: _entry(path, name, told, header.data) for name, told in header.tensors.items()}
        _check_extent(path, self.tensors)
        for entry in {entry.kind: entry for entry in self.tensors.values()}.values():
            _check_readable(path, entry)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        entry = self.tensors[name]
        if len(entry.shape) == 1:
            return self._dequantised(entry, entry.start, entry.size).reshape(entry.shape)[start:stop]
        rows = self._dequantised(entry, entry.start + start * entry.row, (stop - start) * entry.row)
        return rows.reshape(stop - start, *entry.shape[1:])

    def _dequantised(self, entry: Entry, start: int, size: int) -> np.ndarray:
        # in one row, because the package loops over groups of rows in Python
        with np.errstate(all="ignore"):  # a weight that is stored as infinite or NaN is the file's own affair
            return dequantize(np.frombuffer(self._buffer, np.uint8, size, start)[None], entry.kind)


def _entry(path: Path, name: str, told: Described, data: int) -> Entry:
    try:
        kind = GGMLQuantizationType(told.kind)
        block, width = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        advice = "a newer gguf package may know it"
        raise CheckpointError(f"{path}: tensor {name!r} is of quantisation number {told.kind}, which is not known; {advice}.") from None
    if told.shape[-1] % block:
        raise CheckpointError(
            f"{path}: tensor {name!r} has rows of {told.shape[-1]} elements, not a multiple of the {block} of {kind.name}."
        )
    # elements of a vector have no bytes of their own where they are quantised in blocks: vectors are read whole
    row = math.prod(told.shape[1:]) * width // block if len(told.shape) > 1 else 0
    start, length = data + told.offset, math.prod(told.shape) // block * width
    return Entry(told.shape, kind.name, str(path), kind, start, length, row)


def _check_extent(path: Path, tensors: Mapping[str, Entry]) -> None:
    """The tensors' bytes must not overlap and must end within the file."""
    end, before = 0, ""
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start < end:
            raise CheckpointError(f"{path} is damaged: tensors {before!r} and {name!r} overlap. Fetch it again.")
        end, before = entry.start + entry.size, name
    size = path.stat().st_size
    if end > size:
        raise CheckpointError(f"{path} is cut off: {before!r} should end at byte {end} and the file has {size}. Fetch it again.")


def _check_readable(path: Path, entry: Entry) -> None:
    _, width = GGML_QUANT_SIZES[entry.kind]
    try:
        dequantize(np.zeros((1, width), np.uint8), entry.kind)
    except NotImplementedError:
        raise CheckpointError(f"{path} holds tensors quantised as {entry.dtype}, which the gguf package cannot dequantise.") from None


def config_fields(source: GgufSource) -> tuple[dict[str, Any], GgufFormat]:
    """The metadata of a GGUF file as the config.json of its family, so that configs are translated in one place only.

    Returns:
        The fields, and how the family is written in this format.

    Raises:
        CheckpointError: the architecture, or a field of it, is not understood.
    """
    name = source.fields.get("general.architecture")
    family = GGUF_FAMILIES.get(str(name))
    if family is None or family.gguf is None:
        raise CheckpointError(f"{source.path}: architecture {name!r} is not supported (known: {', '.join(GGUF_FAMILIES)}).")
    own = {key.removeprefix(f"{name}."): value for key, value in source.fields.items() if key.startswith(f"{name}.")}
    fields = Fields(own, str(source.path))
    values = family.gguf.config(fields, source)
    fields.expect("attention.causal", True)
    fields.expect("rope.scaling.attn_factor", 1.0)
    fields.finish(harmless=HARMLESS)
    return {"model_type": family.model_type} | values, family.gguf
