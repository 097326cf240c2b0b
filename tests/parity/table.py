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


def heads_between(first: int | None, stop: int | None) -> Layout:
    """[B P N*E], the heads of queries, keys and values one after another -> those from `first` to `stop`."""
    return lambda value, d_head: heads(value, d_head)[:, :, first:stop]


def part_of_group(index: int, queries: int) -> Layout:
    """[B P G*(R+2)*E], each group's queries, key and value -> [B P H E], [B P G E] or [B P G E]."""
    chosen = (slice(0, queries), slice(queries, queries + 1), slice(queries + 1, None))[index]
    return lambda value, d_head: value.reshape(*value.shape[:2], -1, queries + 2, d_head)[..., chosen, :].flatten(2, 3)


def part_of_quarter(index: int) -> Layout:
    """[B P 4*3*H/4*E], the three together in each quarter of the heads -> [B P H E]."""
    return lambda value, d_head: value.reshape(*value.shape[:2], 4, 3, -1, d_head)[:, :, :, index].flatten(2, 3)


def half(index: int) -> Layout:
    """[B P 2*M] -> [B P M]."""
    return lambda value, d_head: value.chunk(2, -1)[index]


def every_other(index: int) -> Layout:
    """[B P M*2] -> [B P M]."""
    return lambda value, d_head: value[..., index::2]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a site's value is found in the reference.

    Attributes:
        path: name of a module; `*` is the layer.
        side: "in" its first argument; "tap" the same, but its gradient counts only what this module does with it (for
            values that several modules read and that are two sites here); "out" its result; "scale" the denominator of
            a norm, recomputed from its input; "heads" an output projection applied to `z` a head at a time; "changed" its
            result after what is later done to it in place; "residual" its result times the config's residual multiplier;
            "router" and "experts" what those modules of a mixture of experts have for the site; "gated" its result times the
            sigmoid of the module beside it named `_gate`.
        layout: from the tensor to the site's axes.
    """

    path: str
    side: Literal["in", "tap", "out", "scale", "heads", "changed", "residual", "router", "experts", "gated"] = "out"
    layout: Layout = as_is


@dataclasses.dataclass(frozen=True)
class Family:
    """One modelling file of transformers.

    Attributes:
        module: its name below transformers.models.
        places: where each site is; q_rot, k_rot, scores, pattern and z come from its attention function, logits from
            the model's result; so do logits_raw where no place is given (logits that are scaled, but not capped).
        gain_center: what random norm gains vary around (0 where the norm multiplies by 1 + w).
        auto: the class of transformers that makes and loads the model.
        first_position: the position id of a prompt's first token.
        attention: the module in whose forward attention is written, where it is not a function of its own; q, k and v that
            have no place are then what enters the products.
        scaled: what is multiplied by 1/sqrt(d_head): the scores, the queries (before), or the scores with the mask (after).
        adjust: rids the model, before it runs, of what it computes otherwise than it means to.
    """

    module: str
    places: dict[str, Place]
    gain_center: float = 1.0
    auto: str = "AutoModelForCausalLM"
    first_position: int = 0
    attention: str = ""
    scaled: Literal["scores", "queries", "masked"] = "scores"
    adjust: Callable[[Any], None] = lambda model: None


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

FUSED_MLP = _places("model.layers", "self_attn", "mlp", {
    "mlp_pre": Place("@m.gate_up_proj", layout=half(0)),
    "mlp_up": Place("@m.gate_up_proj", layout=half(1)),
})  # fmt: skip

# of a model with two key/value heads
PHI3 = LLAMA | FUSED_MLP | _places("model.layers", "self_attn", "mlp", {
    "q": Place("@a.qkv_proj", layout=heads_between(None, -4)),
    "k": Place("@a.qkv_proj", layout=heads_between(-4, -2)),
    "v": Place("@a.qkv_proj", layout=heads_between(-2, None)),
})  # fmt: skip

# queries, keys and values are clipped in place
OLMO = LLAMA | _places("model.layers", "self_attn", "mlp", {
    "q": Place("@a.q_proj", "changed", heads),
    "k": Place("@a.k_proj", "changed", heads),
    "v": Place("@a.v_proj", "changed", heads),
})  # fmt: skip

# resid_mid first: behind the tap of mlp_in, its gradient would leave out what passes the MLP by
OLMO2 = _places("model.layers", "self_attn", "mlp", {"resid_mid": ("@m", "in")})
OLMO2 = {"resid_mid": OLMO2["resid_mid"]} | LLAMA | _places("model.layers", "self_attn", "mlp", {
    "resid_mid": ("@m", "in"),
    "attn_proj": ("@a.o_proj",),
    "ln1_post_scale": ("@.post_attention_layernorm", "scale"),
    "attn_out": ("@.post_attention_layernorm",),
    "mlp_proj": ("@m",),
    "ln2_post_scale": ("@.post_feedforward_layernorm", "scale"),
    "mlp_out": ("@.post_feedforward_layernorm",),
})  # fmt: skip
OLMO2 = {site: place for site, place in OLMO2.items() if site not in ("ln1_scale", "ln2_scale")}

# the embedding's multiplier acts outside of its module
GRANITE = LLAMA | _places("model.layers", "self_attn", "mlp", {
    "embed": ("model.layers.0", "in"),
    "attn_proj": ("@a.o_proj",),
    "attn_out": ("@a.o_proj", "residual"),
    "mlp_proj": ("@m",),
    "mlp_out": ("@m", "residual"),
})  # fmt: skip
GRANITE = {site: place for site, place in GRANITE.items() if site != "logits_raw"}

COHERE = {site: place for site, place in LLAMA.items() if site not in ("resid_mid", "ln2_scale", "logits_raw")}

GLM4 = SANDWICH | FUSED_MLP | _places("model.layers", "self_attn", "mlp", {
    "ln1_post_scale": ("@.post_self_attn_layernorm", "scale"),
    "attn_out": ("@.post_self_attn_layernorm",),
    "resid_mid": ("@.post_attention_layernorm", "in"),
    "ln2_scale": ("@.post_attention_layernorm", "scale"),
    "ln2_post_scale": ("@.post_mlp_layernorm", "scale"),
    "mlp_out": ("@.post_mlp_layernorm",),
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

ENCODER = {
    "embed": ("^embeddings.word_embeddings",),
    "pos_embed": ("^embeddings.position_embeddings",),
    "q": Place("@a.query", layout=heads),
    "k": Place("@a.key", layout=heads),
    "v": Place("@a.value", layout=heads),
    "head_out": ("@.attention.output.dense", "heads"),
    "attn_out": ("@.attention.output.dense",),
    "ln1_scale": ("@.attention.output.LayerNorm", "scale"),
    "resid_mid": ("@.attention.output.LayerNorm",),
    "mlp_pre": ("@m.dense",),
    "mlp_post": ("@.output.dense", "in"),
    "mlp_out": ("@.output.dense",),
    "ln2_scale": ("@.output.LayerNorm", "scale"),
}
BERT_TYPES = {"type_embed": ("^embeddings.token_type_embeddings",)}


def _masked_head(norm: str, unembedding: str) -> dict[str, tuple[str, ...]]:
    return {"ln_final_scale": (norm, "scale"), "ln_final": (norm,), "logits_raw": (unembedding,)}


def _encoder(prefix: str, *places: dict[str, Any]) -> dict[str, Place]:
    """BERT and RoBERTa, bare or below a prefix, which "^" stands for."""
    merged = {site: place for part in (ENCODER, BERT_TYPES, *places) for site, place in part.items()}
    merged = {site: (place[0].replace("^", prefix), *place[1:]) if isinstance(place, tuple) else place for site, place in merged.items()}
    return _places(f"{prefix}encoder.layer", "attention.self", "intermediate", merged)


DISTILBERT = _places("distilbert.transformer.layer", "attention", "ffn", {
    "embed": ("distilbert.embeddings.word_embeddings",),
    "pos_embed": ("distilbert.embeddings.position_embeddings",),
    "q": Place("@a.q_lin", layout=heads),
    "k": Place("@a.k_lin", layout=heads),
    "v": Place("@a.v_lin", layout=heads),
    "head_out": ("@a.out_lin", "heads"),
    "attn_out": ("@a.out_lin",),
    "ln1_scale": ("@.sa_layer_norm", "scale"),
    "resid_mid": ("@.sa_layer_norm",),
    "mlp_pre": ("@m.lin1",),
    "mlp_post": ("@m.lin2", "in"),
    "mlp_out": ("@m",),
    "ln2_scale": ("@.output_layer_norm", "scale"),
    **_masked_head("vocab_layer_norm", "vocab_projector"),
})  # fmt: skip

ROUTED = ("router_logits", "expert_weights", "expert_index")
NEURONS = ("mlp_pre", "mlp_up", "mlp_post")


def _experts(router: str, *, interleaved: bool = False) -> dict[str, Place]:
    """Llama's places with experts for the MLP; gate and linear factor stand one after the other, or turn by turn."""
    part = every_other if interleaved else half
    layouts = {"mlp_pre": part(0), "mlp_up": part(1), "mlp_post": as_is}
    places: dict[str, tuple[str, ...] | Place] = dict.fromkeys(ROUTED, (f"@m.{router}", "router"))
    neurons = {site: Place("@m.experts", "experts", layout) for site, layout in layouts.items()}
    return LLAMA | _places("model.layers", "self_attn", "mlp", places | neurons)


