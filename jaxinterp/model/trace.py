"""Trace: what one run returned, as a pytree: logits, the captured sites, and the tokens that they belong to."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.errors import InputError
from jaxinterp.model.selection import SELECTORS, gather, pick
from jaxinterp.model.tokens import Tokens, check_positions


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One likely next token.

    Attributes:
        token: its string, or its id as a string where there is no tokenizer.
        id: its id.
        probability: between 0 and 1.
        logit: its logit.
    """

    token: str
    id: int
    probability: float
    logit: float


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["padded_logits", "padded", "padded_tokens"],
    meta_fields=["axes", "layers", "size", "tokenizer"],
)
@dataclasses.dataclass(frozen=True)
class Trace:
    """Logits and activations of a run. Arrays are kept padded to the run's bucket and trimmed when they are read.

    Attributes:
        padded_logits: [B P V], or None where the run stopped before the unembedding.
        padded: activations by site, with padding.
        padded_tokens: the tokens, with padding.
        axes: for each captured site its axes as letters; a lower-case letter is an axis of which a part was kept.
        layers: for each captured site with a layer axis, which layers its entries are.
        size: the number of positions that the prompts have, or None for all columns.
        tokenizer: for the strings of `top`; None gives ids.
    """

    padded_logits: Any
    padded: dict[str, Any]
    padded_tokens: Tokens
    axes: tuple[tuple[str, str], ...] = ()
    layers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    size: int | None = None
    tokenizer: Any = None

    @property
    def logits(self) -> Any:
        """[B P V], or None where the run stopped before the unembedding."""
        return None if self.padded_logits is None else self._trim(self.padded_logits, "BPV")

    @property
    def activations(self) -> Mapping[str, Any]:
        """Every captured site by name, trimmed to the prompts."""
        return {site: self[site] for site in self.padded}

    @property
    def tokens(self) -> Tokens:
        """The tokens, without the bucket's padding."""
        return self.padded_tokens if self.size is None else self.padded_tokens.padded(self.size)

    def layers_of(self, site: str) -> tuple[int, ...]:
        """Which layers the entries of a captured site are."""
        self._check(site)
        return dict(self.layers)[site]

    def __getitem__(self, site: str) -> Any:
        """The captured values of a site, on the axes that its table entry names."""
        self._check(site)
        return self._trim(self.padded[site], dict(self.axes)[site])

    def __contains__(self, site: object) -> bool:
        return site in self.padded

    def at(self, site: str, **selection: Any) -> Any:
        """Part of a captured site: `trace.at("resid_post", position=-1)` is [L B D], each prompt's own last token.

        Args:
            site: a captured site, or "logits".
            **selection: position, head, neuron, query, key or batch as an int, [n] or [B n]; an int drops its axis.
                layer is a layer's number.
        """
        axes = "BPV" if site == "logits" and site not in self.padded else dict(self.axes).get(site, "")
        value = self.padded_logits if site == "logits" and site not in self.padded else self.padded.get(site)
        if value is None and site == "logits":
            raise InputError("This run has no logits: it stopped before the unembedding.")
        if value is None:
            self._check(site)
        if "layer" in selection:
            held = self.layers_of(site)
            wanted = [int(layer) for layer in np.atleast_1d(selection["layer"])]
            if set(wanted) - set(held):
                missing = min(set(wanted) - set(held))
                raise InputError(f"Layer {missing} of {site!r} was not captured; captured layers: {', '.join(map(str, held))}.")
            rows = np.asarray([held.index(layer) for layer in wanted])
            selection = selection | {"layer": rows[0] if np.ndim(selection["layer"]) == 0 else rows}
        chosen = pick(**selection)
        for name, index in chosen.items():
            if name not in SELECTORS or not set(SELECTORS[name]) & set(axes):
                raise InputError(f"{site!r} has axes {' '.join(axes)} here, so it cannot be selected by {name}.")
            if name in ("position", "query", "key"):
                check_positions(index, self.padded_tokens, f"trace.at({site!r})")
        kept = "".join(a for a in axes if not any(a in SELECTORS[name] for name, index in chosen.items()))
        out = _gather(value, axes, chosen, self.padded_tokens.arrays_only())
        return self._trim(out, kept) if len(kept) == out.ndim else out

    def mean(self, site: str) -> Any:
        """The mean of a site over all real tokens of all prompts; the batch and position axes are gone."""
        self._check(site)
        axes = dict(self.axes)[site]
        if "B" not in axes or "P" not in axes:
            raise InputError(f"mean({site!r}): needs the batch and position axes; this capture has axes {' '.join(axes)}.")
        return _masked_mean(self.padded[site], axes, self.padded_tokens.mask)

    def top(self, k: int = 5, position: Any = -1) -> list[list[Prediction]]:
        """The k likeliest next tokens after a position of each prompt, most likely first; a list for each prompt."""
        logits = np.asarray(self.at("logits", position=position), np.float64)
        out = []
        for row in logits:
            probabilities = np.exp(row - row.max())
            probabilities /= probabilities.sum()
            best = np.argsort(-row, kind="stable")[:k]
            names = [self.tokenizer.display(int(i)) if self.tokenizer is not None else str(i) for i in best]
            out.append([Prediction(name, int(i), float(probabilities[i]), float(row[i])) for name, i in zip(names, best, strict=True)])
        return out

    def _check(self, site: str) -> None:
        if site not in self.padded:
            held = ", ".join(self.padded) or "none"
            raise InputError(f"Site {site!r} was not captured in this run. Captured: {held}. Ask for it with sites=({site!r},).")

    def _trim(self, value: Any, axes: str) -> Any:
        """The value with its position axes cut to the prompts' own length."""
        if self.size is None:
            return value
        return value[tuple(slice(self.size) if letter in "PQK" else slice(None) for letter in axes)]

    def __repr__(self) -> str:
        batch, positions = self.padded_tokens.ids.shape
        sites = ", ".join(f"{site} [{' '.join(axes)}]" for site, axes in self.axes) or "none"
        return f"Trace({batch} x {self.size or positions} tokens; logits: {'no' if self.padded_logits is None else 'yes'}; sites: {sites})"


@functools.partial(jax.jit, static_argnames="axes")
def _gather(value: Any, axes: str, select: dict[str, Any], tokens: Tokens) -> Array:
    return gather(value, axes, select, tokens)


@functools.partial(jax.jit, static_argnames="axes")
def _masked_mean(value: Any, axes: str, mask: Any) -> Array:
    shape = [mask.shape["BP".index(letter)] if letter in "BP" else 1 for letter in axes]
    real = mask.reshape(shape)
    over = tuple(i for i, letter in enumerate(axes) if letter in "BP")
    return jnp.where(real, value, 0).sum(axis=over) / mask.sum()
