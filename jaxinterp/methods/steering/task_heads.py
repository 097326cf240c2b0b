"""Heads at the last token of in-context prompts: their mean output over a task, what that does in other prompts, what it writes.

Everything here is numbers of one model: `function_vectors` makes the prompts, chooses and judges.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.methods.residual_stream import _normed, norm_parameters
from jaxinterp.model import edits
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.norm import at_least_float32
from jaxinterp.model.selection import at
from jaxinterp.model.sites import SITES
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import read_forward, unembed_at
from jaxinterp.runs.measure import run_cells
from jaxinterp.runs.metrics import probability
from jaxinterp.runs.program import bucket
from jaxinterp.runs.progress import Progress

ROWS = 32
"""Prompts run at once at most."""

Head = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class TaskMeans:
    """What prompts that a model answers rightly have at their last token, mean over them.

    Attributes:
        z: [L H E], what each head gives.
        added: [L H E], the same over the denominator of the norm after attention, in each prompt its own, where there is one: what
            W_O and that norm's gain take to the part of the head in what attention adds.
        norms: [L], the norm of the residual stream.
        right: [B] bool, the prompts whose answer is the likeliest token; only they count.
    """

    z: Float[np.ndarray, "L H E"]
    added: Float[np.ndarray, "L H E"]
    norms: Float[np.ndarray, "L"]
    right: Bool[np.ndarray, "B"]


def task_means(lm: LanguageModel, tokens: Tokens, answers: Int[np.ndarray, "B"], *, precision: str | None) -> TaskMeans:
    """Means over the prompts that are answered rightly; all zero where none is.

    Args:
        lm: the model.
        tokens: B prompts.
        answers: the token that should come next.
        precision: as for `run`.
    """
    width = bucket(tokens.ids.shape[1], lm.config.n_ctx)
    right, sums = np.zeros(len(answers), bool), None
    with Progress("task means", len(answers), "prompts") as progress:
        for rows in _chunks(len(answers)):
            batch = _rows(tokens, rows).padded(width).arrays_only()
            found = _read(lm.params, batch, answers[rows], config=lm.config, precision=precision)
            z, scale, norms, hit = jax.tree.map(np.asarray, found)
            fresh = np.arange(len(rows)) < len(answers) - rows[0]  # a last chunk is filled up with prompts of the first
            right[rows[fresh]], kept = hit[fresh], hit & fresh
            part = [(value * kept.reshape(1, -1, *(1,) * (value.ndim - 2))).sum(axis=1) for value in (z, z / scale, norms)]
            sums = part if sums is None else [one + other for one, other in zip(sums, part, strict=True)]
            progress.advance(int(fresh.sum()))
    z, added, norms = (value / max(right.sum(), 1) for value in sums or ())
    return TaskMeans(z, added, norms, right)


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def _read(
    params: Any, tokens: Tokens, answers: Int[Array, "B"], *, config: TransformerConfig, precision: str | None
) -> tuple[Float[Array, "L B H E"], Float[Array, "L B 1 1"], Float[Array, "L B"], Bool[Array, "B"]]:
    """At the last token: z, the denominator of a norm after attention (or 1), the stream's norm, whether the answer is likeliest."""
    last = tokens.last[:, None]
    post = not SITES["ln1_post_scale"].absent(config)
    sites = {name: at(position=-1) for name in ("z", "resid_post", *(("ln1_post_scale",) if post else ()))}
    read = lambda resid, tap: unembed_at(params, resid, config, tap, last, None)  # noqa: E731
    logits, trace = read_forward(params, tokens, config, read, sites=sites, precision=precision)
    values = {name: at_least_float32(value) for name, value in trace.padded.items()}
    scale = values["ln1_post_scale"][..., None] if post else jnp.ones((*values["z"].shape[:2], 1, 1), values["z"].dtype)
    likeliest = jnp.take_along_axis(logits[:, 0], answers[:, None], axis=1) >= logits[:, 0].max(axis=1, keepdims=True)
    return values["z"], scale, jnp.sqrt(jnp.square(values["resid_post"]).sum(axis=-1)), likeliest[:, 0]