MIXED = _places("model.layers", "self_attn", "mlp", {
    "dense_pre": ("@m.gate_proj",),
    "dense_up": ("@m.up_proj",),
    "dense_post": ("@m.down_proj", "in"),
})  # fmt: skip
SHARED = _places("model.layers", "self_attn", "mlp", {"shared_out": ("@m.shared_expert", "gated")})

GPT_NEO = GPT2 | _places("transformer.h", "attn.attention", "mlp", {
    "q": Place("@a.q_proj", layout=heads),
    "k": Place("@a.k_proj", layout=heads),
    "v": Place("@a.v_proj", layout=heads),
    "head_out": ("@a.out_proj", "heads"),
    "attn_out": ("@a.out_proj",),
})  # fmt: skip

GPTJ = GPT2 | _places("transformer.h", "attn", "mlp", {
    "q": Place("@a.q_proj", layout=heads),
    "k": Place("@a.k_proj", layout=heads),
    "v": Place("@a.v_proj", layout=heads),
    "head_out": ("@a.out_proj", "heads"),
    "attn_out": ("@a.out_proj",),
    "mlp_pre": ("@m.fc_in",),
    "mlp_post": ("@m.fc_out", "in"),
})  # fmt: skip
GPTJ = {site: place for site, place in GPTJ.items() if site not in ("pos_embed", "resid_mid", "ln2_scale")}

