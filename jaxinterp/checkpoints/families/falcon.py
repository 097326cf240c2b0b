"""Falcon: queries, keys and values fused a group at a time; parallel on one norm (7B) or two (40B), or serial with ALiBi (RW)."""

import math
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.decoder import biases
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.checkpoints.rope import context_of, rope_parameters, rotary, scaling_fields
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.position import alibi_slopes

LAYER = "transformer.h.{l}."
QKV_KEY = LAYER + "self_attention.query_key_value."
# with one key/value head this is all queries, a key, a value; with as many as queries, a head at a time
QKV = "(G [R|1|1] E)"

TABLE: Table = {
    "embed.W_E": Weight("transformer.word_embeddings.weight", "V D"),
    "blocks.ln1.w": Weight(LAYER + "input_layernorm.weight", "D"),
    "blocks.ln1.b": Weight(LAYER + "input_layernorm.bias", "D"),
    "blocks.attn.W_Q": Weight(QKV_KEY + "weight", f"{QKV} D -> D (G R) E", part=0),
    "blocks.attn.W_K": Weight(QKV_KEY + "weight", f"{QKV} D -> D G E", part=1),
    "blocks.attn.W_V": Weight(QKV_KEY + "weight", f"{QKV} D -> D G E", part=2),
    "blocks.attn.b_Q": Weight(QKV_KEY + "bias", f"{QKV} -> (G R) E", part=0),
    "blocks.attn.b_K": Weight(QKV_KEY + "bias", f"{QKV} -> G E", part=1),
    "blocks.attn.b_V": Weight(QKV_KEY + "bias", f"{QKV} -> G E", part=2),
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

TWO_NORMS: Table = {
    f"blocks.{ours}.{leaf}": Weight(f"{LAYER}{theirs}.{name}", "D")
    for ours, theirs in (("ln1", "ln_attn"), ("ln2", "ln_mlp"))
    for leaf, name in (("w", "weight"), ("b", "bias"))
}


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Falcon; ALiBi is added before scores are scaled, so its slopes are scaled too (and not rounded to bfloat16 here)."""
    width = fields.take("hidden_size", fields.take("n_embed", 4544, kind=int), kind=int)
    heads = fields.take("num_attention_heads", fields.take("n_head", 71, kind=int), kind=int)
    if width % max(heads, 1):
        fields.problems.append(f"'hidden_size' ({width}) is not a multiple of 'num_attention_heads' ({heads})")
    d_head = width // max(heads, 1)
    fields.expect("apply_residual_connection_post_layernorm", False)
    new = fields.take("new_decoder_architecture", False, kind=bool)
    n_kv_heads = fields.take("num_kv_heads", heads, kind=int)
    single = fields.take("multi_query", True, kind=bool)
    choices = {
        "n_layers": fields.layers("num_hidden_layers" if fields.given("num_hidden_layers") else "n_layer"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": n_kv_heads if new else 1 if single else heads,
        "d_head": d_head,
        "d_vocab": fields.take("vocab_size", kind=int),
        "d_mlp": fields.take("ffn_hidden_size", 4 * width, kind=int),
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5, kind=float),
        "parallel": _parallel(fields, new),
        "activation": fields.activation("activation", "gelu"),
        "gated": False,
        "unembed": "tied" if fields.take("tie_word_embeddings", True, kind=bool) else "own",
    }
    context = fields.take("max_position_embeddings", 2048, kind=int)
    setting, n_ctx = rotary(fields, rope_parameters(fields), d_head, context)
    if fields.take("alibi", False, kind=bool):
        slopes = tuple((alibi_slopes(heads) / math.sqrt(d_head)).tolist()) if heads > 0 and d_head > 0 else ()
        choices |= {"positions": "alibi", "alibi_slopes": slopes, "n_ctx": context}
    else:
        choices |= {"rotary": (setting,), "n_ctx": n_ctx}
    biased = fields.take("bias", False, kind=bool)
    # the width of the MLP once more
    return fields.build(choices | biases(biased, biased), harmless=("ff_factor",))


def _parallel(fields: Fields, new: bool) -> str:
    parallel = fields.take("parallel_attn", True, kind=bool)
    norms = fields.take("num_ln_in_parallel_attn", 2 if new else 1, kind=int)
    if norms not in (1, 2) or (new and not parallel) or (parallel and not new and norms == 2):
        fields.problems.append(
            f"'new_decoder_architecture' {new}, 'parallel_attn' {parallel} and 'num_ln_in_parallel_attn' {norms} do not go together"
        )
    return "no" if not parallel else "two_norms" if new and norms == 2 else "one_norm"


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if config.gated or config.norm != "layer" or config.positions not in ("rotary", "alibi"):
        return None
    new = config.parallel == "two_norms" or 1 < config.n_kv_heads < config.n_heads
    setting = config.rotary[0] if config.rotary else None
    rope = {"rope_theta": setting.base, "rope_scaling": scaling_fields(setting)} if setting else {}
    return rope | {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_kv_heads": config.n_kv_heads if new else config.n_heads,
        "multi_query": config.n_kv_heads == 1,
        "vocab_size": config.d_vocab,
        "max_position_embeddings": context_of(config.n_ctx, setting) if setting else config.n_ctx,
        "ffn_hidden_size": config.d_mlp,
        "layer_norm_epsilon": config.norm_eps,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": 2 if config.parallel == "two_norms" else 1,
        "parallel_attn": config.parallel != "no",
        "alibi": config.positions == "alibi",
        "bias": config.o_bias,
        "activation": ACTIVATION_NAMES.get(config.activation),
        "tie_word_embeddings": config.unembed == "tied",
    }


def variant(config: TransformerConfig) -> Table:
    """Parallel blocks with two norms name them by what they feed."""
    return TWO_NORMS if config.parallel == "two_norms" else {}


FAMILIES = (Family("falcon", ("FalconForCausalLM", "FalconModel"), read, write, TABLE, prefix="transformer.", variant=variant),)