def head_effects(
    lm: LanguageModel, tokens: Tokens, answers: Int[np.ndarray, "B"], z: Float[np.ndarray, "L H E"], *, precision: str | None,
    metric: Callable[..., Any] = probability,
) -> Float[np.ndarray, "L H B"]:  # fmt: skip
    """How a metric of the answer changes when one head's output at the last token becomes a given one; all heads are one sweep.

    Args:
        lm: the model.
        tokens: B prompts.
        answers: the token whose metric it is.
        z: what each head is given.
        precision: as for `run`.
        metric: of `ji.metrics`, of one answer.
    """
    cells = [[edits.replace("z", z[index], layer=index[0], head=index[1], position=-1)] for index in np.ndindex(*z.shape[:2])]
    values, base = measured(lm, tokens, answers, cells, {"": metric}, title="head effects", precision=precision)[""]
    return (values - base[None]).reshape(*z.shape[:2], -1)


def written(lm: LanguageModel, added: Float[np.ndarray, "L H E"], heads: Sequence[Head]) -> Float[np.ndarray, "D"]:
    """The sum of what heads add to the residual stream: through W_O, the gain of a norm after attention, and a residual multiplier.

    Args:
        lm: the model.
        added: as `TaskMeans` has it.
        heads: which heads.
    """
    config, total = lm.config, jnp.zeros(lm.config.d_model)
    gains = norm_parameters(lm.params, ["ln1_post"])["ln1_post"] if config.norm_position in ("sandwich", "output") else None
    for layer, head in heads:
        group, weights = next(pair for pair in zip(config.groups, lm.params["blocks"], strict=True) if layer < pair[0].stop)
        matrix = at_least_float32(weights["attn"]["W_O"][layer - group.start, head])
        out = jnp.einsum("E,ED->D", jnp.asarray(added[layer, head], matrix.dtype), matrix, precision="highest")
        if gains is not None:
            own = jax.tree.map(lambda gain, layer=layer: gain[layer], gains)
            out = _normed(out, own, jnp.ones(1, out.dtype), config)
        total = total + out * config.residual_multiplier
    return np.asarray(total)


def measured(
    lm: LanguageModel, tokens: Tokens, answers: Int[np.ndarray, "B"], cells: Sequence[Sequence[Edit]], metrics: dict[str, Any], *,
    title: str, precision: str | None,
) -> dict[str, tuple[Float[np.ndarray, "C B"], Float[np.ndarray, "B"]]]:  # fmt: skip
    """Metrics of the answer in the run of each cell, and in the plain run, a bounded number of prompts at once.

    Args:
        lm: the model.
        tokens: B prompts.
        answers: the token that a metric is of.
        cells: edits of each cell, that fit any prompt.
        metrics: {name: one of `ji.metrics`, of one answer}.
        title: what the progress bar says.
        precision: as for `run`.
    """
    parts: list[dict[str, Any]] = []
    for rows in _chunks(len(answers)):
        bound = {name: metric(answers[rows]) for name, metric in metrics.items()}
        parts.append(run_cells(lm, _rows(tokens, rows), None, cells, bound, precision=precision, title=title))
    size = len(answers)
    return {
        name: (
            np.concatenate([part[name].values for part in parts], axis=1)[:, :size],
            np.concatenate([part[name].base for part in parts])[:size],
        )
        for name in metrics
    }


def _chunks(size: int) -> list[np.ndarray]:
    """Rows in chunks of one size; the last is filled up with the first rows."""
    step = min(ROWS, size)
    return [np.arange(begin, begin + step) % size for begin in range(0, size, step)]


def _rows(tokens: Tokens, rows: np.ndarray) -> Tokens:
    return Tokens.from_ids(np.asarray(tokens.ids)[rows], np.asarray(tokens.mask)[rows], bos=tokens.bos)
