"""Attribution by taking tokens away: occlusion, and leaving one token out. Exact, forward passes only.

A score is the metric of the prompt minus the metric without the token, so no gradient has to be trusted. It answers for each
token (or window) alone: of two tokens that say the same thing, neither is missed.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.baselines import baseline_of
from jaxinterp.methods.attribution.points import STATIC, Case, check_number, replaced
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import Params, read_forward, unembed_at
from jaxinterp.runs.objective import measured

By = Literal["remove", "mask", "values"]


def occlusion(
    lm: LanguageModel, prompts: Prompts, metric: Any, *, baseline: Any = "mean", window: int = 1, stride: int = 1, keep: Any = None,
    inputs: Any = None, **how: Any,
) -> InputAttribution:  # fmt: skip
    """The metric minus the metric with a sliding window of tokens replaced (Zeiler and Fergus 2013, arXiv:1311.2901).

        score_p = mean over windows w that hold p of  f(x) - f(x with the tokens of w at the baseline)

    Cost: one forward pass a window and one more, batched. Misleads where two tokens stand in for each other, and where a text
    with the baseline in it is no text that the model knows.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is explained; it need not have a gradient.
        baseline: what replaces a token's embedding; as for `integrated_gradients`.
        window: tokens in a window.
        stride: tokens from one window to the next; the last window may reach past the prompt's end.
        keep: positions that stay what they are.
        inputs: as for `saliency`.
        **how: as for `saliency`.

    Raises:
        InputError: a baseline that does not fit, a stride that leaves tokens out, or a window of no tokens.
    """
    check_number("window", window, 1, "one or more tokens")
    check_number("stride", stride, 1, "one or more tokens")
    if stride > window:
        raise InputError(f"stride is {stride} and window {window}: tokens between windows would have no score; take stride <= window.")
    case = Case.of(lm, prompts, metric, inputs, **how)
    start, name = baseline_of(case, baseline, keep)
    positions, lengths = np.where(case.mask, np.asarray(case.batch.positions), -1), case.mask.sum(axis=1)
    counts = np.maximum(-(-(lengths - window) // stride), 0) + 1
    first = stride * np.arange(counts.max() + 1)[:, None, None]
    inside = (positions[None] >= first) & (positions[None] < first + window)
    inside &= np.arange(len(first))[:, None, None] < counts[None, :, None]
    inside[-1] = False  # the last row is the prompt itself
    values = case.values(lambda rows: replaced(start, case.x, ~inside[rows]), len(inside))
    differences = values[-1][None] - values
    scores = (differences[:, :, None] * inside).sum(axis=0) / np.maximum(inside.sum(axis=0), 1)
    unit = "loss of the metric without the token" if window == 1 else f"loss of the metric without {window} tokens, mean over windows"
    return case.result("occlusion", unit, scores, values[-1], window=window, stride=stride, replaced_by=name)


def leave_one_out(
    lm: LanguageModel, prompts: Prompts, metric: Any, *, by: By = "remove", inputs: Any = None, **how: Any
) -> InputAttribution:
    """The metric minus the metric of the prompt without one token (Li et al. 2016, arXiv:1612.08220).

        score_p = f(x) - f(x without token p)

    "remove" runs the prompt without the token: later ones move up by one position, and the metric is read at the tokens at which
    it was read (their own scores are NaN). "mask" hides the token from attention: no query, its own included, sees it, and
    positions stay. "values" zeroes its value vectors in all layers: it is attended to as before and gives nothing. Cost:
    P + 1 forward passes, batched. Misleads as `occlusion` does; under "mask" and "values" a token at which the metric is read still
    has its own residual stream.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is explained; it need not have a gradient.
        by: how the token is left out.
        inputs: as for `saliency`.
        **how: as for `saliency`.

    Raises:
        InputError: another `by`; or "remove" with a metric that reads other sites than logits.
    """
    if by not in ("remove", "mask", "values"):
        raise InputError(f"by is {by!r}; expected 'remove', 'mask' or 'values'.")
    case = Case.of(lm, prompts, metric, inputs, **how)
    if by == "remove" and case.metric.sites:
        raise InputError("leave_one_out(by='remove') reads logits only, and this metric reads other sites; use by='mask'.")
    size = case.shape[1]
    found = [
        np.asarray(without_program(lm.params, case.batch, case.metric, case.x, rows, by=by, config=lm.config, **case.types))[:keep]
        for rows, keep in case.chunks(size + 1, gradient=False)
    ]
    values = np.concatenate(found).astype(np.float64)
    differences = values[-1][:, None] - values[:-1].T  # [B P] by position
    scores = np.take_along_axis(differences, np.maximum(np.asarray(case.batch.positions), 0), axis=1)
    if by == "remove":
        columns = np.asarray(case.metric.reads(case.batch, lm.config)[0])
        read = (np.arange(size) == np.broadcast_to(columns, (case.shape[0], columns.shape[1]))[:, :, None]).any(axis=1)
        scores = np.where(read, np.nan, scores)
    return case.result("leave_one_out", "loss of the metric without the token", scores, values[-1], by=by)


@functools.partial(jax.jit, static_argnames=("by", *STATIC))
def without_program(
    params: Params, tokens: Tokens, metric: Any, x: Float[Array, "B P D"], left_out: Int[Array | np.ndarray, "n"], by: str,
    config: TransformerConfig, dtype: str | None, precision: str | None,
) -> Float[Array, "n B"]:  # fmt: skip
    """The metric of runs without one position each; a position that no prompt has leaves all tokens in."""
    types: dict[str, Any] = {"dtype": dtype, "precision": precision, "inputs": x}

    def edited(position: Array) -> Array:
        edit = edit_makers.knockout(key=position) if by == "mask" else edit_makers.zero("v", position=position)
        return measured(params, tokens, config, metric, edits=[edit], **types)[0]

    def removed(position: Array) -> Array:
        mask = jnp.asarray(tokens.mask) & (jnp.asarray(tokens.positions) != position)
        shorter = Tokens(jnp.asarray(tokens.ids), mask, jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, tokens.types)
        columns, vocabulary = metric.reads(tokens, config)
        read = lambda resid, tap: unembed_at(params, resid, config, tap, columns, vocabulary)  # noqa: E731
        return metric.from_logits(read_forward(params, shorter, config, read, **types)[0], tokens)

    return jax.vmap(removed if by == "remove" else edited)(jnp.asarray(left_out))
