"""Folders: what is saved loads back bit for bit, and what is wrong with a folder is said in one sentence."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.checkpoints import safetensors, save
from jaxinterp.checkpoints.families import read_config
from jaxinterp.checkpoints.load import load
from jaxinterp.checkpoints.tokenizer import tokenizer_from_folder
from jaxinterp.errors import CheckpointError, FetchError, InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from tests import tiny
from tests.checkpoints.hf_configs import GEMMA3, GPT2, LLAMA, MODELS, NEOX, SAVED_AS

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level"


def model(values: dict[str, Any], dtype: str = "float32") -> LanguageModel:
    config, _ = read_config(values, np.dtype(jnp.dtype(dtype)), "config.json")
    return LanguageModel(params=tiny.params(config, dtype), config=config)


def saved(values: dict[str, Any], folder: Path) -> LanguageModel:
    lm = model(values)
    save.save(lm, folder)
    return lm


def assert_equal(ours: LanguageModel, theirs: LanguageModel) -> None:
    assert ours.config == theirs.config
    ours_leaves, theirs_leaves = (jax.tree_util.tree_leaves_with_path(lm.params) for lm in (ours, theirs))
    assert [path for path, _ in ours_leaves] == [path for path, _ in theirs_leaves]
    for (path, a), (_, b) in zip(ours_leaves, theirs_leaves, strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64), str(path))


def change(folder: Path, **tensors: np.ndarray | None) -> None:
    """Replaces (or with None removes) tensors of a saved folder."""
    source = safetensors.SafetensorsSource([folder / safetensors.SINGLE])
    kept = {name: np.array(source.read(name, 0, entry.shape[0])) for name, entry in source.tensors.items()}
    kept = {name: array for name, array in (kept | tensors).items() if array is not None}
    safetensors.write(folder / safetensors.SINGLE, {name: (array.dtype, array.shape) for name, array in kept.items()}, kept.__getitem__, {})


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_back_bit_for_bit(name: str, tmp_path: Path):
    lm = saved(MODELS[name], tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == SAVED_AS[name]
    assert_equal(load(tmp_path / "m"), lm)


@pytest.mark.parametrize("name", ["olmo2", "bert", "oss", "granite", "attention", "bloom", "mixed"])
def test_a_model_of_no_family_is_saved_in_our_own_layout(name: str, tmp_path: Path):
    config = tiny.CONFIGS[name]
    lm = LanguageModel(params=tiny.params(config), config=config)
    save.save(lm, tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["jaxinterp.json", "model.safetensors"]
    assert_equal(load(tmp_path / "m"), lm)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_keep_every_bit(dtype: str, tmp_path: Path):
    lm = model(GEMMA3, dtype)
    save.save(lm, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == dtype
    assert_equal(load(tmp_path / "m", dtype=dtype), lm)


def test_weights_a_layer_at_a_time_are_saved_as_stacks(tmp_path: Path):
    lm = model(LLAMA)
    save.save(lm.by_layer(), tmp_path / "m")
    assert_equal(load(tmp_path / "m"), lm)


def test_saving_in_a_narrower_dtype_rounds_as_jax_does(tmp_path: Path):
    lm = model(LLAMA)
    save.save(lm, tmp_path / "m", dtype="bfloat16")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), lm.params)
    assert_equal(load(tmp_path / "m", dtype="bfloat16"), LanguageModel(params=rounded, config=lm.config))


def test_float64_needs_x64(tmp_path: Path):
    lm = saved(LLAMA, tmp_path / "m")
    with pytest.raises(InputError, match="JAX_ENABLE_X64"):
        load(tmp_path / "m", dtype="float64")
    with jax.enable_x64(True):
        wide = load(tmp_path / "m", dtype="float64")
        assert wide.params["embed"]["W_E"].dtype == np.float64
    np.testing.assert_array_equal(wide.params["embed"]["W_E"], lm.params["embed"]["W_E"])


@pytest.mark.parametrize("dtype", ["int8", "float31", "complex64"])
def test_only_floating_types_hold_weights(dtype: str):
    with pytest.raises(InputError, match="expected one of float32"):
        load("smollm2-135m-instruct", dtype=dtype)


def test_large_models_are_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(save, "SHARD_BYTES", 8_000)
    lm = saved(LLAMA, tmp_path / "m")
    index = json.loads((tmp_path / "m" / safetensors.INDEX).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and all((tmp_path / "m" / name).stat().st_size < 16_000 for name in files)
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(lm.params))
    assert_equal(load(tmp_path / "m"), lm)


def test_the_tokenizer_is_kept(tmp_path: Path):
    tokenizer = tokenizer_from_folder(TOKENIZER)
    lm = model(LLAMA)
    save.save(LanguageModel(params=lm.params, config=lm.config, tokenizer=tokenizer), tmp_path / "m")
    assert load(tmp_path / "m").tokenizer == tokenizer
    assert load(tmp_path / "m").tokenizer is not None


def test_two_loads_share_their_programs(tmp_path: Path):
    saved(LLAMA, tmp_path / "m")
    traces = []

    @jax.jit
    def total(lm: LanguageModel) -> jax.Array:
        traces.append(1)
        return lm.params["embed"]["W_E"].sum()

    assert total(load(tmp_path / "m")) == total(load(tmp_path / "m"))
    assert len(traces) == 1


def test_files_of_the_bare_model_and_their_buffers_load(tmp_path: Path):
    lm = saved(GPT2, tmp_path / "m")
    source = safetensors.SafetensorsSource([tmp_path / "m" / safetensors.SINGLE])
    bare = {name.removeprefix("transformer."): np.array(source.read(name, 0, entry.shape[0])) for name, entry in source.tensors.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32), "h.1.attn.masked_bias": np.ones(1, np.float32)}
    change(tmp_path / "m", **dict.fromkeys(source.tensors), **bare)
    assert_equal(load(tmp_path / "m"), lm)


def test_the_unembedding_of_a_tied_model_must_equal_the_embedding(tmp_path: Path):
    lm = saved(GPT2, tmp_path / "m")
    embedding = np.asarray(lm.params["embed"]["W_E"])
    change(tmp_path / "m", **{"lm_head.weight": embedding})
    assert_equal(load(tmp_path / "m"), lm)
    change(tmp_path / "m", **{"lm_head.weight": embedding + 1})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        load(tmp_path / "m")


def test_both_names_of_a_gpt_neox_unembedding_load(tmp_path: Path):
    lm = saved(NEOX, tmp_path / "m")
    unembedding = np.ascontiguousarray(np.asarray(lm.params["unembed"]["W_U"]).T)
    change(tmp_path / "m", **{"embed_out.weight": None, "lm_head.weight": unembedding})
    assert_equal(load(tmp_path / "m"), lm)


def test_missing_extra_and_misshapen_tensors_are_said_together(tmp_path: Path):
    saved(LLAMA, tmp_path / "m")
    layer = "model.layers.1."
    change(
        tmp_path / "m",
        **{
            layer + "mlp.up_proj.weight": None,
            layer + "foo": np.ones(2, np.float32),
            layer + "input_layernorm.weight": np.ones(5, np.float32),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "m")
    message = str(caught.value)
    assert f"missing: {layer}mlp.up_proj.weight" in message
    assert f"not understood: {layer}foo" in message
    assert f"{layer}input_layernorm.weight is [5], expected [24]" in message


def test_a_truncated_folder_is_refused(tmp_path: Path):
    saved(LLAMA, tmp_path / "m")
    file = tmp_path / "m" / safetensors.SINGLE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is cut off"):
        load(tmp_path / "m")


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lm = saved(LLAMA, tmp_path / "m")
    with pytest.raises(InputError, match="holds something already"):
        save.save(lm, tmp_path / "m")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left"):
        save.save(lm, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_parameters_must_fit_the_config(tmp_path: Path):
    lm = model(LLAMA)
    wrong = LanguageModel(params=lm.params, config=lm.config.replace(d_mlp=21))
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.W_gate"):
        save.save(wrong, tmp_path / "m")


def test_an_unknown_field_of_our_own_layout_is_refused(tmp_path: Path):
    config: TransformerConfig = tiny.CONFIGS["granite"]
    save.save(LanguageModel(params=tiny.params(config), config=config), tmp_path / "m")
    file = tmp_path / "m" / "jaxinterp.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"config": values["config"] | {"telepathy": True}}))
    with pytest.raises(CheckpointError, match="no field 'telepathy'"):
        load(tmp_path / "m")
    file.write_text(json.dumps(values | {"version": 2}))
    with pytest.raises(CheckpointError, match="'version': 1"):
        load(tmp_path / "m")


def test_sources_that_are_not_there(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no folder or file"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no folder or file"):
        load("nowhere.gguf")
    with pytest.raises(CheckpointError, match="neither config.json nor jaxinterp.json"):
        load(tmp_path)
    with pytest.raises(FetchError, match=r"nobody/nothing is not in the hub client's cache.*smollm2-135m-instruct"):
        load("nobody/nothing", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize(
    "name, message", [("model.bin", "is a pickle"), ("model.pt", "is a pickle"), ("model.safetensors", "expected the folder")]
)
def test_single_files_are_refused(tmp_path: Path, name: str, message: str):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / name)


def test_a_config_that_is_not_json_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds list, expected an object"):
        load(tmp_path)
