"""Where a position gets its values from, without a metric: attention rollout and value zeroing. Baselines, unsigned.

They follow how much of each token reaches a position, not what it does there, so they say nothing about one answer against
another. A method that explains a metric should do better than these.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.points import STATIC, Case
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.tokens import Tokens, check_positions
from jaxinterp.model.transformer import Params, forward
from jaxinterp.runs.objective import measured


def attention_rollout(
    lm: LanguageModel, prompts: Prompts, metric: Any = None, *, position: Any = -1, inputs: Any = None, **how: Any
) -> InputAttribution:
    """Attention multiplied up through the layers (Abnar and Zuidema 2020, arXiv:2005.00928).

        R = product over layers, last first, of  (A_l + I) / 2 with rows normalised,   score_k = R[position, k]

    A_l is the mean pattern of layer l's heads, I the residual stream. Unsigned, sums to 1, and not of a metric: the metric is
    only recorded. Cost: one forward pass. Misleads: values, output matrices and MLPs are left out, and a first token on which
    idle heads rest collects most of it.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: recorded in `values`; None records none.
        position: whose sources are asked for: an int, [n] or [B n] (the mean over them).
        inputs: as for `saliency`.
        **how: as for `saliency`.
    """
    case = Case.of(lm, prompts, metric, inputs, **how)
    values, maps = attention_program(lm.params, case.batch, case.metric, case.x, config=lm.config, **case.types)
    maps = np.asarray(maps, np.float64) + np.eye(case.shape[1])
    scores = _rolled(maps, case, position)
    return case.result(
        "attention_rollout", "share of attention rolled out over layers; not of a metric", scores, values, signed=False, position=position
    )


def value_zeroing(
    lm: LanguageModel, prompts: Prompts, metric: Any = None, *, position: Any = -1, layer: int | None = None, inputs: Any = None, **how: Any
) -> InputAttribution:
    """How much a token's value vectors change what others become, layer by layer (Mohebbi et al. 2023, arXiv:2301.12971).

        C_l[q, k] = 1 - cos(block l's output at q, the same with the value vectors of token k zero),  rows normalised
        score_k = (product over layers, last first, of C_l)[position, k]

    Each block starts from the run's own residual stream, so that only its own mixing is seen, MLP and residual included.
    Unsigned, sums to 1, and not of a metric: the metric is only recorded; `leave_one_out(by="values")` is its counterpart for a
    metric. Cost: P + 1 forward passes, batched. Misleads: a cosine sees every change alike, read later or not.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: recorded in `values`; None records none.
        position: as for `attention_rollout`.
        layer: the scores of this layer alone; None multiplies all layers.
        inputs: as for `saliency`.
        **how: as for `saliency`.
    """
    if layer is not None and not 0 <= layer < lm.config.n_layers:
        raise InputError(f"layer is {layer}; this model has layers 0 to {lm.config.n_layers - 1}.")
    case = Case.of(lm, prompts, metric, inputs, **how)
    values, before, after = residual_program(lm.params, case.batch, case.metric, case.x, config=lm.config, **case.types)
    found = [
        np.asarray(zeroed_program(lm.params, case.batch, case.x, before, after, rows, config=lm.config, **case.types))[:keep]
        for rows, keep in case.chunks(case.shape[1], gradient=False)
    ]
    by_position = np.concatenate(found).transpose(1, 2, 3, 0).astype(np.float64)  # [L B Q K]
    columns = np.maximum(np.asarray(case.batch.positions), 0)[None, :, None, :]
    maps = np.take_along_axis(by_position, np.broadcast_to(columns, by_position.shape), axis=3)
    maps = np.where(case.mask[None, :, None, :], maps, 0)
    scores = _rolled(maps if layer is None else maps[layer : layer + 1], case, position)
    return case.result(
        "value_zeroing", "share of the context mixed in; not of a metric", scores, values, signed=False, position=position, layer=layer
    )


def _rolled(maps: np.ndarray, case: Case, position: Any) -> np.ndarray:
    """[B P]: rows of the product of maps [L B Q K], their rows normalised, at a position, mean over several."""
    check_positions(position, case.tokens, "position")
    total = maps.sum(axis=-1, keepdims=True)
    maps = maps / np.where(total > 0, total, 1)
    rolled = functools.reduce(lambda below, layer: layer @ below, maps)
    columns = np.asarray(case.batch.columns(position))
    columns = np.broadcast_to(columns, (case.shape[0], columns.shape[1]))
    return np.take_along_axis(rolled, columns[:, :, None], axis=1).mean(axis=1)


@functools.partial(jax.jit, static_argnames=STATIC)
def attention_program(
    params: Params,
    tokens: Tokens,
    metric: Any,
    x: Float[Array, "B P D"],
    config: TransformerConfig,
    dtype: str | None,
    precision: str | None,
) -> tuple[Float[Array, "B"] | None, Float[Array, "L B Q K"]]:
    """The metric, and every layer's pattern, mean over its heads."""
    types: dict[str, Any] = {"dtype": dtype, "precision": precision, "inputs": x, "sites": ("pattern",)}
    if metric is None:
        return None, forward(params, tokens, config, stop=config.n_layers, **types)["pattern"].mean(axis=2)
    values, trace = measured(params, tokens, config, metric, **types)
    return values, trace["pattern"].mean(axis=2)


@functools.partial(jax.jit, static_argnames=STATIC)
def residual_program(
    params: Params,
    tokens: Tokens,
    metric: Any,
    x: Float[Array, "B P D"],
    config: TransformerConfig,
    dtype: str | None,
    precision: str | None,
) -> tuple[Float[Array, "B"] | None, Float[Array, "L B P D"], Float[Array, "L B P D"]]:
    """The metric, and the residual stream that enters and leaves every block."""
    types: dict[str, Any] = {"dtype": dtype, "precision": precision, "inputs": x, "sites": ("resid_pre", "resid_post")}
    if metric is None:
        values, trace = None, forward(params, tokens, config, stop=config.n_layers, **types)
    else:
        values, trace = measured(params, tokens, config, metric, **types)
    return values, trace["resid_pre"], trace["resid_post"]


@functools.partial(jax.jit, static_argnames=STATIC)
def zeroed_program(
    params: Params, tokens: Tokens, x: Float[Array, "B P D"], before: Float[Array, "L B P D"], after: Float[Array, "L B P D"],
    positions: Int[Array | np.ndarray, "n"], config: TransformerConfig, dtype: str | None, precision: str | None,
) -> Float[Array, "n L B Q"]:  # fmt: skip
    """Cosine distances of every block's output, from its own input, when the value vectors at a position are zero."""

    def one(position: Array) -> Array:
        edits = [edit_makers.replace("resid_pre", before), edit_makers.zero("v", position=position)]
        changed = forward(
            params, tokens, config, sites=("resid_post",), edits=edits, inputs=x, stop=config.n_layers, dtype=dtype, precision=precision
        )["resid_post"]
        # 1 - cos = |u - w|^2 / 2 of unit vectors, which does not cancel where both are nearly equal
        return 0.5 * ((_unit(changed) - _unit(after)) ** 2).sum(axis=-1)

    return jax.vmap(one)(jnp.asarray(positions))


def _unit(x: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    norm = jnp.sqrt((x**2).sum(axis=-1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)
