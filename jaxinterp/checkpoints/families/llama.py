"""Llama and its closest kin: Llama 1 to 3, SmolLM, Mistral (a window), Qwen 2 (biases) and Qwen 3 (normed queries and keys)."""

import functools
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.decoder import GGUF_TABLE, TABLE, choices, gguf_config, windows, written
from jaxinterp.checkpoints.families.family import Family, GgufFormat
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Weight
from jaxinterp.checkpoints.source import Source
from jaxinterp.model.config import TransformerConfig

QKV = ("q_bias", "k_bias", "v_bias")


def read_llama(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Llama: optional biases, of attention (all four) and of the MLP."""
    common = _common(fields, 2048)
    attention, mlp = fields.take("attention_bias", False, kind=bool), fields.take("mlp_bias", False, kind=bool)
    biases = dict.fromkeys((*QKV, "o_bias"), attention) | dict.fromkeys(("mlp_in_bias", "mlp_out_bias"), mlp)
    return fields.build(common | biases)


def write_llama(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_llama`."""
    common = _written(config)
    return common and common | {"attention_bias": config.o_bias, "mlp_bias": config.mlp_out_bias}


def read_mistral(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Mistral: every layer sees the same window; null is no window, an absent field 4096 tokens."""
    common = _common(fields, 131_072)
    window = fields.take("sliding_window", None if fields.given("sliding_window") else 4096, kind=int)
    return fields.build(common | {"windows": windows(fields, common["n_layers"], window, lambda layer: bool(window))})


def write_mistral(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_mistral`."""
    common = _written(config)
    return common and common | {"sliding_window": max(config.layer_windows) or None}


def read_qwen(fields: Fields, dtype: np.dtype, *, version: int) -> TransformerConfig:
    """Qwen 2: biases of q, k and v. Qwen 3: one gain [E] for the norm of queries, one for keys. Both: windows from some layer up."""
    common = _common(fields, 32_768, **({"head_dim": 128} if version == 3 else {}))
    used = fields.take("use_sliding_window", False, kind=bool)
    stated = fields.take("sliding_window", 4096, kind=int)
    window = stated if used else None
    first = fields.take("max_window_layers", 28, kind=int)
    if version == 2:
        biases = dict.fromkeys(QKV, True)
    else:
        biases = dict.fromkeys((*QKV, "o_bias"), fields.take("attention_bias", False, kind=bool)) | {"qk_norm": "head"}
    return fields.build(common | biases | {"windows": windows(fields, common["n_layers"], window, lambda layer: used and layer >= first)})


def write_qwen(config: TransformerConfig, *, version: int) -> dict[str, Any] | None:
    """See `read_qwen`."""
    common = _written(config)
    if common is None:
        return None
    first = next((layer for layer, window in enumerate(config.layer_windows) if window), config.n_layers)
    sliding = decoder.written_windows(config) | {"use_sliding_window": any(config.layer_windows), "max_window_layers": first}
    return common | sliding | ({"attention_bias": config.o_bias} if version == 3 else {})


def _common(fields: Fields, context: int, **defaults: int) -> dict[str, Any]:
    common = choices(fields, **defaults)
    return common | decoder.rotary_choices(fields, common["d_head"], context) | {"activation": fields.activation("hidden_act", "silu")}


def _written(config: TransformerConfig) -> dict[str, Any] | None:
    common = written(config)
    return common and common | {"hidden_act": ACTIVATION_NAMES.get(config.activation)}


def llama_gguf(fields: Fields, source: Source) -> dict[str, Any]:
    """Llama's metadata. The stretch of Llama 3.1 stands in a tensor of divisors, one a frequency: what "longrope" takes."""
    hf = qwen3_gguf(fields, source) | {"mlp_bias": "blk.0.ffn_up.bias" in source.tensors}
    divisors = source.tensors.get(DIVISORS)
    if divisors and hf["rope_scaling"]:
        fields.problems.append(f"both 'rope.scaling.type' and the tensor {DIVISORS!r} stretch the rotation")
    if divisors and len(divisors.shape) == 1:
        values = source.read(DIVISORS, 0, divisors.shape[0]).tolist()
        plain = {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0}
        hf["rope_scaling"] = plain | {"short_factor": values, "long_factor": values}
    return hf


def qwen3_gguf(fields: Fields, source: Source) -> dict[str, Any]:
    """The common metadata, with biases where the file has them."""
    return gguf_config(fields, source) | {"attention_bias": "blk.0.attn_q.bias" in source.tensors}


DIVISORS = "rope_freqs.weight"

# llama.cpp rotates neighbouring features in this architecture, so it holds the rows of q and k in that order: undo it
PERMUTED = {
    "blocks.attn.W_Q": Weight("blk.{l}.attn_q.weight", "(H F 2) D -> D H (2 F)"),
    "blocks.attn.W_K": Weight("blk.{l}.attn_k.weight", "(G F 2) D -> D G (2 F)"),
    "blocks.attn.b_Q": Weight("blk.{l}.attn_q.bias", "(H F 2) -> H (2 F)"),
    "blocks.attn.b_K": Weight("blk.{l}.attn_k.bias", "(G F 2) -> G (2 F)"),
}


def _qwen(version: int, *architectures: str) -> Family:
    name = f"qwen{version}"
    return Family(
        name,
        architectures,
        functools.partial(read_qwen, version=version),
        functools.partial(write_qwen, version=version),
        TABLE,
        gguf=GgufFormat(name, GGUF_TABLE, qwen3_gguf if version == 3 else gguf_config),
    )


FAMILIES = (
    Family(
        "llama",
        ("LlamaForCausalLM", "LlamaModel"),
        read_llama,
        write_llama,
        TABLE,
        gguf=GgufFormat("llama", {**GGUF_TABLE, **PERMUTED}, llama_gguf, ignorable=(r"^rope_freqs\.weight$",)),
    ),
    Family("mistral", ("MistralForCausalLM", "MistralModel"), read_mistral, write_mistral, TABLE),
    _qwen(2, "Qwen2ForCausalLM", "Qwen2Model"),
    _qwen(3, "Qwen3ForCausalLM", "Qwen3Model"),
)
