"""Command R and Aya (Cohere 1 and 2): attention and MLP share one LayerNorm without bias, rotation pairs neighbours, logits are scaled."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import TransformerConfig

TABLE: Table = {
    **decoder.TABLE,
    "blocks.attn.q_norm.w": Weight(decoder.LAYER + "self_attn.q_norm.weight", "H E"),
    "blocks.attn.k_norm.w": Weight(decoder.LAYER + "self_attn.k_norm.weight", "G E"),
}

FIXED = {
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": False,
    "order_of_interleaved_layers": "local_attn_first",
    "use_qk_norm": False,
}
"""Fields of Cohere 2's files that transformers does not read: what they say must be what it does."""


def read_cohere(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Cohere 1; queries and keys of each head may be normed, with gains of their own."""
    normed = fields.take("use_qk_norm", False, kind=bool)
    return fields.build(_common(fields, 500_000.0) | {"qk_norm": "per_head" if normed else "none"})


def write_cohere(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_cohere`."""
    common = _written(config)
    return common and common | {"use_qk_norm": config.qk_norm != "none"}


def read_cohere2(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Cohere 2; three layers of four slide, and only those rotate."""
    common = _common(fields, 10_000.0)
    for name, value in FIXED.items():
        fields.expect(name, value)
    every = fields.take("sliding_window_pattern", 4, kind=int)
    fields.expect("layer_switch", every)
    window = fields.take("sliding_window", 4096, kind=int)
    windows = decoder.windows(fields, common["n_layers"], window, lambda layer: bool((layer + 1) % max(every, 1)))
    slides = [bool(one) for one in windows] or [False] * common["n_layers"]
    return fields.build(common | {"windows": windows, "rotary_layers": () if all(slides) else tuple(0 if one else -1 for one in slides)})


def write_cohere2(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_cohere2`."""
    common = _written(config)
    # transformers wants a size even where no layer slides
    return common and common | decoder.written_windows(config) | {"sliding_window": max(config.layer_windows) or 4096}


def _common(fields: Fields, theta: float) -> dict[str, Any]:
    common = decoder.choices(fields, tie_word_embeddings=True)
    fields.expect("rms_norm_eps")
    common |= decoder.rotary_choices(fields, common["d_head"], 8192, theta=theta, interleaved=True)
    own = {
        "norm": "layer",
        "norm_eps": fields.take("layer_norm_eps", 1e-5, kind=float),
        "parallel": "one_norm",
        "logit_scale": fields.take("logit_scale", 0.0625, kind=float),
        "activation": fields.activation("hidden_act", "silu"),
    }
    return common | decoder.biases(fields.take("attention_bias", False, kind=bool)) | own


def _written(config: TransformerConfig) -> dict[str, Any] | None:
    common = decoder.written(config)
    if common is None:
        return None
    own = {
        "layer_norm_eps": config.norm_eps,
        "logit_scale": config.logit_scale,
        "hidden_act": ACTIVATION_NAMES.get(config.activation),
        "attention_bias": config.o_bias,
    }
    return {name: value for name, value in common.items() if name != "rms_norm_eps"} | own


FAMILIES = (
    Family("cohere", ("CohereForCausalLM", "CohereModel"), read_cohere, write_cohere, TABLE),
    Family("cohere2", ("Cohere2ForCausalLM", "Cohere2Model"), read_cohere2, write_cohere2, decoder.TABLE),
)
