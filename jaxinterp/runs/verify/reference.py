"""The reference: a model of transformers on the same files, its intermediates read with hooks, and gradients at them.

The only file of the package that imports torch, and only when it is called.
"""

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import FAMILIES
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.layout import sizes_of
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.sites import SITES, site_of
from jaxinterp.runs.verify.places import UNSHARED, Place, places

Values = dict[tuple[str, int | None], np.ndarray]


def available() -> bool:
    """Whether torch and transformers are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def load(path: Path, dtype: str) -> Any:
    """The model that transformers makes of a folder or a .gguf file, on CPU; pickles and code of the folder are never run."""
    import torch
    import transformers

    kind = torch.float64 if dtype == "float64" else torch.float32
    common: dict[str, Any] = {"dtype": kind, "attn_implementation": "eager", "experts_implementation": "eager", "local_files_only": True}
    with _quiet(transformers):
        if path.suffix == ".gguf":
            made = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **common)
        else:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            named = getattr(transformers, (config.architectures or [""])[0], None) or transformers.AutoModelForCausalLM
            made = named.from_pretrained(path, use_safetensors=True, **common)
    return made.eval().to(kind)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    before, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars of GGUF files cannot be switched off
            yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()


def family_of(model: Any) -> Family | None:
    """Our family of a model of transformers."""
    return FAMILIES.get(model.config.model_type)


def pad_id(model: Any) -> int | None:
    """The id that RoBERTa's position ids take for padding."""
    return getattr(model.config, "pad_token_id", None)


def run(model: Any, config: TransformerConfig, ids: np.ndarray, weights: np.ndarray) -> tuple[Values, Values, list[str]]:
    """Sites of a run and the gradient of sum(weights * outputs) at some of them, by (site, layer).

    Args:
        model: of `load`.
        config: ours.
        ids: [B P], without padding.
        weights: [B P V], or [B P D] for a model without an unembedding.

    Returns:
        Values, gradients, and the sites whose tensors have another form than the key map says, which are left out.
    """
    import torch

    family = family_of(model)
    assert family is not None
    kept: list[tuple[Place, Any, Any]] = []
    with _hooks(model, places(config, family), kept), torch.enable_grad():
        out = model(input_ids=torch.tensor(ids.astype(np.int64)), use_cache=False, output_attentions=True)
        final = out.logits if "logits" in out else out.last_hidden_state
        (final * torch.tensor(weights, dtype=final.dtype)).sum().backward()
    sizes = sizes_of(config)
    values: Values = {}
    gradients: Values = {}
    strange: dict[str, None] = {}
    for place, tensor, then in kept:
        shape = site_of(place.site, config).shape(config, *ids.shape)[SITES[place.site].per_layer :]
        try:
            value = np.broadcast_to(place.seen(_array(then, ids), sizes), shape)
        except ValueError:
            strange[place.site] = None
            continue
        values[place.site, place.layer] = value
        if place.site in UNSHARED and tensor.grad is not None:
            gradients[place.site, place.layer] = place.seen(_array(tensor.grad, ids), sizes)
    patterns = out.get("attentions") or ()
    if len(patterns) == config.n_layers and all(pattern is not None for pattern in patterns):
        values |= {("pattern", layer): pattern.detach().double().numpy() for layer, pattern in enumerate(patterns)}
    if "logits" in out:
        values["logits", None] = out.logits.detach().double().numpy()
    if config.pooler and out.get("pooler_output") is not None:
        values["pooled", None] = out.pooler_output.detach().double().numpy()
    model.zero_grad(set_to_none=True)
    return values, gradients, list(strange)


def _array(tensor: Any, ids: np.ndarray) -> np.ndarray:
    """The tensor in float64 with the axes of prompts and tokens, which OPT's MLP has joined."""
    array = tensor.double().numpy()
    return array.reshape(*ids.shape, -1) if array.ndim == 2 and len(array) == ids.size else array


@contextlib.contextmanager
def _hooks(model: Any, wanted: Iterator[Place], kept: list[tuple[Place, Any, Any]]) -> Iterator[None]:
    """Keeps what goes into or comes out of each place's module, with its gradient."""
    modules, handles = dict(model.named_modules()), []
    try:
        for place in wanted:
            module = next((modules[name] for name in place.modules if name in modules), None)
            if module is None:
                continue
            keep = _keep(place, kept)
            if place.side == "in":
                handles.append(module.register_forward_pre_hook(_before(keep), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_after(keep)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(place: Place, kept: list[tuple[Place, Any, Any]]) -> Callable[[Any], None]:
    def keep(value: Any) -> None:
        if value.requires_grad and place.site in UNSHARED:
            value.retain_grad()
        kept.append((place, value, value.detach().clone()))  # Falcon adds to a module's output in place

    return keep


def _before(keep: Callable[[Any], None]) -> Callable[..., None]:
    return lambda module, args, kwargs: keep(args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()))))


def _after(keep: Callable[[Any], None]) -> Callable[..., None]:
    return lambda module, args, out: keep(out[0] if isinstance(out, tuple) else out)
