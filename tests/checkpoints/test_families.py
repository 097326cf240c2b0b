"""Configs: each spelling gives the same model, what is written reads back, and what is not understood is refused by name."""

import math
from typing import Any

import numpy as np
import pytest

from jaxinterp.checkpoints.families import FAMILIES, family_for, read_config
from jaxinterp.checkpoints.layout import sizes_of
from jaxinterp.checkpoints.mapping import flatten, plan
from jaxinterp.errors import CheckpointError
from jaxinterp.model.config import Experts, Rotary, RotaryScaling, TransformerConfig
from jaxinterp.model.parameters import parameter_shapes
from tests.checkpoints.hf_configs import (
    BERT,
    BLOOM,
    COHERE,
    COHERE2,
    FALCON,
    FULL,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GLM,
    GPT2,
    GPT_NEO,
    GPT_OSS,
    GPTJ,
    GRANITE,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    MODELS,
    MPT,
    NEOX,
    OLMO,
    OLMO2,
    OLMO3,
    ON_THE_HUB,
    PARAMETERS,
    PHI,
    PHI3,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    SAVED_AS,
    SLIDING,
    SMOLLM3,
    SPELLINGS,
    YARN,
)  # fmt: skip
from tests.tiny import CONFIGS

F32 = np.dtype(np.float32)


def read(values: dict[str, Any], dtype: np.dtype = F32) -> TransformerConfig:
    return read_config(values, dtype, "config.json")[0]


@pytest.mark.parametrize("name", SPELLINGS)
def test_both_spellings_give_one_config(name: str):
    old, new = SPELLINGS[name]
    assert read(old) == read(new)


@pytest.mark.parametrize("name", MODELS)
def test_a_written_config_reads_back(name: str):
    config = read(MODELS[name])
    found = family_for(config, F32)
    assert found is not None
    family, fields = found
    assert read(fields) == config
    assert fields["model_type"] == family.model_type == SAVED_AS[name]


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_a_place_for_every_parameter(name: str):
    config, family = read_config(MODELS[name], F32, "config.json")
    sizes = sizes_of(config)
    for leaf in plan(parameter_shapes(config), family.table_of(config), sizes):
        ours = leaf.shape[leaf.stacked :]
        assert ours == tuple(math.prod(sizes.get(x) or int(x) for x in group) for group in leaf.layout.ours), leaf.path


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_well_known_models_are_understood_whole(name: str):
    config = read(ON_THE_HUB[name])
    assert sum(math.prod(leaf.shape) for leaf in flatten(parameter_shapes(config)).values()) == PARAMETERS[name]


def test_llama():
    config = read(LLAMA | {"attention_bias": True, "rope_theta": 5e5})
    assert config == TransformerConfig(
        n_layers=3, d_model=24, n_heads=4, n_kv_heads=2, d_head=6, d_vocab=50, d_mlp=20, n_ctx=64,
        norm="rms", norm_eps=1e-5, rotary=(Rotary(6, 5e5),), activation="silu", gated=True, unembed="own",
        q_bias=True, k_bias=True, v_bias=True, o_bias=True,
    )  # fmt: skip


def test_mistral_windows():
    assert read(MISTRAL).windows == (5, 5, 5)
    assert read(MISTRAL | {"sliding_window": None}).windows == ()
    without = {name: value for name, value in MISTRAL.items() if name != "sliding_window"}
    assert read(without).windows == (4096,) * 3


def test_qwen_windows_from_a_layer_up():
    assert read(QWEN2).windows == (0, 4, 4)
    assert read(QWEN2 | {"use_sliding_window": False}).windows == ()
    assert read(QWEN2 | {"layer_types": [SLIDING, FULL, FULL]}).windows == (4, 0, 0)
    assert (read(QWEN2).q_bias, read(QWEN2).o_bias, read(QWEN2).qk_norm) == (True, False, "none")
    assert (read(QWEN3).q_bias, read(QWEN3).o_bias, read(QWEN3).qk_norm) == (True, True, "head")


def test_gpt2_score_scales():
    plain = 1 / math.sqrt(6)
    assert read(GPT2).score_scale is None
    assert read(GPT2 | {"scale_attn_weights": False}).score_scale == 1.0
    assert read(GPT2 | {"scale_attn_by_inverse_layer_idx": True}).layer_scales == (plain, plain / 2, plain / 3)
    assert read(GPT2 | {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}).layer_scales == (1.0, 0.5, 1 / 3)
    assert (read(GPT2).d_mlp, read(GPT2).activation) == (96, "gelu_tanh")