CODEGEN = GPTJ | _places("transformer.h", "attn", "mlp", {
    "q": Place("@a.qkv_proj", layout=part_of_quarter(0)),
    "v": Place("@a.qkv_proj", layout=part_of_quarter(1)),
    "k": Place("@a.qkv_proj", layout=part_of_quarter(2)),
})  # fmt: skip

# of a model with four heads
BIGCODE = GPT2 | _places("transformer.h", "attn", "mlp", {
    "q": Place("@a.c_attn", layout=part_of_group(0, 4)),
    "k": Place("@a.c_attn", layout=part_of_group(1, 4)),
    "v": Place("@a.c_attn", layout=part_of_group(2, 4)),
})  # fmt: skip

OPT = _places("model.decoder.layers", "self_attn", "fc1", {
    "embed": ("model.decoder.embed_tokens",),
    "pos_embed": ("model.decoder.embed_positions",),
    "ln1_scale": ("@.self_attn_layer_norm", "scale"),
    "q": Place("@a.q_proj", layout=heads),
    "k": Place("@a.k_proj", layout=heads),
    "v": Place("@a.v_proj", layout=heads),
    "head_out": ("@a.out_proj", "heads"),
    "attn_out": ("@a.out_proj",),
    "resid_mid": ("@.final_layer_norm", "in"),
    "ln2_scale": ("@.final_layer_norm", "scale"),
    "mlp_pre": ("@m",),
    "mlp_post": ("@.fc2", "in"),
    "mlp_out": ("@.fc2",),
    "ln_final_scale": ("model.decoder.final_layer_norm", "scale"),
    "ln_final": ("model.decoder.final_layer_norm",),
    "logits_raw": ("lm_head",),
})  # fmt: skip
OPT_POST = OPT | {"embed": Place("model.decoder.project_in")}
OPT_POST |= _places("model.decoder.layers", "self_attn", "fc1", {"resid_mid": ("@.self_attn_layer_norm",)})
OPT_POST = {site: place for site, place in OPT_POST.items() if not site.startswith("ln_final")}

