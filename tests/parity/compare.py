"""The measure of parity: the largest relative error of any real token, at one site.

An error over all tokens at once would be blind: the norm of token 0 is often a hundred times the others'.
"""

import numpy as np

from jaxinterp.model.sites import SITES

# A token whose reference gradient is smaller than this part of the layer's largest is compared with that part instead:
# the gradient at the query of a token that sees only itself is exactly zero, and what stands there is rounding. The
# gradient at a norm's denominator is one number a token, a sum that cancels: it is compared with the layer's largest.
GRADIENT_FLOOR = 1e-3
SCALAR_GRADIENT_FLOOR = 1.0


def at_tokens(site: str, value: np.ndarray, mask: np.ndarray, tokens: tuple[np.ndarray, ...], *, gradient: bool = False) -> np.ndarray:
    """The part of a site that parity is about: [L T ...] for sites of blocks, [1 T ...] for others.

    Args:
        site: name of the site.
        value: its value, or its gradient, with all its axes.
        mask: True at real tokens [B P].
        tokens: row and column of the T tokens to keep.
        gradient: scores are defined up to a constant a row, their gradients are not.
    """
    rows, columns = tokens
    axes = SITES[site].axes
    value = np.asarray(value)
    if axes == "BD":  # one vector a prompt: that of each token's prompt
        return value[None, tokens[0]]
    if axes[0] != "L":
        value = value[None]
    if axes.endswith("HQK"):
        keys = mask[None, :, None, None, :]
        value = np.where(keys, value, 0.0)
        if site == "scores" and not gradient:
            value = np.where(keys, value - value.sum(-1, keepdims=True) / keys.sum(-1, keepdims=True), 0.0)
    if axes.startswith("LBHQ"):
        value = np.moveaxis(value, 2, 3)
    return value[:, rows, columns]


def error(ours: np.ndarray, reference: np.ndarray, *, gradient: bool = False) -> float:
    """max over layers and tokens of ||ours - reference|| / ||reference||, both [L T ...]; inf where ours is not finite."""
    if ours.shape != reference.shape:
        raise AssertionError(f"shapes differ: ours {ours.shape}, reference {reference.shape}")
    flat_size = int(np.prod(reference.shape[2:]))
    flat = (*reference.shape[:2], flat_size)
    difference = np.linalg.norm((ours.astype(np.float64) - reference).reshape(flat), axis=-1)
    size = np.linalg.norm(reference.astype(np.float64).reshape(flat), axis=-1)
    if gradient:
        floor = SCALAR_GRADIENT_FLOOR if flat_size == 1 else GRADIENT_FLOOR
        size = np.maximum(size, floor * size.max(axis=1, keepdims=True))
    relative = np.where(difference == 0.0, 0.0, difference / np.where(size == 0.0, 1.0, size))
    return float(relative.max()) if np.isfinite(relative).all() else float("inf")
