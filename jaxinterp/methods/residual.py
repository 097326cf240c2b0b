"""Direct logit attribution: what each component of the model writes straight into the logits (Elhage et al. 2021).

    metric = sum over components c of  c . d metric / d c,    with the denominator of every norm after c held

The last residual stream is the sum of what embeddings, heads, MLPs and biases wrote, so with denominators held the logits
before the soft cap are a sum over components ("A Mathematical Framework for Transformer Circuits"; for a logit difference,
Wang et al. 2022, arXiv:2211.00593). A component that a norm follows is read through that norm: the final one, that after a
sublayer (Gemma, OLMo 2), those of every later layer in a post-norm stack (BERT); LayerNorm's centring, multipliers, and
projections of the embedding likewise. What is left over is part of the result, and zero to rounding for a metric that is
linear in logits. For any other metric it is the error of the tangent at the run: metric - logits . d metric / d logits.

Cost: no pass over the model where a trace is given, else one forward pass without an unembedding; then a few norms a layer,
and by head, neuron or source position one product with an output matrix a layer at the positions that are read.
Misleads: it sees what a component writes itself, not what later ones make of it; with a held denominator it does not see that
removing a large component rescales all others; what two components write against each other (a head that is made up for by an
MLP) appears as two large parts; and under a final soft cap it is the logits before the cap that are attributed. What an edit
put into the stream itself (at a `resid_*` site) is no component and stands in the remainder, as does the rounding of a run in
bfloat16; edits after the last block are not seen.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.grid import strings_of
from jaxinterp.methods.residual_parts import SUBLAYERS, attribute, needed_sites, reads
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.selection import at
from jaxinterp.model.sites import check_site, site_of
from jaxinterp.model.stack import check_stacked
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.runs.program import bucket
from jaxinterp.runs.results import mean_of
from jaxinterp.runs.run import run

AXES = {"layer": ("layer", "part"), "head": ("layer", "head"), "neuron": ("layer", "neuron"), "source": ("layer", "head", "position")}
# Kinds of components in the order of the forward pass.
ORDER = (
    "embed", "pos_embed", "type_embed", "embed.ln.b", "attn", "heads", "attn.b_O", "ln1_post.b", "ln1.b", "mlp", "neurons", "shared",
    "mlp.b_out", "ln2_post.b", "ln2.b", "unembed.b_dense", "ln_final.b", "unembed.b_U",
)  # fmt: skip
LEAST_SLOPE = 1e-6  # below it a metric's derivative to every logit is rounding


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "per_example", "others", "total", "remainder"],
    meta_fields=["axes", "how", "tokens"],
)
@dataclasses.dataclass(frozen=True)
class DirectAttribution:
    """Parts of a metric, one for each component. All of `per_example`, all `others` and the `remainder` sum to `total`.

    Attributes:
        values: what was asked for, on `axes`, mean over the prompts that have the component.
        per_example: [B ...] the same for each prompt; NaN where a prompt lacks the position, or a layer the component.
        others: {name: [B] or [B L]}, every other component: embeddings, biases by their parameter's name, and "attn", "mlp" or
            "shared" (the shared expert) where these are not decomposed further.
        total: [B], the metric of the run, read before a final soft cap.
        remainder: [B], total minus the sum of all components: rounding, where the metric is linear in logits and the run's own
            denominators are held.
        axes: (name, labels) of each axis of `values`.
        how: how it was made.
        tokens: token strings of the first prompt, for pictures; empty without a tokenizer.
    """

    values: Any
    per_example: Any
    others: dict[str, Any]
    total: Any
    remainder: Any
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    how: tuple[tuple[str, str], ...] = ()
    tokens: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(labels)} {name}" for name, labels in self.axes)
        return (
            f"DirectAttribution({shape}; total {_mean(self.total):.4g}, remainder {_mean(self.remainder):.2g}; "
            f"{', '.join(f'{key}={value}' for key, value in self.how)})"
        )

    def sums(self) -> dict[str, np.ndarray]:
        """[B] for each kind of component, summed over layers, in the order of the forward pass; then the remainder, then the total."""
        batch = len(self.total)
        if self.axes[-1][0] == "part":
            asked = {str(part): np.asarray(self.per_example)[..., i] for i, part in enumerate(self.axes[-1][1])}
        else:
            asked = {"neurons" if self.axes[-1][0] == "neuron" else "heads": np.asarray(self.per_example)}
        every = asked | {name: np.asarray(value) for name, value in self.others.items()}
        out = {name: np.nansum(every[name].reshape(batch, -1), axis=1) for name in ORDER if name in every}
        return out | {"remainder": np.asarray(self.remainder), "total": np.asarray(self.total)}

    def components(self) -> tuple[list[str], np.ndarray]:
        """Names of all components ("23.3", "29.mlp", "embed" ...), and what each adds [B C]; NaN where a prompt lacks it."""
        names = [".".join(map(str, point)) for point in np.ndindex(*(len(labels) for _, labels in self.axes))]
        names = [".".join(str(labels[int(i)]) for (_, labels), i in zip(self.axes, name.split("."), strict=True)) for name in names]
        values = [np.asarray(self.per_example).reshape(len(self.total), -1)]
        for name in (name for name in ORDER if name in self.others):
            value = np.asarray(self.others[name])
            names += [name] if value.ndim == 1 else [f"{layer}.{name}" for layer in range(value.shape[1])]
            values.append(value.reshape(len(value), -1))
        every = np.concatenate(values, axis=1)
        there = np.flatnonzero(~np.isnan(every).all(axis=0))
        return [names[i] for i in there], every[:, there]

    def top(self, k: int = 10, prompt: int | None = None) -> Any:
        """The k components with the largest parts of either sign, as a table.

        Args:
            k: how many.
            prompt: of one prompt; None takes means over all.
        """
        from jaxinterp.views import table

        names, every = self.components()
        parts = mean_of(every) if prompt is None else np.nan_to_num(every[prompt])
        best = np.argsort(-np.abs(parts), kind="stable")[:k]
        total = _mean(self.total) if prompt is None else float(self.total[prompt])
        columns = {"component": ("text", [names[i] for i in best]), "part": ("signed", parts[best])}
        return table("Largest parts", columns, normalisation=f"part of a metric of {total:.4g}")

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each component: its name and its part, mean over the prompts that have it."""
        try:
            import pandas
        except ImportError:
            raise InputError("to_dataframe() needs pandas: pip install pandas.") from None
        names, every = self.components()
        return pandas.DataFrame({"component": names, "part": mean_of(every)})

    def view(self, title: str = "Direct logit attribution") -> Any:
        """The parts as pictures: a heat-map of layers by heads (or sublayers), of the strongest heads by position, or a table of
        neurons; beside it the sums of each kind of component, the remainder and the total.
        """
        from jaxinterp.views import Section, heatmap, report, table

        values, axes, unit = np.asarray(self.values), self.axes, f"part of a metric of {_mean(self.total):.4g}"
        names = tuple(name for name, _ in axes)
        if names[-1] == "neuron":
            main = self.top(20)
        elif names[-1] == "position":
            strength = np.nansum(np.abs(values), axis=-1).reshape(-1)
            best = np.argsort(-strength, kind="stable")[:12]
            rows = [f"{axes[0][1][i // len(axes[1][1])]}.{axes[1][1][i % len(axes[1][1])]}" for i in best]
            alone = len(self.total) == 1
            shown = [f"{p} {self.tokens[p]}" if alone and p < len(self.tokens) else str(p) for p in axes[2][1]]
            grid = values.reshape(-1, values.shape[-1])[best]
            main = heatmap("The strongest heads", grid, ("head", "position"), labels={"head": rows, "position": shown}, normalisation=unit)
        else:
            main = heatmap("Parts", values, (names[0], names[1]), labels={name: list(map(str, labels)) for name, labels in axes},
                           normalisation=unit)  # fmt: skip
        sums = {name: _mean(value) for name, value in self.sums().items()}
        whole = table("The sum", {"component": ("text", list(sums)), "part": ("signed", list(sums.values()))}, normalisation=unit)
        return report(title, [Section(f"Parts of {dict(self.how)['metric']}", "", (main, whole))], provenance=dict(self.how))

    def show(self) -> None:
        """Prints the pictures in the terminal."""
        self.view().show()

    def save(self, path: str | Path) -> Path:
        """Writes the arrays (.safetensors, with axes and provenance in its header), or the picture (.html, .png, .json, .txt)."""
        from safetensors.numpy import save_file

        if Path(path).suffix != ".safetensors":
            return self.view().save(path)
        arrays = {name: getattr(self, name) for name in ("values", "per_example", "total", "remainder")}
        arrays |= {f"others.{name}": value for name, value in self.others.items()}
        axes = json.dumps([[name, list(labels)] for name, labels in self.axes])
        made = {"axes": axes, "tokens": json.dumps(self.tokens), **dict(self.how)}
        save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, str(path), metadata=made)
        return Path(path)


