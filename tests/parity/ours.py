"""Our side: the folder loaded by jaxinterp, every site of a run, and the gradient of the metric at each of them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import site_names, site_of
from jaxinterp.model.tokens import Tokens
from tests.parity.inputs import Batch

Arrays = dict[str, np.ndarray]
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def load_ours(folder: Path, dtype: str) -> LanguageModel:
    return ji.load(str(folder), dtype=dtype, local_files_only=True)


def values(lm: LanguageModel, batch: Batch, *, quick: bool = False) -> Arrays:
    """Every site of a plain run, the opt-in ones too; `quick` compiles in half the time, for code that runs once."""

    @functools.partial(jax.jit, compiler_options=QUICK if quick else None)
    def run(params, tokens):
        return ji.forward(params, tokens, lm.config, sites=site_names(lm.config)).activations

    return _numpy(run(lm.params, tokens_of(lm, batch)))


def tokens_of(lm: LanguageModel, batch: Batch) -> Tokens:
    """The batch, with token types where the model has them."""
    tokens, types = Tokens.from_ids(batch.ids, batch.mask), lm.config.n_token_types
    return dataclasses.replace(tokens, types=batch.types(types).astype(np.int32)) if types else tokens


def metric(trace: ji.Trace, weights: jax.Array) -> jax.Array:
    """The metric of `Batch.weights`."""
    if trace.logits is not None:
        return (trace.logits * weights).sum()
    last = trace["resid_post"][-1]
    value = (last * weights[..., : last.shape[-1]]).sum()
    return value + (trace["pooled"] * weights.sum(1)[:, : last.shape[-1]]).sum() if "pooled" in trace else value


def values_and_gradients(lm: LanguageModel, batch: Batch, *, quick: bool = False) -> tuple[Arrays, Arrays]:
    """Every site of a run in which nothing is added at every site, and d metric / d site with respect to what is added."""
    dtype = jax.tree.leaves(lm.params)[0].dtype
    sites = [site_of(name, lm.config) for name in site_names(lm.config)]
    nothing = {site.name: jnp.zeros(site.shape(lm.config, *batch.ids.shape), dtype) for site in sites if not site.read_only}

    @functools.partial(jax.jit, compiler_options=QUICK if quick else None)
    @functools.partial(jax.grad, has_aux=True)
    def run(added, params, tokens, weights):
        edits = [ji.edits.add(site, delta) for site, delta in added.items()]
        trace = ji.forward(params, tokens, lm.config, sites=site_names(lm.config), edits=edits)
        return metric(trace, weights), trace.activations

    tokens, weights = tokens_of(lm, batch), jnp.asarray(batch.weights, dtype)
    slopes, seen = run(nothing, lm.params, tokens, weights)
    return _numpy(seen), _numpy(slopes)


def _numpy(arrays: dict[str, jax.Array]) -> Arrays:
    return {site: np.asarray(array) for site, array in arrays.items()}
