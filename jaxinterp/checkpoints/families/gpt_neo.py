"""GPT-Neo: learned positions, scores that are not scaled, and a window on every other layer."""

from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import TransformerConfig

LAYER = "transformer.h.{l}."
ATTENTION = LAYER + "attn.attention."

TABLE: Table = {
    "embed.W_E": Weight("transformer.wte.weight", "V D"),
    "embed.W_pos": Weight("transformer.wpe.weight", "P D"),
    "blocks.ln1.w": Weight(LAYER + "ln_1.weight", "D"),
    "blocks.ln1.b": Weight(LAYER + "ln_1.bias", "D"),
    "blocks.attn.W_Q": Weight(ATTENTION + "q_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_K": Weight(ATTENTION + "k_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_V": Weight(ATTENTION + "v_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_O": Weight(ATTENTION + "out_proj.weight", "D (H E) -> H E D"),
    "blocks.attn.b_O": Weight(ATTENTION + "out_proj.bias", "D"),
    "blocks.ln2.w": Weight(LAYER + "ln_2.weight", "D"),
    "blocks.ln2.b": Weight(LAYER + "ln_2.bias", "D"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.c_fc.weight", "M D -> D M"),
    "blocks.mlp.b_in": Weight(LAYER + "mlp.c_fc.bias", "M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.c_proj.weight", "D M -> M D"),
    "blocks.mlp.b_out": Weight(LAYER + "mlp.c_proj.bias", "D"),
    "ln_final.w": Weight("transformer.ln_f.weight", "D"),
    "ln_final.b": Weight("transformer.ln_f.bias", "D"),
    "unembed.W_U": Weight("lm_head.weight", "V D -> D V"),
}


def read(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """GPT-Neo; `attention_types` lists kinds of layers with how often each list repeats."""
    width, heads = fields.take("hidden_size", 2048, kind=int), fields.take("num_heads", 16, kind=int)
    if width % max(heads, 1):
        fields.problems.append(f"'hidden_size' ({width}) is not a multiple of 'num_heads' ({heads})")
    n_layers = fields.layers("num_layers")
    choices = {
        "n_layers": n_layers,
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // max(heads, 1),
        "d_vocab": fields.take("vocab_size", kind=int),
        "n_ctx": fields.take("max_position_embeddings", 2048, kind=int),
        "d_mlp": fields.take("intermediate_size", 4 * width, kind=int),
        "norm": "layer",
        "norm_bias": True,
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5, kind=float),
        "positions": "learned",
        "windows": _windows(fields, n_layers),
        "score_scale": 1.0,
        "o_bias": True,
        "activation": fields.activation("activation_function", "gelu_new"),
        "gated": False,
        "mlp_in_bias": True,
        "mlp_out_bias": True,
        "unembed": "tied" if fields.take("tie_word_embeddings", True, kind=bool) else "own",
    }
    return fields.build(choices)


def _windows(fields: Fields, n_layers: int) -> tuple[int, ...]:
    window = fields.take("window_size", 256, kind=int)
    types = fields.take("attention_types", [[["global", "local"], 12]], kind=list)
    try:
        kinds = [str(kind) for names, times in types for _ in range(min(times, n_layers + 1)) for kind in names]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != n_layers or set(kinds) - {"global", "local"}:
        fields.problems.append(f"'attention_types' is {types!r}, expected {n_layers} layers, each 'global' or 'local'")
        return ()
    # the same, written out: transformers makes it anew
    fields.expect("attention_layers", kinds)
    return tuple(window if kind == "local" else 0 for kind in kinds) if "local" in kinds else ()


def write(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read`."""
    if config.positions != "learned" or config.layer_scales[0] != 1.0:
        return None
    return {
        "num_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_heads": config.n_heads,
        "vocab_size": config.d_vocab,
        "max_position_embeddings": config.n_ctx,
        "intermediate_size": config.d_mlp,
        "layer_norm_epsilon": config.norm_eps,
        "attention_types": [[["local" if window else "global"], 1] for window in config.layer_windows],
        "window_size": max(config.layer_windows) or 256,
        "activation_function": ACTIVATION_NAMES.get(config.activation),
        "tie_word_embeddings": config.unembed == "tied",
    }


FAMILIES = (
    Family(
        "gpt_neo",
        ("GPTNeoForCausalLM", "GPTNeoModel"),
        read,
        write,
        TABLE,
        prefix="transformer.",
        # the causal mask, kept as a buffer by older versions
        ignorable=(r"\.attn\.attention\.(masked_)?bias$",),
    ),
)