def direct_logit_attribution(
    lm: LanguageModel,
    trace: Trace | Prompts,
    metric: Any,
    by: Literal["layer", "head", "neuron", "source"] = "layer",
    *,
    scale: Any = None,
    edits: Sequence[Edit] | Edit = (),
    bos: str | bool = "model",
    precision: str | None = "highest",
) -> DirectAttribution:
    """Decomposes a metric of logits into what each component writes, with the denominators of norms held.

    Args:
        lm: the model.
        trace: a run that holds the sites that are needed at every position (an error names them), or prompts: these are
            run, and only what is read is kept.
        metric: of logits, such as `ji.metrics.logit_difference(" Mary", " John")`. Any other than a linear one is replaced
            by its tangent at the run, and the remainder says how far off the tangent's sum is.
        by: "layer": what attention, MLPs (of experts: all routed ones, and the shared one) write, [L part]; "head" [L H]; "neuron"
            [L M], with experts [L X M] (a dense layer then has expert 0 alone); "source": what each head moves from each
            position [L H K], its weight times the value there. Whatever is not decomposed is among `others`.
        scale: whose denominators are held in the norms that the residual stream itself goes through (the final one, and all of
            a post-norm stack): None, the run's own; another Trace with as many prompts, such as the clean run's; or an array
            [B] or [B n] of the final norm's. With another's, the remainder is what the change of scale does.
            Norms of a sublayer's own output keep their own.
        edits: act in the run, where prompts are given.
        bos: as for `run`.
        precision: of matrix products.

    Returns:
        A DirectAttribution: `.values` on named axes, `.per_example` [B ...], `.others`, `.total` and `.remainder` [B].

    Raises:
        InputError: sites that the trace lacks, all named; a metric that reads no logits, or does not change with them here (a
            rank; a KL divergence from this very run; a saturated probability).

    Example:
        >>> parts = ji.direct_logit_attribution(lm, prompt, ji.metrics.logit_difference(" Mary", " John"), by="head")
        >>> parts.values[23, 3], parts.total[0], parts.remainder[0]
    """
    config = lm.config
    if by not in AXES:
        raise InputError(f"direct_logit_attribution(): by is {by!r}; expected one of {', '.join(map(repr, AXES))}.")
    if config.unembed == "none":
        raise InputError("direct_logit_attribution(): this model has no unembedding, so there are no logits to attribute.")
    if by == "neuron":
        check_site("mlp_post", config)
    check_stacked(lm.params, "direct_logit_attribution()")
    needed = needed_sites(config, by)
    if isinstance(trace, Trace):
        if edits:
            raise InputError("direct_logit_attribution(): edits act where prompts are run; this trace has been run already.")
        tokens = trace.padded_tokens
        bound = _bound(metric, lm, tokens)
        ran = _complete(trace, needed, config, "the trace")
    else:
        given = lm.to_tokens(trace, bos=bos)
        tokens = given.padded(bucket(given.ids.shape[1], config.n_ctx))
        bound = _bound(metric, lm, tokens)
        ran = _read_only(lm, tokens, bound, needed, edits, precision)
    held = _scale(scale, bound, tokens, config)
    asked, others, total, slope = attribute(lm.params, bound, ran, held, config=config, by=by, precision=precision)
    if float(slope) < LEAST_SLOPE:
        raise InputError(
            f"direct_logit_attribution(): this metric's derivative to every logit is at most {float(slope):.1g} in this run, so it has no "
            "direction to project on (a rank, a KL divergence from this very run, or a saturated probability)."
        )
    size = int(np.asarray(tokens.lengths).max())
    per_example = np.asarray(asked)[..., :size] if by == "source" else np.asarray(asked)
    kept, total = {name: np.asarray(value) for name, value in others.items()}, np.asarray(total)
    remainder = total - sum(np.nansum(value.reshape(len(total), -1), axis=1) for value in (per_example, *kept.values()))
    how = (
        ("metric", _metric_name(bound)), ("by", by), ("logits", "before the soft cap" if config.final_soft_cap else "final"),
        ("scale", "own" if scale is None else "another run's" if isinstance(scale, Trace) else "given"), ("bos", tokens.bos),
    )  # fmt: skip
    shown = strings_of(lm, tokens)
    return DirectAttribution(mean_of(per_example), per_example, kept, total, remainder, _axes(by, per_example, config), how, shown)


