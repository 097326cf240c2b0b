"""Logit lens: an intermediate vector read by the model's own final norm and unembedding (nostalgebraist 2020).

    lens(x) = softmax(logits(ln_final(x))),    with the norm's denominator that of x itself

("interpreting GPT: the logit lens", LessWrong; evaluated by Belrose et al. 2023, arXiv:2303.08112.) Whatever the model does between
its last block and its logits is done: dense layer, norm, projection, biases, scale and soft cap.

Exact. Cost: one forward pass without an unembedding where prompts are given, then one unembedding for each vector, in chunks of
the vocabulary with running sums, so that no more than vectors x chunk logits exist at once.
Misleads: early layers need not write in the basis that the unembedding reads, so a poor read-off is no proof of absence; a
bias of early layers towards certain tokens looks like a prediction; and of anything but a residual stream (an `attn_out`) the
norm divides by that vector's own size, so that only directions count: for shares in the logits there is
`direct_logit_attribution`.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxinterp.errors import InputError
from jaxinterp.methods.grid import strings_of
from jaxinterp.methods.lenses.vocabulary import read_vectors
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.selection import at
from jaxinterp.model.sites import Site, check_site
from jaxinterp.model.tokens import Tokens, check_positions
from jaxinterp.model.trace import Trace
from jaxinterp.runs.program import bucket
from jaxinterp.runs.run import run

LOGITS = 2**20  # at once, where `chunk` is not given: small enough to stay in a processor's cache
LEAST_CHUNK = 256
ARRAYS = ("top_ids", "top_probabilities", "entropy", "kl", "logits", "log_probabilities", "ranks")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["top_ids", "top_probabilities", "entropy", "kl", "ids", "logits", "log_probabilities", "ranks"],
    meta_fields=["axes", "how", "tokens", "tokenizer"],
)
@dataclasses.dataclass(frozen=True)
class LogitLens:
    """What the lens reads; every array has a first axis B and those of `axes`. NaN (-1 in whole numbers) where a prompt lacks the position.

    Attributes:
        top_ids: [B ... k] the likeliest tokens, most likely first.
        top_probabilities: [B ... k] theirs.
        entropy: [B ...] of the distribution, in nats.
        kl: [B ...] KL(final || lens) in nats, from the model's own distribution at the same position; 0 at the last layer.
        ids: [B T] the chosen tokens.
        logits: [B ... T] theirs.
        log_probabilities: [B ... T] theirs, in nats.
        ranks: [B ... T] how many tokens have a larger logit: 0 is the top prediction.
        axes: (name, labels) of each axis after B.
        how: how it was made.
        tokens: token strings of the first prompt, for pictures; empty without a tokenizer.
        tokenizer: for strings; None gives ids.
    """

    top_ids: Any
    top_probabilities: Any
    entropy: Any
    kl: Any
    ids: Any
    logits: Any
    log_probabilities: Any
    ranks: Any
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    how: tuple[tuple[str, str], ...] = ()
    tokens: tuple[str, ...] = ()
    tokenizer: Any = None

    @property
    def probabilities(self) -> Any:
        """[B ... T] of the chosen tokens, from 0 to 1."""
        return np.exp(self.log_probabilities)

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(labels)} {name}" for name, labels in self.axes)
        return f"LogitLens({len(self.entropy)} prompts, {shape}, {', '.join(f'{key}={value}' for key, value in self.how)})"

    def string(self, token: int) -> str:
        """A token as text, or its id where there is no tokenizer."""
        return str(token) if self.tokenizer is None or token < 0 else self.tokenizer.display(token)

    def tables(self, prompt: int = 0, **point: int) -> tuple[Any, ...]:
        """Rows of layers: the likeliest tokens with entropy and KL; and log-probability and rank of the chosen tokens, if there are any.

        Args:
            prompt: which prompt.
            **point: an index into each other axis: position=3, head=0; where it is not given, the prompt's last position and 0.
        """
        from jaxinterp.views import table

        index: list[Any] = [prompt]
        held = ~np.isnan(np.asarray(self.entropy)[prompt])
        for axis, (name, _) in enumerate(self.axes):
            there = np.flatnonzero(held.any(axis=tuple(other for other in range(held.ndim) if other != axis)))
            index.append(slice(None) if name == "layer" else point.get(name, there[-1] if name == "position" else 0))
        rows = {name: np.asarray(getattr(self, name))[tuple(index)] for name in ARRAYS}
        layers = dict(self.axes).get("layer")
        if layers is None:
            layers, rows = ("",), {name: value[None] for name, value in rows.items()}
        likely: dict[str, Any] = {"layer": ("text", [str(label) for label in layers])}
        chosen = dict(likely)
        for place, name in enumerate(("1st", "2nd", "3rd")[: rows["top_ids"].shape[1]]):
            likely[name] = ("token", [self.string(int(token)) for token in rows["top_ids"][:, place]])
        likely |= {"P(1st)": ("number", rows["top_probabilities"][:, 0])}
        likely |= {"entropy": ("number", rows["entropy"]), "KL": ("number", rows["kl"])}
        for i, name in enumerate(self._chosen(prompt)):
            chosen[f"log P({name})"] = ("signed", rows["log_probabilities"][:, i])
            chosen[f"rank of {name}"] = ("token", [str(rank) for rank in rows["ranks"][:, i]])
        first = table("The likeliest tokens", likely, normalisation="entropy, and KL from the final distribution, in nats")
        return (first, table("The chosen tokens", chosen)) if len(chosen) > 1 else (first,)

    def view(self, title: str = "Logit lens", prompt: int = 0) -> Any:
        """Layers by positions as heat-maps (top token and its probability, KL to the end, log-probability of each chosen token), and the
        last position as tables; of one position, the tables, and the chosen tokens' log-probabilities as lines.
        """
        from jaxinterp.views import Section, line, report

        names = [name for name, _ in self.axes]
        chosen = {f"log P({name})": np.asarray(self.log_probabilities)[prompt, ..., i] for i, name in enumerate(self._chosen(prompt))}
        pictures: list[Any] = []
        if names == ["layer", "position"]:
            top = np.asarray(self.top_probabilities)[prompt, ..., 0]
            grids = {"Probability of the top token": top, "KL from the final distribution": np.asarray(self.kl)[prompt], **chosen}
            words = [[self.string(int(token)) if token >= 0 else "" for token in row] for row in np.asarray(self.top_ids)[prompt, ..., 0]]
            texts = {"Probability of the top token": words}
            pictures = [self._map(name, values, prompt, texts.get(name)) for name, values in grids.items()]
        elif names == ["layer"] and chosen:
            labels = [str(label) for label in self.axes[0][1]]
            pictures = [line("Chosen tokens", chosen, x_labels=labels, normalisation="log-probability in nats, read at each layer")]
        heading = f"Site {dict(self.how)['site']}"
        return report(title, [Section(heading, "", (*pictures, *self.tables(prompt)))], provenance=dict(self.how))

    def _chosen(self, prompt: int) -> list[str]:
        from jaxinterp.views.tokens import visible

        return [visible(self.string(int(token))) for token in np.asarray(self.ids)[prompt]]

    def _map(self, name: str, values: np.ndarray, prompt: int, texts: list[list[str]] | None) -> Any:
        from jaxinterp.views import heatmap

        labels = {axis: [str(label) for label in given] for axis, given in self.axes}
        if prompt == 0 and self.axes[1][1] == tuple(range(len(self.tokens))):
            labels["position"] = [f"{i} {token}" for i, token in enumerate(self.tokens)]
        unit = "from 0 to 1" if name.startswith("Probability") else "nats"
        return heatmap(name, values, ("layer", "position"), labels=labels, scale="sequential", texts=texts, normalisation=unit)

    def show(self) -> None:
        """Prints the pictures in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors, with axes and provenance in its header), or the picture (.html, .png, .json, .txt)."""
        from safetensors.numpy import save_file

        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in (*ARRAYS, "ids")}
        axes = json.dumps([[name, list(labels)] for name, labels in self.axes])
        save_file(arrays, str(path), metadata={"axes": axes, "tokens": json.dumps(self.tokens), **dict(self.how)})
        return Path(path)


def logit_lens(
    lm: LanguageModel,
    trace: Trace | Prompts,
    site: str = "resid_post",
    *,
    position: Any = None,
    layers: Iterable[int] | None = None,
    tokens: Any = None,
    k: int = 5,
    chunk: int | None = None,
    edits: Sequence[Edit] | Edit = (),
    bos: str | bool = "model",
    precision: str | None = "highest",
) -> LogitLens:
    """Reads a site by the model's own final norm and unembedding.

    Args:
        lm: the model.
        trace: a run that holds the site and the last layer's `resid_post` at every position, or prompts: these are run.
        site: any site with an axis D before the final norm: "resid_post", "resid_mid", "attn_out", "mlp_out", "head_out", "embed" ...
        position: None for all, an int (which drops the axis), [n], or [B n]; negative from each prompt's end.
        layers: which layers; None is all that have the site.
        tokens: tokens whose logit, probability and rank are wanted: strings or ids, the same for all prompts [T], or [B T].
        k: how many of the likeliest tokens are kept.
        chunk: columns of the vocabulary at once; None fits them to about a million logits.
        edits: act in the run, where prompts are given.
        bos: as for `run`.
        precision: of matrix products.

    Returns:
        A LogitLens: `.top_ids`, `.entropy`, `.kl`, `.ranks` ..., [B L P], and [B L P H D]'s heads last.

    Raises:
        InputError: a site without an axis D or after the final norm, a trace that lacks what is read, layers or positions that
            do not exist, or a model without an unembedding.

    Example:
        >>> lens = ji.logit_lens(lm, "The capital of France is", position=-1, tokens=[" Paris"])
        >>> lens.ranks.shape, int(lens.ranks[0, -1, 0])
        ((1, 30, 1), 0)
    """
    config, place = lm.config, check_site(site, lm.config)
    if config.unembed == "none" or place.axes[-1] != "D" or site == "ln_final":
        why = "this model has no unembedding" if config.unembed == "none" else f"site {site!r} has axes {' '.join(place.axes)}"
        raise InputError(f"logit_lens(): {why}; expected a site with an axis D before the final norm, such as 'resid_post'.")
    if not 1 <= k <= config.d_vocab or (chunk is not None and chunk < 1):
        raise InputError(
            f"logit_lens(): k is {k} and chunk {chunk}; expected k from 1 to {config.d_vocab} tokens, and at least one column."
        )
    ready = isinstance(trace, Trace)
    given = trace.padded_tokens if isinstance(trace, Trace) else lm.to_tokens(trace, bos=bos)
    prompts = given if ready else given.padded(bucket(given.ids.shape[1], config.n_ctx))
    where = np.arange(int(np.asarray(prompts.lengths).max())) if position is None else np.asarray(position)
    if position is not None:
        check_positions(where, prompts, "logit_lens()")
    wanted = _layers(place, layers, config)
    ids = _ids(tokens, lm, prompts.ids.shape[0])
    if isinstance(trace, Trace):
        if edits:
            raise InputError("logit_lens(): edits act where prompts are run; this trace has been run already.")
        value, final = _of_trace(trace, place, config)
    else:
        value, final = _of_run(lm, prompts, place, where, edits, precision)
    slots = np.asarray([place.layers(config).index(layer) for layer in wanted], np.int32)
    vectors = value.size // config.d_model
    size = min(chunk or max(LEAST_CHUNK, 2 ** int(np.log2(max(LOGITS / vectors, 1)))), config.d_vocab)
    axes = place.axes if ready else place.axes.replace("P", "p")
    index = where.reshape(1, -1) if where.ndim < 2 else where
    found = read_vectors(
        lm.params, value, final, prompts.arrays_only(), index, slots, ids, axes=axes, config=config, k=k, chunk=size, precision=precision
    )
    return _result(found, where, position is None, place, wanted, ids, prompts, lm)


def _layers(place: Site, layers: Iterable[int] | None, config: TransformerConfig) -> list[int]:
    held = place.layers(config)
    wanted = list(held) if layers is None else [int(layer) for layer in layers]
    if not place.per_layer and layers is not None:
        raise InputError(f"logit_lens(): site {place.name!r} has no layers.")
    if set(wanted) - set(held) or not wanted:
        raise InputError(f"logit_lens(): layers are {wanted}; this model has site {place.name!r} at layers {held[0]} to {held[-1]}.")
    return wanted


def _ids(tokens: Any, lm: LanguageModel, batch: int) -> np.ndarray:
    """Chosen tokens as ids [B T]."""
    if tokens is None:
        return np.zeros((batch, 0), np.int32)

    def ids_of(item: Any) -> Any:
        if isinstance(item, str):
            return lm.to_id(item)
        return [ids_of(part) for part in item] if isinstance(item, list | tuple) else item

    given = np.asarray(ids_of([tokens] if isinstance(tokens, str | int) else tokens))
    rows = given[None] if given.ndim == 1 else given
    if rows.ndim != 2 or rows.dtype.kind not in "iu" or rows.shape[0] not in (1, batch):
        raise InputError(f"logit_lens(): tokens has shape {list(given.shape)}; expected strings or ids [T], or [B T] with B = {batch}.")
    if rows.size and (rows.min() < 0 or rows.max() >= lm.config.d_vocab):
        raise InputError(f"logit_lens(): a token id is out of range: this model's vocabulary has ids 0 to {lm.config.d_vocab - 1}.")
    return np.broadcast_to(rows, (batch, rows.shape[1])).astype(np.int32)


def _of_trace(trace: Trace, place: Site, config: TransformerConfig) -> tuple[Any, Any]:
    """A trace's site, and its last residual stream [B P D]."""
    held, last = dict(trace.axes), config.n_layers - 1
    whole = held.get(place.name) == place.axes and (not place.per_layer or trace.layers_of(place.name) == place.layers(config))
    final = held.get("resid_post") in ("LBPD", "BPD") and trace.layers_of("resid_post")[-1:] == (last,)
    if not whole or not final:
        lacking = ", ".join(name for name, there in ((place.name, whole), ("resid_post", final)) if not there)
        raise InputError(
            f"logit_lens(): the trace lacks {lacking} at every position and layer (of resid_post the last layer will do). "
            "Capture it whole, or pass prompts instead of a trace."
        )
    stream = trace.padded["resid_post"]
    return trace.padded[place.name], stream[-1] if held["resid_post"] == "LBPD" else stream


