"""What the torch side keeps of a mixture of experts: the router's choice and the neurons of each token's own experts.

The model must run transformers' "batched_mm" experts: they hand all assignments, token by token, to one `_apply_gate`.
"""

from collections.abc import Callable
from typing import Any

import torch

Keep = Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], None]


class _Patched:
    """Undoes a method put on one module."""

    def __init__(self, module: torch.nn.Module, name: str) -> None:
        self.module, self.name = module, name

    def remove(self) -> None:
        self.module.__dict__.pop(self.name, None)


def hook_router(router: Any, site: str, keep: Keep, shape: tuple[int, int]) -> Any:
    """Keeps a router's logits [B P X], the weights of the experts [B P X] (0 where not chosen), or the choice [B P S]."""

    def hook(_: Any, __: Any, out: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        logits, weights, index = out
        views: dict[str, tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]] = {
            "router_logits": (logits, lambda value: value),
            "expert_weights": (weights, lambda value: torch.zeros_like(logits, dtype=value.dtype).scatter(1, index, value)),
            "expert_index": (index, lambda value: value),
        }
        value, view = views[site]
        keep(value, lambda value: view(value.reshape(-1, value.shape[-1])).reshape(*shape, -1))

    return router.register_forward_hook(hook)


def hook_neurons(experts: Any, site: str, layout: Callable[[torch.Tensor], torch.Tensor], keep: Keep, shape: tuple[int, int]) -> Any:
    """Keeps what enters the gated units (mlp_pre, mlp_up) or leaves them (mlp_post) [B P S M]."""
    apply_gate = experts._apply_gate

    def view(value: torch.Tensor) -> torch.Tensor:
        neurons = layout(value)
        return neurons.reshape(*shape, -1, neurons.shape[-1])

    def wrapped(gate_up: torch.Tensor) -> torch.Tensor:
        # a copy of its own: transformers may have written into what it was made from
        gate_up = gate_up.view_as(gate_up)
        out = apply_gate(gate_up)
        keep(out if site == "mlp_post" else gate_up, view)
        return out

    experts._apply_gate = wrapped
    return _Patched(experts, "_apply_gate")
