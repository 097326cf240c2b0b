"""Which model a vector is of: some numbers of its weights, and the name that llama.cpp has for its kind."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import family_for
from jaxinterp.model.language_model import LanguageModel

SKETCH = 256
"""Numbers of the weights by which a vector knows its model, half of them of the token embedding and half of attention."""

ALIKE = 0.98
"""Cosine of two sketches from which they are of one model: bfloat16 leaves it at 0.99999 and four bits at 0.996 (SmolLM2)."""


def sketch(lm: LanguageModel) -> np.ndarray:
    """[256] float32: evenly spread numbers of W_E and of W_O over all layers, each half of length one.

    All types, layouts and quantisations of a model have them nearly in common, and no two models that were trained apart.
    """
    embedding, half = lm.params["embed"]["W_E"], SKETCH // 2
    halves = [_picked(embedding, _spaced(embedding.size, half))]
    # each layer's own output matrix, or the stacks of a group of layers: [layers H E D]
    parts = [part["attn"]["W_O"] for group in lm.params["blocks"] for part in (group if isinstance(group, tuple) else (group,))]
    stops = np.cumsum([part.size for part in parts])
    places = _spaced(int(stops[-1]), half)
    of = np.searchsorted(stops, places, side="right")
    halves.append(np.concatenate([_picked(part, places[of == i] - (stops[i] - part.size)) for i, part in enumerate(parts)]))
    return np.concatenate([half / max(float(np.linalg.norm(half)), 1e-30) for half in halves])


def _spaced(size: int, number: int) -> np.ndarray:
    return np.linspace(0, size - 1, number).astype(np.int64)


def _picked(array: Any, places: np.ndarray) -> np.ndarray:
    """Numbers of an array by their place in it; only those leave the device."""
    return np.asarray(array[np.unravel_index(places, array.shape)], np.float32)


def model_hint(lm: LanguageModel) -> str:
    """What llama.cpp calls the model's architecture, or else its model_type, or "unknown"."""
    found = family_for(lm.config, np.dtype(np.float32))
    if found is None:
        return "unknown"
    return found[0].gguf.architecture if found[0].gguf else found[0].model_type


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two sketches, 0 where one is empty."""
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size and a.shape == b.shape else 0.0
