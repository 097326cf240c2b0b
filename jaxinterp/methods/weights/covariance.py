"""The second moment of what an MLP's W_out reads, C = E[k k^T] with k = mlp_post: how often each direction of keys is used.

Edits of W_out that are minimal in the norm |D|_C^2 = E |D k|^2 change what the MLP writes for other texts the least (Meng et al. 2022,
arXiv:2202.05262). It is not centred, and over every real token, the first ones included. Cost: a forward pass of the texts up to
the last of the layers, and one product [M M] a token. Misleads from few texts: it is singular below M tokens, and an estimate
takes some ten times as many (the authors used 100,000 Wikipedia articles).
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinterp.errors import CheckpointError, InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.selection import at
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.provenance import fingerprint_of_weights
from jaxinterp.runs.run import run

SINGULAR = 1e-13
"""Squared ratio of a Cholesky factor's least and largest diagonal number below which a matrix counts as singular."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "tokens"], meta_fields=["layers", "how"])
@dataclasses.dataclass(frozen=True)
class SecondMoment:
    """E[k k^T] of the keys of some layers.

    Attributes:
        values: [N M M] float64, of each of N layers.
        tokens: how many tokens it is the mean over.
        layers: which layers, in the order of `values`.
        how: how it was made.
    """

    values: Any
    tokens: Any
    layers: tuple[int, ...]
    how: tuple[tuple[str, str], ...] = ()

    def solve(self, layer: int, keys: Float[np.ndarray, "M n"], ridge: float = 0.0, plus: Any = 0.0) -> np.ndarray:
        """(C + ridge mean(diag C) I + plus)^-1 keys, in float64.

        Args:
            layer: one of the layers.
            keys: the right-hand sides.
            ridge: part of the mean diagonal that is added to the diagonal.
            plus: [M M], added to C.

        Raises:
            InputError: a layer that it lacks, a negative ridge, or a matrix that is singular.
        """
        if layer not in self.layers:
            raise InputError(f"This second moment is of layers {', '.join(map(str, self.layers))}, not of layer {layer}.")
        if not 0 <= ridge < np.inf:
            raise InputError(f"ridge is {ridge}; expected a number from 0 on.")
        moment = np.asarray(self.values[self.layers.index(layer)], np.float64)
        size = len(moment)
        matrix = moment + ridge * np.trace(moment) / size * np.eye(size) + plus
        try:
            diagonal = np.diag(np.linalg.cholesky(matrix))
        except np.linalg.LinAlgError:
            diagonal = np.zeros(size)
        if not diagonal.min() ** 2 > SINGULAR * diagonal.max() ** 2:
            raise InputError(
                f"The second moment of layer {layer} is singular: it is of {int(self.tokens)} tokens for {size} neurons, and needs at "
                f"least {size} different ones, some {10 * size} for an estimate; give more texts, or ridge=1e-2 (a hundredth of its mean "
                "diagonal)."
            )
        return np.linalg.solve(matrix, np.asarray(keys, np.float64))

    def save(self, path: str | Path) -> Path:
        """Writes it as safetensors; `load_second_moment` reads it."""
        from safetensors.numpy import save_file

        about = {"layers": json.dumps(self.layers), "how": json.dumps(self.how)}
        save_file({"values": np.ascontiguousarray(self.values), "tokens": np.asarray(self.tokens)}, str(path), metadata=about)
        return Path(path)

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return f"SecondMoment(layer{'s' * (len(self.layers) > 1)} {layers}: {np.shape(self.values)[1]} neurons, {int(self.tokens)} tokens)"


