"""Comparison: our values and gradients at the sites that a reference has, and the error of each token.

An error over all tokens at once is blind, because the norm of token 0 is often a hundred times the others': errors are
those of single tokens, and the largest counts.
"""

import functools
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.model import edits
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import SITES
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import forward
from jaxinterp.runs.verify.verdict import SiteError

Values = dict[tuple[str, int | None], np.ndarray]

BOUNDS = {"float64": 1e-5, "float32": 1e-4, "float16": 5e-2, "bfloat16": 1e-1}
"""The largest error of a token. transformers' own float32 inside a float64 model alone makes 1e-6."""

GRADIENT_BOUNDS = {"float64": 1e-4, "float32": 2e-3, "float16": 2e-1, "bfloat16": 5e-1}

GRADIENT_FLOOR = 1e-2
"""A token whose gradient is below this part of its layer's largest is compared with that part: what it has is rounding."""


def ours(lm: LanguageModel, ids: np.ndarray, weights: np.ndarray, sites: Collection[str], sloped: Collection[str]) -> tuple[Values, Values]:
    """Our sites, and the gradient of sum(weights * outputs) at those of `sloped`, by (site, layer)."""
    asked = tuple(site for site in SITES if site in sites and site != "logits")
    values, slopes = _run(lm.params, Tokens.from_ids(ids).arrays_only(), jnp.asarray(weights), lm.config, asked, tuple(sorted(sloped)))
    return _by_layer(values), _by_layer(slopes)


@functools.partial(jax.jit, static_argnames=("config", "sites", "sloped"))
def _run(
    params: Any, tokens: Tokens, weights: jax.Array, config: TransformerConfig, sites: tuple[str, ...], sloped: tuple[str, ...]
) -> Any:
    dtype = jax.tree.leaves(params)[0].dtype
    nothing = {site: jnp.zeros(SITES[site].shape(config, *tokens.ids.shape), dtype) for site in sloped}

    def metric(added: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        captured = {*sites, "resid_post"}
        trace = forward(params, tokens, config, sites=tuple(captured), edits=[edits.add(site, value) for site, value in added.items()])
        final = trace["resid_post"][-1] if trace.logits is None else trace.logits
        seen = {site: trace[site] for site in sites} | ({} if trace.logits is None else {"logits": trace.logits})
        return (final * weights.astype(final.dtype)).sum(), seen

    slopes, seen = jax.grad(metric, has_aux=True)(nothing)
    return seen, slopes


def _by_layer(arrays: dict[str, jax.Array]) -> Values:
    out: Values = {}
    for site, array in arrays.items():
        value = np.asarray(array, np.float64)
        out |= {(site, layer): value[layer] for layer in range(len(value))} if SITES[site].per_layer else {(site, None): value}
    return out


def errors(mine: Values, reference: Values, bound: float, *, gradient: bool = False) -> Iterator[SiteError]:
    """The worst token of each site, sites in the order of the forward pass."""
    for site in (site for site in SITES if any(name == site for name, _ in reference)):
        layers = sorted((layer for name, layer in reference if name == site), key=lambda layer: -1 if layer is None else layer)
        found = [(_per_token(site, mine[site, layer], reference[site, layer], gradient), layer) for layer in layers]
        worst, layer = max(found, key=lambda pair: pair[0].max())
        prompt, position = np.unravel_index(int(worst.argmax()), worst.shape)
        wrong = [layer for tokens, layer in found if layer is not None and not tokens.max() <= bound]
        kind = "gradient" if gradient else "value"
        yield SiteError(site, kind, layer, int(prompt), int(position), float(worst.max()), bound, wrong[0] if wrong else None)


def _per_token(site: str, mine: np.ndarray, reference: np.ndarray, gradient: bool) -> np.ndarray:
    """||mine - reference|| / ||reference|| of every token [B P] (of every prompt [B 1]); inf where it is no number."""
    if mine.shape != reference.shape:
        raise ValueError(f"{site}: ours is {mine.shape}, the reference {reference.shape}")
    if SITES[site].axes.endswith("HQK"):
        mine, reference = np.moveaxis(mine, 1, 2), np.moveaxis(reference, 1, 2)
    if SITES[site].axes == "BD":
        mine, reference = mine[:, None], reference[:, None]
    apart, size = (np.linalg.norm(value.reshape(*value.shape[:2], -1), axis=-1) for value in (mine - reference, reference))
    if gradient:
        size = np.maximum(size, GRADIENT_FLOOR * size.max())
    relative = np.where(apart == 0, 0, apart / np.where(size == 0, 1, size))
    return np.where(np.isfinite(relative), relative, np.inf)
