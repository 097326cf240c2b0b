"""GradDrop: slopes with one layer's gradient blocked at a time, so that a direct and an indirect effect cannot cancel.

    estimate(n) = 1 / (L - 1)  sum over layers l of |estimate(n) with the gradient through attention and MLP of layer l blocked|

A node inside layer l has no gradient when that layer is blocked, hence L - 1; a node of the residual stream always has one,
and its sum is divided by L. (Kramar et al. 2024, arXiv:2403.00745, section 3.2.) The L backward passes are one batched pass
over one forward pass: the gates touch derivatives only, so nothing of the forward pass is computed twice.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.model import edits as edit_makers
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.rules import with_derivative_of
from jaxinterp.model.sites import site_of

BUDGET = 1 << 30
"""Bytes of gradients that backward passes run at once may take."""

STREAM = ("embed", "pos_embed", "type_embed", "resid_pre", "resid_mid", "resid_post", "ln_final_scale", "ln_final", "logits_raw", "logits")
"""Sites that blocking a layer's attention and MLP never cuts off."""


def gated(value: Array, gate: Array) -> Array:
    """The value, with its derivative times a gate."""
    return with_derivative_of(value, gate.astype(value.dtype) * value)


def blocking(gate: Array, config: TransformerConfig) -> list[Edit]:
    """Edits that pass a gradient through attention and MLP of each layer times a gate [L]."""
    out = []
    for site in ("attn_out", "mlp_out") if config.has_mlp else ("attn_out",):
        made = edit_makers.add(site, jnp.zeros(()))
        ndim = len(site_of(site, config).axes)
        out.append(Edit(made.select, None, (gate.reshape(-1, *(1,) * (ndim - 1)),), site, "gated", gated))
    return out


def gates_of(config: TransformerConfig, tokens: int, at_once: int | None = None) -> list[np.ndarray]:
    """Rows [n L+1] of gates for every layer in turn, in pieces of one size that fit the budget; the last column is 0 for filling.

    Args:
        config: the architecture.
        tokens: of the padded batch.
        at_once: backward passes run at once; None fits them to memory.
    """
    layers, width = config.n_layers, 6 * config.d_model + 4 * config.axis_sizes["M"] + 4 * config.n_heads * config.d_head
    size = max(1, min(layers, at_once or BUDGET // (4 * tokens * width)))
    size = -(-layers // -(-layers // size))
    rows = np.concatenate([1 - np.eye(layers), np.ones((layers, 1))], axis=1).astype(np.float32)
    rows = np.concatenate([rows, np.zeros((-layers % size, layers + 1), np.float32)])
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def divisor(site: str, config: TransformerConfig) -> Any:
    """How many layers leave a node of a site its gradient."""
    return config.n_layers if site in STREAM else max(config.n_layers - 1, 1)
