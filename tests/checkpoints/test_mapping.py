"""Key maps: what does not fit is shown together, stacks follow one another, and arrays are handed over without a copy."""

import jax
import numpy as np
import pytest

from jaxinterp.checkpoints import mapping
from jaxinterp.checkpoints.mapping import Weight
from jaxinterp.checkpoints.source import TensorInfo
from jaxinterp.errors import CheckpointError

SIZES = {"D": 4, "M": 3, "V": 6}
TABLE = {
    "embed.W_E": Weight("embed", "V D"),
    "blocks.mlp.W_in": Weight("layers.{l}.up", "M D -> D M"),
    "blocks.mlp.b_in": Weight(("layers.{l}.bias", "layers.{l}.b"), "M"),
    "ln_final.w": Weight("norm", "D", add=-1.0),
}


class Arrays:
    """A source of arrays in memory that counts what it is asked for at once."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.largest = 0

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(array.shape, str(array.dtype), "memory") for name, array in self.arrays.items()}

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        rows = self.arrays[name][start:stop]
        self.largest = max(self.largest, rows.size)
        return rows


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, np.float32)


def shapes(*depths: int) -> dict:
    blocks = tuple({"mlp": {"W_in": shape(depth, 4, 3), "b_in": shape(depth, 3)}} for depth in depths)
    return {"embed": {"W_E": shape(6, 4)}, "blocks": blocks, "ln_final": {"w": shape(4)}}


def arrays(layers: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    per_layer = {f"layers.{l}.{name}": rng.normal(size=size) for l in range(layers) for name, size in (("up", (3, 4)), ("bias", (3,)))}
    return {"embed": rng.normal(size=(6, 4)), "norm": rng.normal(size=4), **per_layer}


def fill(tree: dict, source: Arrays, dtype: str = "float32") -> dict:
    leaves = mapping.plan(tree, TABLE, SIZES, source.tensors)
    mapping.check(leaves, source)
    return mapping.unflatten(mapping.fill(leaves, source, np.dtype(dtype)))


def test_several_stacks_hold_consecutive_layers():
    given = arrays(5)
    params = fill(shapes(2, 3), Arrays(given))
    for stack, layers in enumerate(((0, 1), (2, 3, 4))):
        expected = np.stack([given[f"layers.{l}.up"].T for l in layers]).astype(np.float32)
        np.testing.assert_array_equal(params["blocks"][stack]["mlp"]["W_in"], expected)


def test_the_first_alternative_name_that_the_file_has_is_used():
    given = arrays(2)
    given["layers.1.b"] = given.pop("layers.1.bias")
    np.testing.assert_array_equal(fill(shapes(2), Arrays(given))["blocks"][0]["mlp"]["b_in"][1], given["layers.1.b"].astype(np.float32))


def test_a_tensor_for_each_expert_fills_one_array_and_is_written_back():
    random = np.random.default_rng(0)
    table = TABLE | {"blocks.mlp.W_in": Weight("layers.{l}.experts.{x}.up", "M D -> D M")}
    tree = {"embed": {"W_E": shape(6, 4)}, "blocks": ({"mlp": {"b_in": shape(1, 3)}}, {"mlp": {"W_in": shape(2, 5, 4, 3)}})}
    given = {"embed": random.normal(size=(6, 4)), "layers.0.bias": random.normal(size=3)}
    given |= {f"layers.{layer}.experts.{expert}.up": random.normal(size=(3, 4)) for layer in (1, 2) for expert in range(5)}
    source = Arrays({name: array.astype(np.float32) for name, array in given.items()})
    leaves = mapping.plan(tree, table, SIZES, source.tensors)
    mapping.check(leaves, source)
    params = mapping.fill(leaves, source, np.dtype(np.float32))
    for layer, expert in np.ndindex(2, 5):
        expected = source.arrays[f"layers.{layer + 1}.experts.{expert}.up"].T
        np.testing.assert_array_equal(params["blocks.1.mlp.W_in"][layer, expert], expected)
    assert source.largest <= 6 * 4, "one tensor at a time"
    writers = mapping.file_tensors(leaves)
    assert set(writers) == set(source.arrays)
    for name, array in source.arrays.items():
        np.testing.assert_array_equal(mapping.assemble(writers[name], params, np.dtype(np.float32)), array)


def test_a_number_is_added_while_reading():
    given = arrays(1)
    np.testing.assert_array_equal(fill(shapes(1), Arrays(given))["ln_final"]["w"], (given["norm"] - 1).astype(np.float32))


def test_everything_that_does_not_fit_is_shown_together():
    given = arrays(2)
    del given["embed"], given["layers.1.bias"]
    given |= {"layers.0.up": np.zeros((4, 3)), "score.weight": np.zeros(2), "layers.0.rotary.inv_freq": np.zeros(2)}
    leaves = mapping.plan(shapes(2), TABLE, SIZES, given)
    with pytest.raises(CheckpointError) as caught:
        mapping.check(leaves, Arrays(given), ignorable=(r"\.inv_freq$",))
    message = str(caught.value)
    assert "missing: embed (for embed.W_E); layers.1.bias (for blocks.0.mlp.b_in)" in message
    assert "not understood: score.weight" in message and "inv_freq" not in message
    assert "layers.0.up is [4, 3], expected [3, 4] for blocks.0.mlp.W_in" in message


def test_a_long_list_of_problems_is_counted():
    with pytest.raises(CheckpointError, match="and 28 more"):
        mapping.check(mapping.plan(shapes(20), TABLE, SIZES), Arrays({"embed": np.zeros((6, 4)), "norm": np.zeros(4)}))


def test_a_copy_must_equal_what_it_copies():
    given = arrays(1)
    leaves = mapping.plan(shapes(1), TABLE, SIZES, given)
    mapping.check(leaves, Arrays(given | {"head": given["embed"].copy()}), copies={"head": "embed"})
    with pytest.raises(CheckpointError, match="head differs from embed"):
        mapping.check(leaves, Arrays(given | {"head": given["embed"] + 1e-9}), copies={"head": "embed"})


def test_a_parameter_without_a_place_is_named():
    tree = shapes(1) | {"unembed": {"W_U": shape(4, 6)}}
    with pytest.raises(CheckpointError, match=r"unembed\.W_U"):
        mapping.plan(tree, TABLE, SIZES)


def test_a_tensor_is_read_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 8)
    source = Arrays(arrays(2))
    params = fill(shapes(2), source)
    np.testing.assert_array_equal(params["embed"]["W_E"], source.arrays["embed"].astype(np.float32))
    assert source.largest <= 8


def test_values_that_do_not_fit_the_dtype_are_refused():
    given = arrays(1)
    given["layers.0.up"][1, 2] = 1e6
    with pytest.raises(CheckpointError, match=r"layers\.0\.up holds values too large for float16"):
        fill(shapes(1), Arrays(given), "float16")


def test_arrays_are_aligned_so_that_jax_takes_them_over():
    for size in (1, 33, 4096):
        array = mapping.aligned((size, 3), np.dtype(np.float32))
        assert array.ctypes.data % 64 == 0 and array.shape == (size, 3)
        array[...] = 1
        assert jax.device_put(array, jax.devices("cpu")[0]).unsafe_buffer_pointer() == array.ctypes.data
