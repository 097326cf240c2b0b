"""SteeringVector: a direction for each of some layers at one site, and the edits that apply it.

It knows the model that it was made from, so that another model's is refused, and the usual norm at its site, so that a strength can be
judged. Every way of applying it is one edit for all its layers: it jits, vmaps, differentiates, and acts in generation by its `when`.

    vector = ji.steering.mean_difference(lm, happy, sad)
    ji.generate(lm, "I think that", 20, edits=[vector.add(1.5, layer=12)])
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.results import frame
from jaxinterp.methods.steering.identity import ALIKE, cosine, model_hint, sketch
from jaxinterp.model import edits
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import SITES, check_site
from jaxinterp.model.tokens import Tokens, concrete


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "norms", "accuracy", "sketch"], meta_fields=["site", "layers", "depth", "how"]
)
@dataclasses.dataclass(frozen=True)
class SteeringVector:
    """Directions to steer along, one a layer.

    Attributes:
        values: [N ...], a direction for each of N layers over the site's axes after B P: [N D] at "resid_post", [N H E] at "z", where
            the heads that are not part of it are zero. As they were made, not of unit length.
        norms: [N], the mean norm of the site's value (over all axes after B P) at the tokens it was made from; NaN where that is not known.
        accuracy: [N], the share of held-out examples that the direction tells apart, 0.5 is chance; NaN where none was held out.
        sketch: [256], numbers of the model's weights, by which another model is told; empty where the model is not known.
        site: where it acts.
        layers: which layers, in the order of `values`.
        depth: layers of its model.
        how: how it was made.
    """

    values: Any
    norms: Any
    accuracy: Any
    sketch: Any
    site: str
    layers: tuple[int, ...]
    depth: int
    how: tuple[tuple[str, str], ...] = ()

    # ------------------------------------------------------------------------------------------------- as edits

    def add(self, strength: Any = 1.0, *, relative: bool = False, layer: Any = None, **selection: Any) -> Edit:
        """A step x + strength v at the vector's layers; `relative`: x + strength |x| v / |v|, over the site's last axis.

        Args:
            strength: a number, or anything that broadcasts over the site's axes without L: at "resid_post" [B 1 1] is one for each
                prompt; with one more axis, [L 1 1 1], one for each layer of the model.
            relative: whether strength is in units of the value's own norm, at each position (and head).
            layer: some of the vector's layers; None is all of them.
            **selection: position, batch, when ...: see `ji.edits.replace`.
        """
        return self._edit(functools.partial(edits.steer, relative=relative), (strength,), layer, selection)

    def replace(self, coordinate: Any, *, layer: Any = None, **selection: Any) -> Edit:
        """The coordinate along u = v / |v| becomes a number, what is orthogonal to it stays: x + (c - x . u) u. Arguments as for `add`."""
        return self._edit(edits.clamp, (coordinate, coordinate), layer, selection)

    def project_out(self, *, layer: Any = None, **selection: Any) -> Edit:
        """Directional ablation: x - (x . u) u. Arguments as for `add`.

        Without `position` the first token is projected too, whose vector is often a hundred times as long as the others': much of
        what is then seen may come from it.
        """
        return self._edit(edits.project_out, (), layer, selection)

    def clamp(self, low: Any = -np.inf, high: Any = np.inf, *, layer: Any = None, **selection: Any) -> Edit:
        """The coordinate along u = v / |v| is clipped to [low, high]. Arguments as for `add`."""
        return self._edit(edits.clamp, (low, high), layer, selection)

    def swap(self, other: "SteeringVector", *, layer: Any = None, **selection: Any) -> Edit:
        """The coordinates along this vector and along another, of the same site and layers, change places. Arguments as for `add`."""
        return self._edit(edits.swap, (other._beside(self, layer),), layer, selection)

    def add_if(
        self, strength: Any, condition: "SteeringVector", threshold: Any, *, below: bool = False, layer: Any = None, **selection: Any
    ) -> Edit:
        """`add` only at positions whose cosine with another vector of the same site and layers is over (`below`) a threshold."""
        given = (strength, condition._beside(self, layer), threshold)
        return self._edit(functools.partial(edits.steer_if, below=below), given, layer, selection)

    def _edit(self, operation: Any, arguments: Sequence[Any], layer: Any, selection: dict[str, Any]) -> Edit:
        chosen = self._chosen(layer)
        if np.ndim(self.values) > 2:
            if selection.get("where") is not None:
                raise InputError("This vector acts on heads of its own: choose among them with head=, not with where=.")
            selection["where"] = self._held[1]
        return operation(self.site, self._held[0], *arguments, layer=list(chosen) if layer is None else layer, **selection)

    def _chosen(self, layer: Any) -> tuple[int, ...]:
        """The layers that an edit may act on: those named, or all of them where the layer is data."""
        if layer is None:
            return self.layers
        if not concrete(layer):
            if len(self.layers) < self.depth:
                raise InputError(
                    f"A layer that is traced may be any, and this vector only has layers {ranges(self.layers)}: name the layer."
                )
            return self.layers
        given = np.atleast_1d(np.asarray(layer))
        if given.dtype.kind not in "iu":
            raise InputError(f"A vector's layers are whole numbers of {ranges(self.layers)}; got {layer!r}.")
        named = tuple(dict.fromkeys(given.tolist()))
        missing = [one for one in named if one not in self.layers]
        if missing:
            raise InputError(f"This vector has no direction for layer {missing[0]}; it has layers {ranges(self.layers)}.")
        return named

    def _beside(self, first: "SteeringVector", layer: Any) -> Any:
        """This vector's directions as the second of an edit of another vector.

        Raises:
            InputError: it lacks a layer or a head where the other one acts.
        """
        if self.site != first.site or self.values.shape[1:] != first.values.shape[1:] or self.depth != first.depth:
            raise InputError(
                f"Two vectors of one edit must be of one site and shape; got {first.site!r} {list(first.values.shape[1:])} of "
                f"{first.depth} layers and {self.site!r} {list(self.values.shape[1:])} of {self.depth}."
            )
        chosen = first._chosen(layer)
        missing = [one for one in chosen if one not in self.layers]
        if missing:
            raise InputError(f"The other vector has no direction for layer {missing[0]}; it has layers {ranges(self.layers)}.")
        acting, other = first._held[1], self._held[1]
        if acting is not None and other is not None and concrete(acting) and concrete(other):
            lacking = np.argwhere((acting & ~other)[list(chosen), 0, 0])
            if len(lacking):
                row, head = lacking[0].tolist()
                raise InputError(f"The other vector has no direction for head {head} of layer {chosen[row]}, where the first one acts.")
        return self._held[0]

    @property
    def _held(self) -> tuple[Any, Any]:
        """The directions as an edit's value, [L 1 1 ...], and which heads act, [L 1 1 H] (None where there are none).

        They are the same two arrays at every call, so that the cells of a sweep share them. What no edit selects is one: a direction
        of length zero is refused.
        """
        return self._kept if concrete(self.values) else _spread(self.values, self.layers, self.depth, jnp)

    @functools.cached_property
    def _kept(self) -> tuple[Any, Any]:
        return _spread(np.asarray(self.values), self.layers, self.depth, np)

    # ------------------------------------------------------------------------------------------------- its own parts

    def at(self, layer: Any) -> "SteeringVector":
        """The vector at one or some of its layers."""
        chosen = self._chosen(layer)
        rows = np.asarray([self.layers.index(one) for one in chosen])
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in ("values", "norms", "accuracy")}
        return dataclasses.replace(self, **arrays, layers=chosen)

    def unit(self) -> "SteeringVector":
        """The same directions of length one (over all axes of a layer)."""
        axes = tuple(range(1, np.ndim(self.values)))
        return dataclasses.replace(self, values=self.values / np.sqrt((self.values**2).sum(axis=axes, keepdims=True)))

    def __mul__(self, factor: float) -> "SteeringVector":
        return dataclasses.replace(self, values=self.values * factor)

    __rmul__ = __mul__

    def __neg__(self) -> "SteeringVector":
        return self * -1.0

    @property
    def sizes(self) -> Any:
        """[N]: the length of each direction."""
        return np.sqrt((np.asarray(self.values) ** 2).reshape(len(self.layers), -1).sum(axis=1))

    def check(self, lm: LanguageModel, *, force: bool = False) -> "SteeringVector":
        """This vector, if it was made for a model.

        Models are told apart by numbers of their embedding and attention: other types, layouts and quantisations of a model pass, and
        so do fine-tuned versions of it, whose weights differ by less than quantisation does.

        Args:
            lm: the model that it is to steer.
            force: whether one that was made from other weights, of the same shape, is let through.

        Raises:
            InputError: another width, depth or site; or other weights without `force`.
        """
        site, config = check_site(self.site, lm.config), lm.config
        shape, own = site.shape(config, 1, 1)[3:], tuple(np.shape(self.values)[1:])
        if shape != own or self.depth != config.n_layers:
            raise InputError(
                f"This vector is for a model of {self.depth} layers with {self.site!r} of shape {list(own)}; this one has "
                f"{config.n_layers} and {list(shape)}: make one from this model."
            )
        if not force and np.size(self.sketch):
            alike = cosine(np.asarray(self.sketch, np.float32), sketch(lm))
            if alike < ALIKE:
                raise InputError(
                    f"This vector was made from another model of the same shape (their weights have cosine {alike:.2f}): make one from "
                    "this model, or use force=True."
                )
        return self

    def save(self, path: str | Path) -> Path:
        """Writes it: .safetensors keeps everything, .gguf is a control vector as llama.cpp reads it. `ji.steering.load` reads both."""
        from jaxinterp.methods.steering.files import save

        return save(self, path)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each layer: length, the site's usual norm, held-out accuracy."""
        columns = {"size": self.sizes, "norm": np.asarray(self.norms), "accuracy": np.asarray(self.accuracy)}
        return frame({"layer": self.layers, **columns})

    def view(self, title: str = "steering vector") -> Any:
        """Lines by layer: the directions' length as a share of the site's usual norm, and their held-out accuracy, as far as known."""
        from jaxinterp.views import line

        series = {"size / norm": self.sizes / np.asarray(self.norms), "held-out accuracy": np.asarray(self.accuracy)}
        known = {name: values for name, values in series.items() if not np.isnan(values).any()} or {"size": self.sizes}
        told = {name: text for name, text in self.how if name != "texts"}
        return line(title, known, x_labels=[str(layer) for layer in self.layers], x="layer", provenance=told)

    def show(self) -> None:
        """Prints the lines in the terminal."""
        self.view().show()

    def __repr__(self) -> str:
        made = dict(self.how).get("method", "directions")
        told = np.asarray(self.accuracy)
        best = "" if np.isnan(told).all() else f", tells apart {np.nanmax(told):.0%} at layer {self.layers[int(np.nanargmax(told))]}"
        return f"SteeringVector({made} at {self.site}, layers {ranges(self.layers)}{best})"


