"""Granite: Llama with four multipliers: of the embedding, the scores, what each sublayer adds, and the logits (divided)."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.model.config import TransformerConfig


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Granite; optional biases, of attention (all four) and of the MLP."""
    common = decoder.choices(fields)
    attention, mlp = fields.take("attention_bias", False, kind=bool), fields.take("mlp_bias", False, kind=bool)
    divisor = fields.take("logits_scaling", 1.0, kind=float)
    if divisor == 0:
        fields.problems.append("'logits_scaling' is 0, expected a number to divide the logits by")
    own = {
        "embed_scale": fields.take("embedding_multiplier", 1.0, kind=float),
        "score_scale": fields.take("attention_multiplier", 1.0, kind=float),
        "residual_multiplier": fields.take("residual_multiplier", 1.0, kind=float),
        "logit_scale": 1.0 / (divisor or 1.0),
        "activation": fields.activation("hidden_act", "silu"),
    }
    return fields.build(common | decoder.rotary_choices(fields, common["d_head"], 2048) | decoder.biases(attention, mlp) | own)


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    common = decoder.written(config)
    own = {
        "embedding_multiplier": config.embed_scale,
        "attention_multiplier": config.layer_scales[0],
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": decoder.whole(1.0 / (config.logit_scale or 1.0)),
        "hidden_act": ACTIVATION_NAMES.get(config.activation),
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_out_bias,
    }
    return common and common | own


FAMILIES = (Family("granite", ("GraniteForCausalLM", "GraniteModel"), read, write, decoder.TABLE),)
