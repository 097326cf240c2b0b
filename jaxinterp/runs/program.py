"""The compiled program behind `run`: buckets of prompt lengths, types, and the one module-level jit."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import At
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.model.transformer import forward


def bucket(length: int, context: int) -> int:
    """The padded length of prompts of `length` tokens: 1 to 8, then four sizes an octave (10, 12, 14, 16, 20 ...) up to the context."""
    step = 1
    while length > 8 * step:
        step *= 2
    return min(-(-length // step) * step, max(context, length))


@functools.partial(jax.jit, static_argnames=("config", "stop", "dtype", "capture_dtype", "precision"))
def run_program(
    params: Any, tokens: Tokens, requests: dict[str, At], edits: Sequence[Edit], rules: Rules, start: Any, inputs: Any,
    config: TransformerConfig, stop: int | None, dtype: str | None, capture_dtype: str | None, precision: str | None,
) -> Trace:  # fmt: skip
    """`forward`, compiled: everything that a user changes from run to run is an argument."""
    return forward(
        params, tokens, config, sites=requests, edits=edits, rules=rules, start=start, stop=stop, inputs=inputs,
        dtype=dtype, capture_dtype=capture_dtype, precision=precision,
    )  # fmt: skip


def check_dtype(dtype: Any) -> str | None:
    """The name of a float type that JAX can use as it is set up now.

    Raises:
        InputError: not a float type, or float64 without x64.
    """
    if dtype is None:
        return None
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ("float32", "bfloat16", "float16", "float64"):
        raise InputError(f"dtype is {name!r}; expected 'float32', 'bfloat16', 'float16' or 'float64'.")
    if name == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise InputError('float64 needs JAX\'s x64 mode, which is off: jax.config.update("jax_enable_x64", True), or JAX_ENABLE_X64=1.')
    return name
