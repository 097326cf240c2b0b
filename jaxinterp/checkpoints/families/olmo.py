"""OLMo 1 to 3: the first norms without parameters and clips q, k, v; OLMo 2 norms what attention and MLP put out; OLMo 3 slides."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.checkpoints.rope import scaling_fields
from jaxinterp.model.config import Rotary, TransformerConfig

LAYER = decoder.LAYER
OUTPUT_TABLE: Table = {
    **decoder.TABLE,
    "blocks.attn.q_norm.w": Weight(LAYER + "self_attn.q_norm.weight", "(H E) -> H E"),
    "blocks.attn.k_norm.w": Weight(LAYER + "self_attn.k_norm.weight", "(G E) -> G E"),
    "blocks.ln1_post.w": Weight(LAYER + "post_attention_layernorm.weight", "D"),
    "blocks.ln2_post.w": Weight(LAYER + "post_feedforward_layernorm.weight", "D"),
}

OUTPUT: dict[str, Any] = {"norm_position": "output", "qk_norm": "whole"}
CONTEXT, EPS = 2048, 1e-5
OLMO3_BASE = 500_000.0


def read_olmo(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """OLMo; the epsilon of its norms is not a field."""
    fields.expect("rms_norm_eps")
    common = _common(fields)
    common |= decoder.rotary_choices(fields, common["d_head"], CONTEXT)
    norm = {"norm": "layer", "norm_gain": "none", "norm_eps": EPS}
    return fields.build(common | norm | {"qkv_clip": fields.take("clip_qkv", None, kind=float)})


def write_olmo(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_olmo`."""
    common = _written(config)
    return common and {name: value for name, value in common.items() if name != "rms_norm_eps"} | {"clip_qkv": config.qkv_clip}


def read_olmo2(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """OLMo 2; queries and keys are normed over all heads at once."""
    common = _common(fields) | OUTPUT
    return fields.build(common | decoder.rotary_choices(fields, common["d_head"], CONTEXT))


def read_olmo3(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """OLMo 3; three layers of four slide, and a stretched rotation is that of the others only."""
    common = _common(fields) | OUTPUT
    window = fields.take("sliding_window", 4096, kind=int)
    windows = decoder.windows(fields, common["n_layers"], window, lambda layer: bool((layer + 1) % 4))
    context = fields.take("max_position_embeddings", CONTEXT, kind=int)
    full, sliding = _parameters(fields)
    rotary = decoder.rotary_by_window(fields, full, sliding, windows, common["n_layers"], common["d_head"], context)
    return fields.build(common | rotary | {"n_ctx": context, "windows": windows})


def _parameters(fields: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rotary parameters of the layers that see everything and of those that slide."""
    base = fields.take("rope_theta", OLMO3_BASE, kind=float)
    scaling, nested = fields.take("rope_scaling", {}, kind=dict), fields.take("rope_parameters", {}, kind=dict)
    unknown = sorted(set(nested) - {"full_attention", "sliding_attention"})
    fields.problems += [f"'rope_parameters' holds {name!r}, expected 'full_attention' and 'sliding_attention' only" for name in unknown]
    full, sliding = ({"rope_theta": OLMO3_BASE} | (nested.get(name) or {}) for name in ("full_attention", "sliding_attention"))
    if base != OLMO3_BASE:
        # versions of transformers differ: the sliding layers have it too, or always the usual base
        fields.problems.append(f"'rope_theta' is {base}, which has no one meaning for two kinds of layers; 'rope_parameters' can name both")
    return full | scaling, sliding


def write_olmo2(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_olmo2`."""
    return _written(config)


def write_olmo3(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_olmo3`."""
    common = _written(config)
    if common is None:
        return None
    used = list(zip((config.rotary[index] for index in config.layer_rotary), config.layer_windows, strict=True))
    full, sliding = (next((one for one, window in used if bool(window) == slides), config.rotary[0]) for slides in (False, True))
    common = {name: value for name, value in common.items() if name not in ("rope_theta", "rope_scaling")}
    own = {
        "max_position_embeddings": config.n_ctx,
        # transformers wants a size even where no layer slides
        "sliding_window": max(config.layer_windows) or 4096,
        "rope_parameters": {"full_attention": _rope(full), "sliding_attention": _rope(sliding)},
    }
    return common | decoder.written_windows(config) | own


def _rope(setting: Rotary) -> dict[str, Any]:
    return {"rope_theta": setting.base} | (scaling_fields(setting) or {"rope_type": "default"})


def _common(fields: Fields) -> dict[str, Any]:
    attention = fields.take("attention_bias", False, kind=bool)
    common = decoder.choices(fields, rms_norm_eps=EPS) | decoder.biases(attention)
    return common | {"activation": fields.activation("hidden_act", "silu")}


def _written(config: TransformerConfig) -> dict[str, Any] | None:
    common = decoder.written(config)
    return common and common | {"attention_bias": config.o_bias, "hidden_act": ACTIVATION_NAMES.get(config.activation)}


FAMILIES = (
    Family("olmo", ("OlmoForCausalLM", "OlmoModel"), read_olmo, write_olmo, decoder.TABLE),
    Family("olmo2", ("Olmo2ForCausalLM", "Olmo2Model"), read_olmo2, write_olmo2, OUTPUT_TABLE),
    Family("olmo3", ("Olmo3ForCausalLM", "Olmo3Model"), read_olmo3, write_olmo3, OUTPUT_TABLE),
)
