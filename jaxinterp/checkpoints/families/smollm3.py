"""SmolLM3: Llama in which every fourth layer does not rotate queries and keys."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families import decoder
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.model.config import TransformerConfig


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """SmolLM3; layers that do not rotate slide where use_sliding_window is set and the file has no layer_types."""
    common = decoder.choices(fields, num_key_value_heads=4, tie_word_embeddings=True)
    common |= decoder.rotary_choices(fields, common["d_head"], 32_768, theta=2_000_000.0)
    rotates = _rotates(fields, common["n_layers"])
    slide, window = fields.take("use_sliding_window", False, kind=bool), fields.take("sliding_window", None, kind=int)
    attention, mlp = fields.take("attention_bias", False, kind=bool), fields.take("mlp_bias", False, kind=bool)
    own = {
        "rotary_layers": () if all(rotates) else tuple(0 if one else -1 for one in rotates),
        "windows": decoder.windows(fields, common["n_layers"], window, lambda layer: slide and bool(window) and not rotates[layer]),
        "activation": fields.activation("hidden_act", "silu"),
    }
    return fields.build(common | decoder.biases(attention, mlp) | own, harmless=("max_window_layers",))


def _rotates(fields: Fields, n_layers: int) -> list[bool]:
    """For each layer, whether it rotates; despite its name, `no_rope_layers` holds 1 where it does."""
    every = fields.take("no_rope_layer_interval", 4, kind=int)
    if every < 1:
        fields.problems.append(f"'no_rope_layer_interval' is {every}, expected at least 1")
    given = fields.take("no_rope_layers", None, kind=list)
    if given is None:
        return [bool((layer + 1) % max(every, 1)) for layer in range(n_layers)]
    if len(given) < n_layers or any(one not in (0, 1) for one in given):
        fields.problems.append(f"'no_rope_layers' has {len(given)} entries for {n_layers} layers; expected a 0 or 1 for each")
        return [True] * n_layers
    return [bool(one) for one in given[:n_layers]]


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    common = decoder.written(config)
    own = {
        # transformers' default is a token that small vocabularies lack
        "pad_token_id": None,
        "no_rope_layers": [int(index >= 0) for index in config.layer_rotary],
        "use_sliding_window": any(config.layer_windows),
        "hidden_act": ACTIVATION_NAMES.get(config.activation),
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_out_bias,
    }
    return common and common | decoder.written_windows(config) | own


FAMILIES = (Family("smollm3", ("SmolLM3ForCausalLM", "SmolLM3Model"), read, write, decoder.TABLE),)
