"""GPT-J and CodeGen: attention and MLP in parallel on one LayerNorm, neighbouring features rotated, a bias on the logits.

They compute the same; only CodeGen's queries, values and keys (in this order) are fused, a quarter of the heads at a time,
as they lay on the four cores that it was trained on.
"""

import functools
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import Rotary, TransformerConfig

LAYER = "transformer.h.{l}."

TABLE: Table = {
    "embed.W_E": Weight("transformer.wte.weight", "V D"),
    "blocks.ln1.w": Weight(LAYER + "ln_1.weight", "D"),
    "blocks.ln1.b": Weight(LAYER + "ln_1.bias", "D"),
    "blocks.attn.W_Q": Weight(LAYER + "attn.q_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_K": Weight(LAYER + "attn.k_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_V": Weight(LAYER + "attn.v_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_O": Weight(LAYER + "attn.out_proj.weight", "D (H E) -> H E D"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.fc_in.weight", "M D -> D M"),
    "blocks.mlp.b_in": Weight(LAYER + "mlp.fc_in.bias", "M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.fc_out.weight", "D M -> M D"),
    "blocks.mlp.b_out": Weight(LAYER + "mlp.fc_out.bias", "D"),
    "ln_final.w": Weight("transformer.ln_f.weight", "D"),
    "ln_final.b": Weight("transformer.ln_f.bias", "D"),
    "unembed.W_U": Weight("lm_head.weight", "V D -> D V"),
    "unembed.b_U": Weight("lm_head.bias", "V"),
}

FUSED = "(4 [J E|J E|J E]) D -> D (4 J) E"
FUSED_KEY = LAYER + "attn.qkv_proj.weight"

CODEGEN_TABLE: Table = {
    **TABLE,
    "blocks.attn.W_Q": Weight(FUSED_KEY, FUSED, part=0),
    "blocks.attn.W_V": Weight(FUSED_KEY, FUSED, part=1),
    "blocks.attn.W_K": Weight(FUSED_KEY, FUSED, part=2),
}


def read(fields: Fields, dtype: np.dtype, *, parts: int = 1) -> TransformerConfig:
    """GPT-J; with heads in so many parts, CodeGen."""
    width, heads = fields.take("n_embd", 4096, kind=int), fields.take("n_head", 16, kind=int)
    if width % max(heads, 1) or heads % parts:
        fields.problems.append(
            f"'n_embd' is {width} and 'n_head' {heads}; expected heads in {parts} equal parts and a width in equal heads"
        )
    if fields.given("rotary_dim") and fields.values["rotary_dim"] is None:
        fields.problems.append("field 'rotary_dim' is null, expected the number of features rotated")
    for name in ("rotary", "scale_attn_weights"):
        fields.expect(name, True)
    choices = {
        "n_layers": fields.layers("n_layer"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // max(heads, 1),
        "d_vocab": fields.take("vocab_size", kind=int),
        "n_ctx": fields.take("n_positions", 2048, kind=int),
        "d_mlp": fields.take("n_inner", 4 * width, kind=int),
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5, kind=float),
        "parallel": "one_norm",
        "rotary": (Rotary(fields.take("rotary_dim", 64, kind=int), interleaved=True),),
        "activation": fields.activation("activation_function", "gelu_new"),
        "gated": False,
        "mlp_in_bias": True,
        "mlp_out_bias": True,
        "unembed": "tied" if fields.take("tie_word_embeddings", False, kind=bool) else "own",
        "unembed_bias": True,
    }
    # CodeGen names its context a second time and reads it nowhere
    return fields.build(choices, harmless=("n_ctx",))


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if not config.rotary or config.parallel != "one_norm":
        return None
    return {
        "n_layer": config.n_layers,
        "n_embd": config.d_model,
        "n_head": config.n_heads,
        "vocab_size": config.d_vocab,
        "n_positions": config.n_ctx,
        "n_inner": config.d_mlp,
        "rotary_dim": config.rotary[0].dim,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATION_NAMES.get(config.activation),
        "tie_word_embeddings": config.unembed == "tied",
    }


# the causal mask and the table of angles, kept as buffers by older versions
BUFFERS = (r"\.attn\.(masked_)?bias$", r"\.attn\.(causal_mask|embed_positions)$")

FAMILIES = (
    Family("gptj", ("GPTJForCausalLM", "GPTJModel"), read, write, TABLE, prefix="transformer.", ignorable=BUFFERS),
    Family(
        "codegen",
        ("CodeGenForCausalLM", "CodeGenModel"),
        functools.partial(read, parts=4),
        write,
        CODEGEN_TABLE,
        prefix="transformer.",
        ignorable=BUFFERS,
    ),
)
