"""OPT: learned positions that begin at row 2, ReLU; its 350M model has norms after adding and a projected token embedding."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.decoder import biases
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import TransformerConfig

LAYER = "model.decoder.layers.{l}."
OFFSET = 2
NORM_EPS = 1e-5

TABLE: Table = {
    "embed.W_E": Weight("model.decoder.embed_tokens.weight", "V C"),
    "embed.W_pos": Weight("model.decoder.embed_positions.weight", "P D"),
    "embed.W_embed": Weight("model.decoder.project_in.weight", "D C -> C D"),
    "blocks.attn.W_Q": Weight(LAYER + "self_attn.q_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_K": Weight(LAYER + "self_attn.k_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_V": Weight(LAYER + "self_attn.v_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_O": Weight(LAYER + "self_attn.out_proj.weight", "D (H E) -> H E D"),
    "blocks.attn.b_Q": Weight(LAYER + "self_attn.q_proj.bias", "(H E) -> H E"),
    "blocks.attn.b_K": Weight(LAYER + "self_attn.k_proj.bias", "(H E) -> H E"),
    "blocks.attn.b_V": Weight(LAYER + "self_attn.v_proj.bias", "(H E) -> H E"),
    "blocks.attn.b_O": Weight(LAYER + "self_attn.out_proj.bias", "D"),
    "blocks.ln1.w": Weight(LAYER + "self_attn_layer_norm.weight", "D"),
    "blocks.ln1.b": Weight(LAYER + "self_attn_layer_norm.bias", "D"),
    "blocks.mlp.W_in": Weight(LAYER + "fc1.weight", "M D -> D M"),
    "blocks.mlp.b_in": Weight(LAYER + "fc1.bias", "M"),
    "blocks.mlp.W_out": Weight(LAYER + "fc2.weight", "D M -> M D"),
    "blocks.mlp.b_out": Weight(LAYER + "fc2.bias", "D"),
    "blocks.ln2.w": Weight(LAYER + "final_layer_norm.weight", "D"),
    "blocks.ln2.b": Weight(LAYER + "final_layer_norm.bias", "D"),
    "ln_final.w": Weight("model.decoder.final_layer_norm.weight", "D"),
    "ln_final.b": Weight("model.decoder.final_layer_norm.bias", "D"),
    "unembed.W_embed": Weight("model.decoder.project_out.weight", "C D -> D C"),
    "unembed.W_U": Weight("lm_head.weight", "V C -> C V"),
}


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """OPT; the final norm is missing where norms stand after adding, and in old fine-tuned models that say so."""
    width, heads = fields.take("hidden_size", kind=int), fields.take("num_attention_heads", kind=int)
    if width % max(heads, 1):
        fields.problems.append(f"'hidden_size' ({width}) is not a multiple of 'num_attention_heads' ({heads})")
    before = fields.take("do_layer_norm_before", True, kind=bool)
    removed = fields.take("_remove_final_layer_norm", False, kind=bool)
    d_embed = fields.take("word_embed_proj_dim", width, kind=int)
    affine = fields.take("layer_norm_elementwise_affine", True, kind=bool)
    biased = fields.take("enable_bias", True, kind=bool)
    choices = {
        "n_layers": fields.layers("num_hidden_layers"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // max(heads, 1),
        "d_vocab": fields.take("vocab_size", kind=int),
        "n_ctx": fields.take("max_position_embeddings", 2048, kind=int),
        "d_mlp": fields.take("ffn_dim", kind=int),
        "norm": "layer",
        "norm_gain": "w" if affine else "none",
        "norm_bias": affine,
        "norm_eps": NORM_EPS,
        "norm_position": "pre" if before else "post",
        "final_norm": before and not removed,
        "d_embed": None if d_embed == width else d_embed,
        "positions": "learned",
        "position_offset": OFFSET,
        "activation": fields.activation("activation_function", "relu"),
        "gated": False,
        "unembed": "tied" if fields.take("tie_word_embeddings", True, kind=bool) else "own",
    }
    # layers are dropped in training only
    return fields.build(choices | biases(biased, biased), harmless=("init_std", "layerdrop"))


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if config.positions != "learned" or config.position_offset != OFFSET:
        return None
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "vocab_size": config.d_vocab,
        "max_position_embeddings": config.n_ctx,
        "ffn_dim": config.d_mlp,
        "word_embed_proj_dim": config.d_embed or config.d_model,
        "do_layer_norm_before": config.norm_position == "pre",
        "_remove_final_layer_norm": config.norm_position == "pre" and not config.final_norm,
        "layer_norm_elementwise_affine": config.norm_bias,
        "enable_bias": config.o_bias,
        "activation_function": ACTIVATION_NAMES.get(config.activation),
        "tie_word_embeddings": config.unembed == "tied",
    }


FAMILIES = (Family("opt", ("OPTForCausalLM", "OPTModel"), read, write, TABLE),)
