"""Directional ablation in the weights: nothing that writes to the residual stream can write along a direction any more.

    W' = W (I - u^T u),   u = d / |d|        for every matrix and bias that writes to the stream; several directions: their span

After Arditi et al. 2024 (arXiv:2406.11717). The changed model equals the activation edit `project_out` of d at every place where
something is added to the stream ("embed", "pos_embed", "attn_out", "mlp_out" of every layer) to rounding, and costs nothing when
it runs. What it takes, by architecture:

* A tied unembedding keeps its old matrix: the changed model has one of its own. Reading from the stream is not changed.
* A norm on the token embedding (BLOOM) is baked into the embedding, which is then a table of what the norm gave.
* Where a norm stands behind a sublayer (Gemma 2 and 3, OLMo 2, GLM-4), what enters it is made orthogonal to d times its gain
  (with a LayerNorm, centred), and its bias to d. The stream is then exactly free of d, and the model equals the activation edit at
  "attn_proj" and "mlp_proj" with that direction; the one at "attn_out" is another, since the norm divides by another size there.
* Where norms stand on the stream itself (BERT), no weights do it, and the model is refused.

Cost: a copy of the matrices that write, a quarter to a half of the model. Misleads where a direction is needed for more than the
concept it was found by; weights of 16 bits round the result to about three digits.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.steering.vector import SteeringVector
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.norm import Norm, at_least_float32
from jaxinterp.model.rules import Rules
from jaxinterp.model.tokens import concrete

STREAM = ("embed", "pos_embed", "type_embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Sites whose directions are directions of the residual stream."""

DEPENDENT = 1e-5
"""Part of the largest singular value below which directions add nothing to the span of the others."""

WRITES = {"attn": ("W_O", "b_O"), "mlp": ("W_out", "b_out"), "experts": ("W_out", "b_out", "W_shared_out")}
"""The parameters of each part of a block that write to the stream."""


def orthogonalise(lm: LanguageModel, direction: SteeringVector | Any, *, force: bool = False) -> LanguageModel:
    """The model that cannot write along a direction of its residual stream: directional ablation in the weights.

    Pure: it jits, differentiates, and vmaps over directions (`jax.vmap(lambda d: ji.weights.orthogonalise(lm, d))(directions)` is
    a stack of models, as of `ji.stack`). Equation, source and what changes on which architecture: see the module.

    Args:
        lm: the model, with weights in stacks or by layer.
        direction: [D], or [n D] for the span of several, or a SteeringVector with one layer at a site of the residual stream.
        force: whether a SteeringVector that was made from other weights is let through.

    Returns:
        A LanguageModel whose residual stream is orthogonal to the direction at every layer. Its config differs where the
        unembedding was tied or the token embedding had a norm.

    Raises:
        InputError: a direction of another width, of norm zero or not finite, a vector of several layers or of another site, or a
            model whose norms stand on the stream itself.

    Example:
        >>> changed = ji.weights.orthogonalise(lm, np.ones(576))
        >>> lm.config.unembed, changed.config.unembed
        ('tied', 'own')
    """
    if lm.config.norm_position == "post":
        raise InputError(
            "orthogonalise(): the norms of this model stand on the residual stream itself (norm_position='post') and write every "
            "direction, which no weights prevent: use ji.edits.project_out at resid_mid and resid_post instead."
        )
    changes = _changes(lm.params, _directions(lm, direction, force), config=lm.config)
    return lm.replace(params=_merged(lm.params, changes), config=_changed_config(lm.config))


def _directions(lm: LanguageModel, direction: Any, force: bool) -> Any:
    """[n D], checked as far as values are known."""
    width = lm.config.d_model
    if isinstance(direction, SteeringVector):
        if direction.site not in STREAM:
            raise InputError(
                f"orthogonalise(): a direction of {direction.site!r} is not one of the residual stream; expected a vector at "
                f"{', '.join(STREAM)}."
            )
        if len(direction.layers) != 1:
            raise InputError(
                f"orthogonalise(): this vector has {len(direction.layers)} layers, and one direction is removed everywhere: choose a "
                "layer by vector.at(layer)."
            )
        if all(map(concrete, (direction.sketch, lm.params["embed"]["W_E"]))):
            direction.check(lm, force=force)
        direction = direction.values
    if np.ndim(direction) not in (1, 2) or np.shape(direction)[-1] != width or 0 in np.shape(direction):
        raise InputError(f"orthogonalise(): expected a direction [{width}], or several [n {width}]; got shape {list(np.shape(direction))}.")
    if concrete(direction):
        sizes = np.linalg.norm(np.asarray(direction, np.float64).reshape(-1, width), axis=1)
        if not np.isfinite(sizes).all() or (sizes == 0).any():
            raise InputError("orthogonalise(): a direction has norm zero or is not finite.")
    return jnp.asarray(direction).reshape(-1, width)


def _changed_config(config: TransformerConfig) -> TransformerConfig:
    """What the changed parameters are parameters of."""
    if config.embed_norm == "token":
        own = "none" if config.unembed == "none" else "own"
        return config.replace(embed_norm="none", embed_scale=1.0, d_embed=None, unembed=own)
    return config.replace(unembed="own") if config.unembed == "tied" and config.d_embed is None else config


