"""function_vector: a vector that makes a model do a task, taken from the heads that carry it in in-context prompts.

    z_lh    = mean of head (l, h) at the last token over in-context prompts of the task that are answered rightly
    effect  = P(answer | head (l, h) given z_lh) - P(answer), in prompts whose shown outputs are shuffled; mean over prompts
    v       = sum over the heads of largest effect of what they add to the residual stream, z_lh through W_O

Added to the stream of a middle layer at the last token of a prompt without examples, v asks for the task (Todd et al. 2023,
arXiv:2310.15213). Pairs are split in three: the prompts that v is made from hold pairs of the first part only; layer and strength are
chosen by zero-shot accuracy on the second; what is reported is of the third. An answer counts as right where it is the likeliest token.
Where a norm follows attention, what a head adds is taken with each prompt's denominator held; where the stream itself is normed
(norm position "post"), v is what heads add before that norm. Cost: one run of each in-context prompt, one token a head and shuffled
prompt through the layers above it, one token a layer, strength and chosen pair. Misleads where few pairs are tested (5 of 6 right is
between 36 % and 99.6 %), where the template already gives the task away (see the zero-shot accuracy without v), and as an account of how
the model does it: heads that pass on the task need not be those that find it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxinterp.data.in_context import TEMPLATE, InContext, Word, in_context, word_pairs
from jaxinterp.errors import InputError
from jaxinterp.methods.results import How, frame, write
from jaxinterp.methods.steering.task_heads import Head, head_effects, measured, task_means, written
from jaxinterp.methods.steering.vector import SteeringVector, check_layers, make_vector, texts_of
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.stack import check_stacked
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.metrics import log_probability, probability, rank
from jaxinterp.runs.provenance import fingerprint_of_weights

SETTINGS = ("zero-shot", "shuffled", "in context")
"""The prompts that a vector is judged on: none, shuffled, or right examples before the question."""

EFFECTS = {"probability": probability, "log_probability": log_probability}
LEAST = 2
"""Pairs of each part at least."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["vector", "effects", "validation", "right"],
    meta_fields=["heads", "layer", "strength", "layers", "strengths", "pairs", "how"],
)
@dataclasses.dataclass(frozen=True)
class FunctionVector:
    """A task as a vector, and how well it is done with it.

    Attributes:
        vector: a SteeringVector at "resid_post": the same direction at every layer.
        effects: [L H], the mean effect of each head on the answer in shuffled prompts.
        validation: [S N], zero-shot accuracy with each strength at each layer, on the pairs that these are chosen by.
        right: [3 2 n] bool, whether each test pair is answered rightly: zero-shot, shuffled or in context; plain or with the vector.
        heads: (layer, head) whose outputs are summed, the largest effect first.
        layer: where the vector does best.
        strength: how strong it does best.
        layers: the layers of `validation`.
        strengths: the strengths of `validation`.
        pairs: the pairs that it was made from, chosen by, and tested on.
        how: how it was made.
    """

    vector: SteeringVector
    effects: Any
    validation: Any
    right: Any
    heads: tuple[Head, ...]
    layer: int
    strength: float
    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    pairs: tuple[tuple[Word, ...], tuple[Word, ...], tuple[Word, ...]]
    how: How = ()

    @property
    def accuracy(self) -> np.ndarray:
        """[3 2]: the share of test pairs answered rightly, see `right`."""
        return np.asarray(self.right).mean(axis=2)

    def edit(self, strength: float | None = None, *, layer: int | None = None, position: Any = -1, **selection: Any) -> Edit:
        """The edit that asks for the task: a step along the vector at the last token of a prompt, at the best layer and strength.

        Args:
            strength: another one.
            layer: another one.
            position: where; None is every token, new ones too.
            **selection: as for `SteeringVector.add`.
        """
        strength, layer = (self.strength if strength is None else strength), (self.layer if layer is None else layer)
        return self.vector.add(strength, layer=layer, position=position, **selection)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each kind of prompt: accuracy plain and with the vector."""
        return frame({"prompt": SETTINGS, "plain": self.accuracy[:, 0], "with the vector": self.accuracy[:, 1]})

    def view(self, title: str = "function vector") -> Any:
        """Accuracies, the effect of each head, and accuracy by layer on the pairs it was chosen by."""
        from jaxinterp.views import Section, heatmap, line, report, table

        columns = {
            "prompt": ("text", SETTINGS),
            "plain": ("percent", self.accuracy[:, 0]),
            "with the vector": ("percent", self.accuracy[:, 1]),
        }
        tested = f"share of {np.shape(self.right)[2]} test pairs answered rightly; layer {self.layer}, strength {self.strength:g}"
        series = {f"strength {strength:g}": values for strength, values in zip(self.strengths, np.asarray(self.validation), strict=True)}
        labels = [str(layer) for layer in self.layers]
        sections = [
            Section("Accuracy", tested, (table("", columns, normalisation=tested),)),
            Section("Heads", "effect on the answer in shuffled prompts", (heatmap("", np.asarray(self.effects), ("layer", "head")),)),
            Section("Layers", f"zero-shot accuracy on {len(self.pairs[1])} other pairs", (line("", series, x_labels=labels),)),
        ]
        return report(title, sections, provenance=dict(self.how))

    def show(self) -> None:
        """Prints tables and pictures in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes vector and numbers (.safetensors), or the picture (.html, .png, .json, .txt); `vector.save` writes what can be loaded."""
        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        about = {name: getattr(self, name) for name in ("heads", "layer", "strength", "layers", "strengths", "pairs")}
        arrays = {"vector": np.asarray(self.vector.values)[0], **{name: getattr(self, name) for name in ("effects", "validation", "right")}}
        return write(path, arrays, about, self.how)

    def __repr__(self) -> str:
        plain, steered = self.accuracy[0]
        names = " ".join(f"{layer}.{head}" for layer, head in self.heads[:4]) + (" ..." if len(self.heads) > 4 else "")
        told = f"zero-shot {plain:.0%} -> {steered:.0%}, in context {self.accuracy[2, 0]:.0%}, of {np.shape(self.right)[2]}"
        task = dict(self.how).get("task", "task")
        return f"FunctionVector({task}: {told}; heads {names}; layer {self.layer}, strength {self.strength:g})"


def function_vector(
    lm: LanguageModel, task: str | Sequence[Word] | Mapping[str, str], *, heads: int = 10, layer: int | None = None,
    strengths: float | Sequence[float] = (1.0, 2.0), shots: int = 5, prompts: int = 48, trials: int = 16,
    split: tuple[float, float, float] = (0.5, 0.25, 0.25), effect: Literal["probability", "log_probability"] = "probability",
    template: str = TEMPLATE, seed: int = 0, bos: str | bool = "model", precision: str | None = "highest",
) -> FunctionVector:  # fmt: skip
    """A vector that makes a model do a task without being shown it, and how well it does.

    Equation, source, cost and when it misleads: see the module. The paper shows 10 pairs, and takes 100 prompts and 25 trials.

    Args:
        lm: a causal model with a tokenizer.
        task: a name of `ji.data.WORD_PAIRS`, pairs (input, output), or {input: output}; outputs that are not one token are left out.
        heads: how many are summed.
        layer: where the vector is added; None chooses among all layers.
        strengths: one, or several to choose from.
        shots: pairs shown in a prompt.
        prompts: in-context prompts whose heads are averaged.
        trials: shuffled prompts in which each head's effect is measured.
        split: shares of the pairs that the vector is made from, chosen by, and tested on.
        effect: what an effect is a change of, "probability" or "log_probability" of the answer.
        template: how a pair is written, with {input} and {output}.
        seed: of the split, the pairs shown, and the shuffling.
        bos: as for `run`.
        precision: as for `run`.

    Returns:
        A FunctionVector: `.vector`, `.accuracy` [3 2], `.effects` [L H], `.heads`, `.layer`, `.strength` and `.edit()`.

    Raises:
        InputError: an encoder, too few pairs of one token, a task that the model never answers rightly in context, or numbers out of range.

    Example:
        >>> found = ji.steering.function_vector(lm, "plural")
        >>> ji.generate(lm, "Q: leaf\\nA:", 1, edits=[found.edit()]).text[0]
        ' leaves'
    """
    levels = _checked(lm, heads, layer, strengths, shots, prompts, trials, effect)
    kept = word_pairs(lm, task, template=template)
    parts = _split(kept, split, seed, shots)
    make, choose, test = parts
    ask = functools.partial(in_context, lm, make, template=template)
    shown = [_drawn(make, number, seed) for number in (prompts, trials)]
    made, shuffled = ask(shown[0], shots=shots, seed=seed), ask(shown[1], shots=shots, shuffled=True, seed=seed + 1)
    tokens = [lm.to_tokens(list(each.prompts), bos=bos) for each in (made, shuffled)]
    means = task_means(lm, tokens[0], made.ids, precision=precision)
    if not means.right.any():
        raise InputError(
            f"function_vector(): the model answers none of {prompts} in-context prompts rightly, so there is no task to take from its "
            "heads: use another task, or more shots."
        )
    effects = head_effects(lm, tokens[1], shuffled.ids, means.z, metric=EFFECTS[effect], precision=precision).mean(axis=2)
    order = np.argsort(-effects, axis=None, kind="stable")[:heads]
    chosen = tuple((int(index) // effects.shape[1], int(index) % effects.shape[1]) for index in order)
    total = written(lm, means.added, chosen)
    plain = ask(choose, shots=0)
    every = tuple(range(lm.config.n_layers))
    how = (
        ("method", "function_vector"), ("site", "resid_post"), ("task", task if isinstance(task, str) else "given"),
        ("pairs", " + ".join(str(len(part)) for part in parts)), ("shots", str(shots)), ("prompts", f"{means.right.sum()} of {prompts}"),
        ("trials", str(trials)), ("effect", effect), ("seed", str(seed)), ("bos", tokens[0].bos),
        ("weights", fingerprint_of_weights(lm.params)),
    )  # fmt: skip
    seen = texts_of(*tokens, lm.to_tokens(list(plain.prompts), bos=bos))
    vector = make_vector(lm, "resid_post", every, np.tile(total, (len(every), 1)), norms=means.norms, how=(*how, seen))
    judge = _Judge(lm, vector, bos, precision)
    layers = every if layer is None else (layer,)
    validation, best, strength = judge.choose(plain, layers, levels)
    asked = [ask(test, shots=0), ask(test, shots=shots, shuffled=True, seed=seed + 2), ask(test, shots=shots, seed=seed + 2)]
    right = np.stack([judge.right(each, best, strength) for each in asked])
    return FunctionVector(vector, effects, validation, right, chosen, best, strength, layers, levels, parts, how)


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Prompts with and without a vector at their last token."""

    lm: LanguageModel
    vector: SteeringVector
    bos: str | bool
    precision: str | None

    def choose(self, plain: InContext, layers: Sequence[int], levels: Sequence[float]) -> tuple[np.ndarray, int, float]:
        """[S N] accuracy, and the best layer and strength: the most right answers, then the likeliest ones."""
        points = [(layer, level) for level in levels for layer in layers]
        found = self._measured(plain, points, {"rank": rank, "log_probability": log_probability}, "choosing layer and strength")
        accuracy, likely = (found["rank"][0] == 0).mean(axis=1), found["log_probability"][0].mean(axis=1)
        best = points[int(np.lexsort((-likely, -accuracy))[0])]
        return accuracy.reshape(len(levels), len(layers)), *best

    def right(self, asked: InContext, layer: int, strength: float) -> np.ndarray:
        """[2 n] bool: whether the answer is the likeliest token, plain and with the vector."""
        steered, plain = self._measured(asked, [(layer, strength)], {"rank": rank}, "testing")["rank"]
        return np.stack([plain, steered[0]]) == 0

    def _measured(self, asked: InContext, points: Sequence[tuple[int, float]], metrics: dict[str, Any], title: str) -> Any:
        cells = [[self.vector.add(strength, layer=layer, position=-1)] for layer, strength in points]
        tokens: Tokens = self.lm.to_tokens(list(asked.prompts), bos=self.bos)
        return measured(self.lm, tokens, asked.ids, cells, metrics, title=title, precision=self.precision)


