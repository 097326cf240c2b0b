"""Reading a config.json: every field is taken by name, known to be harmless, or refused; all refusals are shown together."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from jaxinterp.errors import CheckpointError, InputError
from jaxinterp.model.config import Activation, TransformerConfig

# fmt: off
HARMLESS = frozenset({
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "name_or_path", "_name_or_path", "_commit_hash",
    "auto_map", "use_cache", "cache_implementation", "initializer_range", "initializer_factor", "gradient_checkpointing",
    "pretraining_tp", "torchscript", "use_bfloat16", "output_attentions", "output_hidden_states", "output_scores", "return_dict",
    "return_dict_in_generate", "chunk_size_feed_forward", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "_attn_implementation_autoset", "_experts_implementation", "finetuning_task", "id2label",
    "label2id", "num_labels", "problem_type", "tokenizer_class", "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder",
    "prefix", "cross_attention_hidden_size", "is_decoder", "add_cross_attention_hidden_size", "max_length", "min_length",
    "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k",
    "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "tie_last_hidden_states", "is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version",
    "model_max_length", "max_sequence_length",
})
# fmt: on
"""Fields that change nothing about what a forward pass computes."""

HARMLESS_PATTERN = re.compile(r".*_token_ids?|.*_token_index|.*(dropout|pdrop)(_prob|_p)?|summary_.*")
"""Token ids are the tokenizer's business; dropout acts in training only; the summary head is of other model classes."""

MUST_BE: Mapping[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "per_layer_config": (None, {}),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
"""Fields that any family may carry, with the values under which they change nothing."""

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' names of activations; several are the same function written out differently."""

ACTIVATION_NAMES: Mapping[str, str] = {name: name for name in ("silu", "gelu", "quick_gelu", "relu", "relu2")} | {
    "gelu_tanh": "gelu_pytorch_tanh"
}
"""The name that is written for each of ours."""

MAX_LAYERS = 10_000

REQUIRED: Any = object()


class Fields:
    """The fields of one config.json, ticked off as they are read.

    Attributes:
        problems: what cannot be understood, one sentence each; `build` raises them together.
    """

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self.values = dict(values)
        self.file = file
        self.problems: list[str] = []
        self._seen: set[str] = set()

    def take(self, name: str, default: Any = REQUIRED, *, kind: type | tuple[type, ...] = object) -> Any:
        """The value of a field; null counts as absent.

        Args:
            name: of the field.
            default: if it is absent; without one the field is required.
            kind: the type or types that it must have.
        """
        self._seen.add(name)
        value = self.values.get(name)
        if value is None:
            if default is REQUIRED:
                self.problems.append(f"field {name!r} is missing")
                return 1 if kind is int else 1.0 if kind is float else None
            return default
        kinds = (int, float) if kind is float else kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind in (int, float)):
            self.problems.append(f"field {name!r} is {value!r}, expected {_kind_name(kind)}")
            return default if default is not REQUIRED else 1
        return float(value) if kind is float else value

    def layers(self, name: str) -> int:
        """The number of layers, refused where it is absurd before lists of that length are made."""
        count = self.take(name, kind=int)
        if 0 < count <= MAX_LAYERS:
            return count
        self.problems.append(f"field {name!r} is {count}, expected 1 to {MAX_LAYERS}")
        return 1

    def expect(self, name: str, *allowed: object) -> None:
        """Refuses a field unless it is absent or has one of the values that change nothing."""
        self._seen.add(name)
        value = self.values.get(name)
        if value is not None and value not in allowed:
            self.problems.append(f"field {name!r} is {value!r}, which is not supported (supported: {', '.join(map(repr, allowed))})")

    def given(self, name: str) -> bool:
        """Whether the file has the field at all, be it null."""
        return name in self.values

    def activation(self, name: str, default: str) -> Activation:
        """The activation that a field names."""
        value = self.take(name, default, kind=str)
        if value not in ACTIVATIONS:
            self.problems.append(f"field {name!r} is {value!r}; known activations: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS.get(value, "gelu")

    def finish(self, harmless: Collection[str] = ()) -> None:
        """Refuses whatever is left.

        Args:
            harmless: fields of this family that change nothing.

        Raises:
            CheckpointError: with every field that is missing, unknown or unsupported.
        """
        for name, allowed in MUST_BE.items():
            if name not in self._seen:
                self.expect(name, *allowed)
        known = HARMLESS | self._seen | set(harmless)
        unknown = [name for name in self.values if name not in known and not HARMLESS_PATTERN.fullmatch(name)]
        self.problems += [f"field {name!r} ({_short(self.values[name])}) is not understood" for name in unknown]
        if self.problems:
            raise CheckpointError(f"{self.file} cannot be loaded: " + "; ".join(self.problems) + ".")

    def build(self, choices: Mapping[str, Any], harmless: Collection[str] = ()) -> TransformerConfig:
        """The config, once every field of the file is accounted for (see `finish`).

        Args:
            choices: the arguments of `TransformerConfig`.
            harmless: fields of this family that change nothing.
        """
        self.finish(harmless)
        try:
            return TransformerConfig(**choices)
        except InputError as error:
            raise CheckpointError(f"{self.file} cannot be loaded: {error}") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind_name(kind: type | tuple[type, ...]) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return " or ".join(names.get(one, one.__name__) for one in (kind if isinstance(kind, tuple) else (kind,)))
