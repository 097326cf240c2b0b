"""MXFP4 weights: every byte means what it should, a packed model equals the unpacked one, and what does not fit is refused."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxinterp.checkpoints import mxfp4
from jaxinterp.checkpoints.families import read_config
from jaxinterp.checkpoints.load import load
from jaxinterp.checkpoints.safetensors import SafetensorsSource
from jaxinterp.checkpoints.save import save
from jaxinterp.errors import CheckpointError
from jaxinterp.model.language_model import LanguageModel
from tests import tiny
from tests.checkpoints.hf_configs import GPT_OSS

# rows of 32 and more, as blocks need
CONFIG = GPT_OSS | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def plain(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The weight [X I O], one number at a time."""
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    experts, n_out, n_blocks, _ = blocks.shape
    weight = np.empty((experts, n_blocks * 32, n_out), np.float32)
    for x, o, g, byte in np.ndindex(blocks.shape):
        for half in (0, 1):
            bits = int(blocks[x, o, g, byte]) >> (4 * half) & 15
            weight[x, g * 32 + 2 * byte + half, o] = (-1) ** (bits >> 3) * table[bits & 7] * 2.0 ** (int(scales[x, o, g]) - 127)
    return weight


def packed(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A gpt_oss model with random packed experts, and the same with what they stand for."""
    random = np.random.default_rng(0)
    small, large = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, n_in, n_out = tensors[name].shape
        blocks = random.integers(0, 256, (experts, n_out, n_in // 32, 16), np.uint8)
        scales = random.integers(118, 128, blocks.shape[:3]).astype(np.uint8)
        del small[name]
        small |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        large[name] = plain(blocks, scales)
    return small, large


def test_a_packed_model_is_the_unpacked_one(tmp_path: Path):
    config, _ = read_config(CONFIG, np.dtype(np.float32), "config.json")
    save(LanguageModel(params=tiny.params(config), config=config), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    small, large = packed(load_file(file))
    save_file(large, file)
    unpacked = load(tmp_path / "m")
    save_file(small, file)
    lm = load(tmp_path / "m")
    experts = lm.params["blocks"][0]["experts"]
    for name, weight in unpacked.params["blocks"][0]["experts"].items():
        np.testing.assert_array_equal(experts[name], weight)
    np.testing.assert_array_equal(experts["W_in"][1], large["model.layers.1.mlp.experts.gate_up_proj"][:, :, 1::2])
    # four bits and a power of two are exact in bfloat16
    narrow = load(tmp_path / "m", dtype="bfloat16").params["blocks"][0]["experts"]["W_gate"]
    np.testing.assert_array_equal(narrow.astype(jnp.float32), experts["W_gate"])


@pytest.mark.parametrize("change", ["no scales", "scales of another shape", "another block size", "another type"])
def test_packed_tensors_that_do_not_fit_are_refused(change: str, tmp_path: Path):
    tensors = {"w_blocks": np.zeros((2, 4, 3, 16), np.uint8), "w_scales": np.zeros((2, 4, 3), np.uint8)}
    if change == "no scales":
        del tensors["w_scales"]
    elif change == "scales of another shape":
        tensors["w_scales"] = tensors["w_scales"][:, :, :2].copy()
    elif change == "another block size":
        tensors["w_blocks"] = tensors["w_blocks"][..., :8].copy()
    else:
        tensors["w_blocks"] = tensors["w_blocks"].astype(np.float32)
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="MXFP4 needs"):
        mxfp4.unpack(SafetensorsSource([tmp_path / "m.safetensors"]))
