"""GPT-NeoX (Pythia): attention and MLP in parallel, each with its own LayerNorm; rotates the first quarter of each head."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.checkpoints.rope import context_of, rope_parameters, rotary, scaling_fields
from jaxinterp.model.config import TransformerConfig

LAYER = "gpt_neox.layers.{l}."
QKV = "(H [1|1|1] E)"

TABLE: Table = {
    "embed.W_E": Weight("gpt_neox.embed_in.weight", "V D"),
    "blocks.ln1.w": Weight(LAYER + "input_layernorm.weight", "D"),
    "blocks.ln1.b": Weight(LAYER + "input_layernorm.bias", "D"),
    "blocks.attn.W_Q": Weight(LAYER + "attention.query_key_value.weight", f"{QKV} D -> D H E", part=0),
    "blocks.attn.W_K": Weight(LAYER + "attention.query_key_value.weight", f"{QKV} D -> D H E", part=1),
    "blocks.attn.W_V": Weight(LAYER + "attention.query_key_value.weight", f"{QKV} D -> D H E", part=2),
    "blocks.attn.b_Q": Weight(LAYER + "attention.query_key_value.bias", f"{QKV} -> H E", part=0),
    "blocks.attn.b_K": Weight(LAYER + "attention.query_key_value.bias", f"{QKV} -> H E", part=1),
    "blocks.attn.b_V": Weight(LAYER + "attention.query_key_value.bias", f"{QKV} -> H E", part=2),
    "blocks.attn.W_O": Weight(LAYER + "attention.dense.weight", "D (H E) -> H E D"),
    "blocks.attn.b_O": Weight(LAYER + "attention.dense.bias", "D"),
    "blocks.ln2.w": Weight(LAYER + "post_attention_layernorm.weight", "D"),
    "blocks.ln2.b": Weight(LAYER + "post_attention_layernorm.bias", "D"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.dense_h_to_4h.weight", "M D -> D M"),
    "blocks.mlp.b_in": Weight(LAYER + "mlp.dense_h_to_4h.bias", "M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.dense_4h_to_h.weight", "D M -> M D"),
    "blocks.mlp.b_out": Weight(LAYER + "mlp.dense_4h_to_h.bias", "D"),
    "ln_final.w": Weight("gpt_neox.final_layer_norm.weight", "D"),
    "ln_final.b": Weight("gpt_neox.final_layer_norm.bias", "D"),
    "unembed.W_U": Weight(("embed_out.weight", "lm_head.weight"), "V D -> D V"),
}


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """GPT-NeoX; serial instead of parallel where use_parallel_residual is false."""
    width, heads = fields.take("hidden_size", kind=int), fields.take("num_attention_heads", kind=int)
    if width % max(heads, 1):
        fields.problems.append(f"'hidden_size' ({width}) is not a multiple of 'num_attention_heads' ({heads})")
    d_head = width // max(heads, 1)
    base, share = fields.take("rotary_emb_base", 10_000.0, kind=float), fields.take("rotary_pct", 0.25, kind=float)
    context = fields.take("max_position_embeddings", 2048, kind=int)
    setting, n_ctx = rotary(fields, rope_parameters(fields, base, share), d_head, context, partial=True)
    attention = fields.take("attention_bias", True, kind=bool)
    choices = {
        "n_layers": fields.layers("num_hidden_layers"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": d_head,
        "d_vocab": fields.take("vocab_size", kind=int),
        "n_ctx": n_ctx,
        "d_mlp": fields.take("intermediate_size", kind=int),
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": fields.take("layer_norm_eps", 1e-5, kind=float),
        "parallel": "two_norms" if fields.take("use_parallel_residual", True, kind=bool) else "no",
        "rotary": (setting,),
        "activation": fields.activation("hidden_act", "gelu"),
        "gated": False,
        "mlp_in_bias": True,
        "mlp_out_bias": True,
        "unembed": "tied" if fields.take("tie_word_embeddings", False, kind=bool) else "own",
    }
    return fields.build(choices | dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), attention))


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if not config.rotary or config.gated:
        return None
    setting = config.rotary[0]
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "vocab_size": config.d_vocab,
        "intermediate_size": config.d_mlp,
        "max_position_embeddings": context_of(config.n_ctx, setting),
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel != "no",
        "rotary_emb_base": setting.base,
        "rotary_pct": setting.dim / config.d_head,
        "rope_scaling": scaling_fields(setting),
        "hidden_act": ACTIVATION_NAMES.get(config.activation),
        "attention_bias": config.o_bias,
        "tie_word_embeddings": config.unembed == "tied",
    }


FAMILIES = (
    Family(
        "gpt_neox",
        ("GPTNeoXForCausalLM", "GPTNeoXModel"),
        read,
        write,
        TABLE,
        prefix="gpt_neox.",
        # the causal mask, kept as a buffer by older versions
        ignorable=(r"\.attention\.(masked_)?bias$", r"(^|\.)rotary_emb\.inv_freq$"),
    ),
)