def test_gpt_neox_rotates_a_part():
    config = read(NEOX)
    assert (config.rotary, config.parallel, config.activation) == ((Rotary(2),), "two_norms", "gelu")
    assert read(NEOX | {"use_parallel_residual": False}).parallel == "no"


def test_experts_of_each_family():
    assert read(MIXTRAL).experts == Experts(5, 2, 20)
    config = read(QWEN2_MOE | {"mlp_only_layers": [1]})
    assert config.experts == Experts(5, 2, 12, normalise=False, d_shared=14, shared_gate=True, layers=(True, False, True))
    assert config.d_mlp == 20 and len(config.groups) == 3
    assert read(QWEN3_MOE | {"decoder_sparse_step": 3}).expert_layers == (False, False, True)
    oss = read(GPT_OSS)
    assert (oss.experts, oss.windows, oss.sinks) == (Experts(5, 2, 20, router_bias=True), (4, 0, 4), True)
    assert (oss.activation, oss.mlp_clamp, oss.mlp_up_offset) == ("quick_gelu", 7.0, 1.0)
    scaling = oss.rotary[0].scaling
    assert scaling is not None and (scaling.kind, scaling.factor, scaling.truncate) == ("yarn", 32.0, False)


def test_gemma3_layers_of_two_kinds():
    config = read(GEMMA3 | {"sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert config.windows == (4, 0, 4) and config.rotary_layers == (0, 1, 0)
    assert config.rotary == (Rotary(8, 1e4), Rotary(8, 1e6, scaling=RotaryScaling("linear", 8.0)))
    assert (config.norm_gain, config.norm_position, config.score_scale) == ("1+w", "sandwich", 0.25)


@pytest.mark.parametrize(
    "dtype, expected", [("float64", math.sqrt(24)), ("float32", float(np.float32(math.sqrt(24)))), ("float16", 4.8984375)]
)
def test_gemma3_embedding_scale_is_rounded_to_the_weights(dtype: str, expected: float):
    assert read(GEMMA3, np.dtype(dtype)).embed_scale == expected


def test_gemma2_caps_are_off_where_they_are_null():
    assert (read(GEMMA2).score_soft_cap, read(GEMMA2).final_soft_cap, read(GEMMA2).windows) == (50.0, 30.0, (4, 0, 4))
    null = read(GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert (null.score_soft_cap, null.final_soft_cap) == (None, None)


def test_phi3_attention_factor_is_of_the_contexts_ratio():
    longrope = {"type": "su", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
    found = read(PHI3 | {"rope_scaling": longrope, "original_max_position_embeddings": 16}).rotary[0].scaling
    assert found is not None and found.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    # transformers' default beside the rotary parameters counts before what stands in them
    inside = read(PHI3 | {"rope_scaling": longrope | {"original_max_position_embeddings": 16}}).rotary[0].scaling
    assert inside is not None and inside.original_context == 4096


def test_layers_that_do_not_rotate():
    assert read(SMOLLM3).rotary_layers == (0, -1, 0)
    assert read(SMOLLM3 | {"no_rope_layers": None, "num_hidden_layers": 4}).rotary_layers == (0, 0, 0, -1)
    cohere = read(COHERE2 | {"num_hidden_layers": 4})
    assert (cohere.windows, cohere.rotary_layers) == ((4, 4, 4, 0), (0, 0, 0, -1))


def scaling(values: dict[str, Any], **more: Any) -> RotaryScaling:
    found = read(LLAMA | {"rope_scaling": values} | more).rotary[0].scaling
    assert found is not None
    return found


def test_attention_factors_are_resolved():
    assert scaling({"type": "yarn", **YARN}).attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert scaling({"type": "yarn", **YARN, "attention_factor": 1.5}).attention_factor == 1.5
    by_scales = scaling({"type": "yarn", **YARN, "mscale": 2.0, "mscale_all_dim": 1.0}).attention_factor
    assert by_scales == pytest.approx((0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1))
    longrope = {"type": "longrope", "short_factor": [1.0] * 3, "long_factor": [2.0] * 3, "original_max_position_embeddings": 16}
    assert scaling(longrope).attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    assert scaling(longrope | {"factor": 1.0}).attention_factor == 1.0
    # beside the rotary parameters, as Phi-3 has it, the original context counts first
    assert scaling(longrope, original_max_position_embeddings=32).original_context == 32


def test_the_context_grows_where_the_rotation_was_made_for_it():
    assert read(LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}).n_ctx == 128
    assert read(LLAMA | {"rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}}).n_ctx == 512
    assert read(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}).n_ctx == 64


REFUSED = {
    "unknown field": (LLAMA | {"foo_bar": 3}, "field 'foo_bar' .3. is not understood"),
    "unknown model": ({"model_type": "mamba"}, "model_type 'mamba' is not supported .known: llama, mistral"),
    "no model type": ({}, "model_type None"),
    "unknown architecture": (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "'LlamaForSequenceClassification'"),
    "experts": (LLAMA | {"num_local_experts": 8}, "'num_local_experts' is 8"),
    "quantised": (LLAMA | {"quantization_config": {"quant_method": "gptq"}}, "'quantization_config'"),
    "interleaved": (LLAMA | {"rope_interleaved": True}, "'rope_interleaved' is True"),
    "partial": (LLAMA | {"partial_rotary_factor": 0.5}, "rotates every feature"),
    "scaling kind": (LLAMA | {"rope_scaling": {"type": "mrope"}}, "rope scaling 'mrope' is not supported"),
    "scaling parameter": (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 3}}, "'alpha' of 'linear'"),
    "scaling incomplete": (LLAMA | {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "cannot be read: KeyError 'low_freq_factor'"),
    "longrope length": (LLAMA | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "expected 3 entries"),
    "activation": (LLAMA | {"hidden_act": "mish"}, "'mish'; known activations"),
    "type": (LLAMA | {"hidden_size": "24"}, "'hidden_size' is '24', expected a whole number"),
    "missing": ({"model_type": "gpt2"}, "'n_embd' is missing"),
    "heads": (LLAMA | {"num_key_value_heads": 3}, "multiple of n_kv_heads"),
    "layer types": (QWEN2 | {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
    "layer types' number": (QWEN2 | {"layer_types": [FULL]}, "1 entries for 3 layers"),
    "no window": (QWEN2 | {"sliding_window": 0}, "names no size"),
    "gemma soft cap": (GEMMA3 | {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is 50.0"),
    "gemma bidirectional": (GEMMA3 | {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is True"),
    "phi3 scaling": (PHI3 | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not one of this family's"),
    "phi3 unembedding's bias": (PHI3 | {"lm_head_bias": True}, "'lm_head_bias' is True"),
    "phi3 longrope length": (PHI3 | {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}, "expected 3 entries"),
    "gemma activation": (GEMMA | {"hidden_act": "silu"}, "'hidden_act' is 'silu'"),
    "gemma other activation": (GEMMA | {"hidden_activation": "gelu"}, "'hidden_activation' is 'gelu'"),
    "gemma2 bidirectional": (GEMMA2 | {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is True"),
    "gemma2 two windows": (GEMMA2 | {"sliding_window_size": 8}, "'sliding_window_size' is 8"),
    "olmo epsilon": (OLMO | {"rms_norm_eps": 1e-6}, "'rms_norm_eps' is 1e-06"),
    "olmo2 clip": (OLMO2 | {"clip_qkv": 8.0}, "'clip_qkv' .8.0. is not understood"),
    "olmo3 base": (OLMO3 | {"rope_theta": 1e4}, "'rope_theta' is 10000.0, which has no one meaning"),
    "olmo3 flat": (OLMO3 | {"rope_parameters": {"rope_type": "default"}}, "'rope_parameters' holds 'rope_type'"),
    "granite divisor": (GRANITE | {"logits_scaling": 0}, "'logits_scaling' is 0"),
    "smollm3 layers": (SMOLLM3 | {"no_rope_layers": [1, 0]}, "'no_rope_layers' has 2 entries for 3 layers"),
    "smollm3 interval": (SMOLLM3 | {"no_rope_layers": None, "no_rope_layer_interval": 0}, "'no_rope_layer_interval' is 0"),
    "cohere epsilon": (COHERE | {"rms_norm_eps": 1e-6}, "'rms_norm_eps' is 1e-06"),
    "cohere2 qk norm": (COHERE2 | {"use_qk_norm": True}, "'use_qk_norm' is True"),
    "cohere2 serial": (COHERE2 | {"use_parallel_block": False}, "'use_parallel_block' is False"),
    "glm odd part": (GLM | {"partial_rotary_factor": 0.4}, "Rotary.dim is 3"),
    "gpt2 cross attention": (GPT2 | {"add_cross_attention": True}, "'add_cross_attention' is True"),
    "gpt2 context": (GPT2 | {"n_ctx": 16}, "'n_ctx' is 16"),
    "bert's relative positions": (BERT | {"position_embedding_type": "relative_key"}, "'position_embedding_type' is 'relative_key'"),
    "bert as a decoder": (BERT | {"is_decoder": True}, "'is_decoder' is True"),
    "another head of bert": (BERT | {"architectures": ["BertForSequenceClassification"]}, "'BertForSequenceClassification'"),
    "gptj without rotation": (GPTJ | {"model_type": "gptj", "rotary": False}, "'rotary' is False"),
    "codegen's quarters": (GPTJ | {"model_type": "codegen", "n_embd": 24, "n_head": 6}, "'n_head' 6; expected heads in 4 equal parts"),
    "gpt_neo's kinds": (GPT_NEO | {"attention_types": [[["sparse"], 3]]}, "expected 3 layers, each 'global' or 'local'"),
    "gpt_neo's number": (GPT_NEO | {"attention_types": [[["global"], 10**9]]}, "expected 3 layers"),
    "bloom's residual": (BLOOM | {"apply_residual_connection_post_layernorm": True}, "'apply_residual_connection_post_layernorm' is True"),
    "falcon's norms": (FALCON | {"num_ln_in_parallel_attn": 2}, "do not go together"),
    "mpt's norm of queries": (MPT | {"attn_config": {"qk_ln": True}}, "attn_config: field 'qk_ln' is True"),
    "mpt's positions": (MPT | {"attn_config": {"alibi": False}}, "attn_config: field 'alibi' is False"),
    "mpt's logits": (MPT | {"logit_scale": "inv_sqrt_d_model"}, "'logit_scale' is 'inv_sqrt_d_model'"),
    "phi's norm of queries": (PHI | {"qk_layernorm": True}, "'qk_layernorm' is True"),
    "no layer with experts": (QWEN3_MOE | {"decoder_sparse_step": 4}, "leave no layer with experts"),
    "more experts a token than there are": (MIXTRAL | {"num_experts_per_tok": 6}, "per_token is 6"),
    "two numbers of experts": (QWEN3_MOE | {"num_local_experts": 4}, "'num_experts' is 5 but 'num_local_experts' 4"),
    "gpt_oss's sigmoid": (GPT_OSS | {"swiglu_alpha": 1.5}, "'swiglu_alpha' is 1.5"),
    "gpt_oss in other bits": (GPT_OSS | {"quantization_config": {"quant_method": "awq"}}, "of method 'awq'"),
    "mixtral in other bits": (MIXTRAL | {"quantization_config": {"quant_method": "mxfp4"}}, "'quantization_config'"),
    "window of a llama": (LLAMA | {"sliding_window": 4}, "'sliding_window' is 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str):
    values, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        read(values)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(CheckpointError) as caught:
        read(LLAMA | {"foo": 1, "hidden_act": "mish", "num_experts": 4, "rope_scaling": {"type": "su"}})
    assert all(word in str(caught.value) for word in ("'foo'", "'mish'", "'num_experts'", "'su'"))


def test_harmless_fields_are_ignored():
    harmless = {
        "attention_dropout": 0.1,
        "use_cache": False,
        "bos_token_id": 1,
        "id2label": {"0": "a"},
        "transformers_version": "4.42",
        "pretraining_tp": 2,
    }
    assert read(LLAMA | harmless) == read(LLAMA)
    assert read(GPT2 | {"resid_pdrop": 0.1, "summary_type": "cls_index", "reorder_and_upcast_attn": True, "n_ctx": 32}) == read(GPT2)


def test_a_config_that_no_family_can_say_has_none():
    fitting = {name: found[0].model_type for name, config in CONFIGS.items() if (found := family_for(config, F32))}
    assert fitting == {"neox": "gpt_neox", "moe": "qwen3_moe"}


def test_families_agree_with_their_keys():
    assert all(family.model_type == name for name, family in FAMILIES.items())
