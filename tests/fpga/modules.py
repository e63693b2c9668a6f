"""cocotb tests of single modules; `test_modules.py` builds and runs them. Expected values come from the reference."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly, RisingEdge
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from csengine import reference
from csengine.graph import KWTA

_SEED = int(os.environ.get("CSENGINE_SEED", "1"))
_SETTLE = 300  # clocks after a reset, as in cs_shell


def _signed() -> bool:
    return os.environ["SIGNED"] == "1"


def _limits() -> tuple[int, int]:
    return (-128, 127) if _signed() else (0, 255)


async def _begin(dut: Any) -> None:
    cocotb.start_soon(Clock(dut.clk_i, 4, unit="ns").start())
    await _reset(dut)


async def _reset(dut: Any) -> None:
    dut.rst_ni.value = 0
    for _ in range(4):
        await RisingEdge(dut.clk_i)
    dut.rst_ni.value = 1
    for _ in range(_SETTLE):
        await RisingEdge(dut.clk_i)


def _scores(rng: np.random.Generator, n: int) -> np.ndarray:
    """Values of a kind: full range, few values (ties), all equal, extremes."""
    low, high = _limits()
    kinds = [
        rng.integers(low, high + 1, n),
        rng.integers(low, low + 3, n),
        np.full(n, rng.integers(low, high + 1)),
        rng.choice([low, 0, high], n),
    ]
    return kinds[rng.integers(len(kinds))]


def _winners(values: np.ndarray, k: int) -> set[tuple[int, int]]:
    """{(index, value)} as the reference has it; winners of value 0 left out, for they cannot be seen in its result."""
    node = KWTA(name="k", inputs=("x",), k=k, scope="global")
    kept = reference.kwta(node, values[None])[0]
    return {(int(i), int(values[i])) for i in np.flatnonzero(kept)}


@cocotb.test()
async def requantize(dut: Any) -> None:
    """Random and extreme sums, biases, multipliers and shifts, one per clock."""
    rng = np.random.default_rng(_SEED)
    total_bits, latency, count = int(os.environ["TOTAL"]), 6, 3000
    limit = 2 ** (total_bits - 1) - 1
    shift = rng.integers(1, 48, count)
    multiplier = np.where(
        rng.random(count) < 0.2, rng.choice([2**15, 2**16 - 1], count), rng.integers(2**15, 2**16, count)
    )
    # Totals around half a step of the result, where rounding decides, and over the whole range.
    near = (rng.integers(-600, 600, count) * 2.0 ** (shift - 1) / multiplier).clip(-limit, limit).astype(np.int64)
    total = np.where(rng.random(count) < 0.7, near, rng.integers(-limit - 1, limit + 1, count))
    total[:4] = limit, -limit - 1, 0, -1
    sums = rng.integers(-(2**23), 2**23, count).clip(total - limit, total + limit + 1)
    bias = total - sums
    dtype = "int8" if _signed() else "uint8"
    expected = reference.requantize(total, multiplier, shift, dtype)
    cocotb.start_soon(Clock(dut.clk_i, 4, unit="ns").start())
    found = []
    for i in range(count + latency - 1):
        j = min(i, count - 1)
        dut.sum_i.value = int(sums[j]) & 2**24 - 1
        dut.bias_i.value = int(bias[j]) & 2**32 - 1
        dut.multiplier_i.value = int(multiplier[j])
        dut.shift_i.value = int(shift[j])
        await FallingEdge(dut.clk_i)
        if i >= latency - 1:
            found.append(dut.value_o.value.to_unsigned())
    np.testing.assert_array_equal(np.array(found[:count], np.uint8).view(dtype), expected)


@cocotb.test()
async def kwta_local(dut: Any) -> None:
    """Vectors at the shortest distance allowed and longer; values, indices and ties."""
    rng = np.random.default_rng(_SEED)
    channels, k = int(os.environ["CHANNELS"]), int(os.environ["K"])
    index_bits = max(1, (channels - 1).bit_length())
    dut.valid_i.value = 0
    await _begin(dut)
    vectors = [_scores(rng, channels) for _ in range(300)]
    words: list[int] = []

    async def monitor() -> None:
        while len(words) < len(vectors):
            await RisingEdge(dut.clk_i)
            await ReadOnly()
            if dut.valid_o.value == 1:
                words.append(dut.word_o.value.to_unsigned())

    watching = cocotb.start_soon(monitor())
    for vector in vectors:
        dut.valid_i.value = 1
        dut.value_i.value = sum((int(v) & 255) << 8 * i for i, v in enumerate(vector))
        await RisingEdge(dut.clk_i)
        dut.valid_i.value = 0
        for _ in range(k - 1 + rng.integers(0, 3)):
            await RisingEdge(dut.clk_i)
    await watching
    for vector, word in zip(vectors, words, strict=True):
        entries = [word >> (8 + index_bits) * i & (1 << 8 + index_bits) - 1 for i in range(k)]
        found = {(entry >> 8, int(vector[entry >> 8])) for entry in entries}
        assert all((entry & 255) == (int(vector[entry >> 8]) & 255) for entry in entries)
        assert len(found) == k, "a winner twice"
        assert {pair for pair in found if pair[1]} == _winners(vector, k)


@cocotb.test()
async def kwta_global(dut: Any) -> None:
    """Samples in any order of channels, with pauses and late credits; a reset in mid-run leaves nothing behind."""
    rng = np.random.default_rng(_SEED)
    channels, k = int(os.environ["CHANNELS"]), int(os.environ["K"])
    dut.valid_i.value = dut.last_i.value = dut.free_i.value = 0
    await _begin(dut)
    await _feed(dut, rng, _scores(rng, channels)[: channels // 2], channels)  # half a sample, then a reset
    await _reset(dut)
    samples = [_scores(rng, channels) for _ in range(12)]
    results: list[set[tuple[int, int]]] = [set()]
    banks = 2

    async def monitor() -> None:
        nonlocal banks
        order = 0
        while len(results) <= len(samples):
            await RisingEdge(dut.clk_i)
            await ReadOnly()
            banks += int(dut.free_o.value)
            if dut.valid_o.value == 1:
                entry = dut.entry_o.value.to_unsigned()
                assert dut.position_o.value.to_unsigned() == order
                order += 1
                index = entry >> 8
                value = int(samples[len(results) - 1][index])
                assert (value & 255) == (entry & 255)
                results[-1].add((index, value))
            if dut.last_o.value == 1:
                assert order == k
                order = 0
                results.append(set())

    async def consumer() -> None:
        done = 0
        while True:
            await RisingEdge(dut.clk_i)
            give = done < len(results) - 1 and rng.random() < 0.02
            done += give
            dut.free_i.value = int(give)

    watching = cocotb.start_soon(monitor())
    cocotb.start_soon(consumer())
    for sample in samples:
        while banks == 0:
            await RisingEdge(dut.clk_i)
        banks -= 1
        await _feed(dut, rng, sample, channels)
    await watching
    for sample, found in zip(samples, results, strict=False):
        assert {pair for pair in found if pair[1]} == _winners(sample, k)


async def _feed(dut: Any, rng: np.random.Generator, sample: np.ndarray, channels: int) -> None:
    for i, channel in enumerate(rng.permutation(len(sample))):
        while rng.random() < 0.2:
            await RisingEdge(dut.clk_i)
        dut.valid_i.value = 1
        dut.channel_i.value = int(channel)
        dut.value_i.value = int(sample[channel]) & 255
        dut.last_i.value = int(i == channels - 1)
        await RisingEdge(dut.clk_i)
        dut.valid_i.value = dut.last_i.value = 0


@cocotb.test()
async def shell(dut: Any) -> None:
    """Registers and runs through an independent AXI implementation that pauses at random."""
    dut.x_ready_i.value, dut.y_valid_i.value = 0, 0
    cocotb.start_soon(Clock(dut.ap_clk, 4, unit="ns").start())
    bus = AxiLiteMaster(
        AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.ap_clk, dut.ap_rst_n, reset_active_level=False
    )
    ram = AxiRam(AxiBus.from_prefix(dut, "m_axi_gmem"), dut.ap_clk, dut.ap_rst_n, reset_active_level=False, size=4096)
    rng = np.random.default_rng(_SEED)
    for channel in (
        *(bus.write_if.aw_channel, bus.write_if.w_channel, bus.write_if.b_channel),
        *(bus.read_if.ar_channel, bus.read_if.r_channel, ram.read_if.ar_channel, ram.read_if.r_channel),
    ):
        channel.set_pause_generator(_pauses(rng))
    dut.ap_rst_n.value = 0
    for _ in range(4):
        await RisingEdge(dut.ap_clk)
    dut.ap_rst_n.value = 1

    async def finished() -> int:
        """What the control register shows when the run is done: reading clears it."""
        while True:
            status = await bus.read_dword(0x00)
            if status & 2:
                return int(status)

    for offset in (0x10, 0x1C, 0x28):
        value = int(rng.integers(2**63))
        await bus.write_qword(offset, value)
        await bus.write(offset + 1, b"\xab")  # one byte
        assert await bus.read_qword(offset) == value & ~0xFF00 | 0xAB00
    await bus.write_dword(0x44, 1)  # read-only
    assert await bus.read_dword(0x44) == 0
    assert await bus.read_qword(0x4C) == 0x0123456789ABCDEF
    await bus.write_dword(0x00, 1)
    assert await finished() == 0b1110  # done, idle, ready
    assert await bus.read_dword(0x00) == 0b0100
    assert await bus.read_dword(0x54) == 2  # no image

    await bus.write_dword(0x08, 3)
    await bus.write_dword(0x3C, 1)
    await bus.write_qword(0x28, 64)
    sections = struct.pack("<8Q", 2 << 40 | 3 << 24 | 9 << 8 | 5, *range(100, 106), 0)
    checksum = sum(struct.unpack("<8Q", sections)) % 2**64
    for damage, error in ((0, 0), (1, 1)):
        ram.write(64, struct.pack("<8sQQQ32x", b"CSIMAGE1", 0x0123456789ABCDEF, 16, checksum + damage) + sections)
        await bus.write_dword(0x00, 1)
        await finished()
        assert await bus.read_dword(0x54) == error
        assert dut.interrupt.value == 0  # not enabled
    assert await bus.read_dword(0x0C) == 3
    await bus.write_dword(0x04, 1)
    assert dut.interrupt.value == 1
    await bus.write_dword(0x0C, 3)
    assert dut.interrupt.value == 0

    await bus.write_dword(0x00, 0x81)  # starts again by itself
    await finished()
    await finished()
    await bus.write_dword(0x00, 0)
    await finished()
    for _ in range(300):
        await RisingEdge(dut.ap_clk)
    await bus.read_dword(0x00)
    assert await bus.read_dword(0x00) == 0b0100


def _pauses(rng: np.random.Generator) -> Iterator[bool]:
    while True:
        yield bool(rng.random() < 0.4)
