"""MPT: ALiBi with a largest slope of its own, no biases anywhere, queries, keys and values fused in one matrix."""

import math
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.decoder import whole
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.errors import CheckpointError
from jaxinterp.model.config import TransformerConfig

LAYER = "transformer.blocks.{l}."
QKV = "([H E|H E|H E]) D -> D H E"

TABLE: Table = {
    "embed.W_E": Weight("transformer.wte.weight", "V D"),
    "blocks.ln1.w": Weight(LAYER + "norm_1.weight", "D"),
    "blocks.attn.W_Q": Weight(LAYER + "attn.Wqkv.weight", QKV, part=0),
    "blocks.attn.W_K": Weight(LAYER + "attn.Wqkv.weight", QKV, part=1),
    "blocks.attn.W_V": Weight(LAYER + "attn.Wqkv.weight", QKV, part=2),
    "blocks.attn.W_O": Weight(LAYER + "attn.out_proj.weight", "D (H E) -> H E D"),
    "blocks.ln2.w": Weight(LAYER + "norm_2.weight", "D"),
    "blocks.mlp.W_in": Weight(LAYER + "ffn.up_proj.weight", "M D -> D M"),
    "blocks.mlp.W_out": Weight(LAYER + "ffn.down_proj.weight", "D M -> M D"),
    "ln_final.w": Weight("transformer.norm_f.weight", "D"),
    "unembed.W_U": Weight("lm_head.weight", "V D -> D V"),
}

USUAL_BIAS_MAX = 8.0

# what transformers' class computes, whatever these say: other values are models that it would get wrong
FIXED: dict[str, tuple[object, ...]] = {
    "expansion_ratio": (4,),
    "embedding_fraction": (1.0,),
    "logit_scale": (),
    "no_bias": (True,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
}
FIXED_ATTENTION: dict[str, tuple[object, ...]] = {
    "attn_type": ("multihead_attention",),
    "attn_uses_sequence_id": (False,),
    "prefix_lm": (False,),
    "qk_ln": (False,),
    "alibi": (True,),
}
# the learned positions exist only without ALiBi
HARMLESS = ("learned_pos_emb", "init_config", "init_device", "tokenizer_name", "verbose")
HARMLESS_ATTENTION = ("attn_impl",)


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """MPT; the fields of attention stand in an object of their own."""
    width, heads = fields.take("d_model", 2048, kind=int), fields.take("n_heads", 16, kind=int)
    if width % max(heads, 1):
        fields.problems.append(f"'d_model' ({width}) is not a multiple of 'n_heads' ({heads})")
    for name, allowed in FIXED.items():
        fields.expect(name, *allowed)
    inner = Fields(fields.take("attn_config", {}, kind=dict), fields.file)
    for name, allowed in FIXED_ATTENTION.items():
        inner.expect(name, *allowed)
    bias_max = inner.take("alibi_bias_max", USUAL_BIAS_MAX, kind=float)
    choices = {
        "n_layers": fields.layers("n_layers"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // max(heads, 1),
        "d_vocab": fields.take("vocab_size", kind=int),
        "n_ctx": fields.take("max_seq_len", 2048, kind=int),
        "d_mlp": 4 * width,
        "norm": "layer",
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5, kind=float),
        "positions": "alibi",
        "alibi_slopes": () if bias_max == USUAL_BIAS_MAX else slopes(heads, bias_max),
        "score_scale": inner.take("softmax_scale", None, kind=float),
        "qkv_clip": inner.take("clip_qkv", None, kind=float) or None,
        "activation": "gelu",
        "gated": False,
        "unembed": "tied" if fields.take("tie_word_embeddings", True, kind=bool) else "own",
    }
    try:
        inner.finish(HARMLESS_ATTENTION)
    except CheckpointError:
        fields.problems += [f"attn_config: {problem}" for problem in inner.problems]
    return fields.build(choices, harmless=HARMLESS)


def slopes(heads: int, bias_max: float) -> tuple[float, ...]:
    """ALiBi slopes 2^-(bias_max i / n) for i = 1 .. n, the power of two above the heads; of more than needed, even i first."""
    n = 2 ** math.ceil(math.log2(max(heads, 1)))
    every = [2.0 ** -(bias_max * i / n) for i in range(1, n + 1)]
    return tuple(every if n == heads else (every[1::2] + every[::2])[:heads])


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if config.positions != "alibi" or config.norm_bias:
        return None
    n = 2 ** math.ceil(math.log2(config.n_heads))
    bias_max = -math.log2(config.alibi_slopes[0]) * n / (1 if n == config.n_heads else 2) if config.alibi_slopes else USUAL_BIAS_MAX
    attention = {
        "alibi": True,
        "alibi_bias_max": whole(bias_max),
        "clip_qkv": config.qkv_clip,
        "softmax_scale": None if config.score_scale is None else config.layer_scales[0],
    }
    return {
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "vocab_size": config.d_vocab,
        "max_seq_len": config.n_ctx,
        "layer_norm_epsilon": config.norm_eps,
        "attn_config": attention,
        "tie_word_embeddings": config.unembed == "tied",
    }


FAMILIES = (Family("mpt", ("MptForCausalLM", "MPTForCausalLM", "MptModel"), read, write, TABLE, prefix="transformer."),)
