"""Gemma 1 and 2: gains 1 + w and a scaled embedding; Gemma 2 norms both sides, caps scores and logits, and slides in turn."""

import math
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.families.gemma3 import TABLE as SANDWICH_TABLE
from jaxinterp.checkpoints.families.gemma3 import rounded
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, ACTIVATIONS, Fields
from jaxinterp.model.config import TransformerConfig

GEMMA = {"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True}
GEMMA2 = {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True}


def read_gemma(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Gemma 1; "gelu" stands for the tanh approximation in its first files, as transformers reads them too."""
    stated = fields.take("hidden_act", "gelu_pytorch_tanh", kind=str)
    fields.expect("hidden_activation", *(name for name, ours in ACTIVATIONS.items() if ours == "gelu_tanh"))
    if stated != "gelu" and ACTIVATIONS.get(stated) != "gelu_tanh":
        fields.problems.append(f"field 'hidden_act' is {stated!r}; this family's activation is 'gelu_pytorch_tanh'")
    return fields.build(_common(fields, dtype, GEMMA) | {"activation": "gelu_tanh"})


def write_gemma(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_gemma`."""
    common = _written(config)
    return common and common | {"hidden_act": "gelu_pytorch_tanh"}


def read_gemma2(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """Gemma 2: even layers slide, where the file has no layer_types; null is no cap, an absent field the usual one."""
    common = _common(fields, dtype, GEMMA2)
    window = fields.take("sliding_window", 4096, kind=int)
    fields.expect("sliding_window_size", window)
    activation = fields.activation("hidden_activation", "gelu_pytorch_tanh")
    # transformers does not read this one; the hub's files repeat the other there
    fields.expect("hidden_act", *(name for name, ours in ACTIVATIONS.items() if ours == activation))
    own = {
        "norm_position": "sandwich",
        "windows": decoder.windows(fields, common["n_layers"], window, lambda layer: layer % 2 == 0),
        "score_scale": fields.take("query_pre_attn_scalar", 256.0, kind=float) ** -0.5,
        "score_soft_cap": _cap(fields, "attn_logit_softcapping", 50.0),
        "final_soft_cap": _cap(fields, "final_logit_softcapping", 30.0),
        "activation": activation,
    }
    return fields.build(common | own)


def write_gemma2(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_gemma2`."""
    common = _written(config)
    own = {
        # transformers wants a size even where no layer slides, and a whole number here
        "sliding_window": max(config.layer_windows) or 4096,
        "query_pre_attn_scalar": decoder.whole(config.layer_scales[0] ** -2),
        "attn_logit_softcapping": config.score_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
        "hidden_activation": ACTIVATION_NAMES.get(config.activation),
    }
    return common and common | decoder.written_windows(config) | own


def _cap(fields: Fields, name: str, default: float) -> float | None:
    return fields.take(name, None if fields.given(name) else default, kind=float)


def _common(fields: Fields, dtype: np.dtype, defaults: dict[str, int]) -> dict[str, Any]:
    common = decoder.choices(fields, **defaults)
    fields.expect("use_bidirectional_attention", False)
    common |= decoder.rotary_choices(fields, common["d_head"], 8192) | decoder.biases(fields.take("attention_bias", False, kind=bool))
    return common | {"norm_gain": "1+w", "embed_scale": rounded(math.sqrt(common["d_model"]), dtype)}


def _written(config: TransformerConfig) -> dict[str, Any] | None:
    common = decoder.written(config)
    return common and common | {"attention_bias": config.o_bias}


FAMILIES = (
    Family("gemma", ("GemmaForCausalLM", "GemmaModel"), read_gemma, write_gemma, decoder.TABLE),
    Family("gemma2", ("Gemma2ForCausalLM", "Gemma2Model"), read_gemma2, write_gemma2, SANDWICH_TABLE),
)
