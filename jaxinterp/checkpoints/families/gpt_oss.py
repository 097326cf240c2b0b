"""GPT-OSS: attention sinks, windows on every other layer, biases everywhere, experts of clamped gated neurons, MXFP4 files."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints import mxfp4
from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.decoder import LAYER
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.families.moe import BIASES, TRAINING, number_of_experts
from jaxinterp.checkpoints.fields import Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.checkpoints.rope import rope_parameters, rotary
from jaxinterp.model.config import Experts, TransformerConfig

MLP = LAYER + "mlp."

TABLE: Table = {
    **decoder.TABLE,
    "blocks.attn.sink": Weight(LAYER + "self_attn.sinks", "H"),
    "blocks.experts.W_router": Weight(MLP + "router.weight", "X D -> D X"),
    "blocks.experts.b_router": Weight(MLP + "router.bias", "X"),
    "blocks.experts.W_gate": Weight(MLP + "experts.gate_up_proj", "X D (M [1|1]) -> X D M", part=0),
    "blocks.experts.W_in": Weight(MLP + "experts.gate_up_proj", "X D (M [1|1]) -> X D M", part=1),
    "blocks.experts.W_out": Weight(MLP + "experts.down_proj", "X M D"),
    "blocks.experts.b_gate": Weight(MLP + "experts.gate_up_proj_bias", "X (M [1|1]) -> X M", part=0),
    "blocks.experts.b_in": Weight(MLP + "experts.gate_up_proj_bias", "X (M [1|1]) -> X M", part=1),
    "blocks.experts.b_out": Weight(MLP + "experts.down_proj_bias", "X D"),
}

DEFAULTS = {"head_dim": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
"""The stretch of files that name none."""


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """GPT-OSS; its neurons are x sigmoid(1.702 x) whatever `hidden_act` says."""
    common = decoder.choices(fields, **DEFAULTS)
    per_token = fields.take("num_experts_per_tok", 4, kind=int)
    fields.expect("experts_per_token", per_token)
    fields.expect("hidden_act", "silu")
    fields.expect("swiglu_alpha", 1.702)
    method = fields.take("quantization_config", {"quant_method": "mxfp4"}, kind=dict).get("quant_method")
    if method != "mxfp4":
        fields.problems.append(f"'quantization_config' is of method {method!r}, which is not supported (supported: 'mxfp4')")
    context = fields.take("max_position_embeddings", 131_072, kind=int)
    stretched = rope_parameters(fields, 150_000.0)
    if not fields.values.get("rope_parameters") and not fields.values.get("rope_scaling"):
        stretched = YARN | {"original_max_position_embeddings": 4096} | stretched
    setting, n_ctx = rotary(fields, stretched, common["d_head"], context)
    window = fields.take("sliding_window", 128, kind=int)
    own = {
        "rotary": (setting,),
        "n_ctx": n_ctx,
        "windows": decoder.windows(fields, common["n_layers"], window, lambda layer: layer % 2 == 0),
        "experts": Experts(number_of_experts(fields, 128), per_token, common["d_mlp"], router_bias=True),
        "d_mlp": 0,
        "sinks": True,
        "activation": "quick_gelu",
        "mlp_clamp": fields.take("swiglu_limit", 7.0, kind=float),
        "mlp_up_offset": 1.0,
        "mlp_in_bias": True,
        "mlp_out_bias": True,
    }
    # the context before stretching stands in rope_scaling too, and counts there
    harmless = (*TRAINING, "initial_context_length")
    return fields.build(common | dict.fromkeys(BIASES, fields.take("attention_bias", True, kind=bool)) | own, harmless)


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    common, experts = decoder.written(config), config.experts
    if common is None or experts is None or config.mlp_clamp is None:
        return None
    if config.rotary[0].scaling is None:
        common["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rotary[0].base}
    own = {
        "num_local_experts": experts.n,
        "num_experts_per_tok": experts.per_token,
        "intermediate_size": experts.d_expert,
        "hidden_act": "silu",
        "swiglu_limit": config.mlp_clamp,
        "attention_bias": config.o_bias,
    }
    # transformers wants a size even where no layer slides
    return common | decoder.written_windows(config) | {"sliding_window": max(config.layer_windows) or 128} | own


FAMILIES = (Family("gpt_oss", ("GptOssForCausalLM", "GptOssModel"), read, write, TABLE, unpack=mxfp4.unpack),)
