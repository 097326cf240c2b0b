"""Decoders with experts in place of the MLP: Mixtral, OLMoE, Qwen 2 MoE (an expert that all tokens go to) and Qwen 3 MoE."""

import functools
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.decoder import LAYER
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import Experts, TransformerConfig

SPARSE, EXPERT, SHARED = LAYER + "block_sparse_moe.", LAYER + "mlp.experts.{x}.", LAYER + "mlp.shared_expert."

MIXTRAL_TABLE: Table = {
    **decoder.TABLE,
    "blocks.experts.W_router": Weight(SPARSE + "gate.weight", "X D -> D X"),
    "blocks.experts.W_gate": Weight(SPARSE + "experts.{x}.w1.weight", "M D -> D M"),
    "blocks.experts.W_in": Weight(SPARSE + "experts.{x}.w3.weight", "M D -> D M"),
    "blocks.experts.W_out": Weight(SPARSE + "experts.{x}.w2.weight", "D M -> M D"),
}

TABLE: Table = {
    **decoder.TABLE,
    "blocks.mlp.W_gate": Weight(LAYER + "mlp.gate_proj.weight", "N D -> D N"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.up_proj.weight", "N D -> D N"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.down_proj.weight", "D N -> N D"),
    "blocks.experts.W_router": Weight(LAYER + "mlp.gate.weight", "X D -> D X"),
    "blocks.experts.W_gate": Weight(EXPERT + "gate_proj.weight", "M D -> D M"),
    "blocks.experts.W_in": Weight(EXPERT + "up_proj.weight", "M D -> D M"),
    "blocks.experts.W_out": Weight(EXPERT + "down_proj.weight", "D M -> M D"),
    "blocks.experts.W_shared_gate": Weight(SHARED + "gate_proj.weight", "U D -> D U"),
    "blocks.experts.W_shared_in": Weight(SHARED + "up_proj.weight", "U D -> D U"),
    "blocks.experts.W_shared_out": Weight(SHARED + "down_proj.weight", "D U -> U D"),
    "blocks.experts.w_shared": Weight(LAYER + "mlp.shared_expert_gate.weight", "1 D -> (1 D)"),
}

OLMOE_TABLE: Table = {
    **TABLE,
    "blocks.attn.q_norm.w": Weight(LAYER + "self_attn.q_norm.weight", "(H E) -> H E"),
    "blocks.attn.k_norm.w": Weight(LAYER + "self_attn.k_norm.weight", "(G E) -> G E"),
}

TRAINING = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
"""Fields about the loss that balances experts: nothing of it enters a forward pass."""

BIASES = ("q_bias", "k_bias", "v_bias", "o_bias")


def number_of_experts(fields: Fields, default: int) -> int:
    """X, under either of its names."""
    named = [fields.take(name, None, kind=int) for name in ("num_experts", "num_local_experts")]
    if None not in named and named[0] != named[1]:
        fields.problems.append(f"'num_experts' is {named[0]} but 'num_local_experts' {named[1]}")
    return next((n for n in named if n is not None), default)


def _common(fields: Fields, context: int, theta: float = 10_000.0, **defaults: float) -> dict[str, Any]:
    common = decoder.choices(fields, **defaults)
    common["activation"] = fields.activation("hidden_act", "silu")
    return common | decoder.rotary_choices(fields, common["d_head"], context, theta=theta)


def _written(config: TransformerConfig) -> dict[str, Any] | None:
    common = decoder.written(config)
    if common is None or config.experts is None:
        return None
    chosen = {"num_experts_per_tok": config.experts.per_token, "hidden_act": ACTIVATION_NAMES.get(config.activation)}
    return common | chosen | {"sliding_window": max(config.layer_windows) or None}


