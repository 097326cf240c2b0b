"""Tokens: a padded batch of prompts as arrays, with each prompt's own positions.

A position counts the real tokens of its own prompt: 0 is the first, -1 the last. Padding, on the left or on the right,
has no position, so nothing that is selected by position ever means a pad.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from jaxinterp.errors import InputError

IntArray = Int[Array, "..."] | Int[np.ndarray, "..."]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["ids", "mask", "positions", "types", "spans", "planned"], meta_fields=["roles", "bos"]
)
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A batch of prompts, padded to one length.

    Attributes:
        ids: [B P] int32, token ids; the ids of padding are never read into a result.
        mask: [B P] bool, True at real tokens.
        positions: [B P] int32, cumsum(mask) - 1: the position of a token in its own prompt.
        types: [B P] int32, token types of models that have them (BERT), or None for all 0.
        spans: [B n 2] int32, positions where each chat message begins and ends (end exclusive), or None.
        roles: the role of each message in `spans`.
        bos: how a beginning-of-sequence token was treated: "model", "none", "given" or the token's string.
        planned: [B] int32, the tokens that each prompt was planned to have at its end, where more were to be generated; rotary
            frequencies that depend on length are those of this length. None: as many as there are.
    """

    ids: Any
    mask: Any
    positions: Any
    types: Any = None
    spans: Any = None
    roles: tuple[str, ...] = ()
    bos: str = "given"
    planned: Any = None

    @classmethod
    def from_ids(cls, ids: Any, mask: Any = None, *, bos: str = "given") -> "Tokens":
        """Tokens from ids [B P] (or [P], one prompt) and an optional mask of real tokens.

        Raises:
            InputError: ids are not integers, not [B P], or a prompt has no real token.
        """
        xp = jnp if any(isinstance(x, jax.Array) for x in (ids, mask)) else np
        ids = xp.asarray(ids)
        if ids.ndim == 1:
            ids = ids[None]
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise InputError(f"Token ids must be integers of shape [B P]; got {ids.dtype} of shape {list(ids.shape)}.")
        mask = xp.ones(ids.shape, bool) if mask is None else xp.asarray(mask).astype(bool).reshape(ids.shape)
        if ids.shape[0] == 0 or ids.shape[1] == 0 or (concrete(mask) and not np.asarray(mask).any(axis=1).all()):
            raise InputError("A prompt is empty: every prompt needs at least one token.")
        return cls(ids.astype(xp.int32), mask, (xp.cumsum(mask, axis=1) - 1).astype(xp.int32), bos=bos)

    @property
    def lengths(self) -> Any:
        """[B] int: real tokens of each prompt."""
        return self.mask.sum(axis=1)

    @property
    def last(self) -> Any:
        """[B] int: the column of each prompt's last real token."""
        return self.mask.shape[1] - 1 - self.mask[:, ::-1].argmax(axis=1)

    @property
    def shape(self) -> tuple[int, int]:
        return self.ids.shape

    def arrays_only(self) -> "Tokens":
        """The same tokens without chat spans and labels: what a compiled program takes."""
        return Tokens(self.ids, self.mask, self.positions, self.types, planned=self.planned)

    def padded(self, length: int) -> "Tokens":
        """The same prompts with `length` columns: padding added on the right, or cut where every column is padding."""
        extra = length - self.ids.shape[1]

        def fit(value: Any, mode: Any = "constant") -> Any:
            if value is None or extra <= 0:
                return value if value is None else value[:, :length]
            pad: Any = np.pad if isinstance(value, np.ndarray) else jnp.pad
            return pad(value, [(0, 0), (0, extra)], mode=mode)

        fitted = {"ids": fit(self.ids), "mask": fit(self.mask), "positions": fit(self.positions, "edge"), "types": fit(self.types)}
        return dataclasses.replace(self, **fitted)

    def columns(self, position: Any) -> Any:
        """The columns [B n] of positions given as an int or [n] (the same for every prompt) or [B n]; pads have none.

        A position that a prompt does not have gives column 0; `check_positions` refuses it where values are known.
        """
        wanted = _per_prompt(position, self.lengths)
        here = (self.positions[:, None, :] == wanted[:, :, None]) & self.mask[:, None, :]
        return here.argmax(axis=-1)


def concrete(value: Any) -> bool:
    """Whether the values of an array are known now, and not only when a compiled program runs."""
    return not isinstance(value, Tracer)


def _per_prompt(position: Any, lengths: Any) -> Any:
    """Positions as [B n], negative ones resolved from each prompt's own end."""
    xp = jnp if any(isinstance(x, jax.Array) for x in (position, lengths)) else np
    position = xp.asarray(position)
    wanted = position.reshape((1, -1)) if position.ndim < 2 else position
    return xp.where(wanted < 0, lengths[:, None] + wanted, wanted)


def position_mask(position: Any, mask: Bool[Array, "B P"], positions: Int[Array, "B P"]) -> Bool[Array, "B P"]:
    """Which columns hold the given positions (an int, [n], or [B n]) of each prompt."""
    wanted = _per_prompt(position, mask.sum(axis=1))
    return ((positions[:, None, :] == wanted[:, :, None]) & mask[:, None, :]).any(axis=1)


def check_positions(position: Any, tokens: Tokens, what: str) -> None:
    """Refuse a position that some prompt does not have, where values are known.

    Raises:
        InputError: naming the prompt, its length and the position.
    """
    if not concrete(position) or not concrete(tokens.mask):
        return
    position, lengths = np.asarray(position), np.asarray(tokens.lengths)
    if position.ndim == 2 and position.shape[0] not in (1, len(lengths)):
        raise InputError(f"{what}: a [B n] array of positions has {position.shape[0]} rows for {len(lengths)} prompts.")
    if position.ndim > 2:
        raise InputError(f"{what}: positions have {position.ndim} axes; expected an int, [n] or [B n].")
    rows = np.broadcast_to(
        position.reshape(-1, position.shape[-1]) if position.ndim == 2 else position.reshape(1, -1),
        (len(lengths), position.shape[-1] if position.ndim else 1),
    )
    bad = (rows >= lengths[:, None]) | (rows < -lengths[:, None])
    if bad.any():
        prompt, column = np.argwhere(bad)[0]
        raise InputError(
            f"{what}: position {rows[prompt, column]} is out of range for prompt {prompt}, which has {lengths[prompt]} tokens."
        )


def check_ids(tokens: Tokens, vocabulary: int, context: int) -> None:
    """Refuse ids outside the vocabulary and prompts longer than the context, where values are known.

    Raises:
        InputError: naming the id or the length, and the limit.
    """
    if not concrete(tokens.mask) or not concrete(tokens.ids):
        return
    ids, mask = np.asarray(tokens.ids), np.asarray(tokens.mask)
    longest = int(mask.sum(axis=1).max())
    if longest > context:
        raise InputError(f"A prompt has {longest} tokens; this model's context is {context}. Shorten the prompt.")
    real = ids[mask]
    if real.size and (real.min() < 0 or real.max() >= vocabulary):
        bad = real.min() if real.min() < 0 else real.max()
        raise InputError(f"Token id {bad} is out of range: this model's vocabulary has ids 0 to {vocabulary - 1}.")
