"""side_by_side: what a model writes plainly and steered, all texts in one batch, and how far the steering moves it.

    kl         = KL(plain || steered) of the next token, mean over the plain text from the prompt's last token on
    norm_ratio = |steered x_l| / |plain x_l| at the steered tokens of the plain text, mean over them, the most of any steered layer

Cost: one generation with a row for each prompt and strength, and one run of the plain texts in as many rows.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxinterp.errors import InputError
from jaxinterp.methods.results import How, frame, write
from jaxinterp.methods.steering.operations import BLOWN, Operation, check_operation, edit_of
from jaxinterp.methods.steering.vector import SteeringVector
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.norm import at_least_float32
from jaxinterp.model.selection import at
from jaxinterp.model.sites import site_of
from jaxinterp.model.tokens import Tokens, position_mask
from jaxinterp.runs.generate import generate
from jaxinterp.runs.metrics.distributions import divergence
from jaxinterp.runs.run import run


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["kl", "norm_ratio"], meta_fields=["prompts", "texts", "strengths", "layers", "how"]
)
@dataclasses.dataclass(frozen=True)
class SideBySide:
    """New texts of each prompt, plain and at each strength.

    Attributes:
        kl: [S B], KL(plain || steered) in nats a token of the plain text, from the prompt's last token on.
        norm_ratio: [S B], the steered norm over the plain one, at the steered tokens and the layer where it is largest.
        prompts: the texts that were continued.
        texts: 1 + S rows of B new texts; the first is plain.
        strengths: of the others.
        layers: that are steered.
        how: how it was made.
    """

    kl: Any
    norm_ratio: Any
    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    strengths: tuple[float, ...]
    layers: tuple[int, ...]
    how: How = ()

    @property
    def plain(self) -> tuple[str, ...]:
        """The plain text of each prompt."""
        return self.texts[0]

    @property
    def steered(self) -> tuple[str, ...]:
        """The text of each prompt at the last strength."""
        return self.texts[-1]

    @property
    def warning(self) -> str:
        """One sentence on strengths that blow the norm up, or ""."""
        ratios = np.asarray(self.norm_ratio).max(axis=1)
        over = [f"{strength:+g} ({ratio:.1f})" for strength, ratio in zip(self.strengths, ratios, strict=True) if ratio > BLOWN]
        if not over:
            return ""
        return f"The norm is over {BLOWN:g} times the usual one at strength {', '.join(over)}, where text falls apart: try smaller ones."

    def columns(self, prompt: int) -> dict[str, list[Any]]:
        """What there is of one prompt, plain and then by strength: "strength", "text", "kl" and "norm_ratio"."""
        kl, norms = (np.asarray(each)[:, prompt].tolist() for each in (self.kl, self.norm_ratio))
        strengths, texts = ["plain", *(f"{strength:+g}" for strength in self.strengths)], [row[prompt] for row in self.texts]
        return {"strength": strengths, "text": texts, "kl": [0.0, *kl], "norm_ratio": [1.0, *norms]}

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each text."""
        parts = [{"prompt": [prompt] * len(self.texts)} | self.columns(number) for number, prompt in enumerate(self.prompts)]
        return frame({name: [entry for part in parts for entry in part[name]] for name in parts[0]})

    def view(self, title: str = "Plain and steered") -> Any:
        """A table for each prompt."""
        from jaxinterp.views import Section, report, table

        kinds = {"strength": "text", "text": "text", "kl": "number", "norm_ratio": "number"}
        sections = []
        for number, prompt in enumerate(self.prompts):
            columns = {NAMES.get(name, name): (kinds[name], values) for name, values in self.columns(number).items()}
            sections.append(Section(f"{prompt} …", "", (table("", columns, normalisation=UNIT),)))
        return report(title, sections, provenance={name: value for name, value in self.how if name in TOLD})

    def show(self) -> None:
        """Prints the texts in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes numbers and texts (.safetensors), or the picture (.html, .png, .json, .txt)."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        about = {name: getattr(self, name) for name in ("prompts", "texts", "strengths", "layers")}
        return write(path, {"kl": self.kl, "norm_ratio": self.norm_ratio}, about, self.how)

    def __repr__(self) -> str:
        shown = f"{self.prompts[0]!r} -> {self.plain[0][:40]!r} | {self.steered[0][:40]!r}"
        return f"SideBySide({len(self.prompts)} prompts, strengths {', '.join(f'{strength:+g}' for strength in self.strengths)}: {shown})"


TOLD = ("site", "operation", "relative", "when", "bos", "max_new_tokens")
NAMES = {"kl": "KL", "norm_ratio": "norm"}
UNIT = "KL(plain || steered) in nats a token; the steered norm over the plain one"


def side_by_side(
    lm: LanguageModel, vector: SteeringVector, prompts: Prompts, strengths: float | Sequence[float] = 1.5, *,
    layer: int | Sequence[int] | None = None, operation: Operation = "add", relative: bool = False, when: str = "all",
    max_new_tokens: int = 30, edits: Sequence[Edit] = (), bos: str | bool = "model", precision: str | None = "highest",
    force: bool = False, **settings: Any,
) -> SideBySide:  # fmt: skip
    """Continues prompts plainly and steered.

    Args:
        lm: a causal model with a tokenizer.
        vector: what to steer along.
        prompts: as for `generate`.
        strengths: one, or several that are each a text.
        layer: one or some of the vector's layers, all steered at once; None is all of them.
        operation: "add", "replace" or "project_out", as the methods of `SteeringVector`.
        relative: whether strengths of "add" are in units of the value's own norm.
        when: which tokens are steered: "all", "prompt" or "new" ones.
        max_new_tokens: of each text.
        edits: act in plain and steered texts alike, before the vector does.
        bos: as for `run`.
        precision: as for `run`.
        force: as for `SteeringVector.check`.
        **settings: of `generate`: temperature, seed, stop ... A prompt's texts are all sampled by one seed.

    Returns:
        A SideBySide: `.plain`, `.steered`, `.texts`, `.kl` and `.norm_ratio` [S B].

    Raises:
        InputError: another model's vector, a layer that it lacks, a model without a tokenizer, or as `generate`.

    Example:
        >>> vector = ji.steering.sentiment_vector(lm)
        >>> ji.steering.side_by_side(lm, vector, "I think this film is", [-1.5, 1.5], layer=12).show()
    """
    vector.check(lm, force=force)
    check_operation(operation, relative)
    levels = tuple(np.atleast_1d(np.asarray(strengths, float)).tolist())
    if when not in ("all", "prompt", "new") or not levels or not np.isfinite(levels).all():
        raise InputError(f"when is {when!r} and strengths {list(levels)}; expected 'all', 'prompt' or 'new', and finite numbers.")
    if lm.tokenizer is None:
        raise InputError("This model has no tokenizer, so there are no texts to put side by side: use ji.generate(..., edits=[...]).")
    tokens = lm.to_tokens(prompts, bos=bos)
    batch, many = len(tokens.ids), 1 + len(levels)
    steered = np.arange(batch, many * batch)
    inner = len(site_of(vector.site, lm.config).inner_axes)
    strength = np.repeat((0.0, *levels), batch).astype(np.float32).reshape(-1, *(1,) * (inner - 1))
    edit = edit_of(vector, layer, strength, operation, relative, batch=steered, when=when)
    settings = settings | {"seed": np.tile(np.arange(batch) + settings.get("seed", 0), many)}
    found = generate(lm, _repeated(tokens, many), max_new_tokens, edits=[*edits, edit], bos=bos, precision=precision, **settings)
    plain = Tokens.from_ids(np.asarray(found.tokens.ids)[:batch], np.asarray(found.tokens.mask)[:batch])
    first = np.asarray(tokens.lengths)
    acting = _acting(when, first, np.asarray(plain.lengths))
    position = None if acting is None else np.tile(acting, (many, 1))
    edit = edit_of(vector, layer, strength, operation, relative, batch=steered, position=position)
    layers = vector.layers if layer is None else vector.at(layer).layers
    sites: Any = {vector.site: at(layer=list(layers))}
    trace = run(lm, _repeated(plain, many), sites=sites, edits=[*edits, edit], precision=precision)
    kl, ratio = _compared(trace.padded_logits, trace.padded[vector.site], trace.padded_tokens.arrays_only(), first, acting, batch=batch)
    texts = tuple(found.text[begin : begin + batch] for begin in range(0, many * batch, batch))
    names = tuple(
        lm.tokenizer.decode(np.asarray(ids)[np.asarray(mask)].tolist()) for ids, mask in zip(tokens.ids, tokens.mask, strict=True)
    )
    how = (("site", vector.site), ("operation", operation), ("relative", str(relative)), ("when", when), ("bos", tokens.bos), *found.how)
    shape = (many, batch)
    return SideBySide(np.asarray(kl).reshape(shape)[1:], np.asarray(ratio).reshape(shape)[1:], names, texts, levels, layers, how)


def _repeated(tokens: Tokens, many: int) -> Tokens:
    """The prompts, so many times one after the other."""
    return Tokens.from_ids(*(np.tile(np.asarray(part), (many, 1)) for part in (tokens.ids, tokens.mask)), bos=tokens.bos)


def _acting(when: str, first: np.ndarray, lengths: np.ndarray) -> np.ndarray | None:
    """[B n]: the positions of whole texts that are steered, the last of them several times where a text has fewer; None is all."""
    if when == "all":
        return None
    if when == "prompt":
        return np.minimum(np.arange(first.max())[None], first[:, None] - 1)
    return np.minimum(first[:, None] + np.arange((lengths - first).max())[None], lengths[:, None] - 1)


@functools.partial(jax.jit, static_argnames=("batch",))
def _compared(
    logits: Float[Array, "R P V"],
    value: Float[Array, "L R P ..."],
    tokens: Tokens,
    first: Int[Array | np.ndarray, "B"],
    acting: Any,
    *,
    batch: int,
) -> tuple[Float[Array, "R"], Float[Array, "R"]]:
    """KL and norm of each row, against the first `batch` rows, which are the plain texts."""
    rows = logits.shape[0] // batch
    mask, positions = tokens.mask, tokens.positions
    after = mask & (positions >= jnp.tile(jnp.asarray(first), rows)[:, None] - 1)
    steered = mask & ((positions >= 1) | (mask.sum(axis=1, keepdims=True) == 1))
    if acting is not None:
        steered = position_mask(jnp.tile(jnp.asarray(acting), (rows, 1)), mask, positions)
    kl = divergence(jnp.tile(logits[:batch], (rows, 1, 1)), logits)
    norms = jnp.sqrt(jnp.square(at_least_float32(value)).sum(axis=tuple(range(3, value.ndim))))
    ratio = norms / jnp.tile(norms[:, :batch], (1, rows, 1))
    return _mean(kl, after), _mean(ratio, steered[None]).max(axis=0)


def _mean(values: Float[Array, "*rows P"], there: Bool[Array, "*other P"]) -> Float[Array, "*rows"]:
    """The mean over tokens."""
    return jnp.where(there, values, 0).sum(axis=-1) / there.sum(axis=-1)
