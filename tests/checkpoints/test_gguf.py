"""GGUF files: the weights of the model that was converted, whatever the quantisation; damage is refused in one sentence."""

from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from jaxinterp.checkpoints.families import read_config
from jaxinterp.checkpoints.gguf import GgufSource
from jaxinterp.checkpoints.load import load
from jaxinterp.checkpoints.save import save
from jaxinterp.errors import CheckpointError
from jaxinterp.model.config import Rotary, RotaryScaling
from jaxinterp.model.language_model import LanguageModel
from tests import tiny
from tests.checkpoints.gguf_files import F32, Q4_0, Q8_0, convert, metadata, write

COMMON: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": COMMON | {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "qwen2": COMMON | {"model_type": "qwen2"},
    "qwen3": COMMON | {"model_type": "qwen3", "head_dim": 32},
    "gemma3": COMMON | {"model_type": "gemma3_text", "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
    "gpt2": {"model_type": "gpt2", "vocab_size": 40, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 32, "n_inner": 96},
}
LLAMA = CONFIGS["llama"]


def original(values: dict[str, Any], folder: Path) -> LanguageModel:
    config, _ = read_config(values, np.dtype(np.float32), "config.json")
    lm = LanguageModel(params=tiny.params(config), config=config)
    save(lm, folder)
    return lm


@pytest.mark.parametrize("architecture", CONFIGS)
def test_unquantised_weights_come_back(architecture: str, tmp_path: Path):
    lm = original(CONFIGS[architecture], tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.gguf", architecture, CONFIGS[architecture])
    loaded = load(tmp_path / "m.gguf")
    assert loaded.config == lm.config
    # a gain of Gemma has had 1 added and taken off again
    tolerance = 2**-24 if architecture == "gemma3" else 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), loaded.params, lm.params)


@pytest.mark.parametrize("kind", [Q8_0, Q4_0, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_quantised_weights_are_those_of_the_package(architecture: str, kind: gguf.GGMLQuantizationType, tmp_path: Path):
    original(CONFIGS[architecture], tmp_path / "hf")
    kept = convert(tmp_path / "hf", tmp_path / "m.gguf", architecture, CONFIGS[architecture], kind)
    params = load(tmp_path / "m.gguf").params
    attn = params["blocks"][0]["attn"]
    if architecture == "llama":
        rows = kept["model.layers.1.self_attn.q_proj.weight"].reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(4, 16, 64)
        np.testing.assert_array_equal(attn["W_Q"][1], rows.transpose(2, 0, 1))
        np.testing.assert_array_equal(attn["W_V"][0], kept["model.layers.0.self_attn.v_proj.weight"].reshape(2, 16, 64).transpose(2, 0, 1))
    else:
        np.testing.assert_array_equal(
            attn["W_V"][1], kept["transformer.h.1.attn.c_attn.weight"][128:].reshape(4, 16, 64).transpose(2, 0, 1)
        )


SUPPORTED = []
for number in gguf.GGMLQuantizationType:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[number][1]), np.uint8), number)
        SUPPORTED.append(number)
    except NotImplementedError:
        pass


