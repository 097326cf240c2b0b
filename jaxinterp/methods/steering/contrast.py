"""Contrasts: what a site holds on two sets of texts, a vector a text at every layer at once; every method that compares reads this.

    x(text) = mean of the site's value over the tokens read: one token, the tokens of an answer, or all but the first

Texts run in batches of like length and bounded size, so any number of them fits; what is kept is N vectors a layer, in float32 at
least. Token 0 is left out of the mean over a text: beginning-of-sequence token or not, it is a sink whose norm is a hundred times
the others', and the mean would be its own.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.steering.vector import check_layers, check_steerable, texts_of
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.norm import at_least_float32
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import at
from jaxinterp.model.tokens import Tokens, check_positions
from jaxinterp.model.transformer import check_run, forward
from jaxinterp.runs.plan import check_fits
from jaxinterp.runs.program import bucket
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.provenance import fingerprint_of_weights
from jaxinterp.runs.score import joined

BATCH = 32
"""Texts run at once at most."""

TOKENS = 4096
"""Tokens run at once at most, unless one text is longer."""

SIDES = ("positive", "negative")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts as tokens.

    Attributes:
        tokens: the texts, prompt and answer as one.
        answers: [B], how many tokens at the end are the answer; None where texts came without.
    """

    tokens: Tokens
    answers: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Two sets of texts as vectors.

    Attributes:
        values: [L N F], the positive texts and then the negative ones; F are the site's axes after B P as one.
        positive: [N], which are positive.
        norms: [L], the mean norm of the site's value at the tokens read.
        paired: whether there are as many of both: the first positive and the first negative text are then a pair, and so on.
        site: where.
        layers: which layers.
        how: what was read, for the result.
    """

    values: Float[np.ndarray, "L N F"]
    positive: Bool[np.ndarray, "N"]
    norms: Float[np.ndarray, "L"]
    paired: bool
    site: str
    layers: tuple[int, ...]
    how: tuple[tuple[str, str], ...]


def read_contrast(
    lm: LanguageModel, positive: Any, negative: Any, *, method: str, site: str, layers: Any, position: Any, bos: str | bool,
    precision: str | None, least: int = 1, pairs: bool = False,
) -> Contrast:  # fmt: skip
    """Two sets of texts, read and checked.

    Args:
        lm: the model.
        positive: texts, see `texts_from`.
        negative: the others.
        method: who asks, for messages and the result.
        site: a site of the blocks with axes L B P and features.
        layers: a layer, some, or None for all.
        position: which tokens, see `spots`; {"positive": ..., "negative": ...} has one for each set.
        bos: as for `run`.
        precision: as for `run`.
        least: texts that each set must have.
        pairs: whether both sets must be of one size.

    Raises:
        InputError: too few texts, two sizes where pairs are needed, or what does not fit the model.
    """
    check_steerable(site, lm.config)
    chosen = check_layers(layers, lm.config)
    if isinstance(position, Mapping) and set(position) != set(SIDES):
        raise InputError(f"{method}(): positions by set are {{'positive': ..., 'negative': ...}}; got the keys {list(position)}.")
    texts = [texts_from(lm, given, bos, f"{method}(): {name}") for name, given in zip(SIDES, (positive, negative), strict=True)]
    sizes = [len(side.tokens.ids) for side in texts]
    if min(sizes) < least:
        raise InputError(f"{method}() needs at least {least} texts of each kind; got {sizes[0]} positive and {sizes[1]} negative.")
    if pairs and sizes[0] != sizes[1]:
        raise InputError(f"{method}() compares pairs, so it needs as many of both; got {sizes[0]} positive and {sizes[1]} negative texts.")
    wanted = [position[name] if isinstance(position, Mapping) else position for name in SIDES]
    where = [spots(side, one, f"{method}(): {name}") for side, one, name in zip(texts, wanted, SIDES, strict=True)]
    values, norms = read(lm, _both(*(side.tokens for side in texts)), _both_spots(*where), site, chosen, precision=precision)
    how = (
        ("method", method), ("site", site), ("examples", f"{sizes[0]} + {sizes[1]}"),
        ("position", " and ".join(dict.fromkeys(map(_shown, wanted)))), ("bos", texts[0].tokens.bos),
        ("weights", fingerprint_of_weights(lm.params)), texts_of(*(side.tokens for side in texts)),
    )  # fmt: skip
    flat = values.reshape(*values.shape[:2], -1)
    return Contrast(flat, np.repeat([True, False], sizes), norms.mean(axis=1), sizes[0] == sizes[1], site, chosen, how)


# ------------------------------------------------------------------------------------------------ texts and their tokens


def texts_from(lm: LanguageModel, texts: Any, bos: str | bool, what: str) -> Texts:
    """Texts given as strings, `Tokens`, ids, or (prompt, answer) tuples of strings or of ids.

    A prompt and its answer are tokenised as one text: the answer has every token that reaches into it.

    Raises:
        InputError: no texts, kinds that are mixed, or a prompt or answer without a token.
    """
    if isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(part, str) for part in texts):
        raise InputError(f"{what}: a tuple of two strings is a prompt and its answer; put it, or two texts, in a list.")
    if not isinstance(texts, list | tuple) or not any(isinstance(text, tuple) for text in texts):
        return Texts(lm.to_tokens(texts, bos=bos))
    if not all(isinstance(text, tuple) and len(text) == 2 for text in texts):
        raise InputError(f"{what}: expected (prompt, answer) for every text, or for none.")
    prompts, answers = (list(column) for column in zip(*texts, strict=True))
    if not all(isinstance(part, str) for part in (*prompts, *answers)):
        rows = [[np.asarray(part).reshape(-1) for part in column] for column in (prompts, answers)]
        if any(row.dtype.kind not in "iu" or not row.size for column in rows for row in column):
            raise InputError(f"{what}: prompts and answers must all be strings, or all lists of one or more ids.")
        prompts, answers = _padded(rows[0]), rows[1]
    tokens, lengths = joined(lm, prompts, answers, bos, what)
    return Texts(tokens, lengths)


def _padded(rows: Sequence[np.ndarray]) -> Tokens:
    mask = np.arange(max(map(len, rows)))[None] < np.asarray([len(row) for row in rows])[:, None]
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = np.concatenate(rows)
    return Tokens.from_ids(ids, mask)


def spots(texts: Texts, position: Any, what: str) -> tuple[Int[np.ndarray, "B n"], Float[np.ndarray, "B n"]]:
    """Which positions of each text are read, and the weight of each in the text's mean.

    Args:
        texts: B texts.
        position: an int or [n], the same for every text, negative ones from its end; [B n]; "answer", the tokens of the answer; or
            "all", every token but the first.
        what: for messages.

    Raises:
        InputError: a position that a text does not have, or a text without tokens to read.
    """
    lengths = np.asarray(texts.tokens.lengths)
    if isinstance(position, str):
        if position not in ("answer", "all"):
            raise InputError(f"{what}: position is {position!r}; expected an int, [n], [B n], 'answer' or 'all'.")
        if position == "answer" and texts.answers is None:
            raise InputError(f"{what}: position='answer' needs texts given as (prompt, answer) tuples.")
        first = np.ones_like(lengths) if texts.answers is None or position == "all" else lengths - texts.answers
        if (first >= lengths).any():
            raise InputError(f"{what}: text {int((first >= lengths).argmax())} has one token, and position='all' leaves out the first.")
        index = first[:, None] + np.arange((lengths - first).max())[None]
        there = index < lengths[:, None]
        return np.where(there, index, 0).astype(np.int32), (there / (lengths - first)[:, None]).astype(np.float32)
    index = np.asarray(position)
    if index.dtype.kind not in "iu" or index.size == 0:
        raise InputError(f"{what}: position is {position!r}; expected an int, [n], [B n], 'answer' or 'all'.")
    check_positions(index, texts.tokens, what)
    index = np.broadcast_to(index.reshape(1, -1) if index.ndim < 2 else index, (len(lengths), index.shape[-1] if index.ndim else 1))
    index = np.where(index < 0, index + lengths[:, None], index).astype(np.int32)
    return index, np.full(index.shape, 1 / index.shape[1], np.float32)


def _shown(position: Any) -> str:
    return str(position) if isinstance(position, str) or np.ndim(position) < 2 else "one a text"


def _both(a: Tokens, b: Tokens) -> Tokens:
    """Two batches as one."""
    width = max(a.ids.shape[1], b.ids.shape[1])
    a, b = a.padded(width), b.padded(width)
    ids, mask = (np.concatenate([np.asarray(getattr(side, name)) for side in (a, b)]) for name in ("ids", "mask"))
    both = Tokens.from_ids(ids, mask)
    if a.types is None and b.types is None:
        return both
    types = [np.zeros(side.ids.shape, np.int32) if side.types is None else np.asarray(side.types) for side in (a, b)]
    return dataclasses.replace(both, types=np.concatenate(types))


def _both_spots(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    width = max(a[0].shape[1], b[0].shape[1])
    index, weight = (np.concatenate([np.pad(side[part], [(0, 0), (0, width - side[part].shape[1])]) for side in (a, b)]) for part in (0, 1))
    return index, weight


# --------------------------------------------------------------------------------------------------------------- reading


def read(
    lm: LanguageModel, tokens: Tokens, where: tuple[np.ndarray, np.ndarray], site: str, layers: Sequence[int], *, precision: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """What a site holds on texts, averaged over the tokens read.

    Args:
        lm: the model.
        tokens: B texts.
        where: positions and weights, as `spots` gives them.
        site: the site.
        layers: which layers.
        precision: as for `run`.

    Returns:
        [L B ...], the mean over the tokens read; [L B], the mean of its norm over them.
    """
    request = {site: at(layer=None if len(layers) == lm.config.n_layers else layers, position=where[0])}
    check_run(lm.config, tokens, request, (), Rules(), None, None, None)
    values: Any = None
    norms = np.empty((len(layers), len(tokens.ids)), np.float32)
    with Progress("reading", len(tokens.ids), "texts") as progress:
        for rows, batch, (index, weight) in _batches(tokens, where, lm.config.n_ctx):
            check_fits(lm, *batch.shape, {site: at(layer=layers, position=index)}, lm.config.n_layers, None, None)
            found, size = _program(lm.params, batch, index, weight, config=lm.config, site=site, layers=tuple(layers), precision=precision)
            found = np.asarray(found)
            values = np.empty((len(layers), len(tokens.ids), *found.shape[2:]), found.dtype) if values is None else values
            values[:, rows], norms[:, rows] = found[:, : len(rows)], np.asarray(size)[:, : len(rows)]
            progress.advance(len(rows))
    return values, norms


def _batches(
    tokens: Tokens, where: tuple[np.ndarray, np.ndarray], context: int
) -> Iterator[tuple[np.ndarray, Tokens, tuple[np.ndarray, np.ndarray]]]:
    """Rows of like length, their tokens on the left of a bucket, and where they are read; few shapes, and each of a bounded size."""
    lengths, widest = np.asarray(tokens.lengths), np.asarray((where[1] > 0).sum(axis=1))
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        width = bucket(int(lengths[order[begin]]), context)
        size = min(BATCH, len(order), max(1, TOKENS // width))
        rows = order[begin : begin + size]
        filled = np.resize(rows, size)
        columns = np.argsort(~np.asarray(tokens.mask)[filled], axis=1, kind="stable")
        ids, types = (
            None if part is None else np.take_along_axis(np.asarray(part)[filled], columns, axis=1) for part in (tokens.ids, tokens.types)
        )
        mask = np.arange(columns.shape[1])[None] < lengths[filled][:, None]
        batch = dataclasses.replace(Tokens.from_ids(ids, mask), types=types).padded(width)
        room = bucket(int(widest[rows].max()), width)
        spot = [part[filled][:, :room] for part in where]
        spot = [np.pad(part, [(0, 0), (0, room - part.shape[1])]) for part in spot]
        yield rows, batch.arrays_only(), (spot[0], spot[1])
        begin += size


@functools.partial(jax.jit, static_argnames=("config", "site", "layers", "precision"))
def _program(
    params: Any, tokens: Tokens, index: Int[Array, "B n"], weight: Float[Array, "B n"], *, config: TransformerConfig, site: str,
    layers: tuple[int, ...], precision: str | None,
) -> tuple[Float[Array, "L B ..."], Float[Array, "L B"]]:  # fmt: skip
    """The mean of a site's value, and of its norm, over positions of each prompt."""
    kept = at(layer=None if layers == tuple(range(config.n_layers)) else layers, position=index)
    trace = forward(params, tokens, config, sites={site: kept}, stop=max(layers) + 1, precision=precision)
    value = at_least_float32(trace.padded[site])  # [L B n ...]
    features = tuple(range(3, value.ndim))
    share = weight.astype(value.dtype)[None]
    norms = jnp.sqrt(jnp.square(value).sum(axis=features))
    return (share.reshape(*share.shape, *(1,) * len(features)) * value).sum(axis=2), (share * norms).sum(axis=2)
