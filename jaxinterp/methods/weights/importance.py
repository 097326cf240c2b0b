"""Importance: what each head, key/value head or neuron does for the loss, so that the least important can be pruned.

    exact         mean over texts of |loss without the part - loss|,             each part zeroed alone
    first order   mean over texts of sum over tokens of |a . d loss / d a|,      a being what the part computes at that token

in nats a token. The first-order estimate is that of Molchanov et al. 2019 (arXiv:1906.10771), taken of activations as Michel et al.
2019 do for heads (arXiv:1905.10650): - sum of a . d loss / d a is the change of the loss when a goes to zero, to first order. The
signed changes are kept as `effects`, but sizes rank: a part that helps here and harms there sums to nothing and is still needed, and
37 % of SmolLM2's heads lower the loss when they alone are zeroed. Loss of held-out texts after pruning by each, on SmolLM2-135M (3.40):

    a third of the heads, evenly     first order 4.74; exact 5.15, exact with its sign 5.76;                 random 5.3 to 5.8
    a quarter of the neurons         first order 4.01, with sizes of sums over texts 4.40, with signs 13.7;  random 5.3 to 6.6

Cost: first order, a forward and a backward pass of the texts for all parts at once. Exact, a run of the texts for every part, from
its layer up: 270 heads on eight paragraphs take 400 seconds of a core, 46,080 neurons are out of reach, and `exact=64` runs as many
of them to say how good the estimates are. Misleads as both are of one part at a time: parts that stand in for one another each look
dispensable, and removed together they are not.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinterp.errors import InputError
from jaxinterp.methods.ablation import ablate
from jaxinterp.methods.attribution.compare import Comparison, comparison
from jaxinterp.methods.results import frame, write
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.gradients import gradients
from jaxinterp.runs.metrics import cross_entropy
from jaxinterp.runs.progress import Progress
from jaxinterp.runs.provenance import RECORD, record
from jaxinterp.runs.sweep import sweep

Unit = Literal["head", "kv_head", "neuron"]
Method = Literal["exact", "first_order"]

SITES = {"head": "z", "kv_head": "v", "neuron": "mlp_post"}
"""Where each kind of part is zeroed; without its value vectors a key/value head's query heads all write nothing."""

SELECTORS = {"head": "head", "kv_head": "head", "neuron": "neuron"}
NAMES = {"head": "heads", "kv_head": "key/value heads", "neuron": "neurons"}