BLOOM = _places("transformer.h", "self_attention", "mlp", {
    "embed": ("transformer.word_embeddings_layernorm",),
    "ln1_scale": ("@.input_layernorm", "scale"),
    "q": Place("@a.query_key_value", layout=part_of_head(0)),
    "k": Place("@a.query_key_value", layout=part_of_head(1)),
    "v": Place("@a.query_key_value", layout=part_of_head(2)),
    "head_out": ("@a.dense", "heads"),
    "attn_out": ("@a.dense",),
    "resid_mid": ("@.post_attention_layernorm", "in"),
    "ln2_scale": ("@.post_attention_layernorm", "scale"),
    "mlp_pre": ("@m.dense_h_to_4h",),
    "mlp_post": ("@m.dense_4h_to_h", "in"),
    "mlp_out": ("@m.dense_4h_to_h",),
    "ln_final_scale": ("transformer.ln_f", "scale"),
    "ln_final": ("transformer.ln_f",),
    "logits_raw": ("lm_head",),
})  # fmt: skip


def _exact_gelu_constants(model: Any) -> None:
    """BLOOM writes sqrt(2 / pi) with eight digits."""
    from torch.nn import GELU

    for block in model.transformer.h:
        block.mlp.gelu_impl = GELU("tanh")


def _falcon(queries: int, **changes: tuple[str, ...]) -> dict[str, Place]:
    """Of a model with so many queries in a group; one norm feeds both in parallel."""
    places: dict[str, tuple[str, ...] | Place] = {
        site: Place("@a.query_key_value", layout=part_of_group(index, queries)) for index, site in enumerate("qkv")
    }
    serial = BLOOM | {"embed": Place("transformer.word_embeddings")} | _places("transformer.h", "self_attention", "mlp", places | changes)
    return {site: place for site, place in serial.items() if site not in ("resid_mid", "ln2_scale") or site in changes}


