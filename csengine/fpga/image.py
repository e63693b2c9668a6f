"""The parameter image: what a pipeline loads from memory before it runs.

64-bit little-endian words (`FPGA/rtl/cs_loader.sv`): the magic `CSIMAGE1`, the shape id, the length in words, the sum
of all words from the ninth on modulo 2**64, four zeros; then sections. A section is a header
`{rows: 24, words per row: 16, unit: 16, stage: 8}`, the stage in the least significant bits, and its rows.

Layer i has two stages. 2 i, its weights (`cs_engine.sv`): a unit per lane, a row per row of its memory. 2 i + 1, the
way out: of a convolution (`cs_requantize_columns.sv`) a unit per column, a row per beat; of a linear layer
(`cs_linear_post.sv`) one unit, a row per place.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import numpy as np
from numpy.typing import NDArray

from csengine.fpga import shape
from csengine.fpga.plan import Layer, Plan, index_bits, kernel_places
from csengine.graph import Conv2d, Graph, Linear
from csengine.packing import NOBODY, PackedMatrix

MAGIC = b"CSIMAGE1"
HEADER_WORDS = 8
_LEAST_WORDS = 16

Words = NDArray[np.uint64]


def words(plan: Plan) -> int:
    """Length of the image of every model of this shape."""
    total = HEADER_WORDS
    for layer in plan.layers:
        total += layer.lanes * (1 + layer.rows * ceil(layer.row_bits / 64))
        if layer.is_linear:
            total += 1 + layer.beats * layer.outputs * 2
        else:
            total += layer.outputs * (1 + layer.beats)
    return max(total, _LEAST_WORDS)


def build(graph: Graph, plan: Plan) -> NDArray[np.uint8]:
    """The image `[bytes]` of a model; the plan must be of its shape."""
    nodes = {node.name: node for node in graph.nodes}
    parts: list[Words] = []
    for i, layer in enumerate(plan.layers):
        node = nodes[layer.name]
        assert isinstance(node, Conv2d | Linear)
        for lane, rows in enumerate(_lane_rows(layer, node)):
            parts += _section(2 * i, lane, rows)
        for unit, rows in enumerate(_post_rows(layer, node)):
            parts += _section(2 * i + 1, unit, rows)
    body = np.concatenate(parts)
    body = np.pad(body, (0, words(plan) - HEADER_WORDS - len(body)))
    header = np.zeros(HEADER_WORDS, np.uint64)
    header[0] = int.from_bytes(MAGIC, "little")
    header[1:4] = shape.fingerprint(plan), words(plan), body.sum(dtype=np.uint64)
    return np.concatenate([header, body]).astype("<u8").view(np.uint8)


def _section(stage: int, unit: int, rows: Words) -> list[Words]:
    count, width = rows.shape
    return [np.array([count << 40 | width << 24 | unit << 8 | stage], np.uint64), rows.reshape(-1)]


# --- weights ---------------------------------------------------------------------------------------------------------


def _lane_rows(layer: Layer, node: Conv2d | Linear) -> Iterator[Words]:
    """The memory of each lane, words `[rows, words per row]`."""
    table = _to_words(_row_bits(layer, *_overlaid(layer, node)))
    table = np.concatenate([table, np.zeros_like(table[:1])])  # row -1: nothing
    for lane in range(layer.lanes):
        own = table[_inputs_of(layer, *divmod(lane, layer.entry_lanes))]  # [pass_stride, passes, words]
        yield own.swapaxes(0, 1).reshape(layer.rows, -1)


def _overlaid(layer: Layer, node: Conv2d | Linear) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """The packed weights `[R, passes, sets, columns]` and kernel ids `[R, passes, sets]`; nobody's are 0 of slot 0."""
    if layer.slots == 1:
        dense = np.asarray(node.dense_weight)
        padded = np.pad(dense, ((0, 0), (0, layer.passes * layer.columns - layer.kernels)))
        weights = padded.reshape(-1, layer.passes, 1, layer.columns)
        return weights, np.zeros(weights.shape[:3], np.uint8)
    packed = node.weight
    assert isinstance(packed, PackedMatrix)
    u, _ = packed.block
    spare = layer.passes * layer.sets - packed.sets
    rows = packed.weights.transpose(0, 3, 1, 2).reshape(packed.row_blocks * u, packed.sets, -1)[: packed.rows]
    kid = np.repeat(np.where(packed.kid == NOBODY, 0, packed.kid), u, axis=0)[: packed.rows]
    weights = np.pad(rows, ((0, 0), (0, spare), (0, 0)))
    kid = np.pad(kid, ((0, 0), (0, spare)))
    return weights.reshape(-1, layer.passes, layer.sets, layer.columns), kid.reshape(-1, layer.passes, layer.sets)


def _row_bits(layer: Layer, weights: NDArray[np.int8], kid: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bits `[R, passes, row_bits]`, the least significant first: for each set its kernel id, then its weights."""
    kid_bits = np.unpackbits(kid[..., None], axis=3, bitorder="little")[..., : index_bits(layer.slots)]
    weight_bits = np.unpackbits(np.ascontiguousarray(weights).view(np.uint8), axis=3, bitorder="little")
    both = np.concatenate([kid_bits, weight_bits], axis=3)
    return both.reshape(*both.shape[:2], layer.row_bits)


def _inputs_of(layer: Layer, tap_lane: int, entry_lane: int) -> NDArray[np.int64]:
    """The input that each row of a lane's pass belongs to, -1 for none."""
    if layer.absolute:
        return np.arange(layer.channels)
    tap = np.arange(layer.tap_beats)[:, None] * layer.tap_lanes + tap_lane
    if layer.indexed:
        channel = np.arange(layer.channels)[None]
    else:
        channel = np.arange(layer.entry_beats)[None] * layer.entry_lanes + entry_lane
    exists = (tap < layer.taps) & (channel < layer.channels)
    return np.where(exists, tap * layer.channels + channel, -1).reshape(-1)


def _to_words(bits: NDArray[np.uint8]) -> Words:
    """Words `[..., ceil(n / 64)]` of bits `[..., n]`."""
    padded = np.zeros((*bits.shape[:-1], -(-bits.shape[-1] // 64) * 64), np.uint8)
    padded[..., : bits.shape[-1]] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8").astype(np.uint64)


# --- the way out -----------------------------------------------------------------------------------------------------


def _post_rows(layer: Layer, node: Conv2d | Linear) -> Iterator[Words]:
    places = kernel_places(layer, node)
    owned = places >= 0
    scaling = _scaling(node)[np.where(owned, places, 0)] * owned.astype(np.uint64)
    if layer.is_linear:
        channel = np.where(owned, places | 1 << 16, 0).astype(np.uint64)
        yield np.stack([scaling.reshape(-1), channel.reshape(-1)], axis=1)
    else:
        yield from scaling.reshape(layer.beats, layer.outputs).T[..., None]


def _scaling(node: Conv2d | Linear) -> Words:
    """Per kernel `{shift: 6, multiplier: 16, bias: 32}`."""
    bias = np.zeros(node.kernels, np.int32) if node.bias is None else node.bias.astype(np.int32)
    word = np.ascontiguousarray(bias).view(np.uint32).astype(np.uint64)
    if node.requantization is not None:
        word |= node.requantization.multiplier.astype(np.uint64) << np.uint64(32)
        word |= node.requantization.shift.astype(np.uint64) << np.uint64(48)
    return word