SHOWN = 64
"""Most columns of a picture; a layer with more parts is drawn by tenths of them."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "effects", "loss", "exact"], meta_fields=["unit", "method", "parts", "how"]
)
@dataclasses.dataclass(frozen=True)
class Importance:
    """How much each part of a model matters for the loss, in nats a token.

    Attributes:
        values: [L n], what parts are ranked by: the size of the change that each makes; see the module. n are heads, key/value
            heads or neurons.
        effects: [L n], the change of the loss without the part, with its sign: exact, or to first order.
        loss: [B], the loss of each text in the whole model.
        unit: "head", "kv_head" or "neuron".
        method: "exact" or "first_order".
        exact: [k], the exact effects of parts that were run beside the estimate, or None.
        parts: those parts, as (layer, number).
        how: how it was made.
    """

    values: Any
    effects: Any
    loss: Any
    unit: Unit
    method: Method
    exact: Any = None
    parts: tuple[tuple[int, int], ...] = ()
    how: tuple[tuple[str, str], ...] = ()

    @property
    def check(self) -> Comparison | None:
        """How the estimates agree with the sizes of exact effects, where some parts were run exactly."""
        if self.exact is None:
            return None
        estimate = np.asarray([self.values[part] for part in self.parts], np.float64)
        names = tuple(f"{layer}.{number}" for layer, number in self.parts)
        return comparison(estimate, np.asarray(self.exact, np.float64), names, signed=False)

    def order(self) -> list[tuple[int, int]]:
        """All parts as (layer, number), the least important first."""
        values = np.asarray(self.values)
        layer, number = np.unravel_index(np.argsort(values, axis=None, kind="stable"), values.shape)
        return list(zip(layer.tolist(), number.tolist(), strict=True))

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each part: layer, its number, importance and effect."""
        values = np.asarray(self.values)
        layer, number = np.indices(values.shape).reshape(2, -1)
        return frame({"layer": layer, self.unit: number, "importance": values.reshape(-1), "effect": np.ravel(self.effects)})

    def view(self, title: str = "") -> Any:
        """A heat-map of layers: exact changes, sizes to first order, or of many parts the share of them that the least important hold."""
        from jaxinterp.views import heatmap

        values = np.asarray(self.values, np.float64)
        layers, title = [str(layer) for layer in range(len(values))], title or f"importance of {NAMES[self.unit]}"
        if values.shape[1] > SHOWN:
            tenths = [round(values.shape[1] * tenth / 10) - 1 for tenth in range(1, 11)]
            summed = np.cumsum(np.sort(np.maximum(values, 0), axis=1), axis=1)
            shares = summed[:, tenths] / np.maximum(summed[:, -1:], np.finfo(float).tiny)
            labels = {"layer": layers, "least important": [f"{10 * tenth}%" for tenth in range(1, 11)]}
            unit = f"share of a layer's importance in its least important {NAMES[self.unit]}"
            return heatmap(
                title, shares, ("layer", "least important"), labels=labels, scale="sequential", limits=(0, 1), normalisation=unit
            )
        values = np.asarray(self.effects, np.float64) if self.method == "exact" else values
        labels = {"layer": layers, self.unit: [str(number) for number in range(values.shape[1])]}
        unit = (
            "change of the loss, nats a token" if self.method == "exact" else "size of the change of the loss to first order, nats a token"
        )
        scale = "diverging" if self.method == "exact" else "sequential"
        return heatmap(title, values, ("layer", self.unit), labels=labels, scale=scale, normalisation=unit)

    def show(self) -> None:
        """Prints the heat-map in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors) or the picture (.html, .png, .json, .txt)."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        arrays = {name: getattr(self, name) for name in ("values", "effects", "loss", "exact")}
        return write(path, arrays, {"parts": self.parts}, self.how)

    def __repr__(self) -> str:
        shape, order = np.shape(self.values), self.order()
        ends = ", ".join(f"{which} {layer}.{number}" for which, (layer, number) in (("least", order[0]), ("most", order[-1])))
        how = ", ".join(f"{name}={value}" for name, value in self.how if name not in (*RECORD, "unit", "method"))
        checked = "" if self.exact is None else f", {self.check!r}"
        return f"Importance({shape[0]} layers x {shape[1]} {NAMES[self.unit]}, {self.method}: {ends}; {how}{checked})"


def importance(
    lm: LanguageModel, texts: Prompts, *, unit: Unit = "head", method: Method | None = None, exact: int | Sequence[tuple[int, int]] = 0,
    batch_size: int = 8, out: str | Path | None = None, bos: str | bool = "model", precision: str | None = "highest",
) -> Importance:  # fmt: skip
    """What every head, key/value head or neuron does for the loss on texts.

    Equations, sources, cost and when it misleads: see the module.

    Args:
        lm: a causal language model, with weights in stacks.
        texts: of two or more tokens each.
        unit: "head" (query heads, zeroed at z), "kv_head" (a key/value head with all its query heads, zeroed at v: the same run as
            zeroing their z) or "neuron" (zeroed at mlp_post).
        method: "exact" or "first_order"; None is exact for heads and key/value heads, first order for neurons.
        exact: first order: parts to run exactly beside the estimate, as (layer, number) pairs, or how many, spread evenly over the
            ranking; `check` says how well estimate and exact effect agree.
        batch_size: first order: texts in one pass.
        out: exact: a folder that keeps finished parts, as for `ablate`.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        An Importance: `.values` and `.effects` [L n] in nats a token, `.order()`, `.check`.

    Raises:
        InputError: a model without next-token logits or without such parts, neurons inside experts, a text of one token.

    Example:
        >>> neurons = ji.weights.importance(lm, texts, unit="neuron", exact=32)
        >>> neurons.values.shape, neurons.check.pearson > 0.9
        ((30, 1536), True)
    """
    method = method or ("first_order" if unit == "neuron" else "exact")
    _check(lm, unit, method)
    if batch_size < 1 or (isinstance(exact, int) and exact < 0) or (method == "exact" and exact):
        raise InputError(
            f"importance(): batch_size is {batch_size} and exact {exact!r} with method {method!r}; expected at least 1, and parts to "
            "run exactly only beside first-order estimates."
        )
    if out is not None and method == "first_order":
        raise InputError("importance(): out= keeps finished parts of exact runs, and a first-order ranking is one pass; leave it out.")
    tokens = texts_of(lm, texts, bos, "importance()")
    options: dict[str, Any] = {"bos": tokens.bos, "precision": precision}
    how = (("unit", unit), ("method", method), ("texts", str(len(tokens.ids))), ("bos", tokens.bos), *record(lm, tokens, cross_entropy()))
    if method == "exact":
        found = ablate(lm, tokens, cross_entropy(), SITES[unit], over=("layer", SELECTORS[unit]), out=out, **options)
        clean = np.asarray(found.clean)
        sizes = abs(np.asarray(found.per_example) - clean[:, None, None]).mean(axis=0)
        return Importance(sizes, np.asarray(found.effects), clean, unit, method, how=how)
    sizes, signed, loss = _first_order(lm, tokens, unit, batch_size, precision)
    if isinstance(exact, int):
        order = np.argsort(sizes, axis=None, kind="stable")
        ranks = np.unique(np.linspace(0, len(order) - 1, exact).round().astype(int)).tolist() if exact else []
        exact = [divmod(int(order[rank]), sizes.shape[1]) for rank in ranks]
    parts = tuple((int(layer), int(number)) for layer, number in exact)
    effects = _exactly(lm, tokens, unit, parts, sizes.shape, options) if parts else None
    return Importance(sizes, signed, loss, unit, method, effects, parts, how)


def texts_of(lm: LanguageModel, texts: Prompts, bos: str | bool, what: str) -> Tokens:
    """Tokens of texts whose next tokens can be predicted.

    Raises:
        InputError: a model without next-token logits, or a text of one token.
    """
    if not lm.config.causal or lm.config.unembed == "none":
        raise InputError(f"{what} measures the loss of the next token, which this model does not predict: prune parts that you name.")
    tokens = lm.to_tokens(texts, bos=bos)
    short = np.flatnonzero(np.asarray(tokens.lengths) < 2)
    if len(short):
        raise InputError(f"{what}: text {short[0]} has one token; expected texts of two or more, so that there is a next one to predict.")
    return tokens


def batches(tokens: Tokens, size: int) -> Iterator[Tokens]:
    """The texts in batches."""
    for begin in range(0, len(tokens.ids), size):
        yield Tokens.from_ids(tokens.ids[begin : begin + size], tokens.mask[begin : begin + size], bos=tokens.bos)


def _check(lm: LanguageModel, unit: str, method: str) -> None:
    if unit not in SITES or method not in ("exact", "first_order"):
        raise InputError(
            f"importance(): unit is {unit!r} and method {method!r}; expected {', '.join(map(repr, SITES))}, and 'exact' or 'first_order'."
        )
    if unit == "neuron" and lm.config.experts is not None:
        raise InputError("importance() does not rank neurons inside experts, of which each token runs only some: rank heads instead.")
    if unit == "neuron" and not lm.config.has_mlp:
        raise InputError("importance(): this model has no neurons, its blocks have attention only.")


def _first_order(
    lm: LanguageModel, tokens: Tokens, unit: str, batch_size: int, precision: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes and signed effects [L n], means over texts, and the loss of each text."""
    site = "z" if unit == "kv_head" else SITES[unit]
    parts = lm.config.n_kv_heads if unit == "kv_head" else 0
    sizes, signed, loss = 0.0, 0.0, []
    with Progress("importance", len(tokens.ids), "texts") as progress:
        for batch in batches(tokens, batch_size):
            found = gradients(lm, batch, cross_entropy(), [site], bos=batch.bos, precision=precision)
            more = _summed(found.trace[site], found[site], jnp.asarray(batch.mask), parts=parts)
            sizes, signed = (total + np.asarray(part, np.float64) for total, part in zip((sizes, signed), more, strict=True))
            loss.append(np.asarray(found.values))
            progress.advance(len(batch.ids))
    count = len(tokens.ids)
    return np.asarray(sizes / count), np.asarray(signed / count), np.concatenate(loss)