def read_mixtral(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Mixtral: every layer has experts, whose weights sum to 1, and sees the same window."""
    common = _common(fields, 131_072, 1e6, num_key_value_heads=8, rms_norm_eps=1e-5)
    experts = Experts(number_of_experts(fields, 8), fields.take("num_experts_per_tok", 2, kind=int), common["d_mlp"])
    window = fields.take("sliding_window", None, kind=int)
    common["windows"] = decoder.windows(fields, common["n_layers"], window, lambda layer: bool(window))
    return fields.build(common | {"experts": experts, "d_mlp": 0}, TRAINING)


def write_mixtral(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_mixtral`."""
    common, experts = _written(config), config.experts
    return common and experts and common | {"num_local_experts": experts.n, "intermediate_size": experts.d_expert}


def read_olmoe(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """OLMoE: queries and keys normed as one vector each, then clipped, as are values."""
    common = _common(fields, 4096, rms_norm_eps=1e-5)
    per_token, normalise = fields.take("num_experts_per_tok", 8, kind=int), fields.take("norm_topk_prob", False, kind=bool)
    experts = Experts(number_of_experts(fields, 64), per_token, common["d_mlp"], normalise)
    biases = dict.fromkeys(BIASES, fields.take("attention_bias", False, kind=bool))
    own = {"experts": experts, "d_mlp": 0, "qk_norm": "whole", "qkv_clip": fields.take("clip_qkv", None, kind=float)}
    return fields.build(common | biases | own, TRAINING)


def write_olmoe(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_olmoe`."""
    common, experts = _written(config), config.experts
    if common is None or experts is None or config.n_heads * config.d_head != config.d_model:
        return None
    own = {"attention_bias": config.o_bias, "clip_qkv": config.qkv_clip, "norm_topk_prob": experts.normalise}
    return common | own | {"num_experts": experts.n, "intermediate_size": experts.d_expert}


def read_qwen(fields: Fields, dtype: np.dtype, *, version: int) -> TransformerConfig:
    """Qwen 2 MoE: biases of q, k and v, a gated shared expert. Qwen 3 MoE: normed queries and keys. Both: some layers may be dense."""
    common = _common(fields, 32_768, num_key_value_heads=16 if version == 2 else 4)
    n_layers = common["n_layers"]
    dense, step = fields.take("mlp_only_layers", [], kind=list), fields.take("decoder_sparse_step", 1, kind=int)
    layers = tuple(layer not in dense and (layer + 1) % max(step, 1) == 0 for layer in range(n_layers))
    if not any(layers):
        fields.problems.append("'mlp_only_layers' and 'decoder_sparse_step' leave no layer with experts")
    shared = fields.take("shared_expert_intermediate_size", 5632, kind=int) if version == 2 else 0
    experts = Experts(
        number_of_experts(fields, 60 if version == 2 else 128),
        fields.take("num_experts_per_tok", 4 if version == 2 else 8, kind=int),
        fields.take("moe_intermediate_size", 1408 if version == 2 else 768, kind=int),
        fields.take("norm_topk_prob", False, kind=bool),
        d_shared=shared,
        shared_gate=shared > 0,
        layers=() if all(layers) else layers,
    )
    if version == 2:
        own: dict[str, Any] = dict.fromkeys(BIASES[:3], fields.take("qkv_bias", True, kind=bool))
    else:
        own = dict.fromkeys(BIASES, fields.take("attention_bias", False, kind=bool)) | {"qk_norm": "head"}
    own |= {"experts": experts, "windows": _qwen_windows(fields, n_layers, version)} | ({"d_mlp": 0} if all(layers) else {})
    return fields.build(common | own, TRAINING)


def _qwen_windows(fields: Fields, n_layers: int, version: int) -> tuple[int, ...]:
    """Version 2: every other layer below `max_window_layers`; version 3: all layers."""
    used, stated = fields.take("use_sliding_window", False, kind=bool), fields.take("sliding_window", 4096, kind=int)
    below = fields.take("max_window_layers", 28, kind=int) if version == 2 else n_layers
    # files of version 3 repeat it, without effect
    fields.take("max_window_layers", None, kind=int)
    return decoder.windows(
        fields, n_layers, stated if used else None, lambda layer: used and layer < below and (version == 3 or layer % 2 == 0)
    )


def write_qwen(config: TransformerConfig, *, version: int) -> dict[str, Any] | None:
    """See `read_qwen`."""
    common, experts = _written(config), config.experts
    if common is None or experts is None or (version == 2) != bool(experts.d_shared):
        return None
    own: dict[str, Any] = {
        "num_experts": experts.n,
        "moe_intermediate_size": experts.d_expert,
        "norm_topk_prob": experts.normalise,
        "mlp_only_layers": [layer for layer, sparse in enumerate(config.expert_layers) if not sparse],
        "use_sliding_window": any(config.layer_windows),
    }
    if version == 2:
        own |= {"shared_expert_intermediate_size": experts.d_shared, "qkv_bias": config.q_bias} | decoder.written_windows(config)
    else:
        own |= {"attention_bias": config.o_bias}
    return common | own


def _qwen(version: int) -> Family:
    read, write = functools.partial(read_qwen, version=version), functools.partial(write_qwen, version=version)
    return Family(f"qwen{version}_moe", (f"Qwen{version}MoeForCausalLM", f"Qwen{version}MoeModel"), read, write, TABLE)


FAMILIES = (
    Family("mixtral", ("MixtralForCausalLM", "MixtralModel"), read_mixtral, write_mixtral, MIXTRAL_TABLE),
    Family("olmoe", ("OlmoeForCausalLM", "OlmoeModel"), read_olmoe, write_olmoe, OLMOE_TABLE),
    _qwen(2),
    _qwen(3),
)
