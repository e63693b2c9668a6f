"""Combine (paper): overlay sparse kernels whose non-zeros do not collide into dense structures.

A weight matrix `[R, O]` (rows = inputs, kernels = outputs) is cut into blocks of U rows by V kernels. A *set*
overlays up to S kernel blocks: for each row block it stores one weight block and, beside it, the slot of the
kernel block that owns it (the paper's kernel id, KID).

A kernel block may be a member of several sets, so any mask packs: each row assigns its non-zero blocks to sets by
a maximum bipartite matching. This is cuckoo hashing, and about four choices per kernel bring the number of sets
within a few per cent of the non-zero blocks in the fullest row, the least that any packing can have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from csengine.errors import PackingError

EMPTY = -1
"""In `members`: no kernel block uses this slot."""
NOBODY = 255
"""In `kid`: no kernel block owns this weight block."""
MAX_SET_SIZE = 255

_DTYPES = (np.dtype(np.int8), np.dtype(np.float32))
_COPIES = (1, 4, 6, 8, 3, 2)  # sets per kernel to try: likely winners first, so that they bound the others
_MATES = 1024  # fitting kernels looked at while growing one clique: bounds the time
_SAMPLED_ROWS = 1024  # rows looked at while choosing the least bad collisions: bounds the time
_TOLERANCE = 0.15  # share of its own blocks with which a kernel may collide and still be overlaid on purpose
_PATIENCE = 16  # sets in a row that stay a third empty, after which a mask counts as unstructured
_EDGES = 1 << 22  # choices and places matched at once: bounds the memory


@dataclass(frozen=True)
class PackingStatistics:
    """What packing a matrix cost and saved."""

    nonzeros: int
    density: float
    """Share of the matrix that is non-zero."""
    fill: float
    """Share of the stored weights that are non-zero (1 when nothing is stored)."""
    block_fill: float
    """Share of the stored weight blocks that a kernel block owns (1 when nothing is stored)."""
    sets: int
    overflow_sets: int
    """Sets beyond the `ceil(kernel_blocks / S)` that a perfectly complementary mask needs."""
    bytes_packed: int
    """Weights, kernel ids and members."""
    bytes_dense: int
    bytes_csr: int
    """Values, column indices (2 bytes each if they suffice, else 4) and 4-byte row pointers."""


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix `[rows, kernels]` as T sets of overlaid kernel blocks.

    `W[r*U + u, members[t, kid[r, t]]*V + v] = weights[r, t, v, u]` where `kid[r, t] != NOBODY`; 0 elsewhere.
    """

    rows: int
    """R, before padding to a multiple of U."""
    kernels: int
    """O, before padding to a multiple of V."""
    weights: np.ndarray
    """`[ceil(R/U), T, V, U]`, int8 or float32, C-contiguous; 0 in padding and where nobody owns it."""
    kid: np.ndarray
    """`[ceil(R/U), T]` uint8: the slot in set t that owns row block r, or `NOBODY`."""
    members: np.ndarray
    """`[T, S]` int32: the kernel block in slot s of set t, or `EMPTY`."""

    @property
    def block(self) -> tuple[int, int]:
        """(U, V): rows and kernels of a block."""
        return int(self.weights.shape[3]), int(self.weights.shape[2])

    @property
    def set_size(self) -> int:
        """S: kernel blocks that one set can overlay."""
        return int(self.members.shape[1])

    @property
    def sets(self) -> int:
        """T: weight blocks stored per row block."""
        return int(self.members.shape[0])

    @property
    def dtype(self) -> np.dtype:
        """Type of one weight."""
        return self.weights.dtype

    @property
    def row_blocks(self) -> int:
        """ceil(R / U)."""
        return _ceil_div(self.rows, self.block[0])

    @property
    def kernel_blocks(self) -> int:
        """ceil(O / V)."""
        return _ceil_div(self.kernels, self.block[1])

    @property
    def nbytes(self) -> int:
        """Bytes of weights, kernel ids and members."""
        return self.weights.nbytes + self.kid.nbytes + self.members.nbytes

    def unpack(self) -> np.ndarray:
        """Return the matrix `[rows, kernels]` that was packed."""
        (u, v), shape = self.block, (self.row_blocks, self.kernel_blocks)
        blocks = np.zeros((shape[0], u, shape[1], v), self.dtype)
        row, t = np.nonzero(self.kid != NOBODY)
        blocks[row, :, self.members[t, self.kid[row, t]]] = self.weights[row, t].swapaxes(1, 2)
        return np.ascontiguousarray(blocks.reshape(shape[0] * u, -1)[: self.rows, : self.kernels])

    def statistics(self) -> PackingStatistics:
        """Count non-zeros, fill and bytes."""
        nonzeros = int(np.count_nonzero(self.weights))
        index_bytes = 2 if self.kernels <= 1 << 16 else 4
        return PackingStatistics(
            nonzeros=nonzeros,
            density=nonzeros / (self.rows * self.kernels),
            fill=nonzeros / self.weights.size if self.weights.size else 1.0,
            block_fill=float(np.mean(self.kid != NOBODY)) if self.kid.size else 1.0,
            sets=self.sets,
            overflow_sets=max(0, self.sets - _ceil_div(self.kernel_blocks, self.set_size)),
            bytes_packed=self.nbytes,
            bytes_dense=self.rows * self.kernels * self.dtype.itemsize,
            bytes_csr=nonzeros * (self.dtype.itemsize + index_bytes) + 4 * (self.rows + 1),
        )


