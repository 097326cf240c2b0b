"""The metric, and its slope, at many token embeddings of the same prompts: what every input attribution is made of.

A method is a choice of points [n B P D] (along a path, with tokens replaced, with noise added) and a sum over them. All
points of a chunk are one batched run; the chunk is sized to memory.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import Params, check_run, forward
from jaxinterp.runs.objective import measured
from jaxinterp.runs.plan import count
from jaxinterp.runs.program import bucket, check_dtype
from jaxinterp.runs.run import pad_columns

MOST_TOKENS = 8192  # in one batched run: more of them make no run faster
SHARE_OF_MEMORY = 0.5
STATIC = ("config", "dtype", "precision")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is explained: a metric of a model's run on prompts, as a function of their token embeddings.

    Attributes:
        lm: the model.
        tokens: the prompts as they were given.
        batch: the same, padded to a bucket of lengths.
        metric: bound; None for what has no metric.
        x: [B P D], the embeddings of the padded prompts (as site `embed` holds them).
        types: dtype and precision of the runs.
        bos: how strings became tokens, as for `run`.
    """

    lm: LanguageModel
    tokens: Tokens
    batch: Tokens
    metric: Any
    x: Float[Array, "B P D"]
    types: dict[str, Any]
    bos: str | bool = "model"

    @classmethod
    def of(
        cls, lm: LanguageModel, prompts: Prompts, metric: Any, inputs: Any = None, bos: str | bool = "model", dtype: Any = None,
        precision: str | None = "highest",
    ) -> "Case":  # fmt: skip
        """Prompts and metric, checked; `inputs` [B P D] are explained instead of the embeddings of the ids."""
        tokens = lm.to_tokens(prompts, bos=bos)
        check_run(lm.config, tokens, {}, (), Rules(), None, None, inputs)
        types = {"dtype": check_dtype(dtype), "precision": precision}
        padded = bucket(tokens.ids.shape[1], lm.config.n_ctx)
        batch = tokens.padded(padded).arrays_only()
        metric = metric if metric is None or metric.bound else metric.bind(lm, tokens)
        x = embeddings(lm.params, batch, config=lm.config, **types) if inputs is None else jnp.asarray(pad_columns(inputs, padded))
        return cls(lm, tokens, batch, metric, x, types, bos)

    @property
    def shape(self) -> tuple[int, int]:
        """(prompts, padded positions)."""
        return self.batch.ids.shape

    @property
    def mask(self) -> np.ndarray:
        """[B P]: which columns hold tokens."""
        return np.asarray(self.batch.mask)

    def values(self, make: Callable[[Any], Any], n: int) -> np.ndarray:
        """[n B], the metric at n points; `make(indices)` gives the points [m B P D] of some of them."""
        run = functools.partial(values_program, self.lm.params, self.batch, self.metric, config=self.lm.config, **self.types)
        return np.concatenate([np.asarray(run(make(rows)))[:keep] for rows, keep in self.chunks(n, gradient=False)]).astype(np.float64)

    def slopes(self, make: Callable[[Any], Any], n: int, rules: Rules | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, Array]]:
        """(indices [m], values [m B], slopes [m B P D]) of n points, chunk by chunk; see `values`."""
        run = functools.partial(
            slopes_program, self.lm.params, self.batch, self.metric, rules=rules or Rules(), config=self.lm.config, **self.types
        )
        for rows, keep in self.chunks(n, gradient=True):
            values, slopes = run(make(rows))
            yield rows[:keep], np.asarray(values, np.float64)[:keep], slopes[:keep]

    def chunks(self, n: int, *, gradient: bool) -> Iterator[tuple[np.ndarray, int]]:
        """(indices, how many of them count): equal chunks that fit in memory; the last one is filled with its last index."""
        size = chunk_size(self.lm, self.shape, n, gradient)
        for first in range(0, n, size):
            yield np.minimum(np.arange(first, first + size), n - 1), min(size, n - first)

    def result(
        self, method: str, unit: str, scores: Any, values: Any, *, signed: bool = True, baseline: Any = None, total: Any = None,
        spread: Any = None, **how: Any,
    ) -> InputAttribution:  # fmt: skip
        """Scores [B P] of padded prompts as a result: trimmed, NaN at padding."""
        return attribution(
            self.lm, self.tokens, method, unit, scores, values, signed=signed, baseline=baseline, total=total, spread=spread,
            precision=self.types["precision"], **how,
        )  # fmt: skip


