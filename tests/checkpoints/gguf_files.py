"""Tiny GGUF files, written with the `gguf` package by llama.cpp's conventions from the tensors of a folder in HF layout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

F32, Q8_0, Q4_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0

LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_NAMES = LLAMA_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GPT2_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
NAMES = {"llama": LLAMA_NAMES, "qwen2": LLAMA_NAMES, "qwen3": LLAMA_NAMES, "gemma3": GEMMA_NAMES, "gpt2": GPT2_NAMES}


def _name(architecture: str, hf: str) -> str:
    base, _, kind = hf.rpartition(".")
    names = NAMES[architecture]
    if base in names:
        return f"{names[base]}.{kind}"
    layer, _, rest = base.removeprefix("model.layers.").removeprefix("transformer.h.").partition(".")
    return f"blk.{layer}.{names[rest]}.{kind}"


def _converted(architecture: str, hf: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """What llama.cpp's converter does to a tensor before writing it."""
    if architecture == "llama" and any(part in hf for part in ("q_proj", "k_proj")):
        heads = config["num_attention_heads"] if "q_proj" in hf else config["num_key_value_heads"]
        return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    if architecture == "gemma3" and hf.endswith("norm.weight"):
        return array + 1
    if architecture == "gpt2" and any(part in hf for part in ("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return array.T
    return array


def metadata(architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, without the architecture's prefix."""
    if architecture == "gpt2":
        return {
            "block_count": config["n_layer"],
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "feed_forward_length": config.get("n_inner") or 4 * config["n_embd"],
            "attention.head_count": config["n_head"],
            "attention.layer_norm_epsilon": 1e-5,
        }
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    fields = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config.get("rope_theta", 10_000.0),
        "rope.dimension_count": width,
        "attention.key_length": width,
        "attention.value_length": width,
    }
    return fields | ({"attention.sliding_window": config["sliding_window"]} if architecture == "gemma3" else {})


def write(
    path: Path,
    architecture: str,
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    quantisation: Callable[[str, np.ndarray], gguf.GGMLQuantizationType] = lambda name, array: F32,
) -> Path:
    """A GGUF file of these fields (whole keys, or without the architecture's prefix) and float tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        key = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    for name, array in tensors.items():
        kind = quantisation(name, array)
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def convert(
    folder: Path, path: Path, architecture: str, config: Mapping[str, Any], kind: gguf.GGMLQuantizationType = F32, **more: Any
) -> dict[str, np.ndarray]:
    """Writes the weights of a saved folder as a GGUF file; matrices are quantised.

    Returns:
        The tensors by their HF names, as they come out of the file.
    """
    hf = load_file(folder / "model.safetensors")
    tensors = {_name(architecture, name): _converted(architecture, name, array, config) for name, array in hf.items()}
    chosen = {name: kind if array.ndim > 1 else F32 for name, array in tensors.items()}
    write(path, architecture, metadata(architecture, config) | more, tensors, lambda name, array: chosen[name])
    kept = {
        name: gguf.dequantize(gguf.quantize(np.ascontiguousarray(array), chosen[name]), chosen[name]) for name, array in tensors.items()
    }
    return {name: kept[_name(architecture, name)] for name in hf}
