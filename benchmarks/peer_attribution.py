"""The peers' side of the benchmark of gradients: a forward and a backward pass of the same metric, with hooks at the same sites."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

peer: Any = sys.modules["peer"]
HOOKS = {"resid_pre": "hook_resid_pre", "z": "attn.hook_z", "mlp_post": "mlp.hook_post"}


def lens_gradients(folder: str, ids: Sequence[Sequence[int]], answer: int, other: int, weights: bool = True, device: str = "cpu") -> Any:
    """Gradients of a logit difference at the last position to three sites of all layers [L B P ...], by TransformerLens.

    Args:
        folder: the model in HF layout.
        ids: [B P].
        answer: its logit less
        other: that of this one.
        weights: whether the weights have gradients too, as they do unless one asks otherwise.
        device: where the model runs.
    """
    import torch

    model, prompt = peer.lens_model(folder, device), peer.token_ids(ids, device)
    layers = range(model.cfg.n_layers)
    names = {(site, layer): f"blocks.{layer}.{hook}" for site, hook in HOOKS.items() for layer in layers}
    kept: dict[str, Any] = {}

    def keep(value: Any, hook: Any, name: str) -> Any:
        value = value if value.requires_grad else value.detach().requires_grad_(True)  # without weights, the first one is a leaf
        value.register_hook(lambda gradient: kept.__setitem__(name, gradient))
        return value

    def once() -> Any:
        kept.clear()
        for parameter in model.parameters():
            parameter.requires_grad_(weights)
        model.zero_grad()
        hooks = [(name, functools.partial(keep, name=name)) for name in names.values()]  # the bridge calls its hooks by other names
        with torch.enable_grad():
            last = model.run_with_hooks(prompt, return_type="logits", fwd_hooks=hooks)[:, -1]
            (last[:, answer] - last[:, other]).sum().backward()
        return {site: torch.stack([kept[names[site, layer]] for layer in layers]) for site in HOOKS}

    return peer.Work(once, lambda found: found, device)