def pack(
    matrix: np.ndarray,
    *,
    block: tuple[int, int] = (1, 1),
    set_size: int | None = None,
    sets: np.ndarray | None = None,
    seed: int = 0,
) -> PackedMatrix:
    """Pack a matrix so that `pack(matrix).unpack()` equals it exactly (-0.0 becomes 0.0).

    Args:
        matrix: `[R, O]`, int8 or float32, finite, neither dimension 0.
        block: (U, V), rows and kernels that share their pattern; stored as soon as one weight is non-zero.
        set_size: S, 1 to 255. By default the width of `sets`, or else the S that makes the packing smallest.
        sets: `[T, S]` integers, a known assignment (masks trained complementary): the kernel block in each
            slot, or `EMPTY`. It is kept as it is; only what collides under it goes to overflow sets after it.
        seed: of the search; equal arguments give equal results.

    Raises:
        PackingError: an argument is not as described here.
    """
    matrix = _checked_matrix(matrix)
    blocks = _cut(matrix, block)
    pattern = np.asarray(blocks.any(axis=(2, 3)))
    if set_size is not None and not 1 <= set_size <= MAX_SET_SIZE:
        raise PackingError(f"set_size is {set_size}; give 1 to {MAX_SET_SIZE}, or None to let the packer choose")
    rng = np.random.default_rng(seed)
    if sets is None:
        weight_bytes = block[0] * block[1] * matrix.dtype.itemsize
        members, kid = _search(pattern, set_size, weight_bytes, rng)
    else:
        members, kid = _assign(pattern, _checked_sets(sets, set_size, pattern.shape[1]), rng)
    weights = np.zeros((*kid.shape, *blocks.shape[2:]), matrix.dtype)
    row, t = np.nonzero(kid != NOBODY)
    weights[row, t] = blocks[row, members[t, kid[row, t]]]
    rows, kernels = matrix.shape
    return PackedMatrix(rows, kernels, weights, kid, members)


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _checked_matrix(matrix: np.ndarray) -> np.ndarray:
    if not isinstance(matrix, np.ndarray) or matrix.dtype not in _DTYPES:
        got = getattr(matrix, "dtype", type(matrix).__name__)
        raise PackingError(f"weights are {got}; quantize or convert them to an int8 or float32 array first")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise PackingError(f"weights have shape {matrix.shape}; expected [rows, kernels], neither of them 0")
    if not np.isfinite(matrix).all():
        raise PackingError("weights hold NaN or infinity; every weight must be finite")
    canonical: np.ndarray = np.where(matrix == 0, matrix.dtype.type(0), matrix)  # -0.0 is "not stored" like 0.0
    return canonical


def _checked_sets(sets: np.ndarray, set_size: int | None, kernel_blocks: int) -> np.ndarray:
    sets = np.asarray(sets)
    if sets.ndim != 2 or not np.issubdtype(sets.dtype, np.integer):
        raise PackingError(f"sets are {sets.dtype} of shape {sets.shape}; expected integers [sets, set size]")
    width = sets.shape[1] if set_size is None else set_size
    if not max(1, sets.shape[1]) <= width <= MAX_SET_SIZE:
        raise PackingError(
            f"sets are {sets.shape[1]} wide, the set size is {width}; expected 1 to {MAX_SET_SIZE}, sets no wider"
        )
    _check_members(sets, kernel_blocks)
    members = np.full((len(sets), width), EMPTY, np.int32)
    members[:, : sets.shape[1]] = sets
    return members


