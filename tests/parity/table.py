"""The models that parity is checked on, one small entry each, and where transformers keeps the value of each site.

A new family is one `Family` (usually an existing one with a few changed places) and one `Row` for each layout of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

Layout = Callable[[Any, int], Any]  # (tensor [B P ...], d_head) -> tensor with the site's axes


def as_is(value: Any, d_head: int) -> Any:
    return value


def heads(value: Any, d_head: int) -> Any:
    """[B P H*E] -> [B P H E]."""
    return value.reshape(*value.shape[:2], -1, d_head)


def part_of_three(index: int) -> Layout:
    """[B P 3*H*E], queries then keys then values -> [B P H E]."""
    return lambda value, d_head: heads(value.chunk(3, -1)[index], d_head)


def part_of_head(index: int) -> Layout:
    """[B P H*3*E], the three together in each head -> [B P H E]."""
    return lambda value, d_head: value.reshape(*value.shape[:2], -1, 3, d_head)[..., index, :]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a site's value is found in the reference.

    Attributes:
        path: name of a module; `*` is the layer.
        side: "in" its first argument; "tap" the same, but its gradient counts only what this module does with it (for
            values that several modules read and that are two sites here); "out" its result; "scale" the denominator of
            a norm, recomputed from its input; "heads" an output projection applied to `z` a head at a time.
        layout: from the tensor to the site's axes.
    """

    path: str
    side: Literal["in", "tap", "out", "scale", "heads"] = "out"
    layout: Layout = as_is


