"""Gemma 3 (text): norms on both sides of each sublayer, gains 1 + w, normed queries and keys, two rotary settings, windows.

llama.cpp stores the gains with the 1 already added. One is taken off again (as transformers does), so that one model has one
config whatever file it came from; that is exact for gains of 0.5 and more, and within 2^-25 below.
"""

import math
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.family import Family, GgufFormat
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.checkpoints.rope import rope_parameters, scaling_fields
from jaxinterp.checkpoints.source import Source
from jaxinterp.model.config import TransformerConfig

TABLE: Table = {
    **decoder.TABLE,
    "blocks.ln1_post.w": Weight(decoder.LAYER + "post_attention_layernorm.weight", "D"),
    "blocks.ln2.w": Weight(decoder.LAYER + "pre_feedforward_layernorm.weight", "D"),
    "blocks.ln2_post.w": Weight(decoder.LAYER + "post_feedforward_layernorm.weight", "D"),
}

GGUF_TABLE: Table = {
    **decoder.GGUF_TABLE,
    "blocks.ln1.w": Weight(decoder.BLOCK + "attn_norm.weight", "D", add=-1.0),
    "blocks.ln1_post.w": Weight(decoder.BLOCK + "post_attention_norm.weight", "D", add=-1.0),
    "blocks.ln2.w": Weight(decoder.BLOCK + "ffn_norm.weight", "D", add=-1.0),
    "blocks.ln2_post.w": Weight(decoder.BLOCK + "post_ffw_norm.weight", "D", add=-1.0),
    "blocks.attn.q_norm.w": Weight(decoder.BLOCK + "attn_q_norm.weight", "E", add=-1.0),
    "blocks.attn.k_norm.w": Weight(decoder.BLOCK + "attn_k_norm.weight", "E", add=-1.0),
    "ln_final.w": Weight("output_norm.weight", "D", add=-1.0),
}

DEFAULTS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208, "tie_word_embeddings": True}
PATTERN = 6
"""Every sixth layer sees everything, where a file does not say otherwise."""


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Gemma 3; the embedding's factor is rounded to the dtype of the weights, as transformers does."""
    choices = decoder.choices(fields, **DEFAULTS)
    context = fields.take("max_position_embeddings", 131_072, kind=int)
    fields.expect("use_bidirectional_attention", False)
    every = fields.take("sliding_window_pattern", PATTERN, kind=int)
    window = fields.take("sliding_window", 4096, kind=int)
    windows = decoder.windows(fields, choices["n_layers"], window, lambda layer: bool((layer + 1) % max(every, 1)))
    attention = fields.take("attention_bias", False, kind=bool)
    cap = fields.take("final_logit_softcapping", None, kind=float)
    choices |= _rotary_choices(fields, choices["d_head"], context, windows, choices["n_layers"])
    choices |= dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), attention)
    choices |= {
        "n_ctx": context,
        "norm_gain": "1+w",
        "norm_position": "sandwich",
        "windows": windows,
        "score_scale": fields.take("query_pre_attn_scalar", 256.0, kind=float) ** -0.5,
        "final_soft_cap": cap,
        "qk_norm": "head",
        "activation": fields.activation("hidden_activation", "gelu_pytorch_tanh"),
        "embed_scale": rounded(math.sqrt(choices["d_model"]), dtype),
    }
    # transformers reads the pattern only to make layer_types, which its own files hold as well
    return fields.build(choices, harmless=("_sliding_window_pattern",))


def rounded(value: float, dtype: np.dtype) -> float:
    """A number as that dtype holds it."""
    return float(np.asarray(value).astype(dtype))


def _rotary_choices(fields: Fields, d_head: int, context: int, windows: tuple[int, ...], n_layers: int) -> dict[str, Any]:
    """Rotary settings of the layers that see everything and of those that slide; only those that some layer uses."""
    nested = fields.values.get("rope_parameters") or {}
    local_base = fields.take("rope_local_base_freq", 10_000.0, kind=float)
    if "full_attention" in nested or "sliding_attention" in nested:
        fields.take("rope_parameters", kind=dict)
        fields.take("rope_theta", None, kind=float)
        fields.take("rope_scaling", None, kind=dict)
        unknown = sorted(set(nested) - {"full_attention", "sliding_attention"})
        fields.problems += [f"'rope_parameters' holds {name!r}, which is not understood" for name in unknown]
        full = {"rope_theta": 1_000_000.0} | (nested.get("full_attention") or {})
        sliding = {"rope_theta": local_base} | (nested.get("sliding_attention") or {})
    else:
        full, sliding = rope_parameters(fields, 1_000_000.0), {"rope_theta": local_base}
    return decoder.rotary_by_window(fields, full, sliding, windows, n_layers, d_head, context)


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    common = decoder.written(config)
    if common is None:
        return None
    used = [config.rotary[index] for index in config.layer_rotary]
    full = next((setting for setting, window in zip(used, config.layer_windows, strict=True) if not window), used[0])
    sliding = next((setting for setting, window in zip(used, config.layer_windows, strict=True) if window), None)
    own = {
        # transformers wants a size even where no layer slides
        "sliding_window": max(config.layer_windows) or 4096,
        "max_position_embeddings": config.n_ctx,
        "rope_theta": full.base,
        "rope_scaling": scaling_fields(full),
        "rope_local_base_freq": sliding.base if sliding else 10_000.0,
        "attention_bias": config.o_bias,
        # transformers wants an int here
        "query_pre_attn_scalar": decoder.whole(config.layer_scales[0] ** -2),
        "final_logit_softcapping": config.final_soft_cap,
        "hidden_activation": ACTIVATION_NAMES.get(config.activation),
    }
    return common | decoder.written_windows(config) | own


def gguf_config(fields: Fields, source: Source) -> dict[str, Any]:
    """Gemma 3's metadata; of the 27B model llama.cpp knows the score scale by its 62 layers."""
    hf = decoder.gguf_config(fields, source)
    pattern = fields.take("attention.sliding_window_pattern", PATTERN, kind=(int, list))
    if isinstance(pattern, list):
        hf["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    else:
        hf["sliding_window_pattern"] = pattern
    scalar = hf["hidden_size"] // hf["num_attention_heads"] if hf["num_hidden_layers"] == 62 else hf["head_dim"]
    return hf | {
        "sliding_window": fields.take("attention.sliding_window", None, kind=int),
        "rope_local_base_freq": fields.take("rope.freq_base_swa", 10_000.0, kind=float),
        "query_pre_attn_scalar": scalar,
        "final_logit_softcapping": fields.take("final_logit_softcapping", None, kind=float),
    }


FAMILIES = (
    Family(
        "gemma3_text",
        ("Gemma3ForCausalLM", "Gemma3TextModel"),
        read,
        write,
        TABLE,
        gguf=GgufFormat("gemma3", GGUF_TABLE, gguf_config),
    ),
)
