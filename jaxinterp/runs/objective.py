"""The metric of a run as a pure function, and its derivative: what everything that differentiates a run calls.

The derivative at a site is that of an edit which adds zero there. Such edits are arrays of the site's own shape, scanned beside
the weights, so one backward pass gives the derivatives at every site of every layer, and nothing is differentiated that was
not asked for. Only the positions and columns that the metric reads are unembedded.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import At, gather
from jaxinterp.model.sites import SITES, site_of
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.model.transformer import Params, Sites, canonical_sites, forward, read_forward, unembed_at


def measured(
    params: Params, tokens: Tokens, config: TransformerConfig, metric: Any, *, sites: Sites = (), **how: Any
) -> tuple[Float[Array, "B"], Trace]:
    """A bound metric of a run [B], and the run's trace, without logits unless a site asks for them. Pure, as `forward` is.

    Args:
        params: the weights.
        tokens: the prompts.
        config: the architecture.
        metric: a bound metric.
        sites: what to capture.
        **how: edits, rules, start, inputs, dtype, capture_dtype, precision and remat, as for `forward`.
    """
    if metric.sites:
        wanted = canonical_sites(sites, config)
        trace = forward(params, tokens, config, sites=dict(metric.sites) | wanted, **how)
        return metric(trace), trace
    columns, vocabulary = metric.reads(tokens, config)
    selected, trace = read_forward(
        params, tokens, config, lambda resid, tap: unembed_at(params, resid, config, tap, columns, vocabulary), sites=sites, **how
    )
    return metric.from_logits(selected, tokens), trace


def zeros_at(sites: Sequence[str], config: TransformerConfig, batch: int, positions: int, dtype: Any) -> dict[str, Array]:
    """{site: zeros of the site's whole shape}, against which `adding` differentiates."""
    return {site: jnp.zeros(site_of(site, config).shape(config, batch, positions), dtype) for site in sites}


def adding(zeros: Mapping[str, Array]) -> list[Edit]:
    """Edits that add values at sites, in every layer; given last, so that they act after every other edit."""
    return [edit_makers.add(site, value) for site, value in zeros.items()]


def check_sites(requests: Mapping[str, At]) -> None:
    """Refuse sites without a derivative.

    Raises:
        InputError: a site of whole numbers.
    """
    for site in requests:
        if SITES[site].read_only:
            raise InputError(f"Site {site!r} has no gradient: {SITES[site].definition}, as whole numbers.")


@functools.partial(jax.jit, static_argnames=("config", "chosen", "dtype", "capture_dtype", "precision", "remat"))
def gradient_program(
    params: Params, tokens: Tokens, metric: Any, requests: dict[str, At], edits: Sequence[Edit], rules: Rules, inputs: Any,
    config: TransformerConfig, chosen: tuple[str, ...], dtype: str | None, capture_dtype: str | None, precision: str | None, remat: bool,
) -> tuple[Any, Trace, dict[str, Array], dict[str, Array]]:  # fmt: skip
    """The metric [B], the trace, the metric's derivatives at the requested sites, and those to the chosen parameters."""
    own = jnp.dtype(dtype or params["embed"]["W_E"].dtype)

    def total(zeros: dict[str, Array], weights: dict[str, Array]) -> tuple[Array, Any]:
        values, trace = measured(
            with_parameters(params, weights), tokens, config, metric, sites=requests, edits=[*edits, *adding(zeros)], rules=rules,
            inputs=inputs, dtype=dtype, capture_dtype=capture_dtype, precision=precision, remat=remat,
        )  # fmt: skip
        return values.sum(), (values, trace)

    batch, positions = tokens.ids.shape
    zeros = zeros_at(tuple(requests), config, batch, positions, capture_dtype or own)
    weights = {name: leaf for name, leaf in named_parameters(params).items() if name in chosen}
    (slopes, by_weight), (values, trace) = jax.grad(total, argnums=(0, 1), has_aux=True)(zeros, weights)
    parts = {site: _part(value, site, requests[site], tokens, config) for site, value in slopes.items()}
    return values, trace, parts, by_weight


def _part(value: Array, site: str, request: At, tokens: Tokens, config: TransformerConfig) -> Array:
    """What a request keeps of a site's whole array."""
    place = site_of(site, config)
    if request.layers is not None:
        rows = [place.layers(config).index(layer) for layer in request.layers]
        value = value[rows[0]] if isinstance(request.layer, int) else value[jnp.asarray(rows)]
    inside = place.inner_axes
    if not place.per_layer or isinstance(request.layer, int):
        return gather(value, inside, request.select, tokens)
    return jax.vmap(lambda layer: gather(layer, inside, request.select, tokens))(value)


def named_parameters(params: Params) -> dict[str, Array]:
    """Every parameter by its dotted name: "embed.W_E", "blocks.attn.W_Q" ("blocks.1.attn.W_Q" where there are several stacks)."""
    single = len(params["blocks"]) == 1

    def name(path: Any) -> str:
        keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
        return ".".join(key for i, key in enumerate(keys) if not (single and i == 1 and keys[0] == "blocks"))

    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def with_parameters(params: Params, changed: Mapping[str, Array]) -> Params:
    """The parameters with some of them replaced, by the names of `named_parameters`."""
    if not changed:
        return params
    leaves = [changed.get(name, leaf) for name, leaf in named_parameters(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
