"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with one key/value head, or with all three fused a head at a time."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import gpt2
from jaxinterp.checkpoints.families.decoder import biases
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import TransformerConfig

LAYER = "transformer.h.{l}."
# with one key/value head this is all queries, a key, a value; with as many as queries, a head at a time
QKV = "(G [R|1|1] E)"

TABLE: Table = {
    **gpt2.TABLE,
    "blocks.attn.W_Q": Weight(LAYER + "attn.c_attn.weight", f"{QKV} D -> D (G R) E", part=0),
    "blocks.attn.W_K": Weight(LAYER + "attn.c_attn.weight", f"{QKV} D -> D G E", part=1),
    "blocks.attn.W_V": Weight(LAYER + "attn.c_attn.weight", f"{QKV} D -> D G E", part=2),
    "blocks.attn.b_Q": Weight(LAYER + "attn.c_attn.bias", f"{QKV} -> (G R) E", part=0),
    "blocks.attn.b_K": Weight(LAYER + "attn.c_attn.bias", f"{QKV} -> G E", part=1),
    "blocks.attn.b_V": Weight(LAYER + "attn.c_attn.bias", f"{QKV} -> G E", part=2),
    "blocks.attn.W_O": Weight(LAYER + "attn.c_proj.weight", "D (H E) -> H E D"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.c_fc.weight", "M D -> D M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.c_proj.weight", "D M -> M D"),
}

# how attention is computed (its rounding only), and how the serving code runs
HARMLESS = (
    "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner", "max_batch_size", "pad_key_length",
    "pre_allocate_kv_cache", "validate_runner_input",
)  # fmt: skip


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """GPT-BigCode; scores may be left unscaled."""
    width, heads = fields.take("n_embd", 768, kind=int), fields.take("n_head", 12, kind=int)
    if width % max(heads, 1):
        fields.problems.append(f"'n_embd' ({width}) is not a multiple of 'n_head' ({heads})")
    n_kv_heads = 1 if fields.take("multi_query", True, kind=bool) else heads
    fields.expect("num_key_value_heads", n_kv_heads)
    choices = {
        "n_layers": fields.layers("n_layer"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": n_kv_heads,
        "d_head": width // max(heads, 1),
        "d_vocab": fields.take("vocab_size", kind=int),
        "n_ctx": fields.take("n_positions", 1024, kind=int),
        "d_mlp": fields.take("n_inner", 4 * width, kind=int),
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5, kind=float),
        "positions": "learned",
        "score_scale": None if fields.take("scale_attn_weights", True, kind=bool) else 1.0,
        "activation": fields.activation("activation_function", "gelu_pytorch_tanh"),
        "gated": False,
        "unembed": "tied" if fields.take("tie_word_embeddings", True, kind=bool) else "own",
    }
    return fields.build(choices | biases(True, True), harmless=HARMLESS)


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if config.positions != "learned":
        return None
    return {
        "n_layer": config.n_layers,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "multi_query": config.n_kv_heads == 1,
        "vocab_size": config.d_vocab,
        "n_positions": config.n_ctx,
        "n_inner": config.d_mlp,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATION_NAMES.get(config.activation),
        "scale_attn_weights": config.score_scale is None,
        "tie_word_embeddings": config.unembed == "tied",
    }


FAMILIES = (
    Family(
        "gpt_bigcode",
        ("GPTBigCodeForCausalLM", "GPTBigCodeModel"),
        read,
        write,
        TABLE,
        prefix="transformer.",
        # the causal mask, kept as a buffer by older versions
        ignorable=(r"\.attn\.(masked_)?bias$", r"^(transformer\.)?bias$"),
    ),
)