def make_vector(
    lm: LanguageModel, site: str, layers: Sequence[int], values: Any, *, norms: Any = None, accuracy: Any = None,
    how: Sequence[tuple[str, str]] = (),
) -> SteeringVector:  # fmt: skip
    """A SteeringVector for a model, checked.

    Args:
        lm: the model.
        site: a site of the blocks with axes L B P and features.
        layers: which layers.
        values: [N ...], directions over the site's axes after B P.
        norms: [N], or None.
        accuracy: [N], or None.
        how: how it was made, "method" first.

    Raises:
        InputError: a site without features at positions, layers out of range, other shapes, numbers that are not finite, or a layer whose
            direction has norm zero.
    """
    place = check_steerable(site, lm.config)
    layers = tuple(int(layer) for layer in layers)
    bad = [layer for layer in layers if layer not in place.layers(lm.config)]
    shape = (len(layers), *place.shape(lm.config, 1, 1)[3:])
    values = np.asarray(values)
    if not layers or bad or len(set(layers)) < len(layers):
        raise InputError(f"A vector's layers are {list(layers)}; expected different ones of {ranges(place.layers(lm.config))}.")
    if np.shape(values) != shape:
        raise InputError(f"A vector at {site!r} for {len(layers)} layers has shape {list(shape)}; got {list(np.shape(values))}.")
    flat = np.asarray(values, np.float64).reshape(len(layers), -1)
    if not np.isfinite(flat).all() or not (np.abs(flat).max(axis=1) > 0).all():
        layer = layers[int(((~np.isfinite(flat)).any(axis=1) | (np.abs(flat).max(axis=1) == 0)).argmax())]
        raise InputError(f"The direction of layer {layer} has norm zero or is not finite, so there is nothing to steer along.")
    told = [np.full(len(layers), np.nan) if array is None else np.asarray(array, np.float64) for array in (norms, accuracy)]
    if any(array.shape != (len(layers),) for array in told):
        raise InputError(f"norms and accuracy have one number for each of {len(layers)} layers; got {[list(a.shape) for a in told]}.")
    kind = jax.dtypes.canonicalize_dtype(np.float64 if values.dtype.itemsize > 4 else np.float32)
    known = dict(how)
    return SteeringVector(
        np.array(values, kind), told[0].astype(np.float32), told[1].astype(np.float32), sketch(lm), site, layers, lm.config.n_layers,
        (*how, *(() if "model" in known else (("model", model_hint(lm)),))),
    )  # fmt: skip


