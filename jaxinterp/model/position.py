"""Positions: rotary angles with every scaling kind, their rotation of queries and keys, and ALiBi slopes.

Frequencies that depend on the length of a prompt (dynamic NTK, longrope) are chosen by each prompt's own length, never
by the length of the batch or of its padding.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.model.config import Rotary, RotaryScaling, TransformerConfig
from jaxinterp.model.norm import at_least_float32

BY_LENGTH = ("dynamic", "longrope")
"""Kinds of scaling whose frequencies depend on the length of the text."""


def _plain_frequencies(base: float | np.ndarray, dim: int) -> np.ndarray:
    return 1.0 / base ** (np.arange(0, dim, 2) / dim)


def _llama3_frequencies(plain: np.ndarray, scaling: RotaryScaling) -> np.ndarray:
    """Low frequencies divided, high ones kept, a linear blend in between (Llama 3.1)."""
    turns = scaling.original_context * plain / (2 * math.pi)
    blend = np.clip((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0, 1)
    return (1 - blend) * plain / scaling.factor + blend * plain


def _yarn_frequencies(plain: np.ndarray, setting: Rotary, scaling: RotaryScaling) -> np.ndarray:
    """Divided and plain frequencies blended over a ramp (YaRN, Peng et al. 2023, arXiv:2309.00071)."""

    def feature_of(turns: float) -> float:
        return setting.dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(setting.base))

    low, high = feature_of(scaling.beta_fast), feature_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, setting.dim - 1)
    ramp = np.clip((np.arange(setting.dim // 2) - low) / (max(high - low, 0.001)), 0, 1)
    return plain * (1 - ramp) + plain / scaling.factor * ramp


def frequencies(setting: Rotary, lengths: Int[Array, "B"], dtype: jnp.dtype) -> Float[Array, "b F"]:
    """Radians a token turns each pair of features, [B F], or [1 F] where all prompts share them; F is dim / 2."""
    plain = _plain_frequencies(setting.base, setting.dim)
    scaling = setting.scaling
    if scaling is None:
        return jnp.asarray(plain, dtype)[None]
    match scaling.kind:
        case "linear":
            return jnp.asarray(plain / scaling.factor, dtype)[None]
        case "llama3":
            return jnp.asarray(_llama3_frequencies(plain, scaling), dtype)[None]
        case "yarn":
            return jnp.asarray(_yarn_frequencies(plain, setting, scaling), dtype)[None]
        case "longrope":
            short, long = (jnp.asarray(plain / np.asarray(factors), dtype)[None] for factors in (scaling.short_factor, scaling.long_factor))
            return jnp.where(lengths[:, None] > scaling.original_context, long, short)
        case "dynamic":
            stretch = scaling.factor * jnp.maximum(lengths, scaling.original_context).astype(dtype) / scaling.original_context - (
                scaling.factor - 1
            )
            base = setting.base * stretch ** (setting.dim / (setting.dim - 2))
            return base[:, None] ** jnp.asarray(-np.arange(0, setting.dim, 2) / setting.dim, dtype)[None]


def rotary_tables(
    config: TransformerConfig, positions: Int[Array, "B P"], lengths: Int[Array, "B"], dtype: jnp.dtype
) -> Float[Array, "R 2 B P F"]:
    """Cosines and sines for each rotary setting of the config; a last entry, which does not rotate, is added if a layer needs it."""
    tables = []
    for setting in config.rotary:
        angles = at_least_float32(positions.astype(dtype))[:, :, None] * frequencies(setting, lengths, dtype)[:, None, :]
        factor = setting.scaling.attention_factor if setting.scaling else 1.0
        tables.append(jnp.stack([jnp.cos(angles) * factor, jnp.sin(angles) * factor]))
    if -1 in config.layer_rotary:
        tables.append(jnp.stack([jnp.ones_like(tables[0][0]), jnp.zeros_like(tables[0][0])]))
    return jnp.stack(tables)


def rotate(x: Float[Array, "B P N E"], table: Float[Array, "2 B P F"], setting: Rotary) -> Float[Array, "B P N E"]:
    """X with its first `dim` features turned pair by pair: (a, b) -> (a cos - b sin, b cos + a sin)."""
    cos, sin = table[0][:, :, None, :], table[1][:, :, None, :]
    wide = at_least_float32(x)
    turned, kept = wide[..., : setting.dim], wide[..., setting.dim :]
    if setting.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned, kept], axis=-1).astype(x.dtype)


def alibi_slopes(n_heads: int) -> np.ndarray:
    """[H]: how much each head's score falls a token of distance (ALiBi, Press et al. 2021, arXiv:2108.12409)."""
    whole = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return np.asarray(slopes + [2 ** (-4 * (2 * i + 1) / whole) for i in range(n_heads - whole)])
