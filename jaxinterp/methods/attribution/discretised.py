"""Discretised integrated gradients: a path from the baseline to each token whose points stay near embeddings of real tokens."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.baselines import baseline_of
from jaxinterp.methods.attribution.integrated import warn_of_error
from jaxinterp.methods.attribution.points import STATIC, Case, along, check_number
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import Params, forward

Strategy = Literal["greedy", "max_count"]


def discretised_integrated_gradients(
    lm: LanguageModel, prompts: Prompts, metric: Any, *, baseline: Any = "pad", steps: int = 32, strategy: Strategy = "greedy",
    neighbours: int = 128, tolerance: float = 0.05, keep: Any = None, inputs: Any = None, **how: Any,
) -> InputAttribution:  # fmt: skip
    """Integrated gradients along points near embeddings of real tokens (Sanyal and Ren 2021, arXiv:2108.13654).

        score_p = sum over D and k of  d metric / d x_p at point k  *  (point k+1 - point k)_p,   from the baseline to the prompt

    Going down from a token to its baseline, the next anchor is one of the nearest `neighbours` of the last anchor that is not
    on the path yet: under "greedy" the one nearest to its own monotone version, under "max_count" the one with the most entries
    between the anchor and the baseline. The anchor's entries that are not between the last point and the baseline move from
    the last point by 1 / `steps` of the way to the baseline, so that every entry is monotone along the path. Scores sum to
    f(x) - f(x') up to `error`, which is large: the sum takes the slope at the beginning of each stretch, and the last
    stretch, from the baseline to the last anchor, is long. Cost: `steps` + 2 forward and backward passes, batched, and
    `steps` products of the tokens with the embedding matrix. Misleads as integrated gradients do; read the error first.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: as for `saliency`.
        baseline: as for `integrated_gradients`; the paper takes the padding (or mask) token.
        steps: anchors a token.
        strategy: which neighbour becomes the next anchor.
        neighbours: how many are looked at; more than `steps`.
        tolerance: the wanted relative error; where it is missed, a warning says so.
        keep: as for `integrated_gradients`.
        inputs: as for `saliency`; anchors begin at the ids all the same.
        **how: as for `saliency`.

    Raises:
        InputError: as for `integrated_gradients`; also too few neighbours, or more than the vocabulary has.
    """
    check_number("steps", steps, 1, "one or more anchors")
    if strategy not in ("greedy", "max_count"):
        raise InputError(f"strategy is {strategy!r}; expected 'greedy' or 'max_count'.")
    if not steps < neighbours < lm.config.d_vocab:
        raise InputError(f"neighbours is {neighbours}; expected more than steps ({steps}) and fewer than the vocabulary's tokens.")
    case = Case.of(lm, prompts, metric, inputs, **how)
    case.metric.check_slope(None)
    start, name = baseline_of(case, baseline, keep)
    points = anchors_program(
        lm.params, case.batch, case.x, start, steps=steps, neighbours=neighbours, strategy=strategy, config=lm.config, **case.types
    )
    values, scores = [], np.zeros(case.shape)
    for rows, some, slopes in case.slopes(lambda rows: points[rows], len(points)):
        values.append(some)
        scores += along(slopes, points[np.minimum(rows + 1, len(points) - 1)] - points[rows]).sum(axis=0)
    ends = np.concatenate(values)[[0, -1]]
    result = case.result(
        "discretised_integrated_gradients", "part of the metric's change from the baseline", scores, ends[1], baseline=ends[0],
        total=ends[1] - ends[0], steps=steps, strategy=strategy, neighbours=neighbours, from_baseline=name,
    )  # fmt: skip
    warn_of_error(result, tolerance, "Its path is fixed by the anchors, so more steps help little; compare with integrated_gradients.")
    return result


@functools.partial(jax.jit, static_argnames=("steps", "neighbours", "strategy", *STATIC))
def anchors_program(
    params: Params, tokens: Tokens, x: Float[Array, "B P D"], start: Float[Array, "B P D"], steps: int, neighbours: int, strategy: str,
    config: TransformerConfig, dtype: str | None, precision: str | None,
) -> Float[Array, "n B P D"]:  # fmt: skip
    """The points of every token's path, from the baseline over its anchors to the token."""
    words = forward(
        params, Tokens.from_ids(jnp.arange(config.d_vocab)[:, None]), config, sites=("embed",), stop=0, dtype=dtype, precision=precision
    )["embed"][:, 0]
    ids, current, goal = jnp.asarray(tokens.ids).reshape(-1), x.reshape(-1, x.shape[2]), start.reshape(-1, x.shape[2])
    sizes = (words**2).sum(axis=1)
    path = jnp.full((steps + 1, len(ids)), -1).at[0].set(ids)

    def step(carry: tuple[Array, Array, Array], k: Array) -> tuple[tuple[Array, Array, Array], Array]:
        anchor, point, path = carry
        last = words[anchor]
        with jax.default_matmul_precision("highest"):
            near = jax.lax.top_k(2 * jnp.einsum("ND,VD->NV", last, words) - sizes[None], neighbours)[1]
        candidates = words[near]
        allowed = ~(near[None] == path[:, :, None]).any(axis=0) & ~(candidates == goal[:, None]).all(axis=2)
        chosen = _next(candidates, last[:, None], goal[:, None], allowed, steps, strategy)
        anchor = jnp.take_along_axis(near, chosen[:, None], axis=1)[:, 0]
        point = jnp.where((point == goal).all(axis=1, keepdims=True), goal, _monotone(words[anchor], point, goal, steps))
        return (anchor, point, path.at[k + 1].set(anchor)), point

    _, points = jax.lax.scan(step, (ids, current, path), jnp.arange(steps))
    down = jnp.concatenate([current[None], points, goal[None]])
    return down[::-1].reshape(steps + 2, *x.shape)


def _next(
    candidates: Float[Array, "N K D"], last: Float[Array, "N 1 D"], goal: Float[Array, "N 1 D"], allowed: Bool[Array, "N K"], steps: int,
    strategy: str,
) -> Int[Array, "N"]:  # fmt: skip
    """Which candidate is the next anchor."""
    if strategy == "greedy":
        cost = ((candidates - _monotone(candidates, last, goal, steps)) ** 2).sum(axis=2)
    else:
        cost = -_between(candidates, last, goal).sum(axis=2).astype(candidates.dtype)
    return jnp.where(allowed, cost, jnp.inf).argmin(axis=1)


def _between(point: Array, last: Array, goal: Array) -> Array:
    return (point >= jnp.minimum(last, goal)) & (point <= jnp.maximum(last, goal))


def _monotone(point: Array, last: Array, goal: Array, steps: int) -> Array:
    """The point with the entries that are not between `last` and `goal` a step of the way from one to the other."""
    return jnp.where(_between(point, last, goal), point, last - (last - goal) / steps)
