"""safetensors files: what a header claims is checked against the file, and what we write the reference package reads."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxinterp.checkpoints.safetensors import INDEX, SafetensorsSource, folder_files, write
from jaxinterp.errors import CheckpointError


def file_of(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_reads_what_the_package_wrote(tmp_path: Path, dtype: type):
    array = np.random.default_rng(0).normal(size=(5, 3)).astype(dtype)
    save_file({"a": array, "b": array[0]}, tmp_path / "model.safetensors")
    source = SafetensorsSource([tmp_path / "model.safetensors"])
    assert source.tensors["a"].shape == (5, 3)
    np.testing.assert_array_equal(source.read("a", 1, 4), array[1:4])
    np.testing.assert_array_equal(source.read("b", 0, 3), array[0])


def test_the_package_reads_what_is_written_here(tmp_path: Path):
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3, dtype=np.float16), "long name \u00e9": np.zeros((0, 2))}
    write(
        tmp_path / "x.safetensors",
        {name: (value.dtype, value.shape) for name, value in arrays.items()},
        arrays.__getitem__,
        {"format": "pt"},
    )
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value)


BAD = {
    "header longer than the file": (dict(header={}, length=10**6), "claims 1000000 bytes"),
    "header of absurd length": (dict(header={}, length=2**63), "not a whole safetensors file"),
    "not JSON": (dict(header=b"{nonsense"), "cannot be read"),
    "not an object": (dict(header=[1]), "cannot be read"),
    "no offsets": (dict(header={"a": {"dtype": "F32", "shape": [1]}}), "cannot be read"),
    "negative size": (dict(header={"a": entry([-1], 0, 0)}), "cannot be read"),
    "size and shape disagree": (dict(header={"a": entry([3], 0, 8)}, data=bytes(8)), r"claims shape \[3\] of F32 but 8 bytes"),
    "data cut off": (dict(header={"a": entry([4], 0, 16)}, data=bytes(10)), "is cut off"),
    "overlap": (dict(header={"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, data=bytes(12)), "overlaps"),
    "unknown dtype": (dict(header={"a": entry([2], 0, 2, "F8_E4M3")}, data=bytes(2)), "F8_E4M3, which is not supported"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_header_that_lies_is_refused(tmp_path: Path, case: str):
    arguments, message = BAD[case]
    with pytest.raises(CheckpointError, match=message):
        SafetensorsSource([file_of(tmp_path / "model.safetensors", **arguments)])


@pytest.mark.parametrize("kept", [0, 4, 8, 20, 60, 100])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kept: int):
    save_file({"weight": np.ones((4, 4), np.float32)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        SafetensorsSource([tmp_path / "cut.safetensors"])


def test_whole_numbers_are_not_weights(tmp_path: Path):
    save_file({"a": np.ones(3, np.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="stored as I32"):
        SafetensorsSource([tmp_path / "model.safetensors"]).read("a", 0, 3)


def test_a_tensor_may_not_stand_in_two_files(tmp_path: Path):
    for name in ("x", "y"):
        save_file({"a": np.ones(3, np.float32)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="stands both in"):
        SafetensorsSource([tmp_path / "x", tmp_path / "y"])


def test_an_index_names_the_files(tmp_path: Path):
    for name in ("x.safetensors", "y.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors", "c": "x.safetensors"}}))
    assert folder_files(tmp_path) == [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]
    (tmp_path / "y.safetensors").unlink()
    with pytest.raises(CheckpointError, match="y.safetensors"):
        folder_files(tmp_path)


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(CheckpointError, match="not in the folder"):
        folder_files(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_a_folder_of_pickles_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"{name} is a pickle.*save_pretrained"):
        folder_files(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        folder_files(tmp_path)
