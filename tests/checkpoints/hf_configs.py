"""config.json of every family, small, in the spelling of files on the hub (`OLD`) and in that of transformers 5 (`NEW`)."""

from typing import Any

DECODER: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA = DECODER | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
MISTRAL = DECODER | {"model_type": "mistral", "hidden_act": "silu", "sliding_window": 5, "head_dim": 8}
QWEN2 = DECODER | {"model_type": "qwen2", "hidden_act": "silu", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
QWEN3 = DECODER | {"model_type": "qwen3", "hidden_act": "silu", "head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}
GPT2 = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 24, "n_head": 4, "n_layer": 3, "n_positions": 32}
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GEMMA3 = DECODER | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 8,
    "query_pre_attn_scalar": 16,
    "sliding_window": 4,
}

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
ROBERTA = BERT | {"model_type": "roberta", "max_position_embeddings": 34, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
DISTILBERT = {"model_type": "distilbert", "vocab_size": 50, "dim": 24, "hidden_dim": 20, "n_layers": 3, "n_heads": 4}

PHI3 = DECODER | {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 32,
    "partial_rotary_factor": 0.75,
    "pad_token_id": 0,
}
GEMMA = DECODER | {"model_type": "gemma", "head_dim": 8, "hidden_act": "gelu_pytorch_tanh"}
GEMMA2 = DECODER | {"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 4}
OLMO = {name: value for name, value in DECODER.items() if name != "rms_norm_eps"} | {"model_type": "olmo", "clip_qkv": 1.5}
OLMO2 = DECODER | {"model_type": "olmo2"}
OLMO3 = DECODER | {"model_type": "olmo3", "sliding_window": 4}
GRANITE = DECODER | {
    "model_type": "granite",
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
}
SMOLLM3 = DECODER | {"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "pad_token_id": 0}
COHERE = {name: value for name, value in DECODER.items() if name != "rms_norm_eps"} | {"model_type": "cohere", "layer_norm_eps": 1e-5}
COHERE2 = COHERE | {"model_type": "cohere2", "sliding_window": 4}
GLM = DECODER | {"model_type": "glm", "head_dim": 8, "pad_token_id": 0}
GLM4 = GLM | {"model_type": "glm4"}

MIXTRAL = DECODER | {"model_type": "mixtral", "num_local_experts": 5}
OLMOE = DECODER | {"model_type": "olmoe", "num_experts": 5, "num_experts_per_tok": 2, "pad_token_id": 0}
QWEN2_MOE = DECODER | {"model_type": "qwen2_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
QWEN2_MOE |= {"shared_expert_intermediate_size": 14}
QWEN3_MOE = DECODER | {"model_type": "qwen3_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8}
GPT_OSS = DECODER | {"model_type": "gpt_oss", "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 4}

GPTJ = {name: value for name, value in GPT2.items() if name != "model_type"} | {"n_positions": 64}
GPT_NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 50,
    "hidden_size": 24,
    "num_heads": 4,
    "num_layers": 3,
    "max_position_embeddings": 32,
    "attention_types": [[["global", "local"], 1], [["global"], 1]],
    "window_size": 5,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 50,
    "hidden_size": 24,
    "ffn_dim": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
BLOOM = {"model_type": "bloom", "vocab_size": 50, "n_embed": 24, "num_attention_heads": 6, "n_layer": 3, "seq_length": 32}
FALCON = {"model_type": "falcon", "vocab_size": 50, "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 3}
MPT = {"model_type": "mpt", "vocab_size": 50, "d_model": 24, "n_heads": 6, "n_layers": 3, "max_seq_len": 32, "no_bias": True}
NORMED = {name: value for name, value in DECODER.items() if name != "rms_norm_eps"} | {"hidden_size": 32}
STARCODER2 = NORMED | {"model_type": "starcoder2", "sliding_window": 4, "norm_type": "layer_norm"}
PHI = NORMED | {"model_type": "phi"}
STABLELM = NORMED | {"model_type": "stablelm"}

LLAMA3_SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"short_factor": [1.0, 2.0, 3.0], "long_factor": [2.0, 4.0, 6.0], "original_max_position_embeddings": 16}
SLIDING, FULL = "sliding_attention", "full_attention"

SPELLINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (
        LLAMA | {"rope_theta": 5e5, "rope_scaling": None, "torch_dtype": "bfloat16"},
        LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "bfloat16"},
    ),
    "linear": (
        LLAMA | {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
        LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "dynamic": (
        LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        LLAMA | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama3": (
        LLAMA | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}},
        LLAMA | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_SCALING}},
    ),
    "yarn": (
        LLAMA | {"rope_scaling": {"type": "yarn", **YARN}},
        LLAMA | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **YARN}},
    ),
    "longrope": (
        LLAMA | {"rope_scaling": {"type": "longrope", **LONGROPE}},
        LLAMA | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONGROPE}},
    ),
    "mistral": (MISTRAL | {"rope_theta": 1e6}, MISTRAL | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2": (
        QWEN2 | {"rope_theta": 1e6},
        QWEN2 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "layer_types": [FULL, SLIDING, SLIDING]},
    ),
    "qwen3": (QWEN3 | {"rope_theta": 1e6}, QWEN3 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "gpt_neox": (
        NEOX | {"rotary_emb_base": 2e4, "rotary_pct": 0.5},
        NEOX | {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}},
    ),
    "phi3": (
        PHI3
        | {"rope_scaling": {"type": "su", "short_factor": [1.0, 2.0, 3.0], "long_factor": [2.0, 4.0, 6.0]}}
        | {"original_max_position_embeddings": 16, "sliding_window": 9},
        {name: value for name, value in PHI3.items() if name != "partial_rotary_factor"}
        | {"original_max_position_embeddings": 16, "sliding_window": 9}
        | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, **LONGROPE}},
    ),
    "gemma": (
        GEMMA | {"hidden_act": "gelu", "hidden_activation": None, "rope_theta": 1e4},
        GEMMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "gemma2": (
        GEMMA2 | {"sliding_window_size": 4, "hidden_act": "gelu_pytorch_tanh", "rope_theta": 1e4},
        GEMMA2
        | {"layer_types": [SLIDING, FULL, SLIDING], "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "olmo3": (
        OLMO3 | {"num_hidden_layers": 5, "rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "attention_factor": 1.2, **YARN}},
        OLMO3
        | {
            "num_hidden_layers": 5,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING],
            "rope_parameters": {
                FULL: {"rope_type": "yarn", "rope_theta": 5e5, "attention_factor": 1.2, **YARN},
                SLIDING: {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "smollm3": (
        SMOLLM3 | {"num_hidden_layers": 5, "no_rope_layers": None, "use_sliding_window": True, "sliding_window": 4, "rope_theta": 5e6},
        SMOLLM3
        | {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1], "use_sliding_window": True, "sliding_window": 4}
        | {"layer_types": [FULL, FULL, FULL, SLIDING, FULL], "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
    ),
    "cohere2": (
        COHERE2 | {"sliding_window_pattern": 3, "layer_switch": 3, "rope_theta": 5e4, "rotary_pct": 1.0},
        COHERE2 | {"layer_types": [SLIDING, SLIDING, FULL], "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    ),
    "glm4": (
        GLM4 | {"partial_rotary_factor": 0.5, "rope_theta": 1e4},
        GLM4 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "gemma3": (
        GEMMA3
        | {"sliding_window_pattern": 3, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        GEMMA3
        | {
            "layer_types": [SLIDING, SLIDING, FULL],
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "mixtral": (MIXTRAL | {"rope_theta": 1e6}, MIXTRAL | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "olmoe": (OLMOE | {"rope_scaling": None}, OLMOE | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "qwen2_moe": (
        QWEN2_MOE | {"mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        QWEN2_MOE | {"mlp_only_layers": [1], "sliding_window": 4, "use_sliding_window": True, "layer_types": [SLIDING, FULL, FULL]},
    ),
    "qwen3_moe": (
        QWEN3_MOE | {"decoder_sparse_step": 2, "max_window_layers": 28, "sliding_window": 4096},
        {name: value for name, value in QWEN3_MOE.items() if name != "num_experts"} | {"num_local_experts": 5, "mlp_only_layers": [0, 2]},
    ),
    "gpt_oss": (
        GPT_OSS | {"rope_theta": 150000, "rope_scaling": {"rope_type": "yarn", "truncate": False, **YARN}, "initial_context_length": 16},
        GPT_OSS
        | {"layer_types": [SLIDING, FULL, SLIDING]}
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "truncate": False, **YARN}},
    ),
}

PARTIAL = {"partial_rotary_factor": 0.5, "rope_theta": 2e4}
PARTIAL_NEW = {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}}
SPELLINGS |= {
    "falcon": (FALCON | {"rope_theta": 2e4}, FALCON | {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}),
    "starcoder2": (STARCODER2 | {"rope_theta": 2e4}, STARCODER2 | {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}),
    "phi": (PHI | PARTIAL, PHI | PARTIAL_NEW),
    "stablelm": (STABLELM | PARTIAL, STABLELM | PARTIAL_NEW),
    "bloom": (BLOOM, {"n_head" if name == "num_attention_heads" else name: value for name, value in BLOOM.items()}),
}

MODELS: dict[str, dict[str, Any]] = {name: old for name, (old, _) in SPELLINGS.items()} | {
    "llama_biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "bert": BERT | {"architectures": ["BertForMaskedLM"], "hidden_act": "gelu_new"},
    "bert_model": BERT | {"architectures": ["BertModel"], "type_vocab_size": 3},
    "roberta": ROBERTA | {"hidden_act": "relu"},
    "roberta_model": ROBERTA | {"architectures": ["RobertaModel"], "pad_token_id": 3, "max_position_embeddings": 36},
    "distilbert": DISTILBERT,
    "distilbert_untied": DISTILBERT | {"tie_word_embeddings": False, "activation": "relu", "max_position_embeddings": 64},
    "distilbert_model": DISTILBERT | {"architectures": ["DistilBertModel"]},
    "phi3_plain": PHI3,
    "phi3_tied": PHI3 | {"tie_word_embeddings": True, "hidden_act": "gelu"},
    "gemma_biases": GEMMA | {"attention_bias": True, "tie_word_embeddings": False, "num_key_value_heads": 1},
    "gemma2_uncapped": GEMMA2
    | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": [FULL] * 3, "hidden_activation": "silu"},
    "olmo": OLMO,
    "olmo_unclipped": OLMO | {"clip_qkv": None, "attention_bias": True, "tie_word_embeddings": True},
    "olmo2": OLMO2 | {"tie_word_embeddings": True},
    "olmo2_biases": OLMO2 | {"attention_bias": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "olmo3_sliding": OLMO3 | {"layer_types": [SLIDING] * 3},
    "granite": GRANITE,
    "granite_biases": GRANITE | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "logits_scaling": 1.7},
    "smollm3_biases": SMOLLM3 | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "cohere": COHERE | {"tie_word_embeddings": False, "attention_bias": True},
    "cohere_qk_norm": COHERE | {"use_qk_norm": True, "logit_scale": 0.8},
    "cohere2_full": COHERE2 | {"layer_types": [FULL] * 3, "hidden_act": "gelu"},
    "glm": GLM,
    "glm_no_biases": GLM | {"attention_bias": False, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    "gpt2": GPT2,
    "gpt2_layer_scaled": GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 20, "tie_word_embeddings": False},
    "gpt2_unscaled": GPT2 | {"scale_attn_weights": False, "activation_function": "relu"},
    "gpt_neox_serial": NEOX | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    "gemma3_full": GEMMA3 | {"layer_types": [FULL] * 3, "final_logit_softcapping": 5.0, "tie_word_embeddings": False},
    "gptj": GPTJ | {"model_type": "gptj", "rotary_dim": 4},
    "codegen": GPTJ | {"model_type": "codegen", "rotary_dim": 2, "n_head": 4, "n_ctx": 64},
    "gpt_neo": GPT_NEO,
    "gpt_neo_global": GPT_NEO | {"attention_types": [[["global"], 3]], "tie_word_embeddings": False},
    "gpt_bigcode": GPT2 | {"model_type": "gpt_bigcode", "n_inner": 20, "scale_attn_weights": False},
    "opt": OPT,
    "opt_350m": OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 14},
    "opt_bare": OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True},
    "falcon_40b": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "tie_word_embeddings": False},
    "falcon_one_norm": FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True},
    "falcon_alibi": FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "mpt": MPT | {"attn_config": {"clip_qkv": 1.5, "softmax_scale": 0.3, "attn_impl": "triton"}},
    "mpt_slopes": MPT | {"attn_config": {"alibi_bias_max": 16}, "tie_word_embeddings": False},
    "stablelm_parallel": STABLELM
    | {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True, "tie_word_embeddings": True},
    "mixtral_sliding": MIXTRAL | {"sliding_window": 4, "head_dim": 8, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    "olmoe_clipped": OLMOE | {"clip_qkv": 1.5, "norm_topk_prob": True, "attention_bias": True},
    "qwen2_moe_all": QWEN2_MOE | {"qkv_bias": False, "norm_topk_prob": True},
    "qwen3_moe_all": QWEN3_MOE | {"norm_topk_prob": True, "attention_bias": True, "use_sliding_window": True, "sliding_window": 4},
    "gpt_oss_plain": GPT_OSS
    | {"layer_types": [FULL] * 3, "attention_bias": False, "swiglu_limit": 1.5}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
}
"""Every family, with what its configs may choose: what is saved must load back bit for bit."""

SAVED_AS = {name: values["model_type"] for name, values in MODELS.items()} | {"codegen": "gptj"}
"""The model_type that is written: of two that compute the same, the first."""

WRONG_IN_TRANSFORMERS = ("falcon_alibi", "mpt_slopes")
"""Eager attention of Falcon adds ALiBi twice, and MPT's model does not read `alibi_bias_max`."""

GENERATED = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
}
LLAMA_32 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

# fmt: off
ON_THE_HUB: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": GENERATED | {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 576,
        "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "vocab_size": 49152,
    },
    "meta-llama/Llama-3.2-1B": GENERATED | {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA_32, "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
    },
    "mistralai/Mistral-7B-v0.1": GENERATED | {
        "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Qwen/Qwen2.5-0.5B": GENERATED | {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 896,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "Qwen/Qwen3-0.6B": GENERATED | {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
    },
    "openai-community/gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
        "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "vocab_size": 50257,
    },
    "EleutherAI/pythia-70m": GENERATED | {
        "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8,
        "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "use_parallel_residual": True, "vocab_size": 50304,
    },
    "google-bert/bert-base-uncased": {
        "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
        "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True,
        "vocab_size": 30522,
    },
    "google-bert/bert-base-chinese": {
        "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "directionality": "bidi", "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
        "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3, "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform", "type_vocab_size": 2, "vocab_size": 21128,
    },
    "sentence-transformers/all-MiniLM-L6-v2": {
        "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02,
        "intermediate_size": 1536, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0, "position_embedding_type": "absolute",
        "transformers_version": "4.8.2", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
    },
    "FacebookAI/roberta-base": {
        "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265,
    },
    "distilbert/distilbert-base-uncased": {
        "activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768, "dropout": 0.1,
        "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512, "model_type": "distilbert", "n_heads": 12,
        "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1, "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False,
        "tie_weights_": True, "transformers_version": "4.10.0.dev0", "vocab_size": 30522,
    },
    "microsoft/Phi-3-mini-4k-instruct": GENERATED | {
        "_name_or_path": "Phi-3-mini-4k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False, "vocab_size": 32064,
    },
    "microsoft/Phi-4-mini-instruct": GENERATED | {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "embd_pdrop": 0.0, "full_attn_mod": 1,
        "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "phi3", "num_attention_heads": 24, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "pad_token_id": 199999, "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True,
        "rope_scaling": {"long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "longrope"}, "vocab_size": 200064,
    },
    "google/gemma-2b": GENERATED | {
        "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "head_dim": 256, "hidden_act": "gelu",
        "hidden_size": 2048, "intermediate_size": 16384, "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 10000.0, "vocab_size": 256000,
    },
    "google/gemma-2-2b": GENERATED | {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
        "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
    },
    "allenai/OLMo-1B-hf": GENERATED | {
        "architectures": ["OlmoForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 2048, "model_type": "olmo", "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "pad_token_id": 1, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "vocab_size": 50304,
    },
    "allenai/OLMo-2-1124-7B": GENERATED | {
        "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "olmo2",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277, "rms_norm_eps": 1e-06,
        "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False, "vocab_size": 100352,
    },
    "allenai/Olmo-3-1025-7B": GENERATED | {
        "architectures": ["Olmo3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 11008, "layer_types": ([SLIDING] * 3 + [FULL]) * 8, "max_position_embeddings": 65536,
        "model_type": "olmo3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pad_token_id": 100277,
        "rms_norm_eps": 1e-06, "rope_theta": 500000, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 100278,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
    },
    "ibm-granite/granite-3.1-2b-instruct": GENERATED | {
        "architectures": ["GraniteForCausalLM"], "attention_bias": False, "attention_dropout": 0.1, "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "logits_scaling": 8.0,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "granite", "num_attention_heads": 32, "num_hidden_layers": 40,
        "num_key_value_heads": 8, "pad_token_id": 0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05, "rope_scaling": None,
        "rope_theta": 5000000.0, "tie_word_embeddings": True, "vocab_size": 49155,
    },
    "HuggingFaceTB/SmolLM3-3B": GENERATED | {
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 11008, "layer_types": [FULL] * 36, "max_position_embeddings": 65536,
        "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3", "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
        "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "use_sliding_window": False, "vocab_size": 128256,
    },
    "CohereLabs/aya-expanse-8b": GENERATED | {
        "architectures": ["CohereForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 14336, "layer_norm_eps": 1e-05, "logit_scale": 0.125, "max_position_embeddings": 8192,
        "model_max_length": 8192, "model_type": "cohere", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "pad_token_id": 0, "rope_scaling": None, "rope_theta": 10000, "use_qk_norm": False, "vocab_size": 256000,
    },
    "CohereLabs/c4ai-command-r7b-12-2024": GENERATED | {
        "architectures": ["Cohere2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "cache_implementation": "hybrid",
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "layer_norm_eps": 1e-05, "layer_switch": 4,
        "logit_scale": 0.25, "max_position_embeddings": 132096, "model_type": "cohere2", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "order_of_interleaved_layers": "local_attn_first", "pad_token_id": 0,
        "position_embedding_type": "rope_gptj", "rope_scaling": None, "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 4096,
        "sliding_window_pattern": 4, "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
        "use_parallel_embedding": False, "vocab_size": 256000,
    },
    "zai-org/glm-4-9b-chat-hf": GENERATED | {
        "architectures": ["GlmForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 13696, "max_position_embeddings": 131072, "model_type": "glm",
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2, "pad_token_id": 151329,
        "rms_norm_eps": 1.5625e-07, "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 151552,
    },
    "zai-org/GLM-4-9B-0414": GENERATED | {
        "architectures": ["Glm4ForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "intermediate_size": 13696, "max_position_embeddings": 32768, "model_type": "glm4",
        "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2, "pad_token_id": 151329,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 151552,
    },
    "EleutherAI/gpt-neo-125m": {
        "activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"], "attention_dropout": 0,
        "attention_layers": ["global", "local"] * 6, "attention_types": [[["global", "local"], 6]], "bos_token_id": 50256,
        "embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": False, "hidden_size": 768, "initializer_range": 0.02,
        "intermediate_size": None, "layer_norm_epsilon": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neo",
        "num_heads": 12, "num_layers": 12, "resid_dropout": 0, "summary_activation": None, "summary_use_proj": True,
        "use_cache": True, "vocab_size": 50257, "window_size": 256,
    },
    "EleutherAI/gpt-j-6b": {
        "activation_function": "gelu_new", "architectures": ["GPTJForCausalLM"], "attn_pdrop": 0.0, "embd_pdrop": 0.0,
        "gradient_checkpointing": False, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_embd": 4096,
        "n_head": 16, "n_inner": None, "n_layer": 28, "n_positions": 2048, "resid_pdrop": 0.0, "rotary": True, "rotary_dim": 64,
        "scale_attn_weights": True, "summary_type": "cls_index", "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer",
        "use_cache": True, "vocab_size": 50400,
    },
    "Salesforce/codegen-350M-mono": {
        "activation_function": "gelu_new", "architectures": ["CodeGenForCausalLM"], "attn_pdrop": 0.0, "embd_pdrop": 0.0,
        "gradient_checkpointing": False, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "codegen", "n_ctx": 2048,
        "n_embd": 1024, "n_head": 16, "n_inner": None, "n_layer": 20, "n_positions": 2048, "resid_pdrop": 0.0, "rotary_dim": 32,
        "scale_attn_weights": True, "tie_word_embeddings": False, "use_cache": True, "vocab_size": 51200,
    },
    "facebook/opt-125m": GENERATED | {
        "_remove_final_layer_norm": False, "activation_dropout": 0.0, "activation_function": "relu", "architectures": ["OPTForCausalLM"],
        "attention_dropout": 0.0, "do_layer_norm_before": True, "dropout": 0.1, "ffn_dim": 3072, "hidden_size": 768, "init_std": 0.02,
        "layerdrop": 0.0, "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 12, "num_hidden_layers": 12,
        "pad_token_id": 1, "prefix": "</s>", "vocab_size": 50272, "word_embed_proj_dim": 768,
    },
    "facebook/opt-350m": GENERATED | {
        "activation_dropout": 0.0, "activation_function": "relu", "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0,
        "do_layer_norm_before": False, "dropout": 0.1, "ffn_dim": 4096, "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0,
        "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1,
        "prefix": "</s>", "vocab_size": 50272, "word_embed_proj_dim": 512,
    },
    "bigscience/bloom-560m": GENERATED | {
        "apply_residual_connection_post_layernorm": False, "architectures": ["BloomForCausalLM"], "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "hidden_dropout": 0.0, "layer_norm_epsilon": 1e-05,
        "masked_softmax_fusion": True, "model_type": "bloom", "n_embed": 1024, "n_inner": None, "n_layer": 24,
        "num_attention_heads": 16, "offset_alibi": 100, "pad_token_id": 3, "pretraining_tp": 1, "seq_length": 2048,
        "skip_bias_add": True, "skip_bias_add_qkv": False, "slow_but_exact": False, "unk_token_id": 0, "vocab_size": 250880,
    },
    "tiiuae/falcon-7b": GENERATED | {
        "alibi": False, "apply_residual_connection_post_layernorm": False, "architectures": ["FalconForCausalLM"],
        "attention_dropout": 0.0, "bias": False, "hidden_dropout": 0.0, "hidden_size": 4544, "layer_norm_epsilon": 1e-05,
        "model_type": "falcon", "multi_query": True, "new_decoder_architecture": False, "num_attention_heads": 71,
        "num_hidden_layers": 32, "parallel_attn": True, "vocab_size": 65024,
    },
    "tiiuae/falcon-rw-1b": GENERATED | {
        "alibi": True, "apply_residual_connection_post_layernorm": False, "architectures": ["FalconForCausalLM"],
        "attention_dropout": 0.0, "bias": True, "hidden_dropout": 0.0, "hidden_size": 2048, "layer_norm_epsilon": 1e-05,
        "model_type": "falcon", "multi_query": False, "new_decoder_architecture": False, "num_attention_heads": 32,
        "num_hidden_layers": 24, "parallel_attn": False, "vocab_size": 50304,
    },
    "mosaicml/mpt-7b": GENERATED | {
        "architectures": ["MPTForCausalLM"], "attn_config": {
            "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention",
            "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None,
        }, "d_model": 4096, "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4, "init_config": {"name": "kaiming_normal_"},
        "init_device": "cpu", "learned_pos_emb": True, "logit_scale": None, "max_seq_len": 2048, "model_type": "mpt", "n_heads": 32,
        "n_layers": 32, "no_bias": True, "norm_type": "low_precision_layernorm", "resid_pdrop": 0,
        "tokenizer_name": "EleutherAI/gpt-neox-20b", "verbose": 0, "vocab_size": 50432,
    },
    "bigcode/starcoderbase-1b": GENERATED | {
        "activation_function": "gelu_pytorch_tanh", "architectures": ["GPTBigCodeForCausalLM"], "attention_softmax_in_fp32": True,
        "attn_pdrop": 0.1, "embd_pdrop": 0.1, "inference_runner": 0, "layer_norm_epsilon": 1e-05, "max_batch_size": None,
        "max_sequence_length": None, "model_type": "gpt_bigcode", "multi_query": True, "n_embd": 2048, "n_head": 16, "n_inner": 8192,
        "n_layer": 24, "n_positions": 8192, "pad_key_length": True, "pre_allocate_kv_cache": False, "resid_pdrop": 0.1,
        "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True, "validate_runner_input": True, "vocab_size": 49152,
    },
    "bigcode/starcoder2-3b": GENERATED | {
        "architectures": ["Starcoder2ForCausalLM"], "attention_dropout": 0.1, "embedding_dropout": 0.1, "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 3072, "intermediate_size": 12288, "max_position_embeddings": 16384, "mlp_type": "default",
        "model_type": "starcoder2", "norm_epsilon": 1e-05, "norm_type": "layer_norm", "num_attention_heads": 24, "num_hidden_layers": 30,
        "num_key_value_heads": 2, "residual_dropout": 0.1, "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True,
        "vocab_size": 49152,
    },
    "microsoft/phi-2": GENERATED | {
        "architectures": ["PhiForCausalLM"], "attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "gelu_new", "hidden_size": 2560,
        "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "phi",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
        "qk_layernorm": False, "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "vocab_size": 51200,
    },
    "stabilityai/stablelm-3b-4e1t": GENERATED | {
        "architectures": ["StableLmForCausalLM"], "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 6912,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 4096, "model_type": "stablelm", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.25, "rope_theta": 10000,
        "tie_word_embeddings": False, "use_qkv_bias": False, "vocab_size": 50304,
    },
    "google/gemma-3-270m": GENERATED | {
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": None, "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 3,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18,
        "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
        "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": False, "vocab_size": 262144,
    },
    "mistralai/Mixtral-8x7B-v0.1": GENERATED | {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
        "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 32000,
    },
    "allenai/OLMoE-1B-7B-0924": GENERATED | {
        "architectures": ["OlmoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 1024, "max_position_embeddings": 4096, "model_type": "olmoe", "norm_topk_prob": False,
        "num_attention_heads": 16, "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
        "output_router_logits": False, "pad_token_id": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.01, "tie_word_embeddings": False, "vocab_size": 50304,
    },
    "Qwen/Qwen1.5-MoE-A2.7B": GENERATED | {
        "architectures": ["Qwen2MoeForCausalLM"], "attention_dropout": 0.0, "decoder_sparse_step": 1, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 8192, "max_window_layers": 21,
        "model_type": "qwen2_moe", "moe_intermediate_size": 1408, "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 60,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 16, "output_router_logits": False,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 5632,
        "sliding_window": 32768, "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": 151936,
    },
    "Qwen/Qwen3-30B-A3B": GENERATED | {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "decoder_sparse_step": 1,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False, "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "openai/gpt-oss-20b": GENERATED | {
        "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "experts_per_token": 4, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096, "intermediate_size": 2880,
        "layer_types": [SLIDING, FULL] * 12, "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
        "output_router_logits": False, "pad_token_id": 199999, "rms_norm_eps": 1e-05, "rope_theta": 150000,
        "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"], "quant_method": "mxfp4"},
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn",
            "truncate": False,
        },
        "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False, "vocab_size": 201088,
    },
}
# fmt: on
"""config.json of well-known models: nothing in them may be refused."""

PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "openai-community/gpt2": 124_439_808,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/gpt-neo-125m": 125_198_592,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "Salesforce/codegen-350M-mono": 356_712_448,
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-350m": 331_196_416,
    "bigscience/bloom-560m": 559_214_592,
    "tiiuae/falcon-7b": 6_921_720_704,
    "tiiuae/falcon-rw-1b": 1_311_625_216,
    "mosaicml/mpt-7b": 6_649_286_656,
    "bigcode/starcoderbase-1b": 1_137_207_296,
    "bigcode/starcoder2-3b": 3_030_371_328,
    "microsoft/phi-2": 2_779_683_840,
    "stabilityai/stablelm-3b-4e1t": 2_795_443_200,
    "google/gemma-3-270m": 268_098_176,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-2-2b": 2_614_341_888,
    "allenai/OLMo-1B-hf": 1_176_764_416,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/Olmo-3-1025-7B": 7_298_011_136,
    "ibm-granite/granite-3.1-2b-instruct": 2_533_531_648,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "CohereLabs/aya-expanse-8b": 8_028_033_024,
    "CohereLabs/c4ai-command-r7b-12-2024": 8_028_033_024,
    "zai-org/glm-4-9b-chat-hf": 9_399_951_360,
    "zai-org/GLM-4-9B-0414": 9_400_279_040,
    "google-bert/bert-base-uncased": 109_514_298,
    "google-bert/bert-base-chinese": 102_290_312,
    "sentence-transformers/all-MiniLM-L6-v2": 22_713_216,
    "FacebookAI/roberta-base": 124_697_433,
    "distilbert/distilbert-base-uncased": 66_985_530,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "openai/gpt-oss-20b": 20_914_757_184,
}
"""How many parameters they are known to have."""
