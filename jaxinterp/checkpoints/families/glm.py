"""GLM-4: Llama that rotates half of each head, neighbours in pairs, with biases of q, k and v; the models of 0414 norm both sides."""

import functools
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.families.phi3 import FUSED_MLP, share
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import NormPosition, TransformerConfig

TABLE: Table = {**decoder.TABLE, **FUSED_MLP}

SANDWICH_TABLE: Table = {
    **TABLE,
    "blocks.ln1_post.w": Weight(decoder.LAYER + "post_self_attn_layernorm.weight", "D"),
    "blocks.ln2_post.w": Weight(decoder.LAYER + "post_mlp_layernorm.weight", "D"),
}

DEFAULTS = {"num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1.5625e-7}


def read(fields: Fields, dtype: np.dtype, *, norm_position: NormPosition) -> TransformerConfig:
    """GLM; attention's output has no bias, whatever its inputs have."""
    common = decoder.choices(fields, **DEFAULTS)
    common |= decoder.rotary_choices(fields, common["d_head"], 131_072, share=0.5, interleaved=True)
    common |= dict.fromkeys(("q_bias", "k_bias", "v_bias"), fields.take("attention_bias", True, kind=bool))
    return fields.build(common | {"norm_position": norm_position, "activation": fields.activation("hidden_act", "silu")})


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    common = decoder.written(config)
    if common is None:
        return None
    return common | {
        # transformers' default is a token that small vocabularies lack
        "pad_token_id": None,
        "partial_rotary_factor": share(config.rotary[0], config.d_head),
        "attention_bias": config.q_bias,
        "hidden_act": ACTIVATION_NAMES.get(config.activation),
    }


FAMILIES = (
    Family("glm", ("GlmForCausalLM", "GlmModel"), functools.partial(read, norm_position="pre"), write, TABLE),
    Family("glm4", ("Glm4ForCausalLM", "Glm4Model"), functools.partial(read, norm_position="sandwich"), write, SANDWICH_TABLE),
)