@dataclasses.dataclass(frozen=True)
class Family:
    """One modelling file of transformers.

    Attributes:
        module: its name below transformers.models.
        places: where each site is; q_rot, k_rot, scores, pattern and z come from its attention function, logits from
            the model's result.
        gain_center: what random norm gains vary around (0 where the norm multiplies by 1 + w).
    """

    module: str
    places: dict[str, Place]
    gain_center: float = 1.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        name: of the row and of its fixture.
        family: which modelling file, a key of FAMILIES.
        config: what transformers' config class is given; with `raw`, the whole config.json as old files on the hub spell it.
        raw: see config.
        alone: the reference runs each prompt alone, because transformers would choose rotary frequencies by the longest
            prompt of a batch.
        special: what this row is there to prove.
    """

    name: str
    family: str
    config: dict[str, Any]
    special: str
    raw: bool = False
    alone: bool = False


def _places(block: str, attention: str, mlp: str, places: dict[str, tuple[str, ...] | Place]) -> dict[str, Place]:
    """Expands the shorthand of a family: "@", "@a" and "@m" stand for the paths of block, attention and MLP."""
    common = {
        "resid_pre": Place("@", "in"),
        "attn_in": Place("@a", "tap"),
        "mlp_in": Place("@m", "tap"),
        "resid_post": Place("@", "out"),
    }
    expanded = {}
    for site, place in (common | places).items():
        place = place if isinstance(place, Place) else Place(*place)  # pyright: ignore[reportArgumentType]
        path = place.path.replace("@a", f"@.{attention}").replace("@m", f"@.{mlp}").replace("@", f"{block}.*")
        expanded[site] = dataclasses.replace(place, path=path)
    return expanded


LLAMA = _places("model.layers", "self_attn", "mlp", {
    "embed": ("model.embed_tokens",),
    "ln1_scale": ("@.input_layernorm", "scale"),
    "q": Place("@a.q_proj", layout=heads),
    "k": Place("@a.k_proj", layout=heads),
    "v": Place("@a.v_proj", layout=heads),
    "head_out": ("@a.o_proj", "heads"),
    "attn_out": ("@a.o_proj",),
    "resid_mid": ("@.post_attention_layernorm", "in"),
    "ln2_scale": ("@.post_attention_layernorm", "scale"),
    "mlp_pre": ("@m.gate_proj",),
    "mlp_up": ("@m.up_proj",),
    "mlp_post": ("@m.down_proj", "in"),
    "mlp_out": ("@m",),
    "ln_final_scale": ("model.norm", "scale"),
    "ln_final": ("model.norm",),
    "logits_raw": ("lm_head",),
})  # fmt: skip

SANDWICH = LLAMA | _places("model.layers", "self_attn", "mlp", {
    "attn_proj": ("@a.o_proj",),
    "ln1_post_scale": ("@.post_attention_layernorm", "scale"),
    "attn_out": ("@.post_attention_layernorm",),
    "resid_mid": ("@.pre_feedforward_layernorm", "in"),
    "ln2_scale": ("@.pre_feedforward_layernorm", "scale"),
    "mlp_proj": ("@m",),
    "ln2_post_scale": ("@.post_feedforward_layernorm", "scale"),
    "mlp_out": ("@.post_feedforward_layernorm",),
})  # fmt: skip

GPT2 = _places("transformer.h", "attn", "mlp", {
    "embed": ("transformer.wte",),
    "pos_embed": ("transformer.wpe",),
    "ln1_scale": ("@.ln_1", "scale"),
    "q": Place("@a.c_attn", layout=part_of_three(0)),
    "k": Place("@a.c_attn", layout=part_of_three(1)),
    "v": Place("@a.c_attn", layout=part_of_three(2)),
    "head_out": ("@a.c_proj", "heads"),
    "attn_out": ("@a.c_proj",),
    "resid_mid": ("@.ln_2", "in"),
    "ln2_scale": ("@.ln_2", "scale"),
    "mlp_pre": ("@m.c_fc",),
    "mlp_post": ("@m.c_proj", "in"),
    "mlp_out": ("@m",),
    "ln_final_scale": ("transformer.ln_f", "scale"),
    "ln_final": ("transformer.ln_f",),
    "logits_raw": ("lm_head",),
})  # fmt: skip

NEOX = _places("gpt_neox.layers", "attention", "mlp", {
    "embed": ("gpt_neox.embed_in",),
    "ln1_scale": ("@.input_layernorm", "scale"),
    "q": Place("@a.query_key_value", layout=part_of_head(0)),
    "k": Place("@a.query_key_value", layout=part_of_head(1)),
    "v": Place("@a.query_key_value", layout=part_of_head(2)),
    "head_out": ("@a.dense", "heads"),
    "attn_out": ("@a.dense",),
    "ln2_scale": ("@.post_attention_layernorm", "scale"),
    "mlp_pre": ("@m.dense_h_to_4h",),
    "mlp_post": ("@m.dense_4h_to_h", "in"),
    "mlp_out": ("@m",),
    "ln_final_scale": ("gpt_neox.final_layer_norm", "scale"),
    "ln_final": ("gpt_neox.final_layer_norm",),
    "logits_raw": ("lm_head",),
})  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": Family("llama.modeling_llama", LLAMA),
    "mistral": Family("mistral.modeling_mistral", LLAMA),
    "qwen2": Family("qwen2.modeling_qwen2", LLAMA),
    "qwen3": Family("qwen3.modeling_qwen3", LLAMA),
    "gpt2": Family("gpt2.modeling_gpt2", GPT2),
    "gpt_neox": Family("gpt_neox.modeling_gpt_neox", NEOX),
    "gpt_neox_serial": Family(
        "gpt_neox.modeling_gpt_neox",
        NEOX | _places("gpt_neox.layers", "attention", "mlp", {"resid_mid": ("@.post_attention_layernorm", "in")}),
    ),
    "gemma3": Family("gemma3.modeling_gemma3", SANDWICH, gain_center=0.0),
}

# Sizes are small and all different, so that no axis can be taken for another; heads are odd-sized (10) where rotation allows.
_LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 29, "hidden_size": 24, "intermediate_size": 22, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


def _scaled(kind: str, **values: Any) -> dict[str, Any]:
    return _LLAMA | {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **values}}


_GPT2: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 29, "n_embd": 20, "n_head": 2, "n_layer": 2, "n_positions": 32, "n_inner": 26,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_NEOX: dict[str, Any] = {
    "model_type": "gpt_neox", "vocab_size": 29, "hidden_size": 20, "num_attention_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 26, "max_position_embeddings": 64,
}  # fmt: skip
_GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text", "vocab_size": 29, "hidden_size": 20, "intermediate_size": 22, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 7, "sliding_window": 4,
}  # fmt: skip

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(
            "llama",
            "llama",
            _LLAMA | {"num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 3, "tie_word_embeddings": True},
            "multi-head attention, tied, three layers",
        ),
        Row(
            "llama_gqa_biases", "llama", _LLAMA | {"attention_bias": True, "mlp_bias": True}, "grouped keys and values, untied, every bias"
        ),
        Row(
            "llama_mqa_one_layer",
            "llama",
            _LLAMA | {"num_key_value_heads": 1, "num_attention_heads": 3, "num_hidden_layers": 1},
            "one key/value head, one layer",
        ),
        Row("llama_linear", "llama", _scaled("linear", factor=3.0), "linear rotary scaling"),
        Row(
            "llama_dynamic",
            "llama",
            _scaled("dynamic", factor=2.0) | {"max_position_embeddings": 7},
            "dynamic NTK: frequencies by each prompt's own length",
            alone=True,
        ),
        Row(
            "llama_llama3",
            "llama",
            _LLAMA
            | {
                "architectures": ["LlamaForCausalLM"],
                "rope_theta": 1000.0,
                "torch_dtype": "float32",
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 256,
                },
            },
            "llama3 rotary scaling: a kept, an interpolated and a divided frequency; old spelling of the config",
            raw=True,
        ),
        Row(
            "llama_yarn",
            "llama",
            _scaled("yarn", factor=4.0, original_max_position_embeddings=64),
            "yarn rotary scaling, ramp between whole features",
        ),
        Row(
            "llama_yarn_exact_ramp",
            "llama",
            _scaled(
                "yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=6.0, beta_slow=0.5, truncate=False, attention_factor=1.2
            ),
            "yarn with the ramp's ends not rounded, its own betas and attention factor",
        ),
        Row(
            "llama_longrope",
            "llama",
            _scaled(
                "longrope",
                factor=4.0,
                original_max_position_embeddings=7,
                short_factor=[1.0, 1.1, 1.3, 1.2, 1.5],
                long_factor=[1.0, 2.0, 3.5, 6.0, 9.0],
            ),
            "longrope: short and long factors by each prompt's own length",
            alone=True,
        ),
        Row("mistral", "mistral", _LLAMA | {"model_type": "mistral", "sliding_window": 5}, "window shorter than the prompt on every layer"),
        Row(
            "qwen2",
            "qwen2",
            {name: value for name, value in _LLAMA.items() if name != "head_dim"}
            | {"model_type": "qwen2", "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "biases on q, k and v; window on the upper layers only",
        ),
        Row(
            "qwen3",
            "qwen3",
            _LLAMA | {"model_type": "qwen3", "tie_word_embeddings": True},
            "norm of queries and keys, heads wider than d_model / heads",
        ),
        Row("gpt2", "gpt2", _GPT2, "learned positions, LayerNorm, tanh GELU"),
        Row(
            "gpt2_layer_scaled",
            "gpt2",
            _GPT2 | {"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu", "n_layer": 3},
            "scores divided by the layer, exact GELU",
        ),
        Row(
            "gpt_neox",
            "gpt_neox",
            _NEOX | {"architectures": ["GPTNeoXForCausalLM"], "rotary_pct": 0.4, "rotary_emb_base": 1000},
            "parallel attention and MLP with two norms, 4 of 10 features rotated; old spelling",
            raw=True,
        ),
        Row(
            "gpt_neox_serial",
            "gpt_neox_serial",
            _NEOX
            | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.6}},
            "attention, then MLP; 6 of 10 features rotated; no attention biases; tied",
        ),
        Row(
            "gemma3",
            "gemma3",
            _GEMMA3
            | {
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 100000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                },
            },
            "sandwich norms, 1 + w, q/k norm, two rotary bases, windows on two layers of three",
        ),
        Row(
            "gemma3_scaled_capped",
            "gemma3",
            _GEMMA3
            | {
                "architectures": ["Gemma3ForCausalLM"],
                "rope_theta": 10000.0,
                "rope_local_base_freq": 100.0,
                "sliding_window_pattern": 3,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "final_logit_softcapping": 4.0,
                "hidden_activation": "gelu_pytorch_tanh",
            },
            "linear scaling of the global layers only, final soft cap; old spelling",
            raw=True,
        ),
    )
}
