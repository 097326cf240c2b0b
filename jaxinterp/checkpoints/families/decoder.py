"""What the families descended from Llama share: names of tensors and fields, read and written in one place."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxinterp.checkpoints.fields import REQUIRED, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.checkpoints.rope import context_of, rope_parameters, rotary, scaling_fields
from jaxinterp.checkpoints.source import Source
from jaxinterp.model.config import TransformerConfig

SIZES: Mapping[str, str] = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "d_vocab": "vocab_size",
    "d_mlp": "intermediate_size",
}
"""Sizes by our names and those of config.json."""

GGUF_SIZES: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
}
"""Sizes by the names of GGUF metadata and those of config.json."""

LAYER_TYPES: Mapping[str, bool] = {"full_attention": False, "attention": False, "sliding_attention": True}
"""Kinds of layers, and whether they slide."""

LAYER = "model.layers.{l}."

TABLE: Table = {
    "embed.W_E": Weight("model.embed_tokens.weight", "V D"),
    "blocks.ln1.w": Weight(LAYER + "input_layernorm.weight", "D"),
    "blocks.attn.W_Q": Weight(LAYER + "self_attn.q_proj.weight", "(H E) D -> D H E"),
    "blocks.attn.W_K": Weight(LAYER + "self_attn.k_proj.weight", "(G E) D -> D G E"),
    "blocks.attn.W_V": Weight(LAYER + "self_attn.v_proj.weight", "(G E) D -> D G E"),
    "blocks.attn.W_O": Weight(LAYER + "self_attn.o_proj.weight", "D (H E) -> H E D"),
    "blocks.attn.b_Q": Weight(LAYER + "self_attn.q_proj.bias", "(H E) -> H E"),
    "blocks.attn.b_K": Weight(LAYER + "self_attn.k_proj.bias", "(G E) -> G E"),
    "blocks.attn.b_V": Weight(LAYER + "self_attn.v_proj.bias", "(G E) -> G E"),
    "blocks.attn.b_O": Weight(LAYER + "self_attn.o_proj.bias", "D"),
    "blocks.attn.q_norm.w": Weight(LAYER + "self_attn.q_norm.weight", "E"),
    "blocks.attn.k_norm.w": Weight(LAYER + "self_attn.k_norm.weight", "E"),
    "blocks.ln2.w": Weight(LAYER + "post_attention_layernorm.weight", "D"),
    "blocks.mlp.W_gate": Weight(LAYER + "mlp.gate_proj.weight", "M D -> D M"),
    "blocks.mlp.W_in": Weight(LAYER + "mlp.up_proj.weight", "M D -> D M"),
    "blocks.mlp.W_out": Weight(LAYER + "mlp.down_proj.weight", "D M -> M D"),
    "blocks.mlp.b_gate": Weight(LAYER + "mlp.gate_proj.bias", "M"),
    "blocks.mlp.b_in": Weight(LAYER + "mlp.up_proj.bias", "M"),
    "blocks.mlp.b_out": Weight(LAYER + "mlp.down_proj.bias", "D"),
    "ln_final.w": Weight("model.norm.weight", "D"),
    "unembed.W_U": Weight("lm_head.weight", "V D -> D V"),
}

BLOCK = "blk.{l}."

GGUF_TABLE: Table = {
    "embed.W_E": Weight("token_embd.weight", "V D"),
    "blocks.ln1.w": Weight(BLOCK + "attn_norm.weight", "D"),
    "blocks.attn.W_Q": Weight(BLOCK + "attn_q.weight", "(H E) D -> D H E"),
    "blocks.attn.W_K": Weight(BLOCK + "attn_k.weight", "(G E) D -> D G E"),
    "blocks.attn.W_V": Weight(BLOCK + "attn_v.weight", "(G E) D -> D G E"),
    "blocks.attn.W_O": Weight(BLOCK + "attn_output.weight", "D (H E) -> H E D"),
    "blocks.attn.b_Q": Weight(BLOCK + "attn_q.bias", "(H E) -> H E"),
    "blocks.attn.b_K": Weight(BLOCK + "attn_k.bias", "(G E) -> G E"),
    "blocks.attn.b_V": Weight(BLOCK + "attn_v.bias", "(G E) -> G E"),
    "blocks.attn.b_O": Weight(BLOCK + "attn_output.bias", "D"),
    "blocks.attn.q_norm.w": Weight(BLOCK + "attn_q_norm.weight", "E"),
    "blocks.attn.k_norm.w": Weight(BLOCK + "attn_k_norm.weight", "E"),
    "blocks.ln2.w": Weight(BLOCK + "ffn_norm.weight", "D"),
    "blocks.mlp.W_gate": Weight(BLOCK + "ffn_gate.weight", "M D -> D M"),
    "blocks.mlp.W_in": Weight(BLOCK + "ffn_up.weight", "M D -> D M"),
    "blocks.mlp.W_out": Weight(BLOCK + "ffn_down.weight", "D M -> M D"),
    "blocks.mlp.b_gate": Weight(BLOCK + "ffn_gate.bias", "M"),
    "blocks.mlp.b_in": Weight(BLOCK + "ffn_up.bias", "M"),
    "blocks.mlp.b_out": Weight(BLOCK + "ffn_down.bias", "D"),
    "ln_final.w": Weight("output_norm.weight", "D"),
    "unembed.W_U": Weight("output.weight", "V D -> D V"),
}


def choices(fields: Fields, **defaults: float) -> dict[str, Any]:
    """The arguments of `TransformerConfig` that all these families spell alike.

    Args:
        fields: of the config.json.
        defaults: values for fields that the family's own files may leave out, by their names.
    """
    sizes = {"num_hidden_layers": fields.layers("num_hidden_layers")}
    sizes |= {name: fields.take(name, defaults.get(name, REQUIRED), kind=int) for name in SIZES.values() if name not in sizes}
    heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
    d_head = fields.take("head_dim", defaults.get("head_dim", width // max(heads, 1)), kind=int)
    return {ours: sizes[theirs] for ours, theirs in SIZES.items()} | {
        "d_head": d_head,
        "n_kv_heads": fields.take("num_key_value_heads", defaults.get("num_key_value_heads", heads), kind=int),
        "norm": "rms",
        "norm_eps": fields.take("rms_norm_eps", defaults.get("rms_norm_eps", 1e-6), kind=float),
        "gated": True,
        "unembed": "tied" if fields.take("tie_word_embeddings", defaults.get("tie_word_embeddings", False), kind=bool) else "own",
    }


def rotary_choices(
    fields: Fields, d_head: int, context: int, *, theta: float = 10_000.0, share: float | None = None, interleaved: bool = False
) -> dict[str, Any]:
    """One rotary setting for all layers, with the context that goes with it.

    Args:
        fields: of the config.json.
        d_head: features a head.
        context: longest prompt where the file names none.
        theta: base where the file names none.
        share: of the features rotated where the file names none; None for families that rotate all of them.
        interleaved: as in `Rotary`.
    """
    context = fields.take("max_position_embeddings", context, kind=int)
    setting, n_ctx = rotary(fields, rope_parameters(fields, theta, share), d_head, context, partial=share is not None)
    return {"rotary": (dataclasses.replace(setting, interleaved=interleaved),), "n_ctx": n_ctx}


def rotary_by_window(
    fields: Fields, full: Mapping[str, Any], sliding: Mapping[str, Any], windows: tuple[int, ...], n_layers: int, d_head: int, context: int
) -> dict[str, Any]:
    """Rotary settings where layers that see everything have one and those that slide another; only those that some layer uses."""
    slides = [bool(window) for window in windows] or [False] * n_layers
    used = [rotary(fields, sliding if slide else full, d_head, context)[0] for slide in slides]
    order = list(dict.fromkeys(used))
    return {"rotary": tuple(order), "rotary_layers": tuple(order.index(setting) for setting in used) if len(order) > 1 else ()}


def biases(attention: bool, mlp: bool = False) -> dict[str, Any]:
    """All biases of attention and all of the MLP, by our names."""
    return {
        **dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), attention),
        **dict.fromkeys(("mlp_in_bias", "mlp_out_bias"), mlp),
    }


def windows(fields: Fields, n_layers: int, window: int | None, slides: Callable[[int], bool]) -> tuple[int, ...]:
    """Each layer's window, () where no layer has one.

    Args:
        fields: of the config.json; its layer_types count first.
        n_layers: L.
        window: tokens that a sliding layer sees.
        slides: whether a layer slides where the file has no layer_types.
    """
    types = fields.take("layer_types", None, kind=list)
    if types is None:
        sliding = [slides(layer) for layer in range(n_layers)]
    else:
        unknown = sorted({str(name) for name in types} - set(LAYER_TYPES))
        if unknown or len(types) != n_layers:
            kinds = ", ".join(sorted({str(name) for name in types}))
            fields.problems.append(f"'layer_types' has {len(types)} entries for {n_layers} layers, of kinds {kinds}")
            return ()
        sliding = [LAYER_TYPES[name] for name in types]
    if any(sliding) and not window:
        fields.problems.append("some layers slide but 'sliding_window' names no size")
        return ()
    return tuple((window or 0) if slide else 0 for slide in sliding) if any(sliding) else ()


def written(config: TransformerConfig) -> dict[str, Any] | None:
    """The fields that all these families share, as config.json spells them; None where the config is of another kind."""
    if not config.rotary or not config.gated:
        return None
    return {theirs: getattr(config, ours) for ours, theirs in SIZES.items()} | {
        "head_dim": config.d_head,
        "num_key_value_heads": config.n_kv_heads,
        "max_position_embeddings": context_of(config.n_ctx, config.rotary[0]),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rotary[0].base,
        "rope_scaling": scaling_fields(config.rotary[0]),
        "tie_word_embeddings": config.unembed == "tied",
    }


def whole(value: float) -> float:
    """The whole number next to a value that is one but for rounding, else the value."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value


