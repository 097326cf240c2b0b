"""verify: the identities of a model, and every site that transformers has too, against it."""

import importlib.metadata
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.checkpoints.families import family_for
from jaxinterp.checkpoints.load import load, locate, weight_dtype
from jaxinterp.checkpoints.save import save
from jaxinterp.errors import CheckpointError
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import SITES
from jaxinterp.runs.verify import reference as torch_reference
from jaxinterp.runs.verify.compare import BOUNDS, GRADIENT_BOUNDS, Values, errors, ours
from jaxinterp.runs.verify.identities import identities
from jaxinterp.runs.verify.places import UNSHARED, parameter_of
from jaxinterp.runs.verify.verdict import Check, SiteError, Verdict

Source = str | os.PathLike[str] | LanguageModel

POSITIONS = 16
"""Tokens of each of two prompts that both sides read."""


def verify(model: Source, *, reference: Source | None = None, dtype: str = "float32", torch: bool | None = None, **options: Any) -> Verdict:
    """Verifies a model: identities that need no reference always, and a comparison site by site where there is one.

    The reference is transformers, in float32 (float64 with dtype="float64"), on the files of `reference`, or else on the
    model's own: these find what we read or compute otherwise than transformers does. That the files themselves hold the
    right numbers is seen only against another checkpoint (`reference`), or in the loss on a known sentence.

    Args:
        model: a registry name, hub id, folder, .gguf file, or a LanguageModel (compared with what transformers makes of it
            once it is saved).
        reference: another source that should be the same model; without torch it is run by this library itself.
        dtype: of our weights and computation; bounds go with it.
        torch: False leaves torch out, True insists on it, None uses it where it is installed.
        **options: of `ji.load`: revision, cache_dir, token, local_files_only, accept_terms.

    Returns:
        A Verdict: `.ok`, `.first` (the first wrong thing in the order of the forward pass), `.checks`, `.sites`, `.view()`.

    Raises:
        CheckpointError: a checkpoint cannot be loaded, or torch=True and torch or transformers is missing.
    """
    if torch and not torch_reference.available():
        raise CheckpointError("verify(torch=True) needs torch and transformers: pip install 'jaxinterp[parity]'.")
    use_torch = torch_reference.available() if torch is None else torch
    lm, name = _loaded(model, dtype, options), str(model) if isinstance(model, LanguageModel) else os.fspath(model)
    checks = tuple(identities(lm))
    with tempfile.TemporaryDirectory() as scratch:
        sites, against = _compare(lm, model if reference is None else reference, reference is not None, use_torch, dtype, options, scratch)
    about = {"dtype": dtype, "device": jax.devices()[0].device_kind} | _versions(use_torch)
    return Verdict(name, checks, sites, against, _first(lm, checks, sites), about)


def _loaded(model: Source, dtype: str, options: dict[str, Any]) -> LanguageModel:
    if not isinstance(model, LanguageModel):
        return load(model, dtype=dtype, **options)
    kind = weight_dtype(dtype)
    return model.replace(params=jax.tree.map(lambda w: jnp.asarray(w, kind), model.params))


def _compare(
    lm: LanguageModel, other: Source, given: bool, use_torch: bool, dtype: str, options: dict[str, Any], scratch: str
) -> tuple[tuple[SiteError, ...], str]:
    """Errors at every site that both sides have, and what the other side was, or why there is none."""
    if not use_torch and not given:
        return (), "Not compared: torch or transformers is not installed (pip install 'jaxinterp[parity]')."
    path = _files(other, dtype, options, scratch) if use_torch else None
    theirs = None if path is None else torch_reference.load(path, dtype)
    if theirs is not None and torch_reference.family_of(theirs) is None:
        theirs = None
    if theirs is None and not given:
        return (), "Not compared: no class of transformers describes this model."
    ids = _ids(lm, None if theirs is None else torch_reference.pad_id(theirs))
    width = lm.config.d_model if lm.config.unembed == "none" else lm.config.d_vocab
    weights = np.random.default_rng(3).standard_normal((*ids.shape, width))
    if theirs is None:
        twin = _loaded(other, dtype, options)
        if twin.config != lm.config:
            raise CheckpointError("The reference is another architecture: its config differs from the model's.")
        sites = {*UNSHARED, "embed", "pos_embed", "type_embed", "attn_in", "pattern", "attn_out", "mlp_in", "mlp_out", "logits", "pooled"}
        there = {site for site in sites if _has(lm, site)}
        exact, slopes = ours(twin, ids, weights, there, there & UNSHARED)
        against = "Compared with the reference as this library runs it (torch or transformers is not installed, or not used)."
    else:
        exact, slopes, strange = torch_reference.run(theirs, lm.config, ids, weights)
        count = len({site for site, _ in exact})
        against = f"{type(theirs).__name__} of transformers, {len(ids)} prompts of {ids.shape[1]} tokens; {count} sites."
        against += f" Not compared, because it holds them in another form: {', '.join(strange)}." if strange else ""
    mine, my_slopes = ours(lm, ids, weights, {site for site, _ in exact}, {site for site, _ in slopes})
    return _errors(lm, mine, exact, my_slopes, slopes), against


