"""Llama's skeleton with LayerNorm: StarCoder 2, Phi (parallel, a bias on everything) and StableLM (gated, partly rotated)."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.decoder import LAYER, SIZES, biases
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, REQUIRED, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.checkpoints.rope import context_of, scaling_fields
from jaxinterp.model.config import TransformerConfig

TABLE: Table = {
    **decoder.TABLE,
    "blocks.ln1.b": Weight(LAYER + "input_layernorm.bias", "D"),
    "blocks.ln2.b": Weight(LAYER + "post_attention_layernorm.bias", "D"),
    "ln_final.b": Weight("model.norm.bias", "D"),
}

STARCODER2_TABLE: Table = {
    **TABLE,
    "blocks.mlp.W_in": Weight(LAYER + "mlp.c_fc.weight", "M D -> D M"),
    "blocks.mlp.b_in": Weight(LAYER + "mlp.c_fc.bias", "M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.c_proj.weight", "D M -> M D"),
    "blocks.mlp.b_out": Weight(LAYER + "mlp.c_proj.bias", "D"),
}

PHI_TABLE: Table = {
    **TABLE,
    "blocks.attn.W_O": Weight(LAYER + "self_attn.dense.weight", "D (H E) -> H E D"),
    "blocks.attn.b_O": Weight(LAYER + "self_attn.dense.bias", "D"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.fc1.weight", "M D -> D M"),
    "blocks.mlp.b_in": Weight(LAYER + "mlp.fc1.bias", "M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.fc2.weight", "D M -> M D"),
    "blocks.mlp.b_out": Weight(LAYER + "mlp.fc2.bias", "D"),
    "ln_final.w": Weight("model.final_layernorm.weight", "D"),
    "ln_final.b": Weight("model.final_layernorm.bias", "D"),
    "unembed.b_U": Weight("lm_head.bias", "V"),
}

STABLELM_TABLE: Table = {
    **TABLE,
    # a tensor for each head
    "blocks.attn.q_norm.w": Weight(LAYER + "self_attn.q_layernorm.norms.{x}.weight", "E"),
    "blocks.attn.k_norm.w": Weight(LAYER + "self_attn.k_layernorm.norms.{x}.weight", "E"),
}


def read_starcoder2(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """StarCoder 2: every layer sees the same window, or none does."""
    biased = fields.take("use_bias", True, kind=bool)
    fields.expect("norm_type", "layer_norm")
    fields.expect("mlp_type", "default")
    common = _choices(fields, "norm_epsilon", tied=True, act="gelu_pytorch_tanh", context=4096)
    window = fields.take("sliding_window", 0, kind=int)
    windows = (window,) * common["n_layers"] if window else ()
    return fields.build(common | biases(biased, biased) | {"gated": False, "windows": windows})


def write_starcoder2(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_starcoder2`."""
    common = _written(config, "norm_epsilon")
    return common and common | {"use_bias": config.o_bias, "sliding_window": max(config.layer_windows) or None}


def read_phi(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Phi 1 to 2; half of each head is rotated where the file says nothing."""
    # transformers' norm of queries and keys has a bias here, which none of the published models uses
    fields.expect("qk_layernorm", False)
    common = _choices(fields, "layer_norm_eps", tied=False, act="gelu_new", context=2048, share=0.5)
    return fields.build(common | biases(True, True) | {"gated": False, "parallel": "one_norm", "unembed_bias": True})


def write_phi(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_phi`."""
    common = _written(config, "layer_norm_eps")
    return common and common | {"partial_rotary_factor": config.rotary[0].dim / config.d_head}


def read_stablelm(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """StableLM; a quarter of each head is rotated where the file says nothing."""
    common = _choices(fields, "layer_norm_eps", tied=False, act="silu", context=4096, share=0.25, head_dim=False)
    qkv = dict.fromkeys(("q_bias", "k_bias", "v_bias"), fields.take("use_qkv_bias", False, kind=bool))
    qk_norm = "per_head" if fields.take("qk_layernorm", False, kind=bool) else "none"
    parallel = "one_norm" if fields.take("use_parallel_residual", False, kind=bool) else "no"
    return fields.build(common | qkv | {"gated": True, "qk_norm": qk_norm, "parallel": parallel})


def write_stablelm(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_stablelm`."""
    common = _written(config, "layer_norm_eps")
    if common is None:
        return None
    own = {"use_qkv_bias": config.q_bias, "qk_layernorm": config.qk_norm == "per_head", "use_parallel_residual": config.parallel != "no"}
    return (
        {name: value for name, value in common.items() if name != "head_dim"}
        | own
        | {"partial_rotary_factor": config.rotary[0].dim / config.d_head}
    )


def _choices(
    fields: Fields, eps: str, *, tied: bool, act: str, context: int, share: float | None = None, head_dim: bool = True
) -> dict[str, Any]:
    """What the three have in common; `eps` is the field of the norms' epsilon, the rest are defaults (see `decoder`)."""
    sizes = {"num_hidden_layers": fields.layers("num_hidden_layers")}
    sizes |= {name: fields.take(name, REQUIRED, kind=int) for name in SIZES.values() if name not in sizes}
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    d_head = fields.take("head_dim", width // max(heads, 1), kind=int) if head_dim else width // max(heads, 1)
    return (
        {ours: sizes[theirs] for ours, theirs in SIZES.items()}
        | decoder.rotary_choices(fields, d_head, context, share=share)
        | {
            "d_head": d_head,
            "n_kv_heads": fields.take("num_key_value_heads", heads, kind=int),
            "norm": "layer",
            "norm_bias": True,
            "norm_eps": fields.take(eps, 1e-5, kind=float),
            "activation": fields.activation("hidden_act", act),
            "unembed": "tied" if fields.take("tie_word_embeddings", tied, kind=bool) else "own",
        }
    )


def _written(config: TransformerConfig, eps: str) -> dict[str, Any] | None:
    if not config.rotary or config.norm != "layer":
        return None
    return {theirs: getattr(config, ours) for ours, theirs in SIZES.items()} | {
        "head_dim": config.d_head,
        "num_key_value_heads": config.n_kv_heads,
        "max_position_embeddings": context_of(config.n_ctx, config.rotary[0]),
        "rope_theta": config.rotary[0].base,
        "rope_scaling": scaling_fields(config.rotary[0]),
        eps: config.norm_eps,
        "hidden_act": ACTIVATION_NAMES.get(config.activation),
        "tie_word_embeddings": config.unembed == "tied",
    }


FAMILIES = (
    Family("starcoder2", ("Starcoder2ForCausalLM", "Starcoder2Model"), read_starcoder2, write_starcoder2, STARCODER2_TABLE),
    Family("phi", ("PhiForCausalLM", "PhiModel"), read_phi, write_phi, PHI_TABLE),
    Family("stablelm", ("StableLmForCausalLM", "StableLmModel"), read_stablelm, write_stablelm, STABLELM_TABLE),
)
