"""Neuron conductance: what each token contributes to a metric through chosen neurons (Dhamdhere et al. 2018, arXiv:1805.12233).

    score_p = (x_p - x'_p) . integral over a of  d metric / d y  d y / d x_p        at x' + a (x - x')

x being the prompt's embeddings, x' the baseline's and y the chosen entries of a site. A prompt's scores sum to the entries' layer
conductance.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.methods.attribution.conductance import prepared
from jaxinterp.methods.attribution.path_slopes import summed
from jaxinterp.methods.attribution.points import chunk_size
from jaxinterp.methods.attribution.quadrature import quadrature
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import At, at, check_requests
from jaxinterp.model.sites import check_site
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import Params, read_forward
from jaxinterp.runs.objective import check_sites, gradient_program


@dataclasses.dataclass(frozen=True)
class NeuronConductance:
    """What each token contributes to a metric through chosen entries of a site.

    Attributes:
        scores: [B P], summed over a token's features; NaN at padding.
        values: [n B], the metric at the points of the path.
        how: how it was made.
    """

    scores: Any
    values: Any
    how: tuple[tuple[str, str], ...]


def neuron_conductance(
    lm: LanguageModel, prompts: Prompts, metric: Any, site: str, selection: Mapping[str, Any], *, baseline: Any = "zero", steps: int = 32,
    bos: str | bool = "model", precision: str | None = "highest",
) -> NeuronConductance:  # fmt: skip
    """What each token contributes to a metric through chosen neurons.

    score_p = (x_p - x'_p) . integral of (d metric / d y) (d y / d x_p), summed over the chosen entries y; see the module. Cost: two
    forward and two backward passes a point, batched. Misleads as every integral along a path of embeddings does: the points on the
    way are embeddings of no text, and scores are relative to the baseline.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is explained.
        site: where the neurons are.
        selection: which, as for `ji.at`: {"layer": 5, "position": -1, "neuron": 7}.
        baseline: as for `layer_conductance`.
        steps: Gauss-Legendre points of the path.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        NeuronConductance: `.scores` [B P].

    Raises:
        InputError: as for `layer_conductance`, or a selection that does not exist.

    Example:
        >>> neuron = {"layer": 5, "position": -1, "neuron": 7}
        >>> ji.neuron_conductance(lm, clean, difference, "mlp_post", neuron, baseline=corrupt).scores.shape
        (1, 14)
    """
    check_site(site, lm.config)
    request = at(**dict(selection))
    case, start, name = prepared(lm, prompts, metric, baseline, steps, bos, precision)
    check_sites({site: request})
    check_requests({site: request}, lm.config, case.tokens)
    nodes, weights = (array.astype(case.x.dtype) for array in quadrature(steps, "linear", "gauss_legendre"))
    program = functools.partial(
        through_program, lm.params, case.batch, case.metric, {site: request}, start, case.x, config=lm.config, precision=precision
    )
    scores, values, _ = summed(program, (nodes,), weights, max(1, chunk_size(lm, case.shape, steps, True) // 2))
    scores = np.where(case.mask, np.asarray(scores), np.nan)[:, : case.tokens.ids.shape[1]]
    how = (
        ("method", "neuron conductance"),
        ("site", site),
        ("selection", repr(dict(selection))),
        ("baseline", name),
        ("steps", str(steps)),
    )
    return NeuronConductance(scores, values, how)


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def through_program(
    params: Params, tokens: Tokens, metric: Any, requests: dict[str, At], start: Float[Array, "B P D"], end: Float[Array, "B P D"],
    amounts: Float[Array, "n"], weights: Float[Array, "n"], *, config: TransformerConfig, precision: str | None,
) -> tuple[Float[Array, "B P"], Float[Array, "n B"], Float[Array, "n B"]]:  # fmt: skip
    """The weighted sum over points of what tokens contribute through the chosen entries, and at each point the metric and the total."""
    change = end - start
    (site,) = requests

    def chosen(x: Array) -> Array:
        _, trace = read_forward(params, tokens, config, lambda resid, tap: None, sites=requests, inputs=x, precision=precision)
        return trace.padded[site]

    def point(amount: Array) -> tuple[Array, Array, Array]:
        x = start + amount.astype(start.dtype) * change
        values, _, slopes, _ = gradient_program(
            params, tokens, metric, requests, (), Rules(), x, config=config, chosen=(), dtype=None, capture_dtype=None,
            precision=precision, remat=False,
        )  # fmt: skip
        value, pull = jax.vjp(chosen, x)
        by_token = (pull(slopes[site].astype(value.dtype))[0] * change).sum(axis=-1)
        return by_token, values, by_token.sum(axis=1)

    by_token, values, totals = jax.vmap(point)(amounts)
    return jnp.einsum("n,nBP->BP", weights, by_token), values, totals