def _cut(matrix: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Pad with zeros and cut into blocks: `[row blocks, kernel blocks, V, U]`, a view."""
    u, v = block
    if u < 1 or v < 1:
        raise PackingError(f"block is {u} x {v}; rows and kernels of a block must be 1 or more")
    rows, kernels = matrix.shape
    padded = np.pad(matrix, ((0, -rows % u), (0, -kernels % v)))
    tiles = padded.reshape(_ceil_div(rows, u), u, _ceil_div(kernels, v), v)
    return np.asarray(tiles.transpose(0, 2, 3, 1))


def _search(
    pattern: np.ndarray, set_size: int | None, weight_bytes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Find members and kernel ids for `pattern`; without a set size, those that take the fewest bytes."""
    used = np.flatnonzero(pattern.any(axis=0)).astype(np.int32)
    pattern = np.ascontiguousarray(pattern[:, used])
    rows, kernels = pattern.shape
    fullest = max(1, int(pattern.sum(axis=1).max()))
    sizes = [set_size] if set_size else [_size_for(copies, kernels, fullest) for copies in _COPIES]

    def set_bytes(size: int) -> int:
        return int(rows * (weight_bytes + 1) + 4 * size)

    # One kernel per set always works, so nothing that is larger is worth having.
    members = np.full((kernels, set_size or 1), EMPTY, np.int32)
    members[:, 0] = np.arange(kernels)
    kid = np.where(pattern, 0, NOBODY).astype(np.uint8)
    for size in dict.fromkeys(sizes):
        limit = (len(members) * set_bytes(members.shape[1]) - 1) // set_bytes(size)
        start, last = max(fullest, _ceil_div(kernels, size)), 0
        if size == sizes[0] < max(sizes):
            limit = min(limit, start * 5 // 4)  # without copies only complementary masks fit; force no others
        while last < start <= limit and (found := _attempt(pattern, start, size, limit, rng)):
            members, kid = found
            # Starting with more sets spreads the copies better than adding overflow sets late.
            limit, last, start = len(members) - 1, start, max(start, len(members) * 9 // 10)
    width = set_size or (members != EMPTY).sum(axis=1).max(initial=1)
    return np.ascontiguousarray(np.where(members == EMPTY, EMPTY, used[members])[:, :width]), kid


def _size_for(copies: int, kernels: int, fullest: int) -> int:
    """Size that as many sets as the fullest row needs must have to hold so many copies of every kernel."""
    return max(1, min(MAX_SET_SIZE, kernels, _ceil_div(copies * kernels, fullest)))


def _attempt(
    pattern: np.ndarray, sets: int, set_size: int, limit: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """Pack `pattern` into `sets` sets plus overflow, `limit` in all; None if they do not suffice."""
    overlaid = _overlay(pattern, sets, set_size, rng)
    fullest = np.argsort(-pattern.sum(axis=1), kind="stable")[: 1 + len(pattern) // 16]
    for part in pattern[fullest], pattern:  # the fullest rows alone show most failures at little cost
        members, kid = _assign(part, overlaid, rng, limit)
        if len(members) > limit:
            return None
    return members, kid


def _overlay(pattern: np.ndarray, sets: int, set_size: int, rng: np.random.Generator) -> np.ndarray:
    """Overlay kernels in sets: first those that fit together, then the others, then further copies of all.

    Returns members `[sets, set_size]`. The sets must have room for all kernels.
    """
    members = np.full((sets, set_size), EMPTY, np.int32)
    waiting = rng.permutation(pattern.shape[1])
    misses = 0 if sets * set_size < 2 * len(waiting) else _PATIENCE  # given copies, any sets do as well
    for t in range(sets):
        if not waiting.size or misses == _PATIENCE:
            break
        group = _grow_set(pattern, waiting, set_size)
        misses = misses + 1 if 3 * len(group) < 2 * set_size else 0
        members[t, : len(group)] = group
        waiting = waiting[~np.isin(waiting, group)]
    _fill(members, _ceil_div(max(_COPIES) * pattern.shape[1], sets), pattern.sum(axis=0), rng)
    return members


def _grow_set(pattern: np.ndarray, waiting: np.ndarray, set_size: int) -> list[int]:
    """Overlay on the first waiting kernel others that collide least with those in the set already."""
    group = _grow_clique(pattern, waiting, set_size)
    if len(group) == set_size:
        return group
    near = waiting[~np.isin(waiting, group)]
    pattern = pattern[:: _ceil_div(len(pattern), _SAMPLED_ROWS)]
    collisions = pattern[pattern[:, group].any(axis=1)].sum(axis=0, dtype=np.int32)[near]
    while len(group) < set_size and near.size:
        best = np.argmin(collisions)
        rows = pattern[:, near[best]]
        if collisions[best] > _TOLERANCE * rows.sum():
            break
        group.append(int(near[best]))
        collisions += pattern[rows].sum(axis=0, dtype=np.int32)[near]
        near, collisions = np.delete(near, best), np.delete(collisions, best)
    return group


def _grow_clique(pattern: np.ndarray, waiting: np.ndarray, set_size: int) -> list[int]:
    """Overlay on the first waiting kernel others that collide with none in the set.

    Of all that fit, the next is the one after which the most others still fit: kernels trained to be complementary
    share their partners, kernels that fit by chance do not.
    """
    seed, rest = waiting[0], waiting[1:]
    mates = rest[~pattern[pattern[:, seed]].any(axis=0)[rest]][:_MATES]
    patterns = pattern[:, mates].astype(np.float32)
    fits = (patterns.T @ patterns == 0).astype(np.float32)
    clique, left, common = [int(seed)], np.ones(len(mates), bool), fits.sum(axis=1)
    while len(clique) < set_size and left.any():
        best = np.argmax(np.where(left, common, -1))
        clique.append(int(mates[best]))
        lost = left & (fits[best] == 0)
        common -= fits[lost].sum(axis=0)
        left &= ~lost
    return clique


def _fill(members: np.ndarray, width: int, demand: np.ndarray, rng: np.random.Generator) -> None:
    """Fill sets up to `width`, in place: first with kernels in no set yet, then in proportion to demand."""
    copies = np.bincount(members[members != EMPTY], minlength=len(demand))
    for slots in members:
        taken = slots[slots != EMPTY]
        room = min(width, len(slots), len(demand)) - len(taken)
        if room > 0:
            supply = (copies + rng.random(len(demand))) / np.maximum(demand, 1) - (copies == 0)
            supply[demand == 0] = supply[taken] = np.inf
            scarce = np.argpartition(supply, room - 1)[:room]
            scarce = np.sort(scarce[np.isfinite(supply[scarce])])
            slots[len(taken) : len(taken) + len(scarce)] = scarce
            copies[scarce] += 1


def _assign(
    pattern: np.ndarray, members: np.ndarray, rng: np.random.Generator, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Give every non-zero block of `pattern` a place in a set, appending overflow sets until all have one.

    Returns members `[T, S]` and kernel ids `[row blocks, T]`; incomplete if that takes more than `limit` sets.
    """
    kid = np.full((len(pattern), len(members)), NOBODY, np.uint8)
    rows = np.arange(len(pattern))
    while limit is None or len(members) <= limit:
        kid[rows], unplaced = _match(pattern[rows], members)
        missing = unplaced.sum(axis=1)
        rows = rows[missing > 0]
        if not rows.size:
            break
        # A set gives each row one more place, so this many are needed at least.
        overflow = np.full((missing.max(), members.shape[1]), EMPTY, np.int32)
        _fill(overflow, members.shape[1], unplaced.sum(axis=0), rng)
        members = np.concatenate([members, overflow])
        kid = np.pad(kid, ((0, 0), (0, len(overflow))), constant_values=NOBODY)
    return members, kid


def _match(pattern: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match the non-zero blocks of every row to sets, as many as possible.

    Returns kernel ids `[row blocks, T]` and what found no place, `[row blocks, kernel blocks]` bool.
    """
    # Only packing needs these, and they take a third of a second to import.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    t, slot = np.nonzero(members != EMPTY)
    kernel = members[t, slot]
    slot_of = np.full((len(members), pattern.shape[1]), NOBODY, np.uint8)
    slot_of[t, kernel] = slot
    copies = np.bincount(kernel, minlength=pattern.shape[1])
    choices, first = t[np.argsort(kernel, kind="stable")], np.cumsum(copies) - copies

    kid = np.full((len(pattern), len(members)), NOBODY, np.uint8)
    unplaced = pattern.copy()
    for chunk in _chunks(pattern @ copies + len(members)):
        row, kernel = np.nonzero(pattern[chunk])
        start = np.concatenate([[0], np.cumsum(copies[kernel])])
        edge = np.arange(start[-1]) + np.repeat(first[kernel] - start[:-1], copies[kernel])
        place = np.repeat(row * len(members), copies[kernel]) + choices[edge]
        shape = len(row), kid[chunk].size
        edges = np.ones(len(place), np.int8), place.astype(np.int32), start.astype(np.int32)
        graph = csr_array(edges, shape=shape)
        found = maximum_bipartite_matching(graph, perm_type="column")
        row, kernel, t = row[found >= 0], kernel[found >= 0], found[found >= 0] % len(members)
        kid[chunk][row, t] = slot_of[t, kernel]
        unplaced[chunk][row, kernel] = False
    return kid, unplaced


def _chunks(sizes: np.ndarray) -> Iterator[slice]:
    """Cut rows of these sizes into pieces of about `_EDGES`."""
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _EDGES)) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(sizes)], strict=True):
        yield slice(start, stop)


def validate(packed: PackedMatrix) -> None:
    """Prove that `packed` means one matrix and that no kernel can reach outside its arrays.

    Raises:
        PackingError: anything is out of range. Safe on untrusted content.
    """
    _check_shapes(packed)
    _check_members(packed.members, packed.kernel_blocks)
    nobody = packed.kid == NOBODY
    if (packed.kid[~nobody] >= packed.set_size).any():
        raise PackingError(f"a kernel id is beyond the set size {packed.set_size} and is not {NOBODY}")
    owner = packed.members[np.arange(packed.sets), np.where(nobody, 0, packed.kid)]
    if (owner[~nobody] == EMPTY).any():
        raise PackingError("a kernel id points to an empty slot of its set")
    owner[nobody] = EMPTY
    if _has_repeats(owner):
        raise PackingError("two sets own the same kernel block in the same row block; expected one owner at most")
    _check_weights(packed, owner)


def _check_shapes(packed: PackedMatrix) -> None:
    expected = {
        "weights": (4, _DTYPES),
        "kid": (2, (np.dtype(np.uint8),)),
        "members": (2, (np.dtype(np.int32),)),
    }
    for name, (ndim, dtypes) in expected.items():
        array = getattr(packed, name)
        if not isinstance(array, np.ndarray) or array.dtype not in dtypes or array.ndim != ndim:
            got = f"{getattr(array, 'dtype', type(array).__name__)} with {np.ndim(array)} dimensions"
            raise PackingError(f"{name} is {got}; expected {' or '.join(map(str, dtypes))} with {ndim} dimensions")
        if not array.flags.c_contiguous:
            raise PackingError(f"{name} is not C-contiguous; copy it with numpy.ascontiguousarray")
    if not isinstance(packed.rows, int) or not isinstance(packed.kernels, int):
        raise PackingError(f"rows {packed.rows!r} and kernels {packed.kernels!r} must be integers")
    if min(packed.rows, packed.kernels, *packed.block) < 1:
        raise PackingError(f"{packed.rows} rows, {packed.kernels} kernels, block {packed.block}; all must be 1 or more")
    if not 1 <= packed.set_size <= MAX_SET_SIZE:
        raise PackingError(f"set size is {packed.set_size}; expected 1 to {MAX_SET_SIZE}")
    shape = packed.row_blocks, packed.sets
    if packed.weights.shape[:2] != shape or packed.kid.shape != shape:
        raise PackingError(
            f"weights {packed.weights.shape} and kid {packed.kid.shape} do not have the {shape[0]} row blocks and "
            f"{shape[1]} sets that {packed.rows} rows and members {packed.members.shape} call for"
        )


def _check_members(members: np.ndarray, kernel_blocks: int) -> None:
    if members.size and not EMPTY <= members.min() <= members.max() < kernel_blocks:
        raise PackingError(f"sets name kernel blocks outside 0 to {kernel_blocks - 1} (or {EMPTY} for an unused slot)")
    if _has_repeats(members):
        raise PackingError("a set names the same kernel block twice")


def _has_repeats(ids: np.ndarray) -> bool:
    """Tell whether any row of `ids` holds an id other than `EMPTY` twice."""
    ids = np.sort(ids, axis=1)
    return bool(((ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] != EMPTY)).any())


def _check_weights(packed: PackedMatrix, owner: np.ndarray) -> None:
    if not np.isfinite(packed.weights).all():
        raise PackingError("weights hold NaN or infinity")
    if packed.weights[owner == EMPTY].any():
        raise PackingError("a weight that no kernel owns is not zero")
    (u, v), (rows, kernels) = packed.block, (packed.row_blocks, packed.kernel_blocks)
    spare_rows, spare_kernels = rows * u - packed.rows, kernels * v - packed.kernels
    if packed.weights[-1, :, :, u - spare_rows :].any():
        raise PackingError(f"a weight in the padding below row {packed.rows} is not zero")
    if packed.weights[owner == kernels - 1][:, v - spare_kernels :].any():
        raise PackingError(f"a weight in the padding beyond kernel {packed.kernels} is not zero")