def check_steerable(site: str, config: TransformerConfig) -> Any:
    """The site, if it holds features at positions of every block.

    Raises:
        InputError: it does not.
    """
    place = check_site(site, config)
    if not place.axes.startswith("LBP") or len(place.axes) < 4 or place.axes[-1] == "1" or place.read_only:
        fitting = [name for name, other in SITES.items() if other.axes.startswith("LBP") and other.axes[-1] in "DEM"]
        raise InputError(f"A vector steers a site with axes L B P and features, such as {', '.join(fitting[:8])}; got {site!r}.")
    if len(place.layers(config)) < config.n_layers:
        raise InputError(f"Site {site!r} is not in every layer of this model, so a vector cannot steer it: use resid_post or mlp_out.")
    return place


def check_layers(layers: Any, config: TransformerConfig) -> tuple[int, ...]:
    """The layers that are meant by a layer, several, or None for all; in their order.

    Raises:
        InputError: there are none, or one is out of range.
    """
    if layers is None:
        return tuple(range(config.n_layers))
    given = np.asarray(layers)
    if given.dtype.kind not in "iu" or given.size == 0 or given.min() < 0 or given.max() >= config.n_layers:
        raise InputError(f"layers is {layers!r}; expected one or more of 0 to {config.n_layers - 1}, or None for all of them.")
    return tuple(sorted(set(given.reshape(-1).tolist())))