def written_windows(config: TransformerConfig) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of a config."""
    return {
        "sliding_window": max(config.layer_windows) or None,
        "layer_types": ["sliding_attention" if window else "full_attention" for window in config.layer_windows],
    }


def gguf_config(fields: Fields, source: Source) -> dict[str, Any]:
    """GGUF metadata (keys without the architecture) of these families as their config.json."""
    hf = {theirs: fields.take(ours, kind=int) for ours, theirs in GGUF_SIZES.items()}
    width = fields.take("attention.key_length", hf["hidden_size"] // max(hf["num_attention_heads"], 1), kind=int)
    fields.expect("attention.value_length", width)
    fields.expect("rope.dimension_count", width)
    fields.expect("expert_count", 0)
    fields.expect("expert_used_count", 0)
    return hf | {
        "head_dim": width,
        "num_key_value_heads": fields.take("attention.head_count_kv", hf["num_attention_heads"], kind=int),
        "vocab_size": gguf_vocabulary(fields, source),
        "rms_norm_eps": fields.take("attention.layer_norm_rms_epsilon", kind=float),
        "rope_theta": fields.take("rope.freq_base", 10_000.0, kind=float),
        "rope_scaling": _gguf_scaling(fields),
        "tie_word_embeddings": "output.weight" not in source.tensors,
    }


def gguf_vocabulary(fields: Fields, source: Source) -> int:
    """Rows of the embedding: the tensor's own, which may be padded beyond the tokens that the metadata counts."""
    stated = fields.take("vocab_size", 0, kind=int)
    embedding = source.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding else stated


def _gguf_scaling(fields: Fields) -> dict[str, Any] | None:
    kind = fields.take("rope.scaling.type", "none", kind=str)
    scaling = {
        "rope_type": kind,
        "factor": fields.take("rope.scaling.factor", fields.take("rope.scale_linear", None, kind=float), kind=float),
        "original_max_position_embeddings": fields.take("rope.scaling.original_context_length", None, kind=int),
        "beta_fast": fields.take("rope.scaling.yarn_beta_fast", None, kind=float),
        "beta_slow": fields.take("rope.scaling.yarn_beta_slow", None, kind=float),
    }
    return None if kind == "none" else {name: value for name, value in scaling.items() if value is not None}
