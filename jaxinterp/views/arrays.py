"""Arrays inside JSON: deflated bytes in base64, exact or in 8 bits with the scale that gives the values back."""

import base64
import binascii
import zlib
from typing import Any

import numpy as np

from jaxinterp.errors import InputError

STEPS = 254  # codes 0..254 carry values, code 255 is NaN
DTYPES = ("<f4", "<f8", "<i4", "|u1")


def encode_array(array: np.ndarray, *, eight_bits: bool = False) -> dict[str, Any]:
    """An array as a small JSON object.

    Args:
        array: float or integer, any shape.
        eight_bits: store codes with value = low + code * (high - low) / 254 and 255 for NaN; the error is at most
            (high - low) / 508.
    """
    array = np.asarray(array)
    entry: dict[str, Any] = {"shape": list(array.shape)}
    if eight_bits:
        finite = array[np.isfinite(array)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        high = high if high > low else low + 1.0
        codes = np.clip(np.rint((np.nan_to_num(array, nan=low) - low) * (STEPS / (high - low))), 0, STEPS)
        stored = np.where(np.isnan(array), STEPS + 1, codes).astype("|u1")
        entry |= {"dtype": "|u1", "scale": {"low": low, "high": high, "steps": STEPS, "nan": STEPS + 1}}
    else:
        kind = "<f8" if array.dtype == np.float64 else "<f4" if np.issubdtype(array.dtype, np.floating) else "<i4"
        stored = array.astype(kind)
        entry |= {"dtype": kind}
    packed = zlib.compress(np.ascontiguousarray(stored).tobytes(), 9)
    return entry | {"encoding": "deflate+base64", "data": base64.b64encode(packed).decode("ascii")}


def decode_array(name: str, entry: dict[str, Any]) -> np.ndarray:
    """The array that `encode_array` stored.

    Raises:
        InputError: the bytes are not what the entry says; nothing larger than it says is ever unpacked.
    """
    if entry["dtype"] not in DTYPES or entry["encoding"] != "deflate+base64":
        stated = f"{entry['dtype']!r}, {entry['encoding']!r}"
        raise InputError(f"Array {name!r} is stored as {stated}; expected one of {', '.join(DTYPES)}, deflated, in base64.")
    shape = tuple(int(size) for size in entry["shape"])
    if min(shape, default=0) < 0:
        raise InputError(f"Array {name!r} says it has shape {list(shape)}.")
    expected = int(np.prod(shape, dtype=np.int64)) * np.dtype(entry["dtype"]).itemsize
    try:
        stored = zlib.decompressobj().decompress(base64.b64decode(entry["data"], validate=True), expected + 1)
    except (zlib.error, binascii.Error) as error:
        raise InputError(f"Array {name!r} cannot be unpacked: {error}.") from error
    if len(stored) != expected:
        held = "more" if len(stored) > expected else len(stored)
        raise InputError(f"Array {name!r} says it has shape {list(shape)} ({expected} bytes) and holds {held}.")
    array = np.frombuffer(stored, entry["dtype"]).reshape(shape)
    if "scale" not in entry:
        return array.astype(array.dtype.newbyteorder("="))
    scale = entry["scale"]
    values = scale["low"] + array.astype(np.float32) * ((scale["high"] - scale["low"]) / scale["steps"])
    return np.where(array == scale["nan"], np.float32(np.nan), values.astype(np.float32))