def _bound(metric: Any, lm: LanguageModel, tokens: Tokens) -> Any:
    if metric.sites:
        raise InputError(f"direct_logit_attribution(): this metric reads {', '.join(metric.sites)}; expected one that reads logits.")
    return metric if metric.bound else metric.bind(lm, tokens)


def _metric_name(metric: Any) -> str:
    name = str(getattr(metric, "reduce", type(metric).__name__))
    return "logit_difference" if name == "difference" else name


def _axes(by: str, per_example: np.ndarray, config: TransformerConfig) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    names = AXES[by] if by != "neuron" or config.experts is None else ("layer", "expert", "neuron")
    axes = tuple((name, tuple(range(n))) for name, n in zip(names, per_example.shape[1:], strict=True))
    if by != "layer":
        return axes
    present = ("attn", *(("mlp",) if config.has_mlp else ()), *(("shared",) if config.experts and config.experts.d_shared else ()))
    return (axes[0], ("part", tuple(part for part in SUBLAYERS if part in present)))


def _read_only(lm: LanguageModel, tokens: Tokens, metric: Any, needed: Sequence[str], edits: Any, precision: str | None) -> Trace:
    """A run that keeps what is needed at the positions that the metric reads; values of heads and the keys at all."""
    columns = np.asarray(reads(metric, tokens, lm.config)[0])
    position = np.take_along_axis(np.asarray(tokens.positions), columns, axis=1)
    sites = {}
    for name in needed:
        place, chosen = site_of(name, lm.config), {}
        if name == "pattern":
            chosen = {"query": position}
        elif name != "v":
            chosen = {"position": position}
        sites[name] = at(layer=lm.config.n_layers - 1 if name == "resid_post" and place.per_layer else None, **chosen)
    trace = run(lm, tokens, sites, edits, stop=lm.config.n_layers, precision=precision)
    return Trace(None, trace.padded, trace.padded_tokens.arrays_only(), trace.axes)


