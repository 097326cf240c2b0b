"""What a parity check feeds to both sides, from NumPy seeds alone: weights by name, a padded batch, a linear metric.

No module here imports torch, so the committed fixtures store reference outputs only and rebuild the rest.
"""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Shapes = dict[str, tuple[int, ...]]


def parameter(name: str, shape: tuple[int, ...], seed: int, gain_center: float) -> np.ndarray:
    """A random float32 tensor that depends on its name, shape and the seed only.

    Matrices are large enough that scores and logits spread over several units, and no gain or bias keeps the value that
    a fresh model would have: with default initialisation a wrong model passes (its logits are nearly constant).

    Args:
        name: the tensor's name in the checkpoint; its checksum is part of the seed.
        shape: its shape there.
        seed: of the whole model.
        gain_center: what norm gains vary around: 1, or 0 for models whose norms multiply by 1 + w.
    """
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if len(shape) == 1:
        value = 0.4 * normal if name.endswith("bias") else gain_center + 0.3 * normal
    elif any(part in name for part in ("embed", "wte", "wpe")):
        value = 0.8 * normal
    else:
        value = 1.3 * normal / np.sqrt(min(shape[-2:]))
    return value.astype(np.float32)


def parameters(shapes: Shapes, seed: int, gain_center: float) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, by name."""
    return {name: parameter(name, tuple(shape), seed, gain_center) for name, shape in shapes.items()}


def write_folder(folder: Path, config: dict[str, object], shapes: Shapes, seed: int, gain_center: float) -> Path:
    """Writes the model as a folder in HF layout, which is what both sides load."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(parameters(shapes, seed, gain_center), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts of four lengths in one padded batch.

    Attributes:
        ids: token ids, padding included [B P].
        mask: True at real tokens [B P].
        weights: the metric is sum(weights * logits) over real tokens [B P V]; without an unembedding, of the first columns with
            the last residual stream, and summed over tokens with the pooler's output.
    """

    ids: np.ndarray
    mask: np.ndarray
    weights: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """Each token's position in its own prompt, 0 at padding before it [B P]."""
        return np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)

    def types(self, n: int) -> np.ndarray:
        """A token type below `n` for each token [B P]."""
        return self.ids % n

    @property
    def tokens(self) -> tuple[np.ndarray, ...]:
        """Row and column of every real token."""
        return np.nonzero(self.mask)

    def row(self, index: int) -> "Batch":
        """One prompt alone, without padding."""
        real = self.mask[index]
        return Batch(self.ids[index, real][None], np.ones((1, int(real.sum())), bool), self.weights[index, real][None])


def make_batch(d_vocab: int, seed: int) -> Batch:
    """A full prompt of 11 tokens, one of 8 padded left, one of 6 padded right and one of a single token; pads are random ids."""
    rng = np.random.default_rng([seed, 1])
    mask = np.zeros((4, 11), bool)
    mask[0] = mask[1, 3:] = mask[2, :6] = mask[3, :1] = True
    return Batch(rng.integers(0, d_vocab, mask.shape), mask, rng.standard_normal((*mask.shape, d_vocab)) * mask[..., None])
