"""BERT, RoBERTa and DistilBERT: encoders with norms after each sum, and the head of masked language models or none (MiniLM)."""

import functools
import re
from typing import Any

import numpy as np

from jaxinterp.checkpoints.families.family import Family
from jaxinterp.checkpoints.fields import ACTIVATION_NAMES, Fields
from jaxinterp.checkpoints.mapping import Table, Weight
from jaxinterp.model.config import TransformerConfig

BIASES = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias", "mlp_in_bias", "mlp_out_bias"), True)
BUFFERS = (r"(^|\.)embeddings\.(position_ids|token_type_ids)$",)


def _norm(path: str, name: str) -> Table:
    """A LayerNorm; the oldest files call its gain and bias gamma and beta."""
    return {
        f"{path}.w": Weight((f"{name}.weight", f"{name}.gamma"), "D"),
        f"{path}.b": Weight((f"{name}.bias", f"{name}.beta"), "D"),
    }


def _dense(weight: str, bias: str, name: str, layout: str, out: str) -> Table:
    return {weight: Weight(f"{name}.weight", layout), bias: Weight(f"{name}.bias", out)}


def _body(prefix: str, layer: str, query: str, output: str, norms: tuple[str, str], mlp: tuple[str, str]) -> Table:
    """Embeddings and blocks; `query` holds a {} for the letter or name of query, key and value."""
    embeddings, layer = f"{prefix}embeddings.", f"{prefix}{layer}.{{l}}."
    table: dict[str, Weight] = {
        "embed.W_E": Weight(embeddings + "word_embeddings.weight", "V D"),
        "embed.W_pos": Weight(embeddings + "position_embeddings.weight", "P D"),
        "embed.W_type": Weight(embeddings + "token_type_embeddings.weight", "T D"),
        **_norm("embed.ln", embeddings + "LayerNorm"),
        **_norm("blocks.ln1", layer + norms[0]),
        **_norm("blocks.ln2", layer + norms[1]),
        **_dense("blocks.attn.W_O", "blocks.attn.b_O", layer + output, "D (H E) -> H E D", "D"),
        **_dense("blocks.mlp.W_in", "blocks.mlp.b_in", layer + mlp[0], "M D -> D M", "M"),
        **_dense("blocks.mlp.W_out", "blocks.mlp.b_out", layer + mlp[1], "D M -> M D", "D"),
        **_dense("pooler.W", "pooler.b", f"{prefix}pooler.dense", "O D -> D O", "D"),
    }
    for letter, word in zip("QKV", ("query", "key", "value"), strict=True):
        name = layer + query.replace("{letter}", letter.lower()).replace("{word}", word)
        table |= _dense(f"blocks.attn.W_{letter}", f"blocks.attn.b_{letter}", name, "(H E) D -> D H E", "(H E) -> H E")
    return table


def _bert(prefix: str, head: Table) -> Table:
    norms, mlp = ("attention.output.LayerNorm", "output.LayerNorm"), ("intermediate.dense", "output.dense")
    body = _body(prefix, "encoder.layer", "attention.self.{word}", "attention.output.dense", norms, mlp)
    return {**body, **head}


def _head(dense: str, norm: str, weight: str, bias: tuple[str, ...]) -> Table:
    """The head of masked language models: dense layer, norm, unembedding with a bias."""
    return {
        **_dense("unembed.W_dense", "unembed.b_dense", dense, "O D -> D O", "D"),
        **_norm("ln_final", norm),
        "unembed.W_U": Weight(weight, "V D -> D V"),
        "unembed.b_U": Weight(bias, "V"),
    }


# the bias stands in most files twice, once under each name; where the unembedding is not tied, the decoder's own counts
BERT_BIAS = ("cls.predictions.decoder.bias", "cls.predictions.bias")
ROBERTA_BIAS = ("lm_head.decoder.bias", "lm_head.bias")
TRANSFORM = "cls.predictions.transform."
BERT = _bert("bert.", _head(TRANSFORM + "dense", TRANSFORM + "LayerNorm", "cls.predictions.decoder.weight", BERT_BIAS))
ROBERTA = _bert("roberta.", _head("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", ROBERTA_BIAS))
DISTILBERT: Table = {**_body(
    "distilbert.", "transformer.layer", "attention.{letter}_lin", "attention.out_lin", ("sa_layer_norm", "output_layer_norm"),
    ("ffn.lin1", "ffn.lin2"),
), **_head("vocab_transform", "vocab_layer_norm", "vocab_projector.weight", ("vocab_projector.bias",))}  # fmt: skip