@functools.partial(jax.jit, static_argnames=("config",))
def _changes(params: Any, directions: Float[Array, "n D"], *, config: TransformerConfig) -> dict[str, Any]:
    """The parameters that change, where they stand; `embed` and `unembed` whole."""
    with jax.default_matmul_precision("highest"):
        basis = _basis(at_least_float32(directions))
        block = functools.partial(_block, basis=basis, config=config)
        groups = tuple(tuple(map(block, group)) if isinstance(group, tuple) else jax.vmap(block)(group) for group in params["blocks"])
        return {"blocks": groups, "embed": _embedding(params["embed"], basis, config), **_unembedding(params, config)}


def _merged(params: Any, changes: Any) -> Any:
    """The parameters with the blocks' changes in their places, and the other parts that changed as they are now."""
    if isinstance(params, tuple):
        return tuple(_merged(own, change) for own, change in zip(params, changes, strict=True))
    if not isinstance(params, Mapping):
        return changes
    whole = {name: part for name, part in changes.items() if name not in params or name in ("embed", "unembed")}
    return {name: _merged(own, changes[name]) if name in changes else own for name, own in params.items()} | whole


def _embedding(weights: Mapping[str, Any], basis: Array, config: TransformerConfig) -> dict[str, Any]:
    """The embedding's tables, which write nothing along the basis."""
    weights, through = dict(weights), basis
    if config.embed_norm == "sum":
        through = _before_norm(basis, weights.get("ln", {}), config)
        weights["ln"] = weights.get("ln", {}) | _without(weights.get("ln", {}), ("b",), basis)
    if config.embed_norm == "token":
        weights = _baked(weights, config)
    table = "W_embed" if "W_embed" in weights else "W_E"
    return weights | _without(weights, (table, "W_pos", "W_type"), through)


def _unembedding(params: Any, config: TransformerConfig) -> dict[str, Any]:
    """An unembedding that reads what it read before, as {"unembed": ...}; {} where it does not change."""
    weights, baked = dict(params.get("unembed", {})), config.embed_norm == "token"
    if config.unembed == "tied" and (config.d_embed is None or baked):
        weights["W_U"] = params["embed"]["W_E"].T
    elif not (baked and config.d_embed is not None):
        return {}
    narrow = weights.pop("W_embed", None) if baked else None
    if narrow is not None and "W_U" in weights:
        weights["W_U"] = narrow @ weights["W_U"]
    return {"unembed": weights} if weights else {}


def _baked(weights: Mapping[str, Any], config: TransformerConfig) -> dict[str, Any]:
    """The embedding's tables with what its norm gives for every token in place of W_E."""
    value: Any = weights["W_E"] * jnp.asarray(config.embed_scale, weights["W_E"].dtype)
    value = value @ weights["W_embed"] if config.d_embed is not None else value
    normed: Any = Norm(config, (config.d_model,), "embed").apply({"params": weights.get("ln", {})}, value, Rules())
    return {name: w for name, w in weights.items() if name not in ("W_E", "W_embed", "ln")} | {"W_E": normed}


def _block(weights: Mapping[str, Any], *, basis: Array, config: TransformerConfig) -> dict[str, Any]:
    """What changes in one layer, so that its sublayers add nothing along the basis."""
    changed: dict[str, Any] = {}
    normed = config.norm_position in ("sandwich", "output") and config.norm != "none"
    for norm, parts in (("ln1_post", ("attn",)), ("ln2_post", ("mlp", "experts"))):
        through = _before_norm(basis, weights.get(norm, {}), config) if normed else basis
        changed |= {part: _without(weights[part], WRITES[part], through) for part in parts if part in weights}
        if normed and norm in weights:
            changed[norm] = _without(weights[norm], ("b",), basis)
    return changed


def _before_norm(basis: Float[Array, "n D"], weights: Mapping[str, Any], config: TransformerConfig) -> Float[Array, "n D"]:
    """The basis that what enters a norm must be orthogonal to, so that what leaves it (but for its bias) is orthogonal to `basis`.

    d . (w * (x - mean) / scale) is zero for every scale where x is orthogonal to w * d, less its mean in a LayerNorm.
    """
    gain = at_least_float32(weights["w"]) + (config.norm_gain == "1+w") if "w" in weights else jnp.ones(basis.shape[1], basis.dtype)
    pulled = basis * gain[None, :]
    return _basis(pulled - pulled.mean(axis=1, keepdims=True) if config.norm == "layer" else pulled)


def _basis(vectors: Float[Array, "n D"]) -> Float[Array, "n D"]:
    """Orthonormal rows with the span of the vectors; a row is zero for each that the others hold already."""
    # at unit length first: a short direction counts as much as a long one
    size = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    _, singular, rows = jnp.linalg.svd(vectors / jnp.where(size == 0, 1, size), full_matrices=False)
    return jnp.where((singular > DEPENDENT * singular[:1])[:, None], rows, 0)


def _without(weights: Mapping[str, Any], names: Sequence[str], basis: Float[Array, "n D"]) -> dict[str, Any]:
    """Those of the named weights that there are, each over its last axis orthogonal to the basis."""

    def projected(weight: Array) -> Array:
        rows = at_least_float32(weight).reshape(-1, weight.shape[-1])
        # twice, since what rounding leaves of a large component is itself removed
        for _ in range(2):
            rows = rows - (rows @ basis.T) @ basis
        return rows.reshape(weight.shape).astype(weight.dtype)

    return {name: projected(weights[name]) for name in names if name in weights}
