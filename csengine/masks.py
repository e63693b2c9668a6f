"""Complementary masks: which weights of a layer may be non-zero, so that S kernels overlay into one without collisions.

A layer's weights are seen as the engine's matrix ``W[R, O]``: R rows in (ky, kx, channel) order for a convolution, O
kernels (output channels). Blocks of U consecutive rows by V consecutive kernels share their pattern; up to S kernel
blocks form a set, and in a set every row block belongs to at most one member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

EMPTY = -1
"""In ``members``: a slot without a kernel block."""

Image = tuple[int, int, int]
_SAMPLED_ROWS = 2048  # row blocks looked at while sets are searched: bounds the time


@dataclass(frozen=True, eq=False)
class ComplementaryMask:
    """The pattern of a weight matrix and the assignment of its kernel blocks to sets.

    ``matrix`` bool [R, O]: where weights may be non-zero. ``members`` int32 [T, S]: the kernel block in each slot of
    each set, −1 for an empty slot. ``block``: (U, V).
    """

    matrix: NDArray[np.bool_]
    members: NDArray[np.int32]
    block: tuple[int, int]

    @property
    def density(self) -> float:
        """Share of the weights that may be non-zero."""
        return float(self.matrix.mean())


def random_mask(
    rows: int,
    kernels: int,
    set_size: int,
    *,
    rng: np.random.Generator,
    block: tuple[int, int] = (1, 1),
    blocks_per_kernel: int | None = None,
) -> ComplementaryMask:
    """A static random complementary mask for a matrix [rows, kernels].

    ``blocks_per_kernel``: row blocks that each kernel block gets; None shares all row blocks of a set among its members
    as evenly as possible.
    Raises ``ValueError`` if a set would need more row blocks than there are.
    """
    strength = rng.random((_count(rows, block[0]), _count(kernels, block[1])))
    return _best_mask(strength, rows, kernels, set_size, block, blocks_per_kernel, rng)


def magnitude_mask(
    weights: NDArray[Any],
    set_size: int,
    *,
    rng: np.random.Generator,
    block: tuple[int, int] = (1, 1),
    blocks_per_kernel: int | None = None,
    sweeps: int = 0,
) -> ComplementaryMask:
    """The complementary mask that keeps the strongest kernel per row block and set of a matrix [R, O].

    Strength is the sum of squares over a U×V block. The strongest pairs of row block and kernel block are granted
    first; a kernel block that has all its row blocks (``blocks_per_kernel``, or an even share) gets no more.
    ``sweeps``: how often every set tries to swap a kernel block with another set so that more strength is kept; with 0,
    sets are runs of neighbours.
    """
    strength = block_strength(weights, block)
    order = None if sweeps == 0 else _search_order(strength, set_size, sweeps, rng)
    rows, kernels = weights.shape
    return _best_mask(strength, rows, kernels, set_size, block, blocks_per_kernel, rng, order)


def block_strength(weights: NDArray[Any], block: tuple[int, int]) -> NDArray[np.float64]:
    """Sums of squares [row blocks, kernel blocks] of the blocks (U, V) of a matrix [R, O]."""
    (rows, kernels), (u, v) = weights.shape, block
    padded = np.pad(np.square(weights, dtype=np.float64), [(0, -rows % u), (0, -kernels % v)])
    strength: NDArray[np.float64] = padded.reshape(len(padded) // u, u, -1, v).sum(axis=(1, 3))
    return strength


def _count(size: int, block: int) -> int:
    return -(-size // block)


def _best_mask(
    strength: NDArray[np.float64],
    rows: int,
    kernels: int,
    set_size: int,
    block: tuple[int, int],
    blocks_per_kernel: int | None,
    rng: np.random.Generator,
    order: NDArray[np.int64] | None = None,
) -> ComplementaryMask:
    """The mask for strengths [row blocks, kernel blocks]; sets are runs of kernel blocks in order, evenly filled."""
    row_blocks, kernel_blocks = strength.shape
    sets = _runs(np.arange(kernel_blocks) if order is None else order, set_size)
    members = np.full((len(sets), set_size), EMPTY, np.int32)
    pattern = np.zeros(strength.shape, bool)
    for slots, kernel_set in zip(members, sets, strict=True):
        slots[: len(kernel_set)] = kernel_set
        shares = _shares(row_blocks, len(kernel_set), blocks_per_kernel, rng)
        owner = _owners(strength[:, kernel_set], shares)
        owned = np.flatnonzero(owner >= 0)
        pattern[owned, kernel_set[owner[owned]]] = True
    matrix = np.repeat(np.repeat(pattern, block[0], axis=0), block[1], axis=1)[:rows, :kernels]
    return ComplementaryMask(matrix, members, block)


def _runs(order: NDArray[np.int64], set_size: int) -> list[NDArray[np.int64]]:
    return np.array_split(order, _count(len(order), set_size))


def _search_order(
    strength: NDArray[np.float64], set_size: int, sweeps: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """An order of the kernel blocks whose runs keep much strength: in every row block, a set keeps its strongest."""
    rows = rng.choice(len(strength), min(len(strength), _SAMPLED_ROWS), replace=False)
    columns = strength[rows].T.copy()
    sets = _runs(rng.permutation(strength.shape[1]), set_size)
    for _ in range(sweeps if len(sets) > 1 else 0):
        others = rng.permutation(len(sets))
        for a, b in zip(others, np.roll(others, 1), strict=True):
            _swap_best(columns, sets[a], sets[b])
    return np.concatenate(sets)


def _swap_best(columns: NDArray[np.float64], a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    """Swap the members of two sets, in place, that raises most what both keep, if any does."""
    left, right = columns[a], columns[b]
    rest_left, rest_right = _without_each(left), _without_each(right)
    best, chosen = left.max(axis=0).sum() + right.max(axis=0).sum(), None
    for i in range(len(a)):
        kept = np.maximum(rest_left[i], right).sum(axis=1) + np.maximum(rest_right, left[i]).sum(axis=1)
        j = int(kept.argmax())
        if kept[j] > best * (1 + 1e-12):
            best, chosen = kept[j], (i, j)
    if chosen is not None:
        i, j = chosen
        a[i], b[j] = b[j], a[i]


def _without_each(members: NDArray[np.float64]) -> NDArray[np.float64]:
    """For every member of a set [members, rows], the largest strength of the others."""
    if len(members) == 1:
        return np.zeros_like(members)
    order = np.partition(members, len(members) - 2, axis=0)
    second, first = order[-2], order[-1]
    rest: NDArray[np.float64] = np.where(members == first, second, first)
    return rest


def _shares(
    row_blocks: int, members: int, blocks_per_kernel: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """How many row blocks each member of a set gets [members]."""
    if blocks_per_kernel is None:
        remainder = np.arange(members) < row_blocks % members
        return row_blocks // members + rng.permutation(remainder).astype(np.int64)
    if blocks_per_kernel * members > row_blocks:
        raise ValueError(
            f"{members} kernels of {blocks_per_kernel} row blocks need {members * blocks_per_kernel} of the "
            f"{row_blocks} row blocks there are; make the set smaller or the kernels sparser"
        )
    return np.full(members, blocks_per_kernel, np.int64)


def _owners(strength: NDArray[np.float64], shares: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """The member that owns each row block [row blocks], −1 for nobody; strongest claims [row blocks, members] first."""
    owner = np.full(len(strength), -1)
    left = np.array(shares)
    for claim in np.argsort(-strength, axis=None, kind="stable"):
        row, member = divmod(int(claim), strength.shape[1])
        if owner[row] < 0 and left[member]:
            owner[row] = member
            left[member] -= 1
    return owner


def matrix_from_weight(weight: NDArray[Any], image: Image | None = None) -> NDArray[Any]:
    """The engine's matrix [R, O] of a PyTorch weight: linear [O, I] or convolution [O, C, kh, kw] or [O, C, k].

    ``image``: for a linear layer behind a flatten, the shape (C, H, W) that was flattened. PyTorch flattens in
    (C, H, W) order, the engine in (H, W, C); the rows of the result are in the engine's order.
    """
    if weight.ndim == 2 and image is not None:
        weight = weight.reshape(len(weight), *image)
    matrix: NDArray[Any] = np.moveaxis(weight, 1, -1).reshape(len(weight), -1).T
    return matrix


def weight_from_matrix(matrix: NDArray[Any], shape: Sequence[int], image: Image | None = None) -> NDArray[Any]:
    """The inverse of :func:`matrix_from_weight`: a PyTorch weight of ``shape`` from [R, O]."""
    kernels, *kernel = shape
    if len(kernel) == 1:
        if image is None:
            return np.ascontiguousarray(matrix.T)
        kernel = list(image)
    channels, *taps = kernel
    weight = np.moveaxis(matrix.reshape(*taps, channels, kernels), (-1, -2), (0, 1))
    return np.ascontiguousarray(weight.reshape(shape))
