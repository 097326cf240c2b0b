"""MXFP4 weights (GPT-OSS): numbers of four bits in blocks of 32 that share a power of two, shown as the tensors they stand for.

A weight `name` [X I O] is stored as `name_blocks` [X O I/32 16], two numbers a byte with the lower half first, and
`name_scales` [X O I/32], exponents of two with 127 added (Open Compute Project, Microscaling Formats, 2023). Every value
is exact in bfloat16 and wider.
"""

import numpy as np

from jaxinterp.checkpoints.safetensors import SafetensorsSource
from jaxinterp.checkpoints.source import Source, TensorInfo
from jaxinterp.errors import CheckpointError

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK = 32

VALUES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0], np.float32)
"""What the four bits mean: a sign, two bits of exponent and one of mantissa."""

PAIRS = np.stack([VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]], axis=-1)
"""The two numbers of a byte."""


class Unpacked:
    """A file in which packed weights have their own names and shapes (see `source.Source`); others are as they were."""

    def __init__(self, source: SafetensorsSource) -> None:
        self._source = source
        self._packed = {name.removesuffix(BLOCKS) for name in source.tensors if name.endswith(BLOCKS)}
        hidden = {name + ending for name in self._packed for ending in (BLOCKS, SCALES)}
        self.tensors = {name: info for name, info in source.tensors.items() if name not in hidden}
        self.tensors |= {name: self._info(name) for name in sorted(self._packed)}

    def _info(self, name: str) -> TensorInfo:
        blocks, scales = self._source.tensors[name + BLOCKS], self._source.tensors.get(name + SCALES)
        shape, whole = blocks.shape, scales is not None and {blocks.dtype, scales.dtype} == {"U8"} and scales.shape == blocks.shape[:3]
        if not whole or len(shape) != 4 or shape[3] != BLOCK // 2:
            other = "nothing" if scales is None else f"{list(scales.shape)} of {scales.dtype}"
            raise CheckpointError(
                f"{blocks.file}: {name}{BLOCKS} is {list(shape)} of {blocks.dtype} beside {other} in {name}{SCALES}; "
                "MXFP4 needs [experts, out, blocks, 16] beside [experts, out, blocks], both U8."
            )
        return TensorInfo((shape[0], shape[2] * BLOCK, shape[1]), "MXFP4", blocks.file)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        if name not in self._packed:
            return self._source.read(name, start, stop)
        _, n_in, n_out = self.tensors[name].shape
        blocks = self._source.read_bytes(name + BLOCKS, start, stop).reshape(stop - start, n_out, n_in // BLOCK, BLOCK // 2)
        scales = self._source.read_bytes(name + SCALES, start, stop).reshape(blocks.shape[:3])
        with np.errstate(over="ignore"):
            values = np.ldexp(PAIRS[blocks].reshape(*scales.shape, BLOCK), scales[..., None].astype(np.int32) - 127)
        return values.reshape(stop - start, n_out, n_in).swapaxes(1, 2)


def unpack(source: SafetensorsSource) -> Source:
    """The file itself where nothing in it is packed."""
    return Unpacked(source) if any(name.endswith(BLOCKS) for name in source.tensors) else source