def _complete(trace: Trace, needed: Sequence[str], config: TransformerConfig, whose: str) -> Trace:
    """The sites of a trace that are needed, without the rest.

    Raises:
        InputError: sites that were not captured, or not at every position and layer, all named.
    """
    lacking = [name for name in needed if not _holds(trace, name, config)]
    if lacking:
        raise InputError(
            f"direct_logit_attribution(): {whose} lacks {', '.join(lacking)} at every position and layer (of resid_post the last "
            f"layer will do). Capture sites=({', '.join(map(repr, needed))}), or pass prompts instead of a trace."
        )
    padded = {name: trace.padded[name] for name in needed}
    return Trace(None, padded, trace.padded_tokens.arrays_only(), tuple(pair for pair in trace.axes if pair[0] in needed))


def _holds(trace: Trace, name: str, config: TransformerConfig) -> bool:
    if name not in trace:
        return False
    axes, site = dict(trace.axes)[name], site_of(name, config)
    if name == "resid_post":
        return axes in (site.axes, site.inner_axes) and trace.layers_of(name)[-1:] == (config.n_layers - 1,)
    return axes == site.axes and (not site.per_layer or trace.layers_of(name) == site.layers(config))


def _scale(scale: Any, metric: Any, tokens: Tokens, config: TransformerConfig) -> Any:
    """Denominators as the program takes them."""
    if scale is None:
        return None
    batch = tokens.ids.shape[0]
    if isinstance(scale, Trace):
        if scale.padded_tokens.ids.shape[0] != batch:
            raise InputError(f"direct_logit_attribution(): scale is a run of {scale.padded_tokens.ids.shape[0]} prompts; expected {batch}.")
        stream = ("ln1_scale", "ln2_scale") if config.norm_position == "post" else ()
        wanted = tuple(name for name in (*stream, "resid_post") if name == "resid_post" or name in needed_sites(config, "layer"))
        return _complete(scale, wanted, config, "the trace given as scale")
    given = jnp.asarray(scale)
    count = reads(metric, tokens, config)[0].shape[1]
    shapes = ((batch,), (batch, count), (batch, count, 1))
    if not config.final_norm or given.shape not in shapes or (given.ndim == 1 and count > 1):
        raise InputError(
            f"direct_logit_attribution(): scale has shape {list(given.shape)}; expected denominators of the final norm, one for each "
            f"prompt and position that the metric reads: [{batch} {count}]."
        )
    return given.reshape(batch, count, 1)


def _mean(values: Any) -> float:
    return float(np.mean(np.asarray(values)))