def _errors(lm: LanguageModel, mine: Values, exact: Values, my_slopes: Values, slopes: Values) -> tuple[SiteError, ...]:
    kind = jnp.dtype(jax.tree.leaves(lm.params)[0].dtype).name
    values = errors(mine, exact, BOUNDS[kind])
    return (*values, *errors(my_slopes, slopes, GRADIENT_BOUNDS[kind], gradient=True))


def _has(lm: LanguageModel, site: str) -> bool:
    return not SITES[site].absent(lm.config) and (lm.config.experts is None or site not in ("mlp_pre", "mlp_up", "mlp_post"))


def _files(other: Source, dtype: str, options: dict[str, Any], scratch: str) -> Path | None:
    """Files that transformers may read: the source's own, or the model saved, if one of its classes describes it."""
    if not isinstance(other, LanguageModel):
        path = locate(other, **options)
        return path if path.suffix == ".gguf" or (path / "config.json").exists() else None
    if family_for(other.config, weight_dtype(dtype)) is None:
        return None
    return save(other.replace(tokenizer=None), Path(scratch) / "model")


def _ids(lm: LanguageModel, pad: int | None) -> np.ndarray:
    """Random ids [2 P] without the padding id, which RoBERTa would take for padding."""
    ids = np.random.default_rng(11).integers(0, lm.config.d_vocab, (2, min(POSITIONS, lm.config.n_ctx)))
    return np.where(ids == pad, (ids + 1) % lm.config.d_vocab, ids).astype(np.int32)


def _first(lm: LanguageModel, checks: tuple[Check, ...], sites: tuple[SiteError, ...]) -> str:
    """The first wrong thing in the order of the forward pass: a site that differs, else an identity, else a gradient."""
    wrong = [site for site in sites if not site.ok]
    values = [site for site in wrong if site.kind == "value"]
    if values:
        first = min(values, key=_when)
        parameter = parameter_of(first.site, lm.config)
        place = "" if first.first_layer is None else f" of layer {first.first_layer}"
        made = f", which {parameter} makes" if parameter else ""
        return f"{first.site}{place}{made}: a token is off by up to {first.error:.1e} (bound {first.bound:.0e})."
    failed = next((check for check in checks if not check.ok), None)
    if failed is not None:
        measured = "" if failed.measured is None else f" ({failed.measured:.2g})"
        return f"{failed.name}{measured}: {failed.note}."
    if wrong:
        first = max(wrong, key=lambda site: site.error)
        return f"the gradient at {first.site}, off by up to {first.error:.1e} (bound {first.bound:.0e})."
    return ""


def _when(site: SiteError) -> tuple[int, int, int]:
    """Where a wrong site stands in the forward pass: before the blocks, in a layer, behind them."""
    order = list(SITES).index(site.site)
    if site.first_layer is not None:
        return 1, site.first_layer, order
    return (0 if order < list(SITES).index("resid_pre") else 2), 0, order


def _versions(use_torch: bool) -> dict[str, str]:
    names = ("jax", "torch", "transformers") if use_torch else ("jax",)
    return {name: importlib.metadata.version(name) for name in names}
