"""The peers' side of the benchmark of sweeps: a grid of patched runs, a Python forward for each cell, as they are used.

Each function gives the difference of two answers' logits at the last position, for the cells it is asked for and all
their prompts [C B]. Clean values are patched into the corrupt prompts. The clean run's values are taken beforehand and not timed.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

Ids = Sequence[Sequence[int]]
peer: Any = sys.modules["peer"]


def _difference(logits: Any, answers: Any, others: Any) -> Any:
    """[B], from logits [B V]."""
    return (logits.gather(1, answers[:, None]) - logits.gather(1, others[:, None]))[:, 0]


def lens_grid(
    folder: str, clean: Ids, corrupt: Ids, answers: Sequence[int], others: Sequence[int], site: str, cells: Sequence[Sequence[int]],
    batched: bool = True, device: str = "cpu", bare: bool = False,
) -> Any:  # fmt: skip
    """Cells (layer, position) of resid_pre, attn_out or mlp_out, or (layer, head) of z, by TransformerLens.

    Args:
        folder: the model in HF layout.
        clean: ids [B P].
        corrupt: ids [B P].
        answers: ids [B].
        others: ids [B].
        site: TransformerLens' hook without its "hook_".
        cells: (layer, index) of each cell; with `batched` False (layer, index, prompt).
        batched: all prompts in one forward; else each cell is of one prompt, and the result is [C 1].
        device: where the model runs.
        bare: a model without a tokenizer, such as one of random weights.
    """
    import torch

    model = (_bare_lens_model if bare else peer.lens_model)(folder, device)
    good, bad, mine, its = (peer.token_ids(ids, device) for ids in (clean, corrupt, answers, others))
    name = "blocks.{}.attn.hook_z" if site == "z" else "blocks.{}.hook_" + site
    layers = sorted({cell[0] for cell in cells})
    with torch.inference_mode():
        _, cache = model.run_with_cache(good, names_filter=[name.format(layer) for layer in layers])
    values = {layer: cache[name.format(layer)] for layer in layers}

    def patch(value: Any, hook: Any, index: int, clean_value: Any) -> Any:
        if site == "z":
            value[:, :, index] = clean_value[:, :, index]
        else:
            value[:, index] = clean_value[:, index]
        return value

    @torch.inference_mode()
    def once() -> Any:
        out = []
        for layer, index, *prompt in cells:
            rows = slice(None) if batched else slice(prompt[0], prompt[0] + 1)
            hook = functools.partial(patch, index=index, clean_value=values[layer][rows])
            logits = model.run_with_hooks(bad[rows], return_type="logits", fwd_hooks=[(name.format(layer), hook)])
            out.append(_difference(logits[:, -1], mine[rows], its[rows]))
        return torch.stack(out)

    return peer.Work(once, lambda values: {"values": values}, device)


@functools.cache
def _bare_lens_model(folder: str, device: str) -> Any:
    """TransformerLens' bridge over the model of a folder that has no tokenizer."""
    import torch
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = loaded.eval().to(device)
    return build_bridge_from_module(model, model.config.architectures[0], hf_config=model.config)


def nnsight_grid(
    folder: str, clean: Ids, corrupt: Ids, answers: Sequence[int], others: Sequence[int], site: str, cells: Sequence[Sequence[int]],
    device: str = "cpu",
) -> Any:  # fmt: skip
    """The same cells of resid_pre or z by nnsight, one trace a cell, all prompts in one forward; arguments as for `lens_grid`."""
    import nnsight
    import torch

    model, size = _nnsight_model(folder, device)
    good, bad, mine, its = (peer.token_ids(ids, device) for ids in (clean, corrupt, answers, others))
    layers = range(len(model.model.layers))
    with torch.inference_mode(), model.trace(good):
        values = nnsight.save([_nnsight_site(model, site, layer).clone() for layer in layers])

    @torch.inference_mode()
    def cell(layer: int, index: int) -> Any:
        part = slice(index * size, (index + 1) * size) if site == "z" else slice(None)
        where = slice(None) if site == "z" else index
        value = values[layer][:, where, part]
        with model.trace(bad):
            _nnsight_site(model, site, layer)[:, where, part] = value
            last = nnsight.save(model.lm_head.output[:, -1])
        return _difference(last, mine, its)

    return peer.Work(lambda: torch.stack([cell(*one) for one in cells]), lambda values: {"values": values}, device)


@functools.cache
def _nnsight_model(folder: str, device: str) -> tuple[Any, int]:
    """A transformers model of its own, wrapped by nnsight, and the size of a head."""
    import torch
    from nnsight import LanguageModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = loaded.eval().to(device)
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LanguageModel(model, tokenizer=AutoTokenizer.from_pretrained(folder)), size


def _nnsight_site(model: Any, site: str, layer: int) -> Any:
    """The tensor to patch: a block's input, or what enters the projection of the heads."""
    block = model.model.layers[layer]
    return block.self_attn.o_proj.input if site == "z" else block.input
