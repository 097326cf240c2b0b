"""GPT-2: learned positions, LayerNorm, biases everywhere, queries, keys and values fused in one matrix [D, 3 D]."""

import math
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.decoder import gguf_vocabulary
from jaxinterp.checkpoints.families.family import Family, GgufFormat
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight, equal
from jaxinterp.checkpoints.source import Source
from jaxinterp.model.config import TransformerConfig

LAYER = "transformer.h.{l}."
QKV = "([H E|H E|H E])"

TABLE: Table = {
    "embed.W_E": Weight("transformer.wte.weight", "V D"),
    "embed.W_pos": Weight("transformer.wpe.weight", "P D"),
    "blocks.ln1.w": Weight(LAYER + "ln_1.weight", "D"),
    "blocks.ln1.b": Weight(LAYER + "ln_1.bias", "D"),
    "blocks.attn.W_Q": Weight(LAYER + "attn.c_attn.weight", f"D {QKV} -> D H E", part=0),
    "blocks.attn.W_K": Weight(LAYER + "attn.c_attn.weight", f"D {QKV} -> D H E", part=1),
    "blocks.attn.W_V": Weight(LAYER + "attn.c_attn.weight", f"D {QKV} -> D H E", part=2),
    "blocks.attn.b_Q": Weight(LAYER + "attn.c_attn.bias", f"{QKV} -> H E", part=0),
    "blocks.attn.b_K": Weight(LAYER + "attn.c_attn.bias", f"{QKV} -> H E", part=1),
    "blocks.attn.b_V": Weight(LAYER + "attn.c_attn.bias", f"{QKV} -> H E", part=2),
    "blocks.attn.W_O": Weight(LAYER + "attn.c_proj.weight", "(H E) D -> H E D"),
    "blocks.attn.b_O": Weight(LAYER + "attn.c_proj.bias", "D"),
    "blocks.ln2.w": Weight(LAYER + "ln_2.weight", "D"),
    "blocks.ln2.b": Weight(LAYER + "ln_2.bias", "D"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.c_fc.weight", "D M"),
    "blocks.mlp.b_in": Weight(LAYER + "mlp.c_fc.bias", "M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.c_proj.weight", "M D"),
    "blocks.mlp.b_out": Weight(LAYER + "mlp.c_proj.bias", "D"),
    "ln_final.w": Weight("transformer.ln_f.weight", "D"),
    "ln_final.b": Weight("transformer.ln_f.bias", "D"),
    "unembed.W_U": Weight("lm_head.weight", "V D -> D V"),
}

BLOCK = "blk.{l}."

# llama.cpp transposes GPT-2's matrices to the [out, in] of every other family
GGUF_TABLE: Table = {
    "embed.W_E": Weight("token_embd.weight", "V D"),
    "embed.W_pos": Weight("position_embd.weight", "P D"),
    "blocks.ln1.w": Weight(BLOCK + "attn_norm.weight", "D"),
    "blocks.ln1.b": Weight(BLOCK + "attn_norm.bias", "D"),
    "blocks.attn.W_Q": Weight(BLOCK + "attn_qkv.weight", f"{QKV} D -> D H E", part=0),
    "blocks.attn.W_K": Weight(BLOCK + "attn_qkv.weight", f"{QKV} D -> D H E", part=1),
    "blocks.attn.W_V": Weight(BLOCK + "attn_qkv.weight", f"{QKV} D -> D H E", part=2),
    "blocks.attn.b_Q": Weight(BLOCK + "attn_qkv.bias", f"{QKV} -> H E", part=0),
    "blocks.attn.b_K": Weight(BLOCK + "attn_qkv.bias", f"{QKV} -> H E", part=1),
    "blocks.attn.b_V": Weight(BLOCK + "attn_qkv.bias", f"{QKV} -> H E", part=2),
    "blocks.attn.W_O": Weight(BLOCK + "attn_output.weight", "D (H E) -> H E D"),
    "blocks.attn.b_O": Weight(BLOCK + "attn_output.bias", "D"),
    "blocks.ln2.w": Weight(BLOCK + "ffn_norm.weight", "D"),
    "blocks.ln2.b": Weight(BLOCK + "ffn_norm.bias", "D"),
    "blocks.mlp.W_in": Weight(BLOCK + "ffn_up.weight", "M D -> D M"),
    "blocks.mlp.b_in": Weight(BLOCK + "ffn_up.bias", "M"),
    "blocks.mlp.W_out": Weight(BLOCK + "ffn_down.weight", "D M -> M D"),
    "blocks.mlp.b_out": Weight(BLOCK + "ffn_down.bias", "D"),
    "ln_final.w": Weight("output_norm.weight", "D"),
    "ln_final.b": Weight("output_norm.bias", "D"),
    "unembed.W_U": Weight("output.weight", "V D -> D V"),
}


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """GPT-2; scores may be left unscaled, or be divided by the layer's number (from 1) as well."""
    width, heads = fields.take("n_embd", kind=int), fields.take("n_head", kind=int)
    n_layers = fields.layers("n_layer")
    n_ctx = fields.take("n_positions", 1024, kind=int)
    fields.expect("n_ctx", n_ctx)
    if width % max(heads, 1):
        fields.problems.append(f"'n_embd' ({width}) is not a multiple of 'n_head' ({heads})")
    d_head = width // max(heads, 1)
    scale = 1 / math.sqrt(d_head) if fields.take("scale_attn_weights", True, kind=bool) else 1.0
    by_layer = fields.take("scale_attn_by_inverse_layer_idx", False, kind=bool)
    choices = {
        "n_layers": n_layers,
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": d_head,
        "d_vocab": fields.take("vocab_size", kind=int),
        "n_ctx": n_ctx,
        "d_mlp": fields.take("n_inner", 4 * width, kind=int),
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5, kind=float),
        "positions": "learned",
        "score_scale": tuple(scale / (layer + 1) for layer in range(n_layers)) if by_layer else None if scale != 1.0 else 1.0,
        "activation": fields.activation("activation_function", "gelu_new"),
        "gated": False,
        "unembed": "tied" if fields.take("tie_word_embeddings", True, kind=bool) else "own",
    }
    biases = ("q_bias", "k_bias", "v_bias", "o_bias", "mlp_in_bias", "mlp_out_bias")
    # how scores are upcast changes their rounding only
    return fields.build(choices | dict.fromkeys(biases, True), harmless=("reorder_and_upcast_attn", "n_special", "predict_special_tokens"))


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if config.positions != "learned":
        return None
    by_layer = isinstance(config.score_scale, tuple)
    return {
        "n_layer": config.n_layers,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "vocab_size": config.d_vocab,
        "n_positions": config.n_ctx,
        "n_inner": config.d_mlp,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATION_NAMES.get(config.activation),
        "scale_attn_weights": config.layer_scales[0] != 1.0,
        "scale_attn_by_inverse_layer_idx": by_layer,
        "tie_word_embeddings": config.unembed == "tied",
    }


def gguf_config(fields: Fields, source: Source) -> dict[str, Any]:
    """GPT-2's metadata; its files often hold the unembedding even where it is tied."""
    return {
        "n_layer": fields.take("block_count", kind=int),
        "n_embd": fields.take("embedding_length", kind=int),
        "n_head": fields.take("attention.head_count", kind=int),
        "vocab_size": gguf_vocabulary(fields, source),
        "n_positions": fields.take("context_length", kind=int),
        "n_inner": fields.take("feed_forward_length", None, kind=int),
        "layer_norm_epsilon": fields.take("attention.layer_norm_epsilon", kind=float),
        "tie_word_embeddings": "output.weight" not in source.tensors or equal(source, "output.weight", "token_embd.weight"),
    }


FAMILIES = (
    Family(
        "gpt2",
        ("GPT2LMHeadModel", "GPT2Model"),
        read,
        write,
        TABLE,
        prefix="transformer.",
        # the causal mask, kept as a buffer by older versions
        ignorable=(r"\.attn\.(masked_)?bias$",),
        gguf=GgufFormat("gpt2", GGUF_TABLE, gguf_config),
    ),
)
