"""Attention that transformers writes inside a module's forward: its two products, the softmax and the mask between them, as sites."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

View = Callable[[torch.Tensor], torch.Tensor]
Keep = Callable[[str, torch.Tensor, View, View], None]  # (site, value, how it is seen with our axes, how its gradient is)
PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm")


class Products(TorchFunctionMode):
    """Within it, attention's products tell what they are made of.

    Attributes:
        mask: the attention mask; what it is added to (or what `where` and `masked_fill` hide) are the scores.
        keep: called with one of q_rot, k_rot, scores, pattern, v and z.
    """

    def __init__(self, mask: Any, keep: Callable[[str, torch.Tensor], None]) -> None:
        super().__init__()
        self.mask, self.keep = mask, keep
        self.products, self.masked = 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.products == 1 and not self.masked:
            self._meet_mask(name, args)
        result = func(*args, **kwargs)
        if name == "softmax" and func is torch.nn.functional.softmax:
            self.keep("pattern", result)
        if name in PRODUCTS:
            left, right = (kwargs["batch1"], kwargs["batch2"]) if "batch1" in kwargs else args[-2:]
            if min(left.ndim, right.ndim) >= 3:  # otherwise it is a projection
                self.products += 1
                for site, value in zip(("q_rot", "k_rot") if self.products == 1 else ("", "v"), (left, right), strict=True):
                    if site:
                        self.keep(site, value)
                if self.products == 2:
                    self.keep("z", result)
        return result

    def _meet_mask(self, name: str, args: Any) -> None:
        if name in ("add", "__add__") and any(value is self.mask for value in args):
            scores = next(value for value in args if value is not self.mask)
        elif name in ("where", "masked_fill"):
            scores = args[1] if name == "where" else args[0]
        else:
            return
        self.keep("scores", scores)
        self.masked = True


class HookedAttention:
    """Records a module's attention until it is removed.

    Args:
        module: its forward takes the mask as `attention_mask`.
        keep: called with each site, its value, and the views of value and gradient.
        batch: B.
        later: what the scores are still multiplied by after they met the mask.
    """

    def __init__(self, module: Any, keep: Keep, batch: int, later: float = 1.0) -> None:
        self.module = module
        forward = module.forward

        def split(value: torch.Tensor) -> torch.Tensor:  # some fold the heads into the batch
            return value.reshape(batch, -1, *value.shape[-2:])

        def by_position(value: torch.Tensor) -> torch.Tensor:
            return split(value).transpose(1, 2)

        def one_of_each(value: torch.Tensor) -> torch.Tensor:  # keys and values may be copied for every query head
            return by_position(value)[:, :, :: self._copies(split(value))]

        def sum_of_each(value: torch.Tensor) -> torch.Tensor:
            copies = self._copies(split(value))
            return by_position(value).unflatten(2, (-1, copies)).sum(3)

        def seen(site: str, value: torch.Tensor) -> None:
            match site:
                case "k_rot":
                    keep(site, value, lambda x: one_of_each(x.transpose(-1, -2)), lambda x: sum_of_each(x.transpose(-1, -2)))
                case "v":
                    keep(site, value, one_of_each, sum_of_each)
                case "scores":
                    keep(site, value, lambda x: split(x) * later, lambda x: split(x) / later)
                case "pattern":
                    keep(site, value, split, split)
                case _:
                    keep(site, value, by_position, by_position)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            with Products(kwargs.get("attention_mask"), seen):
                return forward(*args, **kwargs)

        module.forward = recorded

    def _copies(self, value: torch.Tensor) -> int:
        return value.shape[1] // getattr(self.module, "num_kv_heads", value.shape[1])

    def remove(self) -> None:
        del self.module.forward
