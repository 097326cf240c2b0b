"""Edits at every site of a model at once, and the check that each of them is live."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from jaxinterp.model.sites import SITES, site_names, site_of
from tests.programs import traces

OFF = -1


def edits_everywhere(config: ji.TransformerConfig, tokens: ji.Tokens, since: int) -> dict[str, ji.edits.Edit]:
    """One edit at every site: random values at four positions of the last layer that has it."""
    out = {}
    for site in site_names(config):
        if SITES[site].read_only or site == "pooled":
            continue
        place = site_of(site, config)
        layer = place.layers(config)[-1] if place.layers(config) else 0
        shape = place.shape(config, *tokens.ids.shape)[place.per_layer :]
        value = np.random.default_rng(5).normal(size=shape)
        if site.endswith("_scale"):
            value = np.exp(value)
        if site in ("sink", "expert_weights"):
            value = 1 / (1 + np.exp(-value))
        selection = {"query" if "Q" in SITES[site].axes else "position": [since, since + 1, since + 2, -1]}
        if SITES[site].per_layer:
            out[site] = ji.edits.replace(site, value, layer=layer, **selection)
        else:
            out[site] = ji.edits.replace(site, value, where=np.ones(tokens.ids.shape, bool), **selection)
    return out


def switched_off(edit: ji.edits.Edit, layer: int = OFF) -> ji.edits.Edit:
    """The same edit selecting nothing: a layer that does not exist, or an empty mask outside the blocks."""
    if SITES[edit.site].per_layer:
        return replaced(edit, select=edit.select | {"layer": np.asarray(layer)})
    return replaced(edit, where=np.zeros_like(edit.where))


def replaced(edit: ji.edits.Edit, **changes: Any) -> ji.edits.Edit:
    fields = {name: getattr(edit, name) for name in edit.__dataclass_fields__}
    return ji.edits.Edit(**(fields | changes))


def check_live(config: ji.TransformerConfig, weights: Any, tokens: ji.Tokens, since: int, options: dict[str, Any] | None = None) -> None:
    """One program holds one edit at every site. Each alone changes the result; switched off, all together change no bit.

    Args:
        config: the architecture.
        weights: its parameters.
        tokens: prompts of one length.
        since: the position of the first edit: in causal models nothing before it may change.
        options: compiler options.
    """
    edits = edits_everywhere(config, tokens, since)
    final = "logits" if config.unembed != "none" else "ln_final" if config.final_norm else "resid_post"

    def last(weights: Any, edits: Any) -> jax.Array:
        value = ji.forward(weights, tokens, config, edits=edits, sites=(final,))[final]
        return value[-1] if SITES[final].per_layer else value

    run = jax.jit(last, compiler_options=options)
    off = run(weights, [switched_off(edit) for edit in edits.values()])
    np.testing.assert_array_equal(off, run(weights, [switched_off(edit, config.n_layers + 3) for edit in edits.values()]))
    plain = jax.jit(lambda weights: last(weights, ()), compiler_options=options)(weights)
    np.testing.assert_allclose(off, plain, rtol=1e-3, atol=1e-5 * np.abs(off).max())
    for site in edits:
        one = run(weights, [edit if edit.site == site else switched_off(edit) for edit in edits.values()])
        assert jnp.isfinite(one).all(), site
        assert np.abs(np.asarray(one - off)[:, since:]).max() > 1e-3, f"{site} is not live"
        if config.causal:
            np.testing.assert_array_equal(one[:, :since], off[:, :since], err_msg=f"{site}: an edit reached before its position")
    assert traces(run) == 1
