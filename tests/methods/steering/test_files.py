"""Steering vectors as files: round trips, control vectors as llama.cpp and repeng have them, and files that are not what they say."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.checkpoints.safetensors import write
from jaxinterp.methods.steering import files
from jaxinterp.methods.steering.files import load, save
from jaxinterp.methods.steering.vector import SteeringVector, make_vector
from tests.tiny import CONFIGS, params

CONFIG = CONFIGS["llama"]


@pytest.fixture(scope="module")
def lm() -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIG), CONFIG)


def made(lm: ji.LanguageModel, site: str = "resid_post", layers: Any = (2, 1)) -> SteeringVector:
    shape = {"resid_post": (24,), "z": (4, 6)}[site]
    values = np.random.default_rng(0).normal(size=(len(layers), *shape)).astype(np.float32)
    how = (("method", "mean_difference"), ("texts", "ab cd"), ("note", 'quotes " and \\ and ü'))
    return make_vector(lm, site, layers, values, norms=np.arange(len(layers)) + 1.5, accuracy=[np.nan] * len(layers), how=how)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def control_vector(directions: dict[str, np.ndarray], *, hint: str = "llama", architecture: str = "controlvector", kind: int = 0) -> bytes:
    """A control vector as repeng writes it, byte by byte: GGUF version 3, two fields and the architecture, tensors of F32."""
    fields = [("general.architecture", 8, string(architecture)), ("controlvector.model_hint", 8, string(hint))]
    fields.append(("controlvector.layer_count", 4, struct.pack("<I", len(directions))))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(directions), len(fields))
    head += b"".join(string(name) + struct.pack("<I", code) + value for name, code, value in fields)
    data = b""
    for name, values in directions.items():
        sizes = struct.pack(f"<{values.ndim}Q", *values.shape[::-1])
        head += string(name) + struct.pack("<I", values.ndim) + sizes + struct.pack("<IQ", kind, len(data))
        data += values.astype("<f2" if kind == 1 else "<f4").tobytes()
        data += b"\0" * (-len(data) % 32)
    return head + b"\0" * (-len(head) % 32) + data


# -------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("site", ("resid_post", "z"))
def test_safetensors_keep_everything(lm: ji.LanguageModel, site: str, tmp_path: Path) -> None:
    v = made(lm, site)
    found = load(v.save(tmp_path / "v.safetensors"), lm)
    for name in ("values", "norms", "accuracy", "sketch"):
        np.testing.assert_array_equal(getattr(found, name), getattr(v, name))
        assert getattr(found, name).dtype == getattr(v, name).dtype
    assert (found.site, found.layers, found.depth, found.how) == (site, (2, 1), 3, v.how)
    np.testing.assert_array_equal(found.add(1.0).arguments[0], v.add(1.0).arguments[0])
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]
    assert load(tmp_path / "v.safetensors").layers == (2, 1)  # without a model


def test_a_control_vector_is_as_llama_cpp_reads_it(lm: ji.LanguageModel, tmp_path: Path) -> None:
    from gguf import GGUFReader

    v = made(lm)
    path = v.save(tmp_path / "v.gguf")
    reader = GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "unknown"  # a tiny model is of no family
    assert reader.fields["controlvector.layer_count"].contents() == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
    for tensor, row in zip(reader.tensors, (1, 0), strict=True):
        assert tensor.tensor_type.name == "F32" and tensor.shape.tolist() == [24]
        np.testing.assert_array_equal(tensor.data, v.values[row])
    found = load(path, lm)
    np.testing.assert_array_equal(found.values, v.values[[1, 0]])
    assert found.layers == (1, 2) and found.depth == 3 and found.site == "resid_post" and np.isnan(found.norms).all()
    assert found.check(lm) is found and [path.name for path in tmp_path.iterdir()] == ["v.gguf"]
    trace = ji.run(lm, np.asarray([[3, 4, 5]]), sites=("resid_post", "resid_mid", "mlp_out"), edits=found.add(2.0))
    added = np.asarray(trace["resid_post"]) - np.asarray(trace["resid_mid"]) - np.asarray(trace["mlp_out"])
    np.testing.assert_allclose(added[1:, 0, 1], 2 * v.values[[1, 0]], atol=1e-4)  # to the output of block l
    np.testing.assert_allclose(added[0], 0, atol=1e-4)


def test_a_file_of_repeng_is_read(lm: ji.LanguageModel, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(3, 24)).astype(np.float32)
    path = tmp_path / "happy.gguf"
    # its layers come from the last to the first, and one of llama.cpp's generator may be zero
    path.write_bytes(control_vector({"direction.2": rows[2], "direction.1": 0 * rows[1], "direction.0": rows[0]}))
    found = load(path, lm)
    assert found.layers == (0, 2) and repr(found) == "SteeringVector(control vector at resid_post, layers 0, 2)"
    np.testing.assert_array_equal(found.values, rows[[0, 2]])


@pytest.mark.weights
def test_a_hint_of_transformers_or_llama_cpp_is_this_models_or_refused(smollm2: Any, tmp_path: Path) -> None:
    row = {"direction.7": np.ones(576, np.float32)}
    for hint in ("llama", "mistral", "unknown"):
        (tmp_path / "v.gguf").write_bytes(control_vector(row, hint=hint))
        assert load(tmp_path / "v.gguf", smollm2).layers == (7,)
    (tmp_path / "v.gguf").write_bytes(control_vector(row, hint="gpt2"))
    with pytest.raises(ji.InputError, match=r"v\.gguf is for a model of kind 'gpt2', this one is 'llama': use force=True"):
        load(tmp_path / "v.gguf", smollm2)
    again = load(tmp_path / "v.gguf", smollm2, force=True)
    assert dict(again.how)["model"] == "gpt2" and make_vector(smollm2, "z", (1,), np.ones((1, 9, 64))).how[-1] == ("model", "llama")


def test_a_vector_of_another_model_is_refused_unless_forced(lm: ji.LanguageModel, tmp_path: Path) -> None:
    path, other = made(lm).save(tmp_path / "v.safetensors"), ji.LanguageModel(params(CONFIG, seed=1), CONFIG)
    with pytest.raises(ji.InputError, match="another model of the same shape"):
        load(path, other)
    assert load(path, other, force=True).layers == (2, 1)
    for config in (CONFIGS["one"],):
        narrow = ji.LanguageModel(params(config), config)
        with pytest.raises(ji.InputError, match="is for a model of 3 layers"):
            load(path, narrow, force=True)
        made(lm).save(tmp_path / "v.gguf")
        with pytest.raises(ji.InputError, match=r"of 24 numbers for layer 1; this model has 1 layers"):
            load(tmp_path / "v.gguf", narrow, force=True)
    (tmp_path / "v.gguf").write_bytes(control_vector({"direction.1": np.ones(23)}))
    with pytest.raises(ji.InputError, match=r"of 23 numbers for layer 1; this model has 3 layers of width 24"):
        load(tmp_path / "v.gguf", lm, force=True)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_a_control_vector_cannot_hold_is_not_written(lm: ji.LanguageModel, tmp_path: Path, monkeypatch: Any) -> None:
    for v, name, message in (
        (made(lm, layers=(0, 1, 2)), "v.gguf", r"no layer 0, which llama.cpp refuses: save vector.at\(range\(1, 3\)\), or"),
        (made(lm, layers=(0,)), "v.gguf", r"no layer 0, which llama.cpp refuses: save it as .safetensors"),
        (made(lm, "z"), "v.gguf", "acts at resid_post; this vector acts at 'z'"),
        (made(lm), "v.pt", "saved as .safetensors or .gguf; got 'v.pt'"),
    ):
        with pytest.raises(ji.InputError, match=message):
            save(v, tmp_path / name)
    with pytest.raises(ji.CheckpointError, match="cannot be written: No such file"):
        save(made(lm), tmp_path / "no folder" / "v.safetensors")
    kept = save(made(lm), tmp_path / "v.safetensors").read_bytes()

    def failing(vector: SteeringVector, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_safetensors", failing)
    with pytest.raises(ji.CheckpointError, match="No space left"):
        save(made(lm), tmp_path / "v.safetensors")
    assert (tmp_path / "v.safetensors").read_bytes() == kept and len(list(tmp_path.iterdir())) == 1  # the old file, whole


@pytest.mark.parametrize("ending", ("safetensors", "gguf"))
def test_a_file_that_is_cut_or_damaged_is_one_sentence_or_a_vector(lm: ji.LanguageModel, ending: str, tmp_path: Path) -> None:
    path = made(lm).save(tmp_path / f"v.{ending}")
    whole = path.read_bytes()
    for length in {0, 3, 8, 20, 24, 40, 100, len(whole) // 2, len(whole) - 1, *range(0, len(whole) - 32, 97)}:
        path.write_bytes(whole[:length])
        with pytest.raises(ji.CheckpointError) as caught:
            load(path, lm)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    random = np.random.default_rng(0)
    for _ in range(300):  # flipped bytes, most of them in the header: refused, or read as numbers that are finite
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 900), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            found = load(path, lm, force=True)
        except (ji.CheckpointError, ji.InputError):
            continue
        assert np.isfinite(found.values).all() and np.shape(found.values) == (len(found.layers), 24)


GOOD = {"format": files.FORMAT, "version": "1", "site": '"resid_post"', "layers": "[1]", "depth": "3", "how": "[]"}


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"format": "pt"}, "is not a steering vector"),
        ({"version": "2"}, "is of version '2'"),
        ({"site": '"nowhere"'}, "site is 'nowhere', which is not one that a vector can steer"),
        ({"site": '"pattern"'}, "not one that a vector can steer"),
        ({"site": '["resid_post"]'}, "not one that a vector can steer"),
        ({"layers": "[3]"}, "expected one or more of 0 to 2"),
        ({"layers": "[-1]"}, "expected one or more of 0 to 2"),
        ({"layers": "[true]"}, "expected one or more of 0 to 2"),
        ({"layers": "1"}, "expected one or more of 0 to 2"),
        ({"layers": "[1, 2]"}, "its arrays have shapes values .1, 24., norms"),
        ({"layers": "[" * 9999}, "no 'layers' that can be read"),
        ({"depth": "1e9"}, "expected a number of layers"),
        ({"depth": "99999999999"}, "expected a number of layers"),
        ({"how": '[["a"]]'}, "'how' is not a list of pairs of strings"),
        ({"how": '[["a", 1]]'}, "'how' is not a list of pairs of strings"),
        ({"how": "{"}, "no 'how' that can be read"),
    ),
)
def test_what_a_header_claims_is_checked(lm: ji.LanguageModel, changes: dict[str, str], message: str, tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    arrays = {"values": np.ones((1, 24), np.float32), "norms": one, "accuracy": one, "sketch": np.zeros(0, np.float32)}
    path = tmp_path / "v.safetensors"
    write(path, {name: (a.dtype, a.shape) for name, a in arrays.items()}, arrays.__getitem__, GOOD)
    assert load(path, lm).layers == (1,)
    write(path, {name: (a.dtype, a.shape) for name, a in arrays.items()}, arrays.__getitem__, GOOD | changes)
    with pytest.raises(ji.CheckpointError, match=message) as caught:
        load(path, lm)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"values": np.full((1, 24), np.nan, np.float32)}, "direction of layer 1 is zero or not finite"),
        ({"values": np.zeros((1, 24), np.float32)}, "direction of layer 1 is zero or not finite"),
        ({"values": np.ones((1, 4, 6, 2), np.float32)}, "its arrays have shapes"),
        ({"values": np.ones((1, 0), np.float32)}, "its arrays have shapes"),
        ({"norms": np.ones(2, np.float32)}, "its arrays have shapes"),
        ({"sketch": np.ones(9, np.float32)}, "its arrays have shapes"),
        ({"more": np.ones(9, np.float32)}, "holds accuracy, more, norms, sketch, values; expected values"),
    ),
)
def test_what_arrays_hold_is_checked(lm: ji.LanguageModel, changes: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    arrays = {"values": np.ones((1, 24), np.float32), "norms": one, "accuracy": one, "sketch": np.zeros(0, np.float32), **changes}
    write(tmp_path / "v.safetensors", {name: (a.dtype, a.shape) for name, a in arrays.items()}, arrays.__getitem__, GOOD)
    with pytest.raises(ji.CheckpointError, match=message):
        load(tmp_path / "v.safetensors", lm)


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (control_vector({"direction.1": np.ones(24)}, architecture="llama"), "general.architecture is 'llama', expected 'controlvector'"),
        (control_vector({"direction.one": np.ones(24)}), "not a float32 direction.LAYER"),
        (control_vector({"direction.-1": np.ones(24)}), "not a float32 direction.LAYER"),
        (control_vector({"direction.01": np.ones(24)}), "not a float32 direction.LAYER"),
        (control_vector({"direction.1": np.ones((2, 12))}), "not a float32 direction.LAYER"),
        (control_vector({"direction.1": np.ones(24)}, kind=1), r"\(F16, \[24\]\) is not a float32"),
        (control_vector({"direction.1": np.full(24, np.nan)}), "direction of layer 1 is zero or not finite"),
        (control_vector({"direction.1": np.zeros(24)}), "every direction is zero"),
        (control_vector({}), "holds no direction"),
        (b"GGML" + control_vector({"direction.1": np.ones(24)})[4:], "is not a GGUF file"),
    ),
)
def test_a_control_vector_is_checked(lm: ji.LanguageModel, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.gguf").write_bytes(content)
    with pytest.raises(ji.CheckpointError, match=message):
        load(tmp_path / "v.gguf", lm)


def test_other_files_are_refused(lm: ji.LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ji.CheckpointError, match="There is no file"):
        load(tmp_path / "v.gguf", lm)
    (tmp_path / "v.pt").write_bytes(b"x")
    with pytest.raises(ji.InputError, match=r"is a \.safetensors or a \.gguf file"):
        load(tmp_path / "v.pt", lm)
    (tmp_path / "v.gguf").write_bytes(control_vector({"direction.1": np.ones(24)}))
    with pytest.raises(ji.InputError, match="does not say how many layers its model has: give lm"):
        load(tmp_path / "v.gguf")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "v.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    with pytest.raises(ji.CheckpointError, match="is not a steering vector"):
        load(tmp_path / "v.safetensors", lm)