def _checked(
    lm: LanguageModel, heads: int, layer: int | None, strengths: Any, shots: int, prompts: int, trials: int, effect: str
) -> tuple[float, ...]:  # fmt: skip
    """The strengths, once everything else is found to be in range."""
    config = lm.config
    check_stacked(lm.params, "function_vector()")
    if not config.causal:
        raise InputError("function_vector(): this model is an encoder, which does not continue prompts; use a causal model.")
    if layer is not None:
        check_layers(layer, config)
    total = config.n_layers * config.n_heads
    if not 1 <= heads <= total or shots < 2 or prompts < 1 or trials < 1 or effect not in EFFECTS:
        raise InputError(
            f"function_vector(): heads is {heads}, shots {shots}, prompts {prompts}, trials {trials} and effect {effect!r}; expected 1 to "
            f"{total} heads, 2 shots or more, 1 prompt and trial or more, and 'probability' or 'log_probability'."
        )
    levels = tuple(float(level) for level in np.atleast_1d(np.asarray(strengths, np.float64)))
    if not levels or not np.isfinite(levels).all() or len(set(levels)) < len(levels):
        raise InputError(f"function_vector(): strengths is {strengths}; expected different finite numbers.")
    return levels


def _split(pairs: Sequence[Word], split: Sequence[float], seed: int, shots: int) -> Any:
    """The pairs in random order, in three parts."""
    shares = np.asarray(split, np.float64)
    if shares.shape != (3,) or not (shares > 0).all() or shares.sum() > 1 + 1e-9:
        raise InputError(f"function_vector(): split is {split}; expected three shares over 0 that sum to at most 1.")
    ends = np.rint(np.cumsum(shares) * len(pairs)).astype(int)
    rows = [pairs[index] for index in np.random.default_rng(seed).permutation(len(pairs))]
    parts = tuple(tuple(rows[begin:end]) for begin, end in zip((0, *ends[:2]), ends, strict=True))
    sizes = [len(part) for part in parts]
    if sizes[0] < shots + 1 or min(sizes) < LEAST:
        raise InputError(
            f"function_vector(): {len(pairs)} pairs with an output of one token are {sizes[0]} to make the vector from, {sizes[1]} to "
            f"choose by and {sizes[2]} to test on; expected at least {shots + 1} (one more than shots), {LEAST} and {LEAST}: give more."
        )
    return parts


def _drawn(pairs: Sequence[Word], number: int, seed: int) -> list[Word]:
    """So many of the pairs to ask, each as often as the others, give or take one."""
    random = np.random.default_rng([seed, number])
    rounds = [random.permutation(len(pairs)) for _ in range(-(-number // len(pairs)))]
    return [pairs[index] for index in np.concatenate(rounds)[:number]]
