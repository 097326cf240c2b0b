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
}

MODELS: dict[str, dict[str, Any]] = {name: old for name, (old, _) in SPELLINGS.items()} | {
    "llama_biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "gpt2": GPT2,
    "gpt2_layer_scaled": GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 20, "tie_word_embeddings": False},
    "gpt2_unscaled": GPT2 | {"scale_attn_weights": False, "activation_function": "relu"},
    "gpt_neox_serial": NEOX | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    "gemma3_full": GEMMA3 | {"layer_types": [FULL] * 3, "final_logit_softcapping": 5.0, "tie_word_embeddings": False},
}
"""Every family, with what its configs may choose: what is saved must load back bit for bit."""

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
    "google/gemma-3-270m": GENERATED | {
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": None, "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 3,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 18,
        "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000.0,
        "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": False, "vocab_size": 262144,
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
    "google/gemma-3-270m": 268_098_176,
}
"""How many parameters they are known to have."""