@functools.partial(jax.jit, static_argnames=("parts",))
def _summed(
    value: Float[Array, "L B P ..."], slope: Float[Array, "L B P ..."], mask: Bool[Array, "B P"], *, parts: int
) -> tuple[Float[Array, "L n"], Float[Array, "L n"]]:
    """Sums over texts and tokens of |a . slope| and of - a . slope, each dot product over a part's features.

    Args:
        value: a, the activations; neurons are parts of one feature, heads of E.
        slope: the derivative of the loss.
        mask: which tokens are real.
        parts: how many parts the heads are joined into, 0 to leave them as they are.
    """
    product = value * slope
    if product.ndim == 5:
        product = product.reshape(*product.shape[:3], parts or product.shape[3], -1).sum(axis=4)
    product = jnp.where(mask[None, :, :, None], product, 0)
    return jnp.abs(product).sum(axis=(1, 2)), -product.sum(axis=(1, 2))


def _exactly(
    lm: LanguageModel, tokens: Tokens, unit: str, parts: tuple[tuple[int, int], ...], shape: tuple[int, ...], options: dict[str, Any]
) -> Float[np.ndarray, "k"]:
    """The change of the loss without each of some parts."""
    bad = [part for part in parts if not (0 <= part[0] < shape[0] and 0 <= part[1] < shape[1])]
    if bad or len(set(parts)) < max(2, len(parts)):
        told = f"{bad[0]}" if bad else f"{len(parts)} of which {len(set(parts))} differ"
        raise InputError(
            f"importance(): exact= names {told}; expected two or more (layer, number) pairs within {shape[0]} layers of {shape[1]}."
        )
    silence = lambda part: edit_makers.zero(SITES[unit], layer=part[0], **{SELECTORS[unit]: part[1]})  # noqa: E731
    return np.asarray(sweep(lm, tokens, cross_entropy(), silence, {"part": parts}, **options).effects)
