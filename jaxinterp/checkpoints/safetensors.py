"""safetensors files: read memory-mapped and checked before use, written one tensor at a time.

The format (8 bytes of header length, a JSON header, the data) is simple enough to be read here directly; so a header that
lies is refused with a sentence of ours, and writing never holds more than one tensor.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxinterp.checkpoints.source import TensorInfo
from jaxinterp.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000

FLOATS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
CODES = {dtype: code for code, dtype in FLOATS.items()}
Spec = tuple[np.dtype, tuple[int, ...]]
"""Dtype and shape of a tensor to be written."""

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}


@dataclasses.dataclass(frozen=True)
class Entry(TensorInfo):
    """A tensor with the place of its bytes: `start` and `stop` count from the first byte of the file."""

    start: int = 0
    stop: int = 0


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one file, every claim of its header checked against the file's size.

    Raises:
        CheckpointError: the file is cut, or its header is not readable, lies about sizes or names an unknown dtype.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise CheckpointError(f"{path} is not a whole safetensors file: its header claims {length} bytes and the file has {size}.")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = {name: _entry(path, name, value, 8 + length) for name, value in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} has a safetensors header that cannot be read ({type(error).__name__}: {error}).") from None
    _check_extent(path, list(entries.items()), 8 + length, size)
    return entries


def _entry(path: Path, name: str, value: Mapping, offset: int) -> Entry:
    code, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if code not in BYTES:
        raise CheckpointError(f"{path}: tensor {name!r} is stored as {code}, which is not supported; expected one of {', '.join(FLOATS)}.")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"{name!r} has sizes that are not whole numbers")
    if stop - start != math.prod(shape) * BYTES[code]:
        raise CheckpointError(f"{path}: tensor {name!r} claims shape {list(shape)} of {code} but {stop - start} bytes.")
    return Entry(shape, code, str(path), start + offset, stop + offset)


def _check_extent(path: Path, entries: list[tuple[str, Entry]], start: int, size: int) -> None:
    """The tensors must follow one another without overlap and end where the file ends."""
    end = start
    for name, entry in sorted(entries, key=lambda item: (item[1].start, item[1].stop)):
        if entry.start < end:
            raise CheckpointError(f"{path}: tensor {name!r} overlaps the one before it.")
        end = entry.stop
    if end > size:
        raise CheckpointError(f"{path} is cut off: its header describes {end} bytes and the file has {size}. Fetch it again.")


class SafetensorsSource:
    """Tensors of one or several safetensors files (see `source.Source`)."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.tensors: dict[str, Entry] = {}
        self._bytes: dict[str, np.ndarray] = {}
        for file in files:
            for name, entry in read_header(file).items():
                if name in self.tensors:
                    raise CheckpointError(f"Tensor {name!r} stands both in {self.tensors[name].file} and in {file}.")
                self.tensors[name] = entry
            self._bytes[str(file)] = np.memmap(file, np.uint8, "r")

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        entry = self.tensors[name]
        if entry.dtype not in FLOATS:
            raise CheckpointError(f"{entry.file}: tensor {name!r} is stored as {entry.dtype}; expected one of {', '.join(FLOATS)}.")
        return self.read_bytes(name, start, stop).view(FLOATS[entry.dtype]).reshape(stop - start, *entry.shape[1:])

    def read_bytes(self, name: str, start: int, stop: int) -> np.ndarray:
        """The bytes of rows start..stop of a tensor of any type, one after the other."""
        entry = self.tensors[name]
        row = (entry.stop - entry.start) // max(1, entry.shape[0])
        return self._bytes[entry.file][entry.start + start * row : entry.start + stop * row]


def folder_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in HF layout: those of its index, else the single one.

    Raises:
        CheckpointError: there are none, or the index names a file that is not there.
    """
    if (folder / INDEX).exists():
        try:
            named = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CheckpointError(f"{folder / INDEX} cannot be read: expected JSON with a 'weight_map'.") from None
        absent = [name for name in named if Path(name).name != name or not (folder / name).exists()]
        if absent:
            raise CheckpointError(f"{folder / INDEX} names files that are not in the folder: {', '.join(absent)}.")
        return [folder / name for name in named]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(pickle_refusal(folder / pickled[0]))
    raise CheckpointError(f"{folder} holds no weights: expected {SINGLE} or {INDEX}.")


def pickle_refusal(path: Path) -> str:
    """The sentence that refuses a pickled file and says how to convert it."""
    return (
        f"{path} is a pickle, which can run any code when it is opened, so it is never read. Convert it once where torch is installed: "
        f'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{path.parent}').save_pretrained('converted')\", "
        "then load the folder 'converted'."
    )


def write(path: Path, tensors: Mapping[str, Spec], value_of: Callable[[str], np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes one safetensors file, asking for each tensor only when its turn comes.

    Args:
        path: the file.
        tensors: dtype and shape of each tensor, in the order written.
        value_of: name -> array of that dtype and shape.
        metadata: strings for the header ("format": "pt" is what transformers looks for).
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in tensors:
            file.write(np.ascontiguousarray(value_of(name)).view(np.uint8).reshape(-1).data)
        file.flush()
        os.fsync(file.fileno())