def _of_run(lm: LanguageModel, tokens: Tokens, place: Site, where: np.ndarray, edits: Any, precision: str | None) -> tuple[Any, Any]:
    """A site and the last residual stream of a run, at the positions that are wanted."""
    last = lm.config.n_layers - 1
    kept = where.reshape(1, -1) if where.ndim < 2 else where
    # a position beyond a prompt's end stands for its last one, and is not shown
    position = np.clip(kept, -np.asarray(tokens.lengths)[:, None], np.asarray(tokens.lengths)[:, None] - 1)
    sites = {"resid_post": at(layer=last, position=position)} | {place.name: at(position=position)}
    trace = run(lm, tokens, sites, edits, stop=lm.config.n_layers, precision=precision)
    value = trace.padded[place.name]
    return value, value[-1] if place.name == "resid_post" else trace.padded["resid_post"]


def _result(
    found: dict[str, Array], where: np.ndarray, every: bool, place: Site, layers: Sequence[int], ids: np.ndarray, tokens: Tokens,
    lm: LanguageModel,
) -> LogitLens:  # fmt: skip
    """The result, with what a prompt does not have left out, and the axis of a single position dropped."""
    letters = "B" + place.axes.replace("B", "").replace("D", "")
    arrays = {name: np.asarray(value) for name, value in found.items()}
    if every:
        there = where[None] < np.asarray(tokens.lengths)[:, None]
        there = there.reshape([there.shape["BP".index(letter)] if letter in "BP" else 1 for letter in letters])
        for name, value in arrays.items():
            mask = there.reshape(there.shape + (1,) * (value.ndim - there.ndim))
            arrays[name] = np.where(mask, value, np.nan if value.dtype.kind == "f" else -1)
    labels = {"L": tuple(layers), "P": tuple(where.tolist()) if where.ndim == 1 else tuple(range(where.shape[-1] if where.ndim else 1))}
    names = {"L": "layer", "P": "position", "H": "head"}
    if where.ndim == 0:
        arrays = {name: np.take(value, 0, axis=letters.index("P")) for name, value in arrays.items()}
        letters = letters.replace("P", "")
    axes = tuple((names[letter], labels.get(letter) or tuple(range(lm.config.axis_sizes[letter]))) for letter in letters[1:])
    how = (
        ("site", place.name),
        ("position", "all" if every else "last" if where.ndim == 0 and where == -1 else "given"),
        ("bos", tokens.bos),
    )
    return LogitLens(**arrays, ids=ids, axes=axes, how=how, tokens=strings_of(lm, tokens), tokenizer=lm.tokenizer)
