"""How a result was made: fingerprints of weights, prompts, edits and metrics, cheap enough to stand in every result.

Small arrays are hashed whole. Of a larger one some thousands of evenly spread numbers are: that tells checkpoints, prompts and
references apart in milliseconds, where hashing half a gigabyte takes half a second. It cannot tell a model from one in which a
few numbers were changed by hand; `LanguageModel.digest()` reads every byte.
"""

import functools
import hashlib
import importlib.metadata
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.kept import ADDRESS, code_of

How = tuple[tuple[str, str], ...]

SAMPLE = 1 << 15
"""Numbers that are hashed of an array of more than eight times as many."""

REMEMBERED = 8
"""Models whose fingerprints are kept, as long as they live."""

RECORD = ("weights", "tokens", "other tokens", "edits", "other edits", "metric", "jaxinterp", "jax")
"""What `record` writes, and what a short `repr` leaves out."""

_known: list[tuple[tuple[weakref.ref[Array], ...], str]] = []


def record(
    lm: LanguageModel,
    tokens: Tokens,
    metric: Any,
    *,
    other: Tokens | None = None,
    edits: Sequence[Edit] = (),
    other_edits: Sequence[Edit] | None = None,
    align: np.ndarray | None = None,
) -> How:
    """What a result was made with, as (name, text): results are compared by these.

    Args:
        lm: the model.
        tokens: the prompts whose run is edited or differentiated. Padding does not count.
        metric: what was measured, bound.
        other: the prompts whose values are written, if there are any.
        edits: of the run on `tokens`.
        other_edits: of the run on `other`; None is the same.
        align: [B P], the positions of `other` that correspond to those of `tokens`; None: they agree.
    """
    made = [("weights", fingerprint_of_weights(lm.params)), ("tokens", _of_tokens(tokens))]
    if other is not None:
        made.append(("other tokens", _of_tokens(other) + ("" if align is None else f" aligned by {fingerprint(align)}")))
    made.append(("edits", _of_edits(edits)))
    if other_edits is not None:
        made.append(("other edits", _of_edits(other_edits)))
    about = f"{type(metric).__name__} {fingerprint((metric, code_of(getattr(metric, 'function', None))))}"
    return (*made, ("metric", about), ("jaxinterp", _version()), ("jax", jax.__version__))


def fingerprint(tree: Any) -> str:
    """16 hexadecimal digits of a pytree: its structure, and every array's type, shape and numbers, of a large one a sample."""
    digest = hashlib.sha256()
    leaves, structure = jax.tree.flatten(tree)
    digest.update(ADDRESS.sub("", str(structure)).encode())
    for leaf, sample in zip(leaves, _samples(leaves), strict=True):
        digest.update(f"{np.shape(leaf)} {sample.dtype}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()[:16]


def fingerprint_of_weights(params: Any) -> str:
    """The fingerprint of parameters, remembered for arrays of JAX, which never change."""
    leaves = jax.tree.leaves(params)
    if not all(isinstance(leaf, jax.Array) for leaf in leaves):
        return fingerprint(params)
    for refs, found in _known:
        if len(refs) == len(leaves) and all(ref() is leaf for ref, leaf in zip(refs, leaves, strict=True)):
            return found
    found = fingerprint(params)
    _known[:] = [*_known[1 - REMEMBERED :], (tuple(weakref.ref(leaf) for leaf in leaves), found)]
    return found


def _samples(leaves: Sequence[Any]) -> list[np.ndarray]:
    """The numbers of each array that are hashed; where arrays lie on an accelerator they are picked there."""
    if any(isinstance(leaf, jax.Array) and next(iter(leaf.devices())).platform != "cpu" for leaf in leaves):
        return [np.asarray(sample) for sample in _picked(leaves)]
    return [_spread(np.asarray(leaf)) for leaf in leaves]


def _spread(array: Any) -> Any:
    """Evenly spread numbers of an array; the odd step visits every column of a matrix."""
    return array.reshape(-1)[:: (array.size // SAMPLE) | 1] if array.size > 8 * SAMPLE else array.reshape(-1)


@jax.jit
def _picked(leaves: Sequence[Any]) -> list[Array]:
    return [_spread(jax.numpy.asarray(leaf)) for leaf in leaves]


def _of_tokens(tokens: Tokens) -> str:
    """The fingerprint of the real tokens of each prompt, whatever their padding."""
    mask = np.asarray(tokens.mask)
    types = () if tokens.types is None else np.asarray(tokens.types)[mask]
    return fingerprint((np.asarray(tokens.ids, np.int32)[mask], mask.sum(axis=1).astype(np.int32), types))


def _of_edits(edits: Sequence[Edit]) -> str:
    return fingerprint((tuple(edits), [code_of(edit.function) for edit in edits])) if edits else "none"


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("jaxinterp")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
