"""gradients: the derivative of a metric at any set of sites, of all layers, in one backward pass.

    g[site] = d (sum over prompts of metric) / d site

Prompts do not see one another, so row b of a gradient is the derivative of prompt b's own metric. Cost: one forward and one
backward pass, whatever the number of sites; weights are not differentiated unless named. A gradient is local: it says what
an infinitesimal change does, and where softmax, gates or a norm saturate it says little about removing a component; the
methods of `methods.attribution` say how far to trust it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxinterp.errors import InputError
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import kept_axes
from jaxinterp.model.sites import site_of
from jaxinterp.model.trace import Trace
from jaxinterp.model.transformer import Sites, canonical_sites, check_run
from jaxinterp.runs.objective import check_sites, gradient_program, named_parameters
from jaxinterp.runs.plan import check_gradients_fit
from jaxinterp.runs.program import bucket, check_dtype
from jaxinterp.runs.run import labelled, pad_columns, pad_edit


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "slopes", "trace", "parameters"], meta_fields=["how"])
@dataclasses.dataclass(frozen=True)
class Gradients:
    """A metric and its derivatives.

    Attributes:
        values: [B], the metric of each prompt.
        slopes: the derivatives, as a trace: `.slopes.at("z", position=-1)` selects as a trace of values does.
        trace: the values of the same sites in the same run, after edits; it has logits only where a site asks for them.
        parameters: {name: derivative of the sum over prompts}, of the parameters that were named.
        how: how it was made.
    """

    values: Any
    slopes: Trace
    trace: Trace
    parameters: dict[str, Any]
    how: tuple[tuple[str, str], ...] = ()

    @property
    def gradients(self) -> Mapping[str, Any]:
        """{site: the derivative of the sum over prompts}, on the site's axes."""
        return self.slopes.activations

    def __getitem__(self, site: str) -> Any:
        """The derivative at a site, on the axes that its table entry names."""
        return self.slopes[site]

    def at(self, site: str, **selection: Any) -> Any:
        """Part of a site's derivative, selected as `Trace.at` does: `at("resid_pre", position=-1)` is [L B D]."""
        return self.slopes.at(site, **selection)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} [{' '.join(axes)}]" for site, axes in self.slopes.axes) or "none"
        named = f"; parameters: {', '.join(self.parameters)}" if self.parameters else ""
        return f"Gradients({len(self.values)} prompts; sites: {sites}{named})"

    def save(self, path: str | Path) -> Path:
        """Writes "values", "gradient.SITE", "value.SITE" and "parameter.NAME" as safetensors, with how it was made."""
        from safetensors.numpy import save_file

        named = {"values": self.values} | {f"gradient.{site}": value for site, value in self.gradients.items()}
        named |= {f"value.{site}": value for site, value in self.trace.activations.items()}
        named |= {f"parameter.{name}": value for name, value in self.parameters.items()}
        save_file({name: np.ascontiguousarray(np.asarray(value)) for name, value in named.items()}, str(path), metadata=dict(self.how))
        return Path(path)


def gradients(
    lm: LanguageModel,
    prompts: Prompts,
    metric: Any,
    sites: Sites,
    edits: Sequence[Edit] | Edit = (),
    rules: Rules | None = None,
    *,
    parameters: Sequence[str] = (),
    inputs: Float[Array | np.ndarray, "B P D"] | None = None,
    bos: str | bool = "model",
    dtype: Any = None,
    capture_dtype: Any = None,
    precision: str | None = "highest",
    remat: bool = False,
) -> Gradients:
    """The derivative of a metric at sites, of every layer and prompt, in one backward pass; compiled once for a bucket of lengths.

    Inside jit, vmap or grad use `jax.grad` of `ji.forward` itself; forward mode, `jax.linearize` and second derivatives work there.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is differentiated, such as `ji.metrics.logit_difference(" Mary", " John")`.
        sites: where: names, "all", or {name: ji.at(...)} to keep a part. The derivative is of the value after `edits`.
        edits: act before the derivative is taken, and it passes through them.
        rules: what the backward pass holds constant; no effect on values.
        parameters: names of parameters to differentiate too: "embed.W_E", "blocks.attn.W_Q".
        inputs: token embeddings [B P D] instead of those of the ids.
        bos: as for `run`.
        dtype: as for `run`.
        capture_dtype: type of captured values and of derivatives.
        precision: as for `run`.
        remat: keep only the residual stream between blocks for the way back and run each block once more: a third more time
            for far less memory; see `ji.plan(..., metric=metric, remat=True)`.

    Returns:
        Gradients: `.values` [B], `.gradients[site]`, `.trace`.

    Raises:
        InputError: see `ji.run`; also a metric without a gradient (rank; KL divergence to this very run), a site of whole
            numbers, or a parameter that does not exist.
        MemoryPlanError: what was asked for cannot fit in memory; the message says what would.

    Example:
        >>> difference = ji.metrics.logit_difference(" Paris", " Rome")
        >>> found = ji.gradients(lm, "The capital of France is", difference, ["resid_pre"])
        >>> found["resid_pre"].shape
        (30, 1, 5, 576)
    """
    tokens = lm.to_tokens(prompts, bos=bos)
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    rules, dtype, capture_dtype = rules or Rules(), check_dtype(dtype), check_dtype(capture_dtype)
    requests = canonical_sites(sites, lm.config)
    check_run(lm.config, tokens, requests, edits, rules, None, None, inputs)
    check_sites(requests)
    chosen = _chosen(parameters, lm)
    metric = metric if metric.bound else metric.bind(lm, tokens)
    metric.check_slope(None)
    size = tokens.ids.shape[1]
    padded = bucket(size, lm.config.n_ctx) if all(edit.broadcasts for edit in edits) else size
    batch = tokens.padded(padded).arrays_only()
    check_gradients_fit(lm, batch, metric, requests, rules, dtype, capture_dtype, remat)
    values, trace, slopes, by_weight = gradient_program(
        lm.params, batch, metric, requests, tuple(pad_edit(edit, size, padded, lm.config) for edit in edits), rules,
        None if inputs is None else pad_columns(inputs, padded),
        config=lm.config, chosen=chosen, dtype=dtype, capture_dtype=capture_dtype, precision=precision, remat=remat,
    )  # fmt: skip
    metric.check_slope(np.asarray(values))
    shown = labelled(batch, tokens)
    axes = tuple((site, kept_axes(site_of(site, lm.config), request)) for site, request in requests.items())
    held = tuple((site, requests[site].layers or site_of(site, lm.config).layers(lm.config)) for site, letters in axes if "L" in letters)
    found = Trace(None, {site: slopes[site] for site, _ in axes}, shown, axes, held, size, lm.tokenizer)
    run = Trace(trace.padded.get("logits"), trace.padded, shown, trace.axes, trace.layers, size, lm.tokenizer)
    how = (("bos", str(tokens.bos)), ("precision", str(precision)), ("rules", repr(rules)), ("edits", str(len(edits))))
    return Gradients(values, found, run, by_weight, how)


def _chosen(names: Sequence[str], lm: LanguageModel) -> tuple[str, ...]:
    """Parameter names, checked."""
    names = (names,) if isinstance(names, str) else tuple(names)
    known = named_parameters(lm.params)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"There is no parameter {unknown[0]!r}. Parameters of this model: {', '.join(known)}.")
    return tuple(sorted(set(names)))