def _choices(fields: Fields, default: str, names: tuple[str, str, str, str, str], activation: str) -> dict[str, Any]:
    """What all three share: the names are those of layers, width, heads, neurons and the activation.

    Which head there is follows from the class: config.json says nothing else about it.
    """
    layers, width_name, heads_name, neurons, hidden_act = names
    width, heads = fields.take(width_name, kind=int), fields.take(heads_name, kind=int)
    if width % max(heads, 1):
        fields.problems.append(f"{width_name!r} ({width}) is not a multiple of {heads_name!r} ({heads})")
    named = fields.take("architectures", [default], kind=list) or [default]
    bare, tied = named[0].endswith("Model"), fields.take("tie_word_embeddings", True, kind=bool)
    chosen = fields.activation(hidden_act, "gelu")
    return BIASES | {
        "n_layers": fields.layers(layers),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": heads,
        "d_head": width // max(heads, 1),
        "d_vocab": fields.take("vocab_size", kind=int),
        "d_mlp": fields.take(neurons, kind=int),
        "norm": "layer",
        "norm_bias": True,
        "norm_position": "post",
        "embed_norm": "sum",
        "final_norm": not bare,
        "final_dense": None if bare else activation or chosen,
        "pooler": named[0] in ("BertModel", "RobertaModel", "BertForPreTraining"),
        "positions": "learned",
        "causal": False,
        "activation": chosen,
        "gated": False,
        "unembed": "none" if bare else "tied" if tied else "own",
        "unembed_bias": not bare,
    }


NAMES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act")
DISTILBERT_NAMES = ("n_layers", "dim", "n_heads", "hidden_dim", "activation")
DISTILBERT_EPS = 1e-12


def read(fields: Fields, dtype: np.dtype, *, roberta: bool) -> TransformerConfig:
    """BERT, or RoBERTa, whose positions begin after the row of the padding token and whose head always has an exact GELU."""
    choices = _choices(fields, "RobertaForMaskedLM" if roberta else "BertForMaskedLM", NAMES, "gelu" if roberta else "")
    offset = fields.take("pad_token_id", 1, kind=int) + 1 if roberta else 0
    types = fields.take("type_vocab_size", 2, kind=int)
    if types < 1:
        fields.problems.append(f"field 'type_vocab_size' is {types}, expected at least 1")
    fields.expect("position_embedding_type", "absolute")
    fields.expect("is_decoder", False)
    fields.expect("directionality", "bidi")
    choices |= {
        "n_ctx": fields.take("max_position_embeddings", 512, kind=int) - offset,
        "position_offset": offset,
        "n_token_types": types,
        "norm_eps": fields.take("layer_norm_eps", 1e-12, kind=float),
    }
    # what the first BERT files say about their pooler, which has one layer all the same
    pooler = ("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type")
    return fields.build(choices, harmless=(*pooler, "classifier_dropout"))


def read_distilbert(fields: Fields, dtype: np.dtype) -> TransformerConfig:
    """DistilBERT: no token types, no pooler."""
    choices = _choices(fields, "DistilBertForMaskedLM", DISTILBERT_NAMES, "")
    fields.expect("tie_weights_", True)
    choices |= {"n_ctx": fields.take("max_position_embeddings", 512, kind=int), "norm_eps": DISTILBERT_EPS}
    # positions stand in the file, whichever way they began
    return fields.build(choices, harmless=("sinusoidal_pos_embds",))


def _written(config: TransformerConfig, names: tuple[str, ...], head: str, bare: str) -> dict[str, Any] | None:
    """See `_choices`; the next-sentence head of BertForPreTraining is not kept, so a model with both heads is no such file."""
    if config.norm_position != "post" or config.embed_norm != "sum":
        return None
    sizes = (config.n_layers, config.d_model, config.n_heads, config.d_mlp, ACTIVATION_NAMES.get(config.activation))
    return dict(zip(names, sizes, strict=True)) | {
        "architectures": [bare if config.unembed == "none" else head],
        "vocab_size": config.d_vocab,
        "max_position_embeddings": config.n_ctx + config.position_offset,
        "tie_word_embeddings": config.unembed != "own",
    }


def write(config: TransformerConfig, *, roberta: bool) -> dict[str, Any] | None:
    """See `read`."""
    common = _written(config, NAMES, *(("RobertaForMaskedLM", "RobertaModel") if roberta else ("BertForMaskedLM", "BertModel")))
    if common is None or bool(config.position_offset) != roberta:
        return None
    own = {"type_vocab_size": config.n_token_types, "layer_norm_eps": config.norm_eps}
    return common | own | ({"pad_token_id": config.position_offset - 1} if roberta else {})


def write_distilbert(config: TransformerConfig) -> dict[str, Any] | None:
    """See `read_distilbert`."""
    return _written(config, DISTILBERT_NAMES, "DistilBertForMaskedLM", "DistilBertModel")


def _family(name: str, architectures: tuple[str, ...], table: Table, bias: tuple[str, str]) -> Family:
    roberta = name == "roberta"
    return Family(
        name,
        architectures,
        functools.partial(read, roberta=roberta),
        functools.partial(write, roberta=roberta),
        table,
        prefix=f"{name}.",
        # heads that the model's class leaves out though its file holds them
        ignorable=(*BUFFERS, rf"^({name}\.)?pooler\.dense\.", r"^cls\.seq_relationship\.", rf"^{re.escape(bias[1])}$"),
        tied_copies={bias[1]: bias[0]},
    )


FAMILIES = (
    _family("bert", ("BertForMaskedLM", "BertModel", "BertForPreTraining"), BERT, BERT_BIAS),
    _family("roberta", ("RobertaForMaskedLM", "RobertaModel"), ROBERTA, ROBERTA_BIAS),
    Family(
        "distilbert",
        ("DistilBertForMaskedLM", "DistilBertModel"),
        read_distilbert,
        write_distilbert,
        DISTILBERT,
        prefix="distilbert.",
        ignorable=BUFFERS,
    ),
)
