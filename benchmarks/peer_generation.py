"""The peer's side of the benchmark of generation: greedy decoding by transformers, with its own cache and default attention."""

import sys
from collections.abc import Sequence
from typing import Any

peer: Any = sys.modules["peer"]


def transformers_generate(folder: str, ids: Sequence[Sequence[int]], mask: Sequence[Sequence[int]], new: int, device: str = "cpu") -> Any:
    """New tokens [B N] of prompts that are padded on the left, none of which ends its text.

    Args:
        folder: the model in HF layout.
        ids: [B P].
        mask: [B P], 1 at real tokens.
        new: tokens to make.
        device: where the model runs.
    """
    import torch

    model, prompt = peer.transformers_model(folder, device), peer.token_ids(ids, device)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def once() -> Any:
        return model.generate(prompt, attention_mask=peer.token_ids(mask, device), max_new_tokens=new, do_sample=False)

    return peer.Work(once, lambda made: {"ids": made[:, prompt.shape[1] :]}, device)