def texts_of(*prompts: Tokens) -> tuple[str, str]:
    """The entry of `how` that names the prompts a vector was made from: twelve hexadecimal digits for each."""
    rows = (np.asarray(ids)[np.asarray(mask)] for tokens in prompts for ids, mask in zip(tokens.ids, tokens.mask, strict=True))
    return ("texts", " ".join(hashlib.sha256(row.astype(np.int32).tobytes()).hexdigest()[:12] for row in rows))


def check_held_out(vector: SteeringVector, prompts: Tokens) -> None:
    """Refuse to judge a vector on prompts that it was made from.

    Raises:
        InputError: naming the first of them.
    """
    own = set(dict(vector.how).get("texts", "").split())
    seen = [row for row, text in enumerate(texts_of(prompts)[1].split()) if text in own]
    if seen:
        raise InputError(
            f"Prompt {seen[0]} is one that the vector was made from, where any direction looks good: judge it on prompts held out."
        )


def _spread(values: Any, layers: Sequence[int], depth: int, xp: Any) -> tuple[Any, Any]:
    """See `SteeringVector._held`."""
    rows = np.full(depth, len(layers))
    rows[list(layers)] = np.arange(len(layers))
    padded = xp.concatenate([values, xp.ones((1, *values.shape[1:]), values.dtype)])
    if values.ndim == 2:
        return padded[rows][:, None, None], None
    acting = (values != 0).any(axis=tuple(range(2, values.ndim)))
    acting = xp.concatenate([acting, xp.zeros((1, values.shape[1]), bool)])
    wide = acting.reshape(*acting.shape, *(1,) * (values.ndim - 2))
    return xp.where(wide, padded, xp.ones((), padded.dtype))[rows][:, None, None], acting[rows][:, None, None]


def ranges(layers: Sequence[int]) -> str:
    """Layers as text: 0-29, or 3, 7, 9-12."""
    out: list[list[int]] = []
    for layer in sorted(layers):
        if out and layer == out[-1][1] + 1:
            out[-1][1] = layer
        else:
            out.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)