def _alibi_once(model: Any) -> None:
    """Falcon's eager attention adds ALiBi, and so does the mask that its model makes: of the mask only what is hidden stays."""

    def without(_: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"]
        return args, kwargs | {"attention_mask": mask.masked_fill(mask > mask.min() / 2, 0.0)}

    for block in model.transformer.h:
        block.self_attention.register_forward_pre_hook(without, with_kwargs=True)


def _largest_slope(model: Any) -> None:
    """MPT's model leaves out `alibi_bias_max` where it makes ALiBi, so that it is always 8."""
    import functools

    inner = model.transformer
    inner.build_mpt_alibi_tensor = functools.partial(inner.build_mpt_alibi_tensor, alibi_bias_max=model.config.attn_config.alibi_bias_max)


# queries, keys and values, clipped, are what enters the products
MPT = _places("transformer.blocks", "attn", "ffn", {
    "embed": ("transformer.wte",),
    "ln1_scale": ("@.norm_1", "scale"),
    "head_out": ("@a.out_proj", "heads"),
    "attn_out": ("@a.out_proj",),
    "resid_mid": ("@.norm_2", "in"),
    "ln2_scale": ("@.norm_2", "scale"),
    "mlp_pre": ("@m.up_proj",),
    "mlp_post": ("@m.down_proj", "in"),
    "mlp_out": ("@m.down_proj",),
    "ln_final_scale": ("transformer.norm_f", "scale"),
    "ln_final": ("transformer.norm_f",),
    "logits_raw": ("lm_head",),
})  # fmt: skip

UNGATED = _places("model.layers", "self_attn", "mlp", {"mlp_pre": ("@m.c_fc",), "mlp_post": ("@m.c_proj", "in")})
STARCODER2 = {site: place for site, place in (LLAMA | UNGATED).items() if site != "mlp_up"}

PHI = LLAMA | _places("model.layers", "self_attn", "mlp", {
    "head_out": ("@a.dense", "heads"),
    "attn_out": ("@a.dense",),
    "mlp_pre": ("@m.fc1",),
    "mlp_post": ("@m.fc2", "in"),
    "ln_final_scale": ("model.final_layernorm", "scale"),
    "ln_final": ("model.final_layernorm",),
})  # fmt: skip
PHI = {site: place for site, place in PHI.items() if site not in ("mlp_up", "resid_mid", "ln2_scale")}

FAMILIES: dict[str, Family] = {
    "bert": Family(
        "bert.modeling_bert",
        _encoder("bert.", _masked_head("cls.predictions.transform.LayerNorm", "cls.predictions.decoder")),
        auto="AutoModelForMaskedLM",
    ),
    "bert_model": Family("bert.modeling_bert", _encoder("", {"pooled": ("pooler.activation",)}), auto="AutoModel"),
    "roberta": Family(
        "roberta.modeling_roberta",
        _encoder("roberta.", _masked_head("lm_head.layer_norm", "lm_head.decoder")),
        auto="AutoModelForMaskedLM",
        first_position=2,
    ),
    "distilbert": Family("distilbert.modeling_distilbert", DISTILBERT, auto="AutoModelForMaskedLM"),
    "mixtral": Family("mixtral.modeling_mixtral", _experts("gate")),
    "olmoe": Family("olmoe.modeling_olmoe", _experts("gate") | {"v": OLMO["v"]}),
    "qwen2_moe": Family("qwen2_moe.modeling_qwen2_moe", _experts("gate") | SHARED | MIXED),
    "qwen3_moe": Family("qwen3_moe.modeling_qwen3_moe", _experts("gate") | MIXED),
    "gpt_oss": Family("gpt_oss.modeling_gpt_oss", _experts("router", interleaved=True)),
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
    "gpt_neo": Family("gpt_neo.modeling_gpt_neo", GPT_NEO, attention="transformer.h.*.attn.attention"),
    "gptj": Family("gptj.modeling_gptj", GPTJ, attention="transformer.h.*.attn"),
    "codegen": Family("codegen.modeling_codegen", CODEGEN, attention="transformer.h.*.attn", scaled="masked"),
    "gpt_bigcode": Family("gpt_bigcode.modeling_gpt_bigcode", BIGCODE),
    "opt": Family("opt.modeling_opt", OPT, scaled="queries"),
    "opt_post": Family("opt.modeling_opt", OPT_POST, scaled="queries"),
    "bloom": Family("bloom.modeling_bloom", BLOOM, attention="transformer.h.*.self_attention", adjust=_exact_gelu_constants),
    "falcon": Family("falcon.modeling_falcon", _falcon(4), attention="transformer.h.*.self_attention"),
    "falcon_new": Family(
        "falcon.modeling_falcon",
        _falcon(2, ln1_scale=("@.ln_attn", "scale"), ln2_scale=("@.ln_mlp", "scale")),
        attention="transformer.h.*.self_attention",
    ),
    "falcon_serial": Family(
        "falcon.modeling_falcon",
        _falcon(1, resid_mid=("@.post_attention_layernorm", "in"), ln2_scale=("@.post_attention_layernorm", "scale")),
        attention="transformer.h.*.self_attention",
        adjust=_alibi_once,
    ),
    "mpt": Family("mpt.modeling_mpt", MPT, attention="transformer.blocks.*.attn", adjust=_largest_slope),
    "starcoder2": Family("starcoder2.modeling_starcoder2", STARCODER2),
    "phi": Family("phi.modeling_phi", PHI),
    "stablelm": Family("stablelm.modeling_stablelm", LLAMA),
    "stablelm_parallel": Family(
        "stablelm.modeling_stablelm", {site: place for site, place in LLAMA.items() if site not in ("resid_mid", "ln2_scale")}
    ),
    "phi3": Family("phi3.modeling_phi3", PHI3),
    "gemma": Family("gemma.modeling_gemma", LLAMA, gain_center=0.0),
    "gemma2": Family("gemma2.modeling_gemma2", SANDWICH, gain_center=0.0),
    "olmo": Family("olmo.modeling_olmo", OLMO),
    "olmo2": Family("olmo2.modeling_olmo2", OLMO2),
    "olmo3": Family("olmo3.modeling_olmo3", OLMO2),
    "granite": Family("granite.modeling_granite", GRANITE),
    "smollm3": Family("smollm3.modeling_smollm3", LLAMA),
    "cohere": Family("cohere.modeling_cohere", COHERE),
    "cohere2": Family("cohere2.modeling_cohere2", COHERE),
    "glm": Family("glm.modeling_glm", LLAMA | FUSED_MLP),
    "glm4": Family("glm4.modeling_glm4", GLM4),
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

_LLAMA_SHORT = {name: value for name, value in _LLAMA.items() if name not in ("head_dim", "rms_norm_eps")}

_BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 31,
    "hidden_size": 20,
    "intermediate_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
}

_MOE: dict[str, Any] = {
    "vocab_size": 29, "hidden_size": 16, "intermediate_size": 14, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts_per_tok": 2,
}  # fmt: skip

_GPTJ: dict[str, Any] = {
    "vocab_size": 29, "n_embd": 20, "n_head": 2, "n_layer": 2, "n_positions": 32, "n_inner": 26, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_OPT: dict[str, Any] = {
    "model_type": "opt", "vocab_size": 29, "hidden_size": 20, "ffn_dim": 26, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32, "pad_token_id": 1,
}  # fmt: skip
_FALCON: dict[str, Any] = {
    "model_type": "falcon", "vocab_size": 29, "hidden_size": 24, "ffn_hidden_size": 22, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 64,
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
        Row(
            "gpt_neo",
            "gpt_neo",
            {"model_type": "gpt_neo", "vocab_size": 29, "hidden_size": 16, "intermediate_size": 18, "num_layers": 3, "num_heads": 4}
            | {"max_position_embeddings": 32, "attention_types": [[["local", "global"], 1], [["local"], 1]], "window_size": 4}
            | {"bos_token_id": 0, "eos_token_id": 0},
            "scores not scaled, windows on two layers of three, a bias on the output of attention only",
        ),
        Row(
            "gptj",
            "gptj",
            _GPTJ | {"model_type": "gptj", "rotary_dim": 6},
            "parallel attention and MLP with one norm, neighbours rotated in 6 of 10 features, bias on the logits",
        ),
        Row(
            "codegen",
            "codegen",
            _GPTJ | {"model_type": "codegen", "n_embd": 16, "n_head": 8, "n_inner": 18, "rotary_dim": 2},
            "as gptj, with queries, values and keys fused a quarter of the heads at a time",
        ),
        Row(
            "gpt_bigcode",
            "gpt_bigcode",
            _GPTJ | {"model_type": "gpt_bigcode", "n_head": 4, "n_embd": 24},
            "learned positions with one key/value head",
        ),
        Row("opt", "opt", _OPT, "learned positions from row 2, ReLU"),
        Row(
            "opt_post",
            "opt_post",
            _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 14, "num_attention_heads": 4},
            "norms after adding, no final norm, a narrower token embedding projected in and out (350M)",
        ),
        Row(
            "bloom",
            "bloom",
            {"model_type": "bloom", "vocab_size": 29, "hidden_size": 18, "n_layer": 2, "n_head": 3},
            "ALiBi with heads that are no power of two, norm of the token embedding",
        ),
        Row("falcon", "falcon", _FALCON, "one key/value head, parallel attention and MLP with one norm, no biases (7B)"),
        Row(
            "falcon_new",
            "falcon_new",
            _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "tie_word_embeddings": False},
            "grouped keys and values, a norm each for attention and MLP (40B); biases, untied",
        ),
        Row(
            "falcon_alibi",
            "falcon_serial",
            _FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
            "ALiBi added before scaling, attention, then MLP, a key/value head each (RW); transformers' eager attention adds ALiBi twice",
        ),
        Row(
            "mpt",
            "mpt",
            {"model_type": "mpt", "vocab_size": 29, "d_model": 18, "n_heads": 3, "n_layers": 2, "max_seq_len": 32}
            | {"attn_config": {"alibi_bias_max": 6, "clip_qkv": 1.5, "softmax_scale": 0.3}},
            "ALiBi with a largest slope of its own (transformers' model forgets it), clipped q, k and v, own score scale, no biases at all",
        ),
        Row(
            "starcoder2",
            "starcoder2",
            _LLAMA_SHORT | {"model_type": "starcoder2", "sliding_window": 5, "norm_epsilon": 1e-5},
            "LayerNorm and every bias, plain MLP, grouped keys and values, window on every layer",
        ),
        Row(
            "phi",
            "phi",
            _LLAMA_SHORT
            | {"model_type": "phi", "hidden_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1, "partial_rotary_factor": 0.4},
            "parallel with one norm, 4 of 10 features rotated, every bias, also of the logits",
        ),
        Row(
            "stablelm",
            "stablelm",
            _LLAMA_SHORT
            | {"model_type": "stablelm", "hidden_size": 20, "num_attention_heads": 2, "num_key_value_heads": 1}
            | {"partial_rotary_factor": 0.6, "use_qkv_bias": True},
            "LayerNorm with a gated MLP, 6 of 10 features rotated, biases of q, k and v only",
        ),
        Row(
            "stablelm_parallel",
            "stablelm_parallel",
            _LLAMA_SHORT | {"model_type": "stablelm", "hidden_size": 32, "qk_layernorm": True, "use_parallel_residual": True},
            "parallel with one norm, queries and keys normed a head at a time, 2 of 8 features rotated",
        ),
        Row(
            "phi3",
            "phi3",
            _LLAMA | {"model_type": "phi3", "pad_token_id": 0, "sliding_window": 5, "partial_rotary_factor": 0.6},
            "projections fused in unequal parts, 6 of 10 features rotated, window on every layer",
        ),
        Row(
            "phi3_longrope",
            "phi3",
            {name: value for name, value in _LLAMA.items() if name != "head_dim"}
            | {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 32, "pad_token_id": 0, "rope_theta": 1000.0}
            | {"original_max_position_embeddings": 7, "partial_rotary_factor": 0.75, "tie_word_embeddings": True}
            | {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 3.0, 6.0]}},
            "longrope of a part of the features, attention factor from the contexts' ratio; old spelling",
            raw=True,
            alone=True,
        ),
        Row(
            "gemma",
            "gemma",
            _LLAMA | {"model_type": "gemma", "num_key_value_heads": 1, "rms_norm_eps": 1e-6},
            "scaled embedding, 1 + w, one key/value head, tied",
        ),
        Row(
            "gemma2",
            "gemma2",
            {name: value for name, value in _GEMMA3.items() if name != "model_type"}
            | {"model_type": "gemma2", "num_hidden_layers": 2, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
            "sandwich norms, soft caps of scores and logits, windows on every second layer, own score scale",
        ),
        Row(
            "olmo",
            "olmo",
            {name: value for name, value in _LLAMA.items() if name != "rms_norm_eps"} | {"model_type": "olmo", "clip_qkv": 1.2},
            "LayerNorm without parameters, q, k and v clipped",
        ),
        Row(
            "olmo2",
            "olmo2",
            _LLAMA | {"model_type": "olmo2", "attention_bias": True},
            "norms after attention and MLP only, queries and keys normed over all heads",
        ),
        Row(
            "olmo3",
            "olmo3",
            _LLAMA
            | {"model_type": "olmo3", "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
            | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.2}},
            "as olmo2, a window on one layer, yarn on the other",
        ),
        Row(
            "granite",
            "granite",
            _LLAMA
            | {"model_type": "granite", "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7}
            | {"logits_scaling": 1.6, "attention_bias": True, "mlp_bias": True},
            "multipliers of embedding, scores, residual and logits; every bias",
        ),
        Row(
            "smollm3",
            "smollm3",
            _LLAMA
            | {"model_type": "smollm3", "no_rope_layers": [1, 0], "pad_token_id": 0}
            | {"use_sliding_window": True, "sliding_window": 4},
            "one of two layers does not rotate, and slides",
        ),
        Row(
            "cohere",
            "cohere",
            _LLAMA_SHORT | {"model_type": "cohere", "layer_norm_eps": 1e-5, "logit_scale": 0.4, "attention_bias": True},
            "attention and MLP in parallel with one norm, LayerNorm without bias, neighbours rotated, scaled logits",
        ),
        Row(
            "cohere_qk_norm",
            "cohere",
            _LLAMA_SHORT | {"model_type": "cohere", "layer_norm_eps": 1e-5, "use_qk_norm": True, "tie_word_embeddings": False},
            "queries and keys normed a head at a time with gains of their own, untied",
        ),
        Row(
            "cohere2",
            "cohere2",
            _LLAMA_SHORT | {"model_type": "cohere2", "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
            "the layer with a window rotates, the other one does not",
        ),
        Row(
            "glm",
            "glm",
            _LLAMA | {"model_type": "glm", "partial_rotary_factor": 0.6, "pad_token_id": 0},
            "neighbours rotated in 6 of 10 features, biases of q, k and v only, fused gate and up",
        ),
        Row(
            "glm4",
            "glm4",
            _LLAMA | {"model_type": "glm4", "partial_rotary_factor": 0.4, "attention_bias": False, "pad_token_id": 0},
            "sandwich norms, 4 of 10 features rotated, no biases",
        ),
        Row("bert", "bert", _BERT, "bidirectional, norms after each sum, token types, head of a masked language model"),
        Row(
            "bert_model",
            "bert_model",
            _BERT | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
            "the bare model with its pooler, no unembedding (MiniLM); tanh GELU",
            alone=True,
        ),
        Row(
            "bert_untied",
            "bert",
            _BERT | {"tie_word_embeddings": False, "hidden_act": "relu", "type_vocab_size": 3},
            "an unembedding of its own, three token types, ReLU",
        ),
        Row(
            "roberta",
            "roberta",
            _BERT | {"model_type": "roberta", "type_vocab_size": 1, "hidden_act": "gelu_new"},
            "positions from 2, one token type, exact GELU in the head whatever the blocks have",
        ),
        Row(
            "distilbert",
            "distilbert",
            {"model_type": "distilbert", "vocab_size": 31, "dim": 20, "hidden_dim": 18, "n_layers": 2, "n_heads": 4}
            | {"max_position_embeddings": 24, "sinusoidal_pos_embds": True},
            "no token types, its own names",
        ),
        Row(
            "mixtral",
            "mixtral",
            _MOE | {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": 6, "head_dim": 6},
            "two of four experts, weights that sum to 1; window on every layer",
        ),
        Row(
            "olmoe",
            "olmoe",
            _MOE | {"model_type": "olmoe", "num_experts": 5, "clip_qkv": 1.0, "norm_topk_prob": True, "eos_token_id": 0},
            "queries and keys normed whole, then clipped, as are values",
        ),
        Row(
            "qwen2_moe",
            "qwen2_moe",
            _MOE
            | {"model_type": "qwen2_moe", "num_experts": 5, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 10}
            | {"num_hidden_layers": 3, "mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
            "a dense layer before two with experts, a gated shared expert, weights left as they are",
        ),
        Row(
            "qwen3_moe",
            "qwen3_moe",
            _MOE
            | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2}
            | {"moe_intermediate_size": 6, "num_hidden_layers": 3, "decoder_sparse_step": 2, "head_dim": 6, "norm_topk_prob": True}
            | {"rope_theta": 1000.0, "tie_word_embeddings": True, "attention_bias": True},
            "experts on every second layer, normed queries and keys; old spelling",
            raw=True,
        ),
        Row(
            "gpt_oss",
            "gpt_oss",
            _MOE
            | {"model_type": "gpt_oss", "num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 4, "head_dim": 6}
            | {"swiglu_limit": 0.8}
            | {
                "rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "truncate": False}
                | {"beta_fast": 6.0, "beta_slow": 0.5, "original_max_position_embeddings": 16}
            },
            "sinks, windows on alternate layers, biases on everything, clamped gated units, yarn",
        ),
    )
}
