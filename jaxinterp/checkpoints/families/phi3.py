"""Phi-3, 3.5 and Phi-4-mini: Llama with fused projections; may rotate a part of each head, stretch by longrope and slide."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.checkpoints.rope import rope_parameters, rotary
from jaxinterp.model.config import Rotary, TransformerConfig

QKV, FUSED_QKV = "self_attn.qkv_proj.weight", "([H E|G E|G E])"

FUSED_MLP: Table = {
    "blocks.mlp.W_gate": Weight(decoder.LAYER + "mlp.gate_up_proj.weight", "([M|M]) D -> D M", part=0),
    "blocks.mlp.W_in": Weight(decoder.LAYER + "mlp.gate_up_proj.weight", "([M|M]) D -> D M", part=1),
}
"""Gate and up projection one below the other in one matrix."""

TABLE: Table = {
    **decoder.TABLE,
    **FUSED_MLP,
    "blocks.attn.W_Q": Weight(decoder.LAYER + QKV, f"{FUSED_QKV} D -> D H E", part=0),
    "blocks.attn.W_K": Weight(decoder.LAYER + QKV, f"{FUSED_QKV} D -> D G E", part=1),
    "blocks.attn.W_V": Weight(decoder.LAYER + QKV, f"{FUSED_QKV} D -> D G E", part=2),
}

ORIGINAL_CONTEXT = 4096
"""Where transformers finds no original context beside the rotary parameters, it takes this one and not theirs."""


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Phi-3; every layer has the same window, the rotation may be stretched by longrope only."""
    choices = decoder.choices(fields, rms_norm_eps=1e-5)
    for name, harmless in {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False}.items():
        fields.expect(name, harmless)
    window = fields.take("sliding_window", None, kind=int)
    return fields.build(
        choices
        | _rotary_choices(fields, choices["d_head"])
        | {
            "windows": decoder.windows(fields, choices["n_layers"], window, lambda layer: bool(window)),
            "activation": fields.activation("hidden_act", "silu"),
        }
    )


def _rotary_choices(fields: Fields, d_head: int) -> dict[str, Any]:
    context = fields.take("max_position_embeddings", 4096, kind=int)
    parameters = rope_parameters(fields, partial=1.0)
    parameters["original_max_position_embeddings"] = fields.take("original_max_position_embeddings", ORIGINAL_CONTEXT, kind=int)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ("default", "su", "yarn", "longrope"):
        fields.problems.append(f"rope scaling {kind!r} is not one of this family's (longrope, also written su or yarn)")
    if kind in ("su", "yarn"):
        parameters["rope_type"] = "longrope"
    setting, n_ctx = rotary(fields, parameters, d_head, context, partial=True)
    return {"rotary": (setting,), "n_ctx": n_ctx}


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    common = decoder.written(config)
    if common is None:
        return None
    scaling = config.rotary[0].scaling
    return common | {
        # transformers' default is a token that small vocabularies lack
        "pad_token_id": None,
        "partial_rotary_factor": share(config.rotary[0], config.d_head),
        "original_max_position_embeddings": scaling.original_context if scaling else ORIGINAL_CONTEXT,
        "sliding_window": max(config.layer_windows) or None,
        "hidden_act": ACTIVATION_NAMES.get(config.activation),
    }


def share(setting: Rotary, d_head: int) -> float:
    """The part of a head's features that is rotated."""
    return setting.dim / d_head


FAMILIES = (Family("phi3", ("Phi3ForCausalLM", "Phi3Model"), read, write, TABLE),)
