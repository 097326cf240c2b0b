"""BLOOM: ALiBi, a norm on the token embedding, queries, keys and values fused a head at a time."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.decoder import biases
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import TransformerConfig

LAYER = "transformer.h.{l}."
QKV = "(H [1|1|1] E)"

TABLE: Table = {
    "embed.W_E": Weight("transformer.word_embeddings.weight", "V D"),
    "embed.ln.w": Weight("transformer.word_embeddings_layernorm.weight", "D"),
    "embed.ln.b": Weight("transformer.word_embeddings_layernorm.bias", "D"),
    "blocks.ln1.w": Weight(LAYER + "input_layernorm.weight", "D"),
    "blocks.ln1.b": Weight(LAYER + "input_layernorm.bias", "D"),
    "blocks.attn.W_Q": Weight(LAYER + "self_attention.query_key_value.weight", f"{QKV} D -> D H E", part=0),
    "blocks.attn.W_K": Weight(LAYER + "self_attention.query_key_value.weight", f"{QKV} D -> D H E", part=1),
    "blocks.attn.W_V": Weight(LAYER + "self_attention.query_key_value.weight", f"{QKV} D -> D H E", part=2),
    "blocks.attn.b_Q": Weight(LAYER + "self_attention.query_key_value.bias", f"{QKV} -> H E", part=0),
    "blocks.attn.b_K": Weight(LAYER + "self_attention.query_key_value.bias", f"{QKV} -> H E", part=1),
    "blocks.attn.b_V": Weight(LAYER + "self_attention.query_key_value.bias", f"{QKV} -> H E", part=2),
    "blocks.attn.W_O": Weight(LAYER + "self_attention.dense.weight", "D (H E) -> H E D"),
    "blocks.attn.b_O": Weight(LAYER + "self_attention.dense.bias", "D"),
    "blocks.ln2.w": Weight(LAYER + "post_attention_layernorm.weight", "D"),
    "blocks.ln2.b": Weight(LAYER + "post_attention_layernorm.bias", "D"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.dense_h_to_4h.weight", "M D -> D M"),
    "blocks.mlp.b_in": Weight(LAYER + "mlp.dense_h_to_4h.bias", "M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.dense_4h_to_h.weight", "D M -> M D"),
    "blocks.mlp.b_out": Weight(LAYER + "mlp.dense_4h_to_h.bias", "D"),
    "ln_final.w": Weight("transformer.ln_f.weight", "D"),
    "ln_final.b": Weight("transformer.ln_f.bias", "D"),
    "unembed.W_U": Weight("lm_head.weight", "V D -> D V"),
}

# how the training code split and fused its work
HARMLESS = ("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "slow_but_exact", "skip_bias_add")


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """BLOOM; files name the sizes in two ways, and `seq_length` is the context that it was trained on."""
    width = fields.take("hidden_size", fields.take("n_embed", 64, kind=int), kind=int)
    heads = fields.take("n_head", fields.take("num_attention_heads", 8, kind=int), kind=int)
    if width % max(heads, 1):
        fields.problems.append(f"'hidden_size' ({width}) is not a multiple of 'n_head' ({heads})")
    fields.expect("n_inner", 4 * width)
    for name in ("apply_residual_connection_post_layernorm", "skip_bias_add_qkv"):
        fields.expect(name, False)
    choices = {
        "n_layers": fields.layers("n_layer" if fields.given("n_layer") else "num_hidden_layers"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // max(heads, 1),
        "d_vocab": fields.take("vocab_size", kind=int),
        "n_ctx": fields.take("seq_length", 2048, kind=int),
        "d_mlp": 4 * width,
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5, kind=float),
        "embed_norm": "token",
        "positions": "alibi",
        "activation": "gelu_tanh",
        "gated": False,
        "unembed": "tied" if fields.take("tie_word_embeddings", True, kind=bool) else "own",
    }
    return fields.build(choices | biases(True, True), harmless=HARMLESS)


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if config.positions != "alibi" or config.embed_norm != "token":
        return None
    return {
        "n_layer": config.n_layers,
        "hidden_size": config.d_model,
        "n_head": config.n_heads,
        "vocab_size": config.d_vocab,
        "seq_length": config.n_ctx,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.unembed == "tied",
    }


FAMILIES = (Family("bloom", ("BloomForCausalLM", "BloomModel"), read, write, TABLE, prefix="transformer."),)
