"""Combine: any matrix comes back exactly, planted overlays are found again, nothing malformed passes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csengine.errors import PackingError
from csengine.packing import EMPTY, NOBODY, PackedMatrix, pack, validate

BLOCKS = [*((u, v) for u in (1, 2, 4) for v in (1, 4, 16)), (64, 8)]


def weights_for(mask: np.ndarray, dtype: Any = np.int8, seed: int = 0) -> np.ndarray:
    """Non-zero weights of the full range wherever the mask is set."""
    values = np.random.default_rng(seed).integers(-128, 128, mask.shape)
    return np.where(mask, np.where(values == 0, 1, values), 0).astype(dtype)


def complementary(row_blocks: int, kernel_blocks: int, set_size: int, block: tuple[int, int] = (1, 1), seed: int = 0):
    """A random mask of complementary kernels, and the sets that it was made from."""
    rng = np.random.default_rng(seed)
    sets = rng.permutation(kernel_blocks).reshape(-1, set_size)
    owner = np.stack([rng.permutation(np.arange(row_blocks) % set_size) for _ in sets], axis=1)
    mask = np.zeros((row_blocks, kernel_blocks), bool)
    mask[np.arange(row_blocks)[:, None], sets[np.arange(len(sets)), owner]] = True
    return mask.repeat(block[0], axis=0).repeat(block[1], axis=1), sets


def check(matrix: np.ndarray, **options: Any) -> PackedMatrix:
    """Pack, validate, and compare what comes back bit for bit."""
    packed = pack(matrix, **options)
    validate(packed)
    unpacked = packed.unpack()
    assert unpacked.dtype == matrix.dtype
    assert unpacked.shape == matrix.shape
    assert unpacked.tobytes() == np.ascontiguousarray(matrix).tobytes()
    assert packed.block == options.get("block", (1, 1))
    assert packed.weights.flags.c_contiguous
    return packed


def fullest_row(packed: PackedMatrix) -> int:
    return int((packed.kid != NOBODY).sum(axis=1).max())


# --- what packing promises -------------------------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.3, 0.7, 1.0]))
    mask = rng.random(shape) < density
    match draw(st.sampled_from(["unstructured", "duplicate kernels", "duplicate rows", "hot row", "hot kernel"])):
        case "duplicate kernels":
            mask[:] = mask[:, :1]
        case "duplicate rows":
            mask[:] = mask[:1]
        case "hot row":
            mask[rng.integers(shape[0])] = True
        case "hot kernel":
            mask[:, rng.integers(shape[1])] = True
    return mask


@given(
    mask=masks(),
    dtype=st.sampled_from([np.int8, np.float32]),
    block=st.sampled_from(BLOCKS),
    set_size=st.none() | st.integers(1, 255),
    seed=st.integers(0, 3),
)
@settings(max_examples=250, deadline=None)
def test_any_matrix_comes_back_exactly(mask, dtype, block, set_size, seed):
    packed = check(weights_for(mask, dtype), block=block, set_size=set_size, seed=seed)
    assert packed.sets <= packed.kernel_blocks
    assert set_size is None or packed.set_size == set_size


@given(mask=masks(), block=st.sampled_from(BLOCKS), sets=st.integers(0, 8), set_size=st.integers(1, 20), data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_matrix_comes_back_exactly_under_any_given_sets(mask, block, sets, set_size, data):
    kernel_blocks = math.ceil(mask.shape[1] / block[1])
    some_set = st.lists(st.integers(0, kernel_blocks - 1), unique=True, max_size=set_size)
    members = np.full((sets, set_size), EMPTY)
    for slots in members:
        chosen = data.draw(some_set)
        slots[: len(chosen)] = chosen
    packed = check(weights_for(mask), block=block, sets=members)
    np.testing.assert_array_equal(packed.members[:sets], members)


@given(
    row=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    block=st.sampled_from(BLOCKS),
)
@example(row=[0.0, -0.0, 1e-45, -1e-45, 3.4028235e38], block=(1, 1))
@settings(max_examples=50, deadline=None)
def test_any_finite_floats_come_back_and_minus_zero_becomes_zero(row, block):
    matrix = np.array([row, row[::-1]], np.float32)
    unpacked = pack(matrix, block=block).unpack()
    assert unpacked.tobytes() == (matrix + np.float32(0)).tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 33)])
@pytest.mark.parametrize("block", BLOCKS)
def test_edge_shapes(shape, block):
    for density in (0, 0.5, 1):
        check(weights_for(np.random.default_rng(0).random(shape) < density), block=block)


@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_memory_layout_of_the_input_does_not_matter(order):
    matrix = weights_for(np.random.default_rng(0).random((40, 30)) < 0.2)
    same = matrix.repeat(2, axis=1)[:, ::2] if order == "strided" else np.array(matrix, order=order)
    np.testing.assert_array_equal(check(same).weights, pack(matrix).weights)


def test_zero_matrix_takes_no_sets():
    packed = check(np.zeros((10, 20), np.float32), block=(4, 16))
    assert packed.weights.shape == (3, 0, 16, 4)
    assert packed.nbytes == 0


def test_zero_kernels_are_in_no_set():
    matrix = weights_for(np.random.default_rng(0).random((40, 30)) < 0.3)
    matrix[:, 10:] = 0
    assert check(matrix).members.max() < 10


def test_a_block_is_stored_whole_as_soon_as_one_weight_is_non_zero():
    matrix = np.zeros((8, 8), np.int8)
    matrix[5, 6] = 3
    packed = check(matrix, block=(4, 4))
    assert packed.weights.shape == (2, 1, 4, 4)
    np.testing.assert_array_equal(packed.weights[1, 0], matrix[4:, 4:].T)
    assert packed.kid.tolist() == [[NOBODY], [0]]
    assert packed.members.tolist() == [[1]]


def test_equal_arguments_give_equal_results():
    matrix = weights_for(np.random.default_rng(0).random((200, 150)) < 0.1)
    for options in ({}, {"set_size": 8}, {"sets": np.arange(150).reshape(15, 10)}):
        first, second = pack(matrix, seed=5, **options), pack(matrix.copy(), seed=5, **options)
        for name in ("weights", "kid", "members"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


# --- how well it packs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [True, False], ids=["set size given", "set size found"])
@pytest.mark.parametrize(
    ("row_blocks", "kernel_blocks", "set_size", "block"),
    [
        (25, 64, 2, (1, 1)),
        (400, 64, 8, (4, 1)),
        (1600, 64, 8, (1, 1)),
        (1600, 1500, 25, (1, 1)),
        (300, 60, 10, (1, 16)),
        (25, 8, 8, (64, 8)),
    ],
)
def test_planted_complementary_masks_are_found_again(row_blocks, kernel_blocks, set_size, block, chosen):
    mask, sets = complementary(row_blocks, kernel_blocks, set_size, block)
    packed = check(weights_for(mask), block=block, set_size=set_size if chosen else None)
    statistics = packed.statistics()
    assert (packed.sets, packed.set_size) == (len(sets), set_size)
    assert (statistics.fill, statistics.overflow_sets) == (1.0, 0)
    assert {frozenset(s) for s in packed.members.tolist()} == {frozenset(s) for s in sets.tolist()}


def test_planted_masks_are_found_again_when_a_tenth_is_missing():
    mask, sets = complementary(1600, 500, 25)
    mask &= np.random.default_rng(1).random(mask.shape) < 0.9
    assert check(weights_for(mask), set_size=25).sets == len(sets)


def test_planted_masks_are_found_again_under_a_few_violations():
    mask, sets = complementary(1600, 500, 25)
    rng = np.random.default_rng(1)
    mask[rng.integers(1600, size=400), rng.integers(500, size=400)] = True
    packed = check(weights_for(mask), set_size=25)
    overlays = {frozenset(s) for s in packed.members.tolist()}
    assert overlays >= {frozenset(s) for s in sets.tolist()}


def test_given_sets_without_collisions_are_kept_exactly():
    mask, sets = complementary(100, 60, 6)
    packed = check(weights_for(mask), sets=sets)
    np.testing.assert_array_equal(packed.members, sets)
    assert packed.statistics().fill == 1.0


def test_given_sets_come_first_and_collisions_overflow():
    mask, sets = complementary(100, 60, 6)
    mask[17, sets[3, :3]] = True  # three kernels of one set in one row: two more than it can hold, at least
    packed = check(weights_for(mask), sets=sets)
    np.testing.assert_array_equal(packed.members[:10], sets)
    assert packed.sets == 10 + mask[17, sets[3]].sum() - 1


def test_given_sets_fit_in_a_larger_set_size():
    mask, sets = complementary(100, 60, 6)
    packed = check(weights_for(mask), sets=sets, set_size=9)
    np.testing.assert_array_equal(packed.members, np.pad(sets, ((0, 0), (0, 3)), constant_values=EMPTY))


@pytest.mark.parametrize(("density", "skew"), [(0.05, 0), (0.1, 0), (0.1, 1)])
def test_unstructured_masks_come_close_to_the_fullest_row(density, skew):
    rng = np.random.default_rng(0)
    share = rng.lognormal(sigma=skew, size=600)
    packed = check(weights_for(rng.random((800, 600)) < np.minimum(1, share * density / share.mean())))
    assert packed.sets <= 1.05 * fullest_row(packed)


def test_equal_rows_pack_densely_without_any_other_structure():
    rng = np.random.default_rng(0)
    mask = rng.random((500, 400)).argsort(axis=1) < 40
    assert check(weights_for(mask)).statistics().fill > 0.9


def test_set_size_is_chosen_for_the_fewest_bytes():
    matrix = weights_for(np.random.default_rng(0).random((400, 300)) < 0.1)
    best = min(pack(matrix, set_size=s).nbytes for s in (1, 5, 10, 20, 30, 40, 60, 120, 255))
    assert pack(matrix).nbytes <= 1.03 * best


def test_very_sparse_masks_do_not_fall_back_to_one_kernel_per_set():
    packed = check(weights_for(np.random.default_rng(0).random((64, 4096)) < 0.002))
    assert packed.sets < 40


def test_statistics():
    matrix = np.zeros((4, 6), np.float32)
    matrix[[0, 1, 2, 3], [0, 1, 2, 3]] = 1
    statistics = pack(matrix, block=(1, 2), set_size=1).statistics()
    assert dataclasses.asdict(statistics) == {
        "nonzeros": 4,
        "density": 4 / 24,
        "fill": 4 / 16,
        "block_fill": 4 / 8,
        "sets": 2,
        "overflow_sets": 0,
        "bytes_packed": 16 * 4 + 8 + 2 * 4,
        "bytes_dense": 4 * 6 * 4,
        "bytes_csr": 4 * (4 + 2) + 4 * 5,
    }


def test_statistics_of_nothing():
    statistics = pack(np.zeros((4, 70000), np.int8)).statistics()
    assert (statistics.nonzeros, statistics.fill, statistics.block_fill, statistics.sets) == (0, 1.0, 1.0, 0)


def test_csr_needs_wide_columns_beyond_65536_kernels():
    matrix = np.zeros((1, 65537), np.int8)
    matrix[0, 0] = 1
    assert pack(matrix[:, :-1]).statistics().bytes_csr == 3 + 8
    assert pack(matrix).statistics().bytes_csr == 5 + 8


# --- what pack refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1]], "list"),
        (np.ones((2, 2)), "float64"),
        (np.ones((2, 2), np.uint8), "uint8"),
        (np.ones((2, 2), ">f4"), ">f4"),
        (np.ones(3, np.int8), r"shape \(3,\)"),
        (np.ones((0, 3), np.int8), r"shape \(0, 3\)"),
        (np.ones((3, 0), np.int8), r"shape \(3, 0\)"),
        (np.array([[np.nan]], np.float32), "NaN"),
        (np.array([[-np.inf]], np.float32), "infinity"),
    ],
)
def test_pack_refuses_matrix(matrix, message):
    with pytest.raises(PackingError, match=message):
        pack(matrix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": (0, 1)}, "block is 0 x 1"),
        ({"block": (1, -1)}, "block is 1 x -1"),
        ({"set_size": 0}, "set_size is 0"),
        ({"set_size": 256}, "set_size is 256"),
        ({"sets": [0, 1]}, r"shape \(2,\)"),
        ({"sets": [[0.5]]}, "float64"),
        ({"sets": [[0, 4]]}, "outside 0 to 3"),
        ({"sets": [[-2, 0]]}, "outside 0 to 3"),
        ({"sets": [[2, 2]]}, "twice"),
        ({"sets": [[0, 1]], "set_size": 1}, "2 wide"),
        ({"sets": np.full((1, 256), EMPTY)}, "256 wide"),
        ({"sets": np.zeros((1, 0), int)}, "0 wide"),
    ],
)
def test_pack_refuses_option(options, message):
    with pytest.raises(PackingError, match=message):
        pack(np.ones((3, 4), np.int8), **options)


# --- what validate refuses: one test per malformation ------------------------------------------------------------


def a_packed_matrix() -> PackedMatrix:
    """5 x 5 in blocks of 2 x 2: three row blocks and three kernel blocks, both with padding; slot 1 of set 1 empty."""
    weights = np.zeros((3, 2, 2, 2), np.float32)
    kid = np.array([[0, NOBODY], [1, 0], [NOBODY, 0]], np.uint8)
    members = np.array([[0, 1], [2, EMPTY]], np.int32)
    weights[0, 0] = weights[1, 0] = 1
    weights[1, 1, 0, :] = 1
    weights[2, 1, 0, 0] = 1
    return PackedMatrix(5, 5, weights, kid, members)


def refuse(message: str, **changes: Any) -> None:
    with pytest.raises(PackingError, match=message):
        validate(dataclasses.replace(a_packed_matrix(), **changes))


def changed(name: str, index: Any, value: Any) -> dict[str, np.ndarray]:
    array = getattr(a_packed_matrix(), name).copy()
    array[index] = value
    return {name: array}


def test_validate_accepts_the_example_that_the_others_spoil():
    packed = a_packed_matrix()
    validate(packed)
    assert np.count_nonzero(packed.unpack()) == 11


def test_validate_accepts_read_only_arrays():
    packed = a_packed_matrix()
    for array in (packed.weights, packed.kid, packed.members):
        array.flags.writeable = False
    validate(packed)


def test_validate_refuses_weights_that_are_no_array():
    refuse("weights is list", weights=[])


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int16, ">f4", object])
def test_validate_refuses_weights_of_wrong_type(dtype):
    refuse("weights is .* expected int8 or float32", weights=a_packed_matrix().weights.astype(dtype))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16])
def test_validate_refuses_kid_of_wrong_type(dtype):
    refuse("kid is .* expected uint8", kid=np.zeros((3, 2), dtype))


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, ">i4"])
def test_validate_refuses_members_of_wrong_type(dtype):
    refuse("members is .* expected int32", members=np.zeros((2, 2), dtype))


def test_validate_refuses_weights_of_wrong_rank():
    refuse("weights is .* 3 dimensions", weights=np.zeros((3, 2, 4), np.int8))


def test_validate_refuses_kid_of_wrong_rank():
    refuse("kid is .* 1 dimensions", kid=np.zeros(6, np.uint8))


def test_validate_refuses_members_of_wrong_rank():
    refuse("members is .* 3 dimensions", members=np.zeros((2, 2, 1), np.int32))


@pytest.mark.parametrize("name", ["weights", "kid", "members"])
def test_validate_refuses_arrays_that_are_not_contiguous(name):
    refuse(f"{name} is not C-contiguous", **{name: np.asfortranarray(getattr(a_packed_matrix(), name))})


@pytest.mark.parametrize("rows", [5.0, "5", None])
def test_validate_refuses_rows_that_are_no_integer(rows):
    refuse("must be integers", rows=rows)


def test_validate_refuses_kernels_that_are_no_integer():
    refuse("must be integers", kernels=5.0)


def test_validate_refuses_no_rows():
    refuse("0 rows", rows=0)


def test_validate_refuses_negative_kernels():
    refuse("-1 kernels", kernels=-1)


@pytest.mark.parametrize("shape", [(3, 2, 0, 2), (3, 2, 2, 0)])
def test_validate_refuses_empty_blocks(shape):
    refuse("block", weights=np.zeros(shape, np.int8))


def test_validate_refuses_set_size_0():
    refuse("set size is 0", members=np.zeros((2, 0), np.int32))


def test_validate_refuses_set_size_256():
    refuse("set size is 256", members=np.full((2, 256), EMPTY, np.int32))


@pytest.mark.parametrize("rows", [4, 7])
def test_validate_refuses_rows_that_do_not_match_the_weights(rows):
    refuse("row blocks", rows=rows)


def test_validate_refuses_kid_with_other_rows_than_the_weights():
    refuse("row blocks", kid=np.full((2, 2), NOBODY, np.uint8))


def test_validate_refuses_kid_with_other_sets_than_the_weights():
    refuse("row blocks", kid=np.full((3, 1), NOBODY, np.uint8))


def test_validate_refuses_members_with_other_sets_than_the_weights():
    refuse("row blocks", members=np.zeros((3, 2), np.int32))


def test_validate_refuses_member_beyond_the_last_kernel_block():
    refuse("outside 0 to 2", **changed("members", (1, 0), 3))


def test_validate_refuses_fewer_kernels_than_members_name():
    refuse("outside 0 to 1", kernels=4)


def test_validate_refuses_negative_member_that_is_not_empty():
    refuse("outside 0 to 2", **changed("members", (1, 1), -2))


def test_validate_refuses_the_same_kernel_block_twice_in_a_set():
    refuse("names the same kernel block twice", **changed("members", (0, 1), 0))


@pytest.mark.parametrize("kid", [2, 254])
def test_validate_refuses_kid_beyond_the_set_size(kid):
    refuse("beyond the set size 2", **changed("kid", (0, 0), kid))


def test_validate_refuses_kid_of_an_empty_slot():
    refuse("empty slot", **changed("kid", (1, 1), 1))


def test_validate_refuses_two_owners_of_one_pair():
    refuse("two sets own", members=np.array([[0, 1], [1, EMPTY]], np.int32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_validate_refuses_weights_that_are_not_finite(value):
    refuse("NaN or infinity", **changed("weights", (0, 0, 0, 0), value))


def test_validate_refuses_weight_that_nobody_owns():
    refuse("no kernel owns", **changed("weights", (2, 0, 1, 0), 1))


def test_validate_refuses_weight_in_padding_rows():
    refuse("below row 5", **changed("weights", (2, 1, 0, 1), 1))


def test_validate_refuses_weight_in_padding_kernels():
    refuse("beyond kernel 5", **changed("weights", (1, 1, 1, 0), 1))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_validate_accepts_means_one_matrix(data):
    """Random damage is refused, or else packing what it unpacks to gives the same matrix again."""
    packed = a_packed_matrix()
    for _ in range(data.draw(st.integers(1, 3))):
        array = getattr(packed, data.draw(st.sampled_from(["weights", "kid", "members"])))
        value = data.draw(st.sampled_from([0, 1, 2, 3, 254, 255] if array.dtype == np.uint8 else [-2, -1, 0, 1, 2, 3]))
        array.flat[data.draw(st.integers(0, array.size - 1))] = value
    try:
        validate(packed)
    except PackingError:
        return
    unpacked = packed.unpack()
    assert np.count_nonzero(unpacked) == np.count_nonzero(packed.weights)
    np.testing.assert_array_equal(pack(unpacked, block=(2, 2)).unpack(), unpacked)
