"""Hostile and contradictory input, made up by hypothesis: a model, or one sentence of ours, never a traceback from inside.

Configs have fields replaced, removed and added; files have bytes replaced and ends cut.
"""

import copy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxinterp as ji
from jaxinterp.checkpoints.families import read_config
from jaxinterp.model.parameters import parameter_shapes
from tests.checkpoints import gguf_files, hf_configs
from tests.tiny import params

JSON = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.floats(-10, 100, allow_nan=False),
    st.sampled_from(["", "silu", "gelu", "default", "yarn"]), st.lists(st.integers(-1, 3), max_size=4),
    st.dictionaries(st.sampled_from(["factor", "rope_type", "type"]), st.integers(0, 4), max_size=2),
)  # fmt: skip
EVERY_CHECK: Any = list(HealthCheck)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=EVERY_CHECK, derandomize=True)


@QUICK
@given(name=st.sampled_from(sorted(hf_configs.MODELS)), data=st.data())
def test_a_config_is_read_or_refused_by_name(name: str, data: Any) -> None:
    values = copy.deepcopy(hf_configs.MODELS[name])
    for field in data.draw(st.lists(st.sampled_from([*values, "rope_scaling", "layer_types", "an_unknown_field"]), min_size=1, max_size=3)):
        if field == "model_type":
            continue
        if data.draw(st.booleans()):
            values[field] = data.draw(JSON)
        else:
            values.pop(field, None)
    try:
        config, _ = read_config(values, np.dtype(np.float32), "config.json")
    except ji.CheckpointError as error:
        assert "config.json" in str(error)
        return
    assert "an_unknown_field" not in values or values["an_unknown_field"] is None
    assert jax.tree.leaves(parameter_shapes(config))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole safetensors file and a whole GGUF file of a tiny Llama, with its config."""
    folder = tmp_path_factory.mktemp("whole") / "hf"
    config, _ = read_config(hf_configs.LLAMA, np.dtype(np.float32), "config.json")
    ji.save(ji.LanguageModel(params(config), config), folder)
    gguf_files.convert(folder, folder / "model.gguf", "llama", hf_configs.LLAMA)
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "model.gguf", "config.json")}


@settings(QUICK, max_examples=60)
@given(kind=st.sampled_from(["model.safetensors", "model.gguf", "config.json"]), data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_sentence(
    kind: str, data: Any, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(files[kind])
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, min(len(raw), 3000) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, len(raw) // 2, 100, 0]))]
    folder: Path = tmp_path_factory.mktemp("damaged")
    for name, content in files.items():
        if name != "model.gguf":
            (folder / name).write_bytes(content)
    (folder / kind).write_bytes(bytes(raw))
    try:
        lm = ji.load(folder / kind if kind == "model.gguf" else folder)
    except (ji.CheckpointError, ji.InputError) as error:
        assert str(error)
        return
    assert lm.n_params > 0