def second_moment(
    lm: LanguageModel, texts: Sequence[Any], layers: int | Sequence[int], *, batch_size: int = 8, max_length: int | None = None,
    bos: str | bool = "model", precision: str | None = "highest",
) -> SecondMoment:  # fmt: skip
    """E[k k^T] of mlp_post at some layers, over every real token of some texts.

    Products of a batch are in float32, their sum in float64.

    Args:
        lm: a model with dense MLPs.
        texts: strings, or lists of ids.
        layers: one or several.
        batch_size: texts run at once.
        max_length: texts are cut to this many tokens; None refuses those longer than the context.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A SecondMoment.

    Raises:
        InputError: a model with experts or without MLPs, layers out of range, or no texts.

    Example:
        >>> ji.weights.second_moment(lm, ["The Nile is a river.", "Bread is made of flour."], 5)
        SecondMoment(layer 5: 1536 neurons, 13 tokens)
    """
    chosen = check_layers(lm.config, [layers] if np.ndim(layers) == 0 else layers, "second_moment()")
    if isinstance(texts, str) or not len(texts) or batch_size < 1:
        raise InputError(f"second_moment() takes one or more texts and a batch_size of at least 1; got {texts!r:.40} and {batch_size}.")
    rows = [np.asarray(lm.to_tokens(text, bos=bos).ids)[0][:max_length] for text in texts]
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    total, count = np.zeros(()), sum(map(len, rows))
    with Progress("second moment", len(rows), "texts") as progress:
        for start in range(0, len(rows), batch_size):
            group = order[start : start + batch_size]
            ids, mask = _padded([rows[number] for number in group], batch_size)
            # a text repeated in a place left over is run, so that every batch is one program, and not counted
            trace = run(lm, Tokens.from_ids(ids, mask), {"mlp_post": at(layer=chosen)}, stop=max(chosen) + 1, precision=precision)
            wide = np.asarray(trace.padded_tokens.mask) & (np.arange(batch_size) < len(group))[:, None]
            total = total + np.asarray(_products(trace.padded["mlp_post"], wide), np.float64)
            progress.advance(len(group))
    how = (("weights", fingerprint_of_weights(lm.params)), ("texts", str(len(rows))), ("bos", str(bos)))
    return SecondMoment(total / count, np.int64(count), tuple(chosen), how)


def load_second_moment(path: str | Path) -> SecondMoment:
    """A SecondMoment from the file that its `save` wrote.

    Raises:
        CheckpointError: the file is not there, is cut, or is not one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as file:
            about: Any = file.metadata() or {}
            how = tuple((str(name), str(value)) for name, value in json.loads(about["how"]))
            layers = tuple(int(layer) for layer in json.loads(about["layers"]))
            return SecondMoment(file.get_tensor("values"), file.get_tensor("tokens")[()], layers, how)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a second moment that SecondMoment.save wrote ({type(error).__name__}: {error}).") from None


def check_layers(config: TransformerConfig, layers: Any, what: str) -> list[int]:
    """Layers of a model whose MLPs are dense, checked.

    Raises:
        InputError: experts, no MLP, or layers out of range.
    """
    if config.experts or not config.has_mlp:
        why = "has experts, each with a W_out of its own" if config.experts else "has attention only"
        raise InputError(f"{what}: expected a model with dense MLPs, and this one {why}.")
    chosen = [int(layer) for layer in np.asarray(layers).reshape(-1)]
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= layer < config.n_layers for layer in chosen):
        raise InputError(f"{what}: layers are {chosen}; expected one or more different ones of 0 to {config.n_layers - 1}.")
    return chosen


def _padded(rows: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [size P] of some rows, the first again where there are too few."""
    filled = [rows[i] if i < len(rows) else rows[0] for i in range(size)]
    width = max(map(len, filled))
    ids, mask = np.zeros((size, width), np.int32), np.zeros((size, width), bool)
    for i, row in enumerate(filled):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask


@jax.jit
def _products(keys: Float[Array, "N B P M"], keep: Bool[Array, "B P"]) -> Float[Array, "N M M"]:
    """The sum of k k^T over the tokens that are kept."""
    kept = jnp.where(keep[None, :, :, None], keys, 0).astype(jnp.promote_types(keys.dtype, jnp.float32))
    return jnp.einsum("NBPM,NBPK->NMK", kept, kept, precision="highest")
