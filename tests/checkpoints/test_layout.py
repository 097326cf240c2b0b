"""Layouts: the same view reads and writes, whole or a few pieces at a time, fused parts included."""

import numpy as np
import pytest

from jaxinterp.checkpoints.layout import parse

SIZES = {"H": 4, "G": 2, "R": 2, "E": 6, "F": 3, "D": 5, "M": 7, "V": 11}

D, M, V, H, G, R, E = (SIZES[letter] for letter in "DMVHGRE")


def read(text: str, tensor: np.ndarray, part: int = 0) -> np.ndarray:
    layout = parse(text)
    assert tensor.shape == layout.file_shape(SIZES)
    sizes = [SIZES.get(letter) or int(letter) for group in layout.ours for letter in group]
    shape = [int(np.prod([SIZES.get(letter) or int(letter) for letter in group])) for group in layout.ours]
    ours = np.empty(shape)
    layout.our_view(ours, part, SIZES)[...] = layout.view(tensor, part, SIZES)
    assert layout.our_view(ours, part, SIZES).shape == tuple(sizes)
    return ours


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=float).reshape(shape)


def test_what_is_written_the_same_on_both_sides_is_copied():
    tensor = numbered(V, D)
    np.testing.assert_array_equal(read("V D", tensor), tensor)
    np.testing.assert_array_equal(read("V D -> D V", tensor), tensor.T)


def test_heads_are_split_off_a_joined_axis():
    tensor = numbered(H * E, D)
    np.testing.assert_array_equal(read("(H E) D -> D H E", tensor), tensor.reshape(H, E, D).transpose(2, 0, 1))
    np.testing.assert_array_equal(read("D (H E) -> H E D", tensor.T.copy()), tensor.reshape(H, E, D))


def test_rows_of_neighbouring_features_are_put_back_into_halves():
    tensor = numbered(H * E, D)
    expected = tensor.reshape(H, E // 2, 2, D).swapaxes(1, 2).reshape(H, E, D).transpose(2, 0, 1)
    np.testing.assert_array_equal(read("(H F 2) D -> D H (2 F)", tensor), expected)


@pytest.mark.parametrize("part", range(3))
def test_parts_one_after_the_other(part: int):
    tensor = numbered(D, (H + 2 * G) * E)
    pieces = np.split(tensor, [H * E, (H + G) * E], axis=1)
    expected = pieces[part].reshape(D, -1, E)
    ours = "D H E" if part == 0 else "D G E"
    np.testing.assert_array_equal(read(f"D ([H E|G E|G E]) -> {ours}", tensor, part), expected)
    np.testing.assert_array_equal(read(f"([H E|G E|G E]) D -> {ours}", tensor.T.copy(), part), expected)


@pytest.mark.parametrize("part", range(3))
def test_parts_within_each_head(part: int):
    tensor = numbered(H * 3 * E, D)
    expected = tensor.reshape(H, 3, E, D)[:, part].transpose(2, 0, 1)
    np.testing.assert_array_equal(read("(H [1|1|1] E) D -> D H E", tensor, part), expected)


@pytest.mark.parametrize("part", range(3))
def test_parts_of_unequal_size_within_each_group(part: int):
    tensor = numbered(G * (R + 2) * E, D)
    grouped = tensor.reshape(G, R + 2, E, D)
    if part == 0:
        expected = grouped[:, :R].reshape(H, E, D).transpose(2, 0, 1)
        np.testing.assert_array_equal(read("(G [R|1|1] E) D -> D (G R) E", tensor, part), expected)
    else:
        np.testing.assert_array_equal(read("(G [R|1|1] E) D -> D G E", tensor, part), grouped[:, R - 1 + part].transpose(2, 0, 1))


CASES = [
    ("V D", 0), ("V D -> D V", 0), ("(H E) D -> D H E", 0), ("D (H E) -> H E D", 0), ("(H F 2) D -> D H (2 F)", 0),
    ("([H E|G E|G E]) D -> D G E", 1), ("([H E|G E|G E]) D -> D G E", 2), ("D ([H E|G E|G E]) -> D G E", 2),
    ("(H [1|1|1] E) D -> D H E", 1), ("(G [R|1|1] E) D -> D (G R) E", 0), ("(H E) -> H E", 0), ("([H E|H E|H E]) -> H E", 2),
]  # fmt: skip


@pytest.mark.parametrize("text, part", CASES)
def test_pieces_of_rows_make_the_whole(text: str, part: int):
    layout = parse(text)
    tensor = np.random.default_rng(0).normal(size=layout.file_shape(SIZES))
    whole = read(text, tensor, part)
    first, rows, count = layout.pieces(part, SIZES)
    for step in (1, 2, count):
        ours = np.empty_like(whole)
        for start in range(0, count, step):
            n = min(step, count - start)
            some = tensor[first + start * rows : first + (start + n) * rows]
            layout.our_view(ours, part, SIZES, start, n)[...] = layout.view(some, part, SIZES, n)
        np.testing.assert_array_equal(ours, whole)


@pytest.mark.parametrize("text, part", CASES)
def test_writing_is_the_inverse_of_reading(text: str, part: int):
    layout = parse(text)
    tensor = np.random.default_rng(0).normal(size=layout.file_shape(SIZES))
    ours = read(text, tensor, part)
    written = np.full_like(tensor, np.nan)
    layout.view(written, part, SIZES)[...] = layout.our_view(ours, part, SIZES)
    mine = np.isfinite(written)
    assert mine.sum() == ours.size
    np.testing.assert_array_equal(written[mine], tensor[mine])