def attribution(
    lm: LanguageModel, tokens: Tokens, method: str, unit: str, scores: Any, values: Any, *, signed: bool = True, baseline: Any = None,
    total: Any = None, spread: Any = None, **how: Any,
) -> InputAttribution:  # fmt: skip
    """The result of a method from its scores [B P or more]."""
    size, mask = tokens.ids.shape[1], np.asarray(tokens.mask)

    def trimmed(array: Any) -> np.ndarray | None:
        return None if array is None else np.where(mask, np.asarray(array, np.float64)[:, :size], np.nan)

    def flat(array: Any) -> np.ndarray | None:
        return None if array is None else np.asarray(array, np.float64)

    if lm.tokenizer is None:
        strings = tuple(tuple(map(str, np.asarray(ids)[keep])) for ids, keep in zip(tokens.ids, mask, strict=True))
    else:
        strings = tuple(map(tuple, lm.to_strings(tokens)))
    about = {"bos": tokens.bos, **how}
    made = tuple((key, str(value)) for key, value in about.items() if value is not None)
    return InputAttribution(
        trimmed(scores), flat(values), flat(baseline), flat(total), trimmed(spread), tokens, method, unit, signed, made, strings
    )


def chunk_size(lm: LanguageModel, shape: tuple[int, int], n: int, gradient: bool) -> int:
    """How many points of [B P] tokens are run at once: as many as fit, in chunks of one size."""
    counted = count(lm, *shape, {}, None, None, None)
    layers = lm.config.n_layers if gradient else 1
    each = layers * counted.temporaries + 4 * shape[0] * lm.config.d_vocab * 4
    most = MOST_TOKENS // (shape[0] * shape[1])
    if counted.available is not None:
        most = min(most, int(SHARE_OF_MEMORY * counted.available / each))
    most = max(most, 1)
    return -(-n // -(-n // most))


@functools.partial(jax.jit, static_argnames=STATIC)
def values_program(
    params: Params, tokens: Tokens, metric: Any, points: Float[Array, "n B P D"], config: TransformerConfig, dtype: str | None,
    precision: str | None,
) -> Float[Array, "n B"]:  # fmt: skip
    """The metric at every point."""
    return jax.vmap(lambda x: measured(params, tokens, config, metric, inputs=x, dtype=dtype, precision=precision)[0])(points)


@functools.partial(jax.jit, static_argnames=STATIC)
def slopes_program(
    params: Params, tokens: Tokens, metric: Any, points: Float[Array, "n B P D"], rules: Rules, config: TransformerConfig,
    dtype: str | None, precision: str | None,
) -> tuple[Float[Array, "n B"], Float[Array, "n B P D"]]:  # fmt: skip
    """The metric at every point, and its derivative to the embeddings there."""

    def one(x: Float[Array, "B P D"]) -> tuple[Array, Array]:
        values = measured(params, tokens, config, metric, inputs=x, rules=rules, dtype=dtype, precision=precision)[0]
        return values.sum(), values

    def both(x: Float[Array, "B P D"]) -> tuple[Array, Array]:
        slope, values = jax.grad(one, has_aux=True)(x)
        return values, slope

    return jax.vmap(both)(points)


@functools.partial(jax.jit, static_argnames=STATIC)
def embeddings(
    params: Params, tokens: Tokens, config: TransformerConfig, dtype: str | None, precision: str | None
) -> Float[Array, "B P D"]:
    """Token embeddings as site `embed` holds them."""
    return forward(params, tokens, config, sites=("embed",), stop=0, dtype=dtype, precision=precision)["embed"]


@jax.jit
def between(start: Float[Array, "B P D"], end: Float[Array, "B P D"], share: Float[Array | np.ndarray, "n B P"]) -> Float[Array, "n B P D"]:
    """Points between two embeddings: `start` at share 0, `end` at 1, both to the bit."""
    share = jnp.asarray(share)[..., None].astype(end.dtype)
    return (1 - share) * start[None] + share * end[None]


@jax.jit
def replaced(start: Float[Array, "B P D"], end: Float[Array, "B P D"], keep: Bool[Array | np.ndarray, "n B P"]) -> Float[Array, "n B P D"]:
    """`end` where tokens are kept, `start` where they are not."""
    return jnp.where(jnp.asarray(keep)[..., None], end[None], start[None])


def along(slopes: Float[Array, "n B P D"], change: Float[Array, "#n B P D"]) -> Float[np.ndarray, "n B P"]:
    """The slope along a change of the embeddings, token by token.

    At embeddings of exactly zero the norms of a deep model multiply slopes beyond what a float holds: such a slope counts as
    zero, and what it should have added is part of the error that the metric's own values show.
    """
    parts = np.asarray(_along(slopes, change), np.float64)
    return np.where(np.isfinite(parts), parts, 0)


@jax.jit
def _along(slopes: Float[Array, "n B P D"], change: Float[Array, "#n B P D"]) -> Float[Array, "n B P"]:
    return (slopes * change).sum(axis=-1)


def check_number(name: str, value: Any, least: float, what: str) -> None:
    """Refuse a setting below its least value.

    Raises:
        InputError: naming it.
    """
    if not value >= least:
        raise InputError(f"{name} is {value!r}; expected {what}.")
