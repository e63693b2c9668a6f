"""What a plan's hardware takes, estimated from its sizes, without synthesis: to choose a plan for a device.

The numbers come from what Yosys counts for the modules (`csengine fpga synth`); tests hold the estimates against
recorded counts. Multipliers are exact but for what Yosys splits.
"""

from __future__ import annotations

from dataclasses import asdict
from math import ceil

from csengine.fpga.devices import Resources
from csengine.fpga.plan import Layer, Plan, index_bits

#: Shell, input, results.
_FRAME = Resources(lut=1450, ff=1400, dsp=0, bram=0, uram=0)
#: One requantizer with its parameters.
_REQUANTIZER_LUT, _REQUANTIZER_FF = 290, 275
#: Per channel of a k-WTA by radix select; the whole of one by histogram.
_LOCAL_LUT, _LOCAL_FF, _GLOBAL_LUT, _GLOBAL_FF = 70, 57, 580, 450
#: Rows that a memory of look-up tables may have before block RAM takes less.
_SHALLOW = 64
#: Bits across a block RAM, by the rows that it then has.
_ACROSS = ((512, 72), (1024, 36), (2048, 18), (4096, 9))


def estimate(plan: Plan) -> Resources:
    """Resources of a whole pipeline."""
    return _sum([_FRAME, *(part for layer in plan.layers for part in (_engine(layer), _input(layer), _way_out(layer)))])


def _engine(layer: Layer) -> Resources:
    """Weights, multipliers, totals, the sum over lanes."""
    lut, ff = _selected(layer) if layer.selects else _addressed(layer)
    ff += layer.lanes * 2 * layer.row_bits
    one = _ultra(layer.rows, layer.row_bits) if layer.ultra else _memory(layer.rows, layer.row_bits)
    weights = Resources(**{name: layer.lanes * n for name, n in asdict(one).items()})
    return _sum([Resources(lut, ff, layer.multipliers, 0, 0), weights])


def _selected(layer: Layer) -> tuple[float, float]:
    """Look-up tables and registers of products that are routed by select: an adder tree and a total per slot."""
    sums, additions = layer.outputs * layer.slots, layer.lanes - 1
    lut = layer.products * 8 + sums * (additions * 17.3 + 2 * layer.sum_bits)
    ff = layer.products * (17 + 16 * layer.slots) + sums * (additions * 19.5 + 2 * layer.sum_bits)
    return lut, ff


def _addressed(layer: Layer) -> tuple[float, float]:
    """The same by address: totals in memories of every lane, then one adder tree."""
    bits, products = layer.lane_bits, layer.products
    additions = layer.outputs * (layer.lanes - 1)
    total = 6.3 * bits + 16 + 0.045 * bits * max(0, layer.slots - 32)
    lut = products * (total + 4.5) + additions * (bits + 1)
    return lut, products * (bits + 33) + additions * (bits + 3)


def _input(layer: Layer) -> Resources:
    """The memory of positions, one copy for every tap that is read at once."""
    entry = 8 + (index_bits(layer.channels) if layer.indexed else 0)
    copy = _memory(2 << index_bits(layer.in_height * layer.in_width), layer.entries * entry)
    choice = layer.entry_lanes * (entry * layer.entry_beats / 3 + index_bits(layer.rows))
    ff = 100 + layer.tap_lanes * layer.entry_lanes * (9 + index_bits(layer.rows)) + 10 * layer.tap_lanes
    return Resources(60 + layer.tap_lanes * (copy.lut + choice), ff, 0, layer.tap_lanes * copy.bram, 0)


def _way_out(layer: Layer) -> Resources:
    """Requantization, pooling, k-WTA."""
    units = (1 if layer.is_linear else layer.outputs) * layer.requantize
    lut, ff = float(units * _REQUANTIZER_LUT), float(units * _REQUANTIZER_FF)
    bram = 0.0
    if layer.is_linear:
        lut += 60 + 1.3 * layer.outputs * layer.sum_bits
        ff += 300 + layer.outputs * layer.sum_bits
        bram += _memory(layer.beats * layer.outputs, 55 + index_bits(layer.kernels)).bram
        if layer.winners:
            lut, ff = lut + _GLOBAL_LUT, ff + _GLOBAL_FF
            bram += _memory(2 << index_bits(layer.kernels), 8).bram
    else:
        ff += 8 * layer.kernels
        if layer.winners:
            selects = 1 + (layer.pool == "after" and not layer.scatter) / 8
            lut += layer.kernels * (_LOCAL_LUT * selects + layer.scatter * 6 * layer.winners)
            ff += layer.kernels * (_LOCAL_FF * selects + layer.scatter * 8)
        if layer.pool:
            lut += 19 * (layer.kernels if layer.pool == "after" else layer.outputs)
    return Resources(lut, ff, layer.requantizers, bram, 0)


def _memory(rows: int, bits: int) -> Resources:
    """A memory of so many rows: look-up tables, or block RAM in halves."""
    if rows <= _SHALLOW:
        return Resources(8 * ceil(bits / (14 if rows <= _SHALLOW // 2 else 7)), 0, 0, 0, 0)
    across = next((across for deep, across in _ACROSS if rows <= deep), _ACROSS[-1][1])
    return Resources(0, 0, 0, ceil(rows / _ACROSS[-1][0]) * ceil(2 * bits / across) / 2, 0)


def _ultra(rows: int, bits: int) -> Resources:
    """A memory of so many rows in UltraRAM of 4096 x 72 bits, and the choice among those that follow one another."""
    deep = ceil(rows / 4096)
    return Resources(bits * (deep - 1) / 3, 0, 0, 0, deep * ceil(bits / 72))


def _sum(parts: list[Resources]) -> Resources:
    return Resources(*(sum(getattr(part, name) for part in parts) for name in ("lut", "ff", "dsp", "bram", "uram")))
