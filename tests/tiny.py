"""Tiny models of every kind of architecture, with weights that are large enough for a wrong model to show.

Weights come from a NumPy seed by parameter name, so that nothing depends on JAX's random numbers. Gains are random around
their neutral value and biases are random: a model that drops one is then a wrong model.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.model.config import Experts, Rotary, RotaryScaling, TransformerConfig
from jaxinterp.model.parameters import parameter_shapes
from jaxinterp.model.tokens import Tokens

SIZE = {"n_layers": 3, "d_model": 24, "n_heads": 4, "n_kv_heads": 2, "d_head": 6, "d_mlp": 20, "d_vocab": 50, "n_ctx": 32}
BIASES = {"q_bias": True, "k_bias": True, "v_bias": True, "o_bias": True, "mlp_in_bias": True, "mlp_out_bias": True}
LAYER_NORM = {"norm": "layer", "norm_bias": True}
LEARNED = {"positions": "learned", "rotary": ()}
PLAIN_MLP = {"gated": False, "activation": "gelu_tanh"}


def _config(**fields: Any) -> TransformerConfig:
    every: dict[str, Any] = SIZE | {"rotary": (Rotary(6),)} | fields
    return TransformerConfig(**every)


# fmt: off
CONFIGS: dict[str, TransformerConfig] = {
    "llama": _config(unembed="own", rotary=(Rotary(6, scaling=RotaryScaling("dynamic", 2.0, original_context=4)),)),
    "qwen3": _config(qk_norm="head", q_bias=True, k_bias=True, v_bias=True, windows=(0, 3, 0)),
    "gpt2": _config(n_kv_heads=4, unembed_bias=True, **LAYER_NORM, **LEARNED, **PLAIN_MLP, **BIASES),
    "neox": _config(n_kv_heads=4, parallel="two_norms", rotary=(Rotary(4),), gated=False, activation="gelu", **LAYER_NORM, **BIASES),
    "gptj": _config(n_kv_heads=4, parallel="one_norm", rotary=(Rotary(4, interleaved=True),), unembed="own", **LAYER_NORM, **PLAIN_MLP),
    "gemma": _config(
        norm_position="sandwich", norm_gain="1+w", qk_norm="head", activation="gelu_tanh", windows=(3, 0, 3), embed_scale=4.9,
        score_scale=0.3, rotary=(Rotary(6, 1e4), Rotary(6, 1e6, scaling=RotaryScaling("linear", 8.0))), rotary_layers=(0, 1, 0),
        score_soft_cap=5.0, final_soft_cap=6.0,
    ),
    "olmo2": _config(norm_position="output", qk_norm="whole", unembed="own", rotary_layers=(0, -1, 0)),
    "bert": _config(
        norm_position="post", causal=False, final_norm=False, n_kv_heads=4, embed_norm="sum", gated=False, activation="gelu",
        **LAYER_NORM, **LEARNED, **BIASES,
    ),
    "bloom": _config(positions="alibi", rotary=(), embed_norm="token", n_kv_heads=1, **PLAIN_MLP, **LAYER_NORM, **BIASES),
    "oss": _config(sinks=True, activation="quick_gelu", mlp_clamp=1.5, mlp_up_offset=1.0, qkv_clip=2.0, windows=(2, 0, 2), **BIASES),
    "granite": _config(residual_multiplier=0.7, logit_scale=0.5, embed_scale=3.0, score_scale=(0.2, 0.4, 0.3), qk_norm="per_head"),
    "attention": _config(d_mlp=0, norm="none", final_norm=False, **LEARNED),
    "moe": _config(experts=Experts(6, 2, 10), d_mlp=0, qk_norm="head"),
    "mixed": _config(
        experts=Experts(5, 3, 10, normalise=False, router_bias=True, d_shared=12, shared_gate=True, layers=(False, True, True)), **BIASES
    ),
    "masked": _config(
        norm_position="post", causal=False, n_kv_heads=4, embed_norm="sum", gated=False, activation="gelu", unembed_bias=True,
        n_token_types=2, final_dense="gelu", pooler=True, d_embed=14, **LAYER_NORM, **LEARNED, **BIASES,
    ),
    "solu": _config(gated=False, activation="solu", norm="layer", norm_gain="none", unembed="own"),
    "one": _config(n_layers=1, n_heads=3, n_kv_heads=3, d_head=10, rotary=(Rotary(10),), activation="relu2", gated=False),
}
# fmt: on
SMALL = ("llama", "gemma", "bert", "neox", "oss")  # the five that between them use every branch of a block


def params(config: TransformerConfig, dtype: Any = jnp.float32, seed: int = 0) -> Any:
    """Weights of a tiny model, by name from a NumPy seed."""

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        random = np.random.default_rng([zlib.crc32(name.encode()), seed]).normal(size=shape.shape)
        if name.endswith("['w']"):
            value = 0.3 * random + (1.0 if config.norm_gain == "w" else 0.0)
        elif "['b" in name or name.endswith("['w_shared']") or "sink" in name:
            value = 0.3 * random
        elif "W_E" in name or "W_pos" in name or "W_type" in name:
            value = 0.8 * random
        else:
            value = random * (2.0 / np.sqrt(shape.shape[-2] if "W_O" not in name else shape.shape[-3] * shape.shape[-2]))
        return jnp.asarray(value, dtype)

    return jax.tree_util.tree_map_with_path(leaf, parameter_shapes(config))


def prompts(
    config: TransformerConfig, lengths: tuple[int, ...] = (7, 7), seed: int = 0, width: int | None = None, left: bool = False
) -> Tokens:
    """Random prompts, padded on the right (or the left) with random ids."""
    width = width or max(lengths)
    random = np.random.default_rng(seed)
    real = [np.random.default_rng([seed, row]).integers(0, config.d_vocab, 64)[:length] for row, length in enumerate(lengths)]
    ids = random.integers(0, config.d_vocab, (len(lengths), width))
    mask = np.zeros((len(lengths), width), bool)
    for row, tokens in enumerate(real):
        place = slice(width - len(tokens), width) if left else slice(len(tokens))
        ids[row, place], mask[row, place] = tokens, True
    return Tokens.from_ids(ids, mask)