@pytest.mark.parametrize("kind", SUPPORTED, ids=lambda kind: kind.name)
def test_every_quantisation_reads_row_by_row_as_it_does_whole(kind: gguf.GGMLQuantizationType, tmp_path: Path):
    block, width = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, (6, 2 * width), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    dtype = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    writer.add_tensor("w", raw if dtype is None else raw.view(dtype), raw_dtype=None if dtype else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GgufSource(tmp_path / "m.gguf")
    assert source.tensors["w"].shape == (6, 2 * block)
    rows = np.concatenate([source.read("w", start, start + 2) for start in (0, 2, 4)])
    np.testing.assert_array_equal(rows, dequantize(raw, kind))


def test_a_tied_gpt2_may_hold_its_unembedding(tmp_path: Path):
    lm = original(CONFIGS["gpt2"], tmp_path / "hf")
    kept = convert(tmp_path / "hf", tmp_path / "m.gguf", "gpt2", CONFIGS["gpt2"])
    source = GgufSource(tmp_path / "m.gguf")
    tensors = {name: source.read(name, 0, entry.shape[0]) for name, entry in source.tensors.items()}
    embedding = kept["transformer.wte.weight"]
    for output, unembed in ((embedding, "tied"), (embedding + 1, "own")):
        write(tmp_path / "again.gguf", "gpt2", metadata("gpt2", CONFIGS["gpt2"]), tensors | {"output.weight": output})
        loaded = load(tmp_path / "again.gguf")
        assert loaded.config == lm.config.replace(unembed=unembed)


def test_llama3_divisors_stretch_the_rotation(tmp_path: Path):
    lm = original(LLAMA, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.gguf", "llama", LLAMA)
    source = GgufSource(tmp_path / "m.gguf")
    tensors = {name: source.read(name, 0, entry.shape[0]) for name, entry in source.tensors.items()}
    divisors = np.linspace(1, 8, 8, dtype=np.float32)
    write(tmp_path / "again.gguf", "llama", metadata("llama", LLAMA), tensors | {"rope_freqs.weight": divisors})
    (setting,) = load(tmp_path / "again.gguf").config.rotary
    factors = tuple(divisors.tolist())
    expected = RotaryScaling("longrope", 1.0, lm.config.n_ctx, attention_factor=1.0, short_factor=factors, long_factor=factors)
    assert setting == Rotary(16, 1e5, scaling=expected)


def test_rope_scaling_is_read(tmp_path: Path):
    original(LLAMA, tmp_path / "hf")
    stretched = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    convert(tmp_path / "hf", tmp_path / "m.gguf", "llama", LLAMA, **stretched)
    scaling = load(tmp_path / "m.gguf").config.rotary[0].scaling
    assert scaling is not None and (scaling.kind, scaling.factor, scaling.original_context) == ("yarn", 4.0, 32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    original(LLAMA, folder / "hf")
    convert(folder / "hf", folder / "whole.gguf", "llama", LLAMA, Q8_0)
    return folder / "whole.gguf"


@pytest.mark.parametrize("part", [0.0, 1e-5, 1e-4, 0.001, 0.003, 0.01, 0.02, 0.3, 0.7, 0.999])
def test_a_file_cut_anywhere_is_refused(part: float, whole: Path, tmp_path: Path):
    data = whole.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(part * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.gguf (is cut off|is not a GGUF file)"):
        load(tmp_path / "cut.gguf")


def test_damage_to_the_header_is_refused(whole: Path, tmp_path: Path):
    """Whatever byte of the first ones is wrong, the answer is a model or a sentence, never another error."""
    data = bytearray(whole.read_bytes())
    for at in range(0, 1500, 37):
        damaged = data.copy()
        damaged[at] ^= 0xFF
        (tmp_path / "m.gguf").write_bytes(damaged)
        try:
            load(tmp_path / "m.gguf")
        except CheckpointError as error:
            assert "m.gguf" in str(error)


def test_version_2_reads_as_version_3_does(whole: Path, tmp_path: Path):
    data = bytearray(whole.read_bytes())
    data[4] = 2
    (tmp_path / "m.gguf").write_bytes(data)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "m.gguf").params, load(whole).params)


def test_other_versions_and_formats_are_refused(whole: Path, tmp_path: Path):
    data = bytearray(whole.read_bytes())
    data[4] = 1
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match="GGUF version 1"):
        load(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"PK" + bytes(100))
    with pytest.raises(CheckpointError, match="does not begin with 'GGUF'"):
        load(tmp_path / "m.gguf")


def test_an_unknown_quantisation_is_refused(whole: Path, tmp_path: Path):
    source = GgufSource(whole)
    data = bytearray(whole.read_bytes())
    name = b"token_embd.weight"
    at = data.index(name) + len(name) + 4 + 16
    assert data[at] == source.tensors["token_embd.weight"].kind
    data[at] = 250
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'token_embd\.weight' is of quantisation number 250"):
        load(tmp_path / "m.gguf")
    data[at] = gguf.GGMLQuantizationType.I8
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match="quantised as I8, which the gguf package cannot dequantise"):
        load(tmp_path / "m.gguf")


REFUSED = {
    "architecture": ("mamba", {}, "architecture 'mamba' is not supported"),
    "experts": ("llama", {"expert_count": 8}, "'expert_count' is 8"),
    "field": ("llama", {"attention.temperature": 2.0}, "'attention.temperature' .2.0. is not understood"),
    "partial rotation": ("llama", {"rope.dimension_count": 8}, "'rope.dimension_count' is 8"),
    "scaling": ("llama", {"rope.scaling.type": "spiral"}, "rope scaling 'spiral' is not supported"),
    "parts": ("llama", {"split.count": 3}, "one of 3 parts"),
    "missing": ("qwen2", {}, "missing: .*blk.0.attn_q.bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str, whole: Path, tmp_path: Path):
    architecture, more, message = REFUSED[case]
    source = GgufSource(whole)
    names = [name for name in source.tensors if architecture == "llama" or ".bias" not in name]
    tensors = {name: source.read(name, 0, source.tensors[name].shape[0]) for name in names}
    write(tmp_path / "m.gguf", architecture, metadata("llama", LLAMA) | more, tensors)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m.gguf")


def test_extra_and_missing_tensors_are_said_together(whole: Path, tmp_path: Path):
    source = GgufSource(whole)
    tensors = {name: source.read(name, 0, entry.shape[0]) for name, entry in source.tensors.items()}
    tensors["blk.0.ffn_gate_inp.weight"] = tensors.pop("blk.1.ffn_up.weight")
    write(tmp_path / "m.gguf", "llama", metadata("llama", LLAMA), tensors, lambda name, array: F32)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "m.gguf")
    assert "missing: blk.1.ffn_up.weight" in str(caught.value) and "not understood: blk.0.ffn_gate_inp.weight" in str(caught.value)
