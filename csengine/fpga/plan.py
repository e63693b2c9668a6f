"""The pipeline of a network's shape: how many lanes, sets and passes every layer gets, and what that costs.

A plan is all that the hardware is generated from. It holds shapes only, no parameters: models of one shape share it.
`plan` makes it. Cycles are predictions that the hardware meets (`FPGA/rtl` gives each module's).

Every layer is a convolution over positions. A linear layer after an H x W x C tensor has an H x W kernel and one
output; after a global k-WTA it reads k positions, each with the index of a winner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from math import ceil, prod
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from csengine.errors import UnsupportedModelError
from csengine.graph import KWTA, MAGNITUDE, Conv2d, Graph, Linear, MaxPool, Node, Quantize, Reshape, TensorType
from csengine.packing import PackedMatrix

Mode: TypeAlias = Literal["sparse-sparse", "sparse-dense", "dense"]
Pool: TypeAlias = Literal["", "before", "after"]

#: Clocks per sample that a plan without a budget aims at; doubled until every layer can meet it.
DEFAULT_CYCLES = 1600
#: Clocks that the global k-WTA needs besides one per value (`FPGA/rtl/cs_kwta_global.sv`).
_KWTA_OVERHEAD = 40
#: Bins of its histogram.
_BINS = 256
#: Clocks, at most, from an engine's last product through sums, requantization, pooling and selection.
_WAY_OUT, _LINEAR_WAY_OUT = 48, 30
#: The shortest sample a sequencer can tell apart (`FPGA/rtl/cs_sequencer.sv`).
_SHORTEST = 4
_MAX_CHANNELS = 2**16
_MAX_SLOTS = 255


@dataclass(frozen=True)
class Layer:
    """One layer's hardware; the fields are the parameters of the modules in `FPGA/rtl`.

    entries, indexed: what a position of the input holds: winners with their channel, or all channels. absolute: the
    index is that of the whole input. winners: k of the k-WTA that follows, 0 for none; pool: where the 2 x 2 maximum
    stands to it. channel_of: of a convolution, the channel at each place (beat, column), -1 for none. ultra: whether
    the weights are in UltraRAM.
    """

    name: str
    is_linear: bool
    signed: bool
    in_height: int
    in_width: int
    channels: int
    entries: int
    indexed: bool
    absolute: bool
    kernel: tuple[int, int]
    stride: int
    out_height: int
    out_width: int
    kernels: int
    slots: int
    columns: int
    sets: int
    passes: int
    tap_lanes: int
    entry_lanes: int
    interval: int
    total_bits: int
    requantize: bool
    out_signed: bool
    pool: Pool
    winners: int
    scatter: bool
    channel_of: tuple[int, ...]
    ultra: bool

    @property
    def lanes(self) -> int:
        """Rows that are read at once."""
        return self.tap_lanes * self.entry_lanes

    @property
    def taps(self) -> int:
        """Positions of a window."""
        return prod(self.kernel)

    @property
    def tap_beats(self) -> int:
        """Clocks for the taps of a window."""
        return ceil(self.taps / self.tap_lanes)

    @property
    def entry_beats(self) -> int:
        """Clocks for the entries of a position."""
        return ceil(self.entries / self.entry_lanes)

    @property
    def tap_stride(self) -> int:
        """Rows between tap beats in a lane's memory."""
        return 0 if self.absolute else self.channels if self.indexed else self.entry_beats

    @property
    def pass_stride(self) -> int:
        """Rows of one pass in a lane's memory."""
        return self.channels if self.absolute else self.tap_beats * self.tap_stride

    @property
    def rows(self) -> int:
        """Rows of a lane's memory."""
        return self.passes * self.pass_stride

    @property
    def outputs(self) -> int:
        """Sums that leave the engine at once."""
        return self.sets * self.columns

    @property
    def beats(self) -> int:
        """Beats in which the sums of a position leave the engine."""
        return self.passes * self.slots

    @property
    def drain_step(self) -> int:
        """Clocks between these beats: a linear layer's way out takes one value per clock."""
        return self.outputs if self.is_linear else 1

    @property
    def selects(self) -> bool:
        """Whether products are routed by select; by address if that takes less logic.

        Select has an adder per lane and slot and two registers per slot; address a memory with its adder per lane.
        """
        return self.slots * (1 + 1 / self.lanes) <= 5

    @property
    def row_bits(self) -> int:
        """Bits of a row: kernel ids and weights."""
        return self.sets * (index_bits(self.slots) + 8 * self.columns)

    @property
    def lane_bits(self) -> int:
        """Bits of one lane's total."""
        return max(16, _signed_bits(self.tap_beats * self.entry_beats * 128 * (128 if self.signed else 255)))

    @property
    def sum_bits(self) -> int:
        """Bits of the sum over the lanes."""
        return self.lane_bits + ceil_log2(self.lanes)

    @property
    def positions(self) -> int:
        """Positions that are computed."""
        return self.out_height * self.out_width

    @property
    def pool_order(self) -> int:
        """2 if the positions of a pooling window follow one another, 1 for raster order."""
        return 2 if self.pool else 1

    @property
    def out_positions(self) -> int:
        """Positions that the next layer gets."""
        return self.positions // self.pool_order**2

    @property
    def out_entries(self) -> int:
        """Most winners that a position can have after pooling; all channels without k-WTA."""
        if not self.winners or self.scatter:
            return self.kernels
        return min(4 * self.winners, self.kernels) if self.pool == "after" else self.winners

    @property
    def cycles(self) -> int:
        """Clocks per sample."""
        return self.positions * self.passes * self.interval + 1

    @property
    def lead(self) -> int:
        """Clocks before its bank is free that a global k-WTA may give it back: no value comes before these beats."""
        lead = self.tap_beats * self.entry_beats
        return lead if self.kernels >= _BINS + lead else 0

    @property
    def tail(self) -> int:
        """Clocks, at most, from the last position's end until its result is with the next stage."""
        drain = self.slots * self.drain_step - (self.interval - self.tap_beats * self.entry_beats)
        way_out = _LINEAR_WAY_OUT if self.is_linear else _WAY_OUT + self.winners + self.out_entries
        return max(0, drain) + way_out

    @property
    def products(self) -> int:
        """8-bit products per clock."""
        return self.lanes * self.outputs

    @property
    def multipliers(self) -> int:
        """27 x 18 multipliers for these products; two share one."""
        return self.lanes * ceil(self.outputs / 2)

    @property
    def requantizers(self) -> int:
        """Multipliers that requantize: one, or two for totals of more than 27 bits."""
        return (1 if self.is_linear else self.outputs) * (2 if self.total_bits > 27 else 1) * self.requantize

    @property
    def weight_bits(self) -> int:
        """Bits of the weight memories, all lanes together."""
        return self.lanes * self.rows * self.row_bits


@dataclass(frozen=True)
class Plan:
    """The pipeline of a network's shape. Strides are bytes from sample to sample."""

    input_shape: tuple[int, ...]
    input_dtype: str
    output_name: str
    output_shape: tuple[int, ...]
    output_dtype: str
    layers: tuple[Layer, ...]

    @property
    def input_bytes(self) -> int:
        """Bytes of an input sample."""
        return prod(self.input_shape)

    @property
    def output_bytes(self) -> int:
        """Bytes of an output sample."""
        return prod(self.output_shape) * np.dtype(self.output_dtype).itemsize

    @property
    def input_stride(self) -> int:
        """Bytes from input sample to input sample."""
        return round_up(self.input_bytes, 64)

    @property
    def output_stride(self) -> int:
        """Bytes from output sample to output sample."""
        return round_up(self.output_bytes, 64)

    @cached_property
    def stages(self) -> dict[str, int]:
        """Clocks per sample of every stage of the pipeline, in its order; they work at once, on different samples.

        A global k-WTA's depends on the values; this is its worst.
        """
        found = {"input": self.input_stride}
        for layer in self.layers:
            found[layer.name] = layer.cycles
            if layer.is_linear and layer.winners:
                found[f"{layer.name}, k-WTA"] = layer.kernels + _KWTA_OVERHEAD
        return found

    @cached_property
    def pairs(self) -> dict[str, int]:
        """Clocks per sample, at most, that two neighbouring stages allow.

        Between stages are two banks: a stage begins sample n + 2 when the next has done with sample n.
        """
        tails = {layer.name: layer.tail for layer in self.layers}
        leads = {f"{layer.name}, k-WTA": layer.lead for layer in self.layers}
        names = list(self.stages)
        return {
            f"{one} + {two}": ceil((self.stages[one] + tails.get(one, 10) + self.stages[two] - leads.get(two, 0)) / 2)
            for one, two in pairwise(names)
        }

    @property
    def cycles(self) -> int:
        """Clocks per sample of the whole pipeline: exactly those of its slowest stage, or at most those of a pair."""
        return max(*self.stages.values(), *self.pairs.values())

    @property
    def bottleneck(self) -> str:
        """The slowest stage, or pair of stages."""
        needs = {**self.stages, **self.pairs}
        return max(needs, key=lambda name: needs[name])

    @property
    def products(self) -> int:
        """8-bit products per clock."""
        return sum(layer.products for layer in self.layers)

    @property
    def multipliers(self) -> int:
        """27 x 18 multipliers, requantization included."""
        return sum(layer.multipliers + layer.requantizers for layer in self.layers)

    @property
    def weight_bits(self) -> int:
        """Bits of all weight memories."""
        return sum(layer.weight_bits for layer in self.layers)

    def to_json(self) -> str:
        """The plan as text; equal plans give equal texts."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote. Raises ValueError for anything else."""
        try:
            values = {name: _as_tuple(value) for name, value in json.loads(text).items()}
            layers = tuple(
                Layer(**{name: _as_tuple(value) for name, value in layer.items()}) for layer in values["layers"]
            )
            return Plan(**{**values, "layers": layers})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no plan of a pipeline: {error}") from error


#: Every layer of a network with the ways to build it.
_Chain: TypeAlias = "list[tuple[_Link, list[Layer]]]"


def plan(
    graph: Graph,
    cycles: int | None = None,
    mode: Mode = "sparse-sparse",
    products: int | None = None,
    fits: Callable[[Plan], bool] | None = None,
    ultra: bool = False,
) -> Plan:
    """The cheapest pipeline for a network within a budget.

    Args:
        graph: an integer network, a chain of convolutions and linear layers.
        cycles: clocks that a sample may take; without it `DEFAULT_CYCLES`, or the multiple that every layer can meet.
        mode: what is used of the network's sparsity; the results are the same. "dense" multiplies every weight with
            every activation, "sparse-dense" the packed weights with every activation.
        products: instead of cycles, 8-bit products per clock that the pipeline may make; the fastest such plan.
        fits: instead of cycles, whether a device can hold a plan; the fastest that it says yes to. Plans that take
            more clocks must need no more of the device.
        ultra: whether the device has UltraRAM, which then holds the large memories of weights.

    Raises UnsupportedModelError where no pipeline can hold the network, or none meets the budget.
    """
    chain = [(link, list(_variants(link, ultra))) for link in _chain(graph, mode)]
    if products is not None:
        return _fastest(graph, chain, lambda made: made.products <= products, f"{products} products per clock")
    if fits is not None:
        return _fastest(graph, chain, fits, "the device")
    if cycles is not None:
        return _within(graph, chain, cycles)
    return _within(graph, chain, _reachable(graph, chain))


def cheapest_layer(graph: Graph, name: str, cycles: int, mode: Mode = "sparse-sparse") -> Layer:
    """One layer of a network within a budget, as `plan` would build it if no other stage were in its way.

    Raises UnsupportedModelError as `plan` does, KeyError where the network has no such layer.
    """
    links = {link.node.name: link for link in _chain(graph, mode)}
    return _cheapest(links[name], list(_variants(links[name], ultra=False)), cycles)


def holds(made: Plan, graph: Graph) -> bool:
    """Whether a plan, made with any budget, is one of the ways to build this network."""
    for mode in get_args(Mode):
        chain = _chain(graph, mode)
        source, last = graph.input, chain[-1]
        ends = (source.shape, source.dtype, last.output, last.output_type.shape, last.output_type.dtype)
        theirs = (made.input_shape, made.input_dtype, made.output_name, made.output_shape, made.output_dtype)
        if ends == theirs and len(chain) == len(made.layers) and all(map(_is_variant, made.layers, chain)):
            return True
    return False


def _is_variant(layer: Layer, link: _Link) -> bool:
    """Totals may be wider than these parameters need."""
    return any(
        variant.total_bits <= layer.total_bits
        and _with_channels(replace(variant, total_bits=layer.total_bits), link) == layer
        for variant in _variants(link, layer.ultra)
    )


# --- the search ------------------------------------------------------------------------------------------------------


def _reachable(graph: Graph, chain: _Chain) -> int:
    """`DEFAULT_CYCLES` times the smallest power of two that every layer can meet."""
    cycles = DEFAULT_CYCLES
    while True:
        try:
            _within(graph, chain, cycles)
        except UnsupportedModelError:
            if cycles > 2**40:
                raise
            cycles *= 2
        else:
            return cycles


def _fastest(graph: Graph, chain: _Chain, fits: Callable[[Plan], bool], budget: str) -> Plan:
    """The plan of fewest cycles within a budget other than cycles, by bisection."""
    too_few, enough = 0, 2**40
    found = _within(graph, chain, enough)
    if not fits(found):
        raise UnsupportedModelError(
            f"the smallest pipeline makes {found.products} products per clock and holds {found.weight_bits} bits of "
            f"weights; that is too much for {budget}"
        )
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        try:
            candidate = _within(graph, chain, middle)
        except UnsupportedModelError:
            too_few = middle
            continue
        if fits(candidate):
            found, enough = candidate, candidate.cycles
        else:
            too_few = middle
    return found


def _within(graph: Graph, chain: _Chain, cycles: int) -> Plan:
    """The plan with the fewest products, then the least memory, that meets a budget."""
    source, (last, _) = graph.input, chain[-1]
    target = cycles
    while True:
        layers = tuple(_cheapest(link, variants, target) for link, variants in chain)
        made = Plan(source.shape, source.dtype, last.output, last.output_type.shape, last.output_type.dtype, layers)
        if made.cycles <= cycles:
            return made
        names = {layer.name for layer in layers}
        fixed = max(needs for stage, needs in made.stages.items() if stage not in names)
        if fixed > cycles:
            raise UnsupportedModelError(
                f"the pipeline takes at least {fixed} clocks per sample; got {cycles} as budget"
            )
        target -= made.cycles - cycles  # neighbours that wait for each other need faster layers


def _cheapest(link: _Link, variants: list[Layer], cycles: int) -> Layer:
    """The layer with the fewest products, then the least memory, then the fewest clocks, within a budget."""
    fitting = [layer for layer in variants if layer.cycles <= cycles]
    if not fitting:
        fastest = min(layer.cycles for layer in variants)
        raise UnsupportedModelError(
            f"{link.node.name} takes {fastest} clocks per sample with all the lanes it can use; got {cycles} as budget"
        )
    least = min(layer.products for layer in fitting)
    cheap = [layer for layer in fitting if layer.products == least]
    return _with_channels(min(cheap, key=lambda layer: (layer.weight_bits, layer.cycles)), link)


def _variants(link: _Link, ultra: bool) -> Iterator[Layer]:
    """All sensible lanes and passes of a layer."""
    base, units = link.base, link.sets
    for passes in _steps(units):
        per_pass = ceil(units / passes)
        shared = replace(base, passes=ceil(units / per_pass))
        # Kernels that share all rows share the kernel id, which a dense layer does not need at all.
        shared = replace(shared, columns=per_pass) if base.slots == 1 else replace(shared, sets=per_pass)
        for tap_lanes in _steps(base.taps):
            if base.absolute and base.taps % tap_lanes:
                continue
            for entry_lanes in _steps(base.entries):
                layer = replace(shared, tap_lanes=tap_lanes, entry_lanes=entry_lanes)
                if layer.sum_bits <= 32:
                    yield replace(_timed(layer, link.node), ultra=ultra and _is_large(layer))


def _timed(layer: Layer, node: Conv2d | Linear) -> Layer:
    """The layer with the shortest interval that all of its parts can follow."""
    interval = max(layer.tap_beats * layer.entry_beats, layer.slots * layer.drain_step)
    if layer.winners and not layer.is_linear:
        # Winners leave one per clock: in the time of a position, or of a pooling window.
        window = layer.passes * layer.pool_order**2
        interval = max(interval, ceil(layer.winners / (layer.passes if layer.pool == "after" else window)))
        if layer.pool == "after" and not layer.scatter:
            interval = max(interval, ceil(layer.out_entries / window))
    interval = max(interval, ceil(_SHORTEST / (layer.positions * layer.passes)))
    bias = 0 if node.bias is None else int(np.abs(node.bias.astype(np.int64)).max(initial=0))
    narrow = layer.requantize and layer.sum_bits <= 27 and (1 << layer.sum_bits - 1) + bias < 1 << 26
    return replace(layer, interval=interval, total_bits=27 if narrow else 32)


def _is_large(layer: Layer) -> bool:
    """Whether a lane's memory takes a smaller share of a large device as UltraRAM than as block RAM.

    An UltraRAM holds 4096 rows of 72 bits, a block RAM 1024 rows of 36; a device has about two of these per UltraRAM.
    """
    ultra = ceil(layer.rows / 4096) * ceil(layer.row_bits / 72)
    return ceil(layer.rows / 1024) * ceil(layer.row_bits / 36) > 2 * ultra


def _steps(n: int) -> list[int]:
    """The numbers of parts in which n things can be dealt so that fewer parts would hold more each."""
    return sorted({ceil(n / ceil(n / parts)) for parts in range(1, n + 1)})


# --- reading the network ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Link:
    """A layer of the chain before lanes are chosen: `base` has all that does not depend on them.

    sets: what passes share out: the packed sets, or the kernels of a dense layer. output: the last node it computes.
    """

    node: Conv2d | Linear
    base: Layer
    sets: int
    output: str
    output_type: TensorType


def _refuse_islands(graph: Graph) -> None:
    """Raise UnsupportedModelError if float32 becomes integers again: the host computes what follows a pipeline."""
    back = next((node.name for node in graph.nodes if isinstance(node, Quantize)), None)
    if back is not None:
        raise UnsupportedModelError(f"{back} quantizes float32 within the network; a pipeline computes integers only")


def _chain(graph: Graph, mode: Mode) -> list[_Link]:
    """The network's layers with what follows each."""
    if not graph.types[graph.input.name].is_integer:
        raise UnsupportedModelError("the network is float32; a pipeline computes integer networks: quantize it first")
    links: list[_Link] = []
    previous = graph.input.name
    for node in graph.nodes[1:]:
        if not graph.types[node.name].is_integer:
            _refuse_islands(graph)
            break
        if node.inputs != (previous,):
            raise UnsupportedModelError(f"{node.name} reads {node.inputs}; a pipeline holds chains only")
        if isinstance(node, Conv2d | Linear):
            if links and links[-1].output_type.dtype == "int32":
                raise UnsupportedModelError(f"{node.name} reads accumulators; requantize them first")
            links.append(_link(graph, node, links, mode))
        elif links:
            links[-1] = _followed(graph, links[-1], node)
        elif not isinstance(node, Reshape):
            raise UnsupportedModelError(f"{node.name} comes before the first layer, where a pipeline holds nothing")
        previous = node.name
    if not links or not links[-1].base.is_linear or links[-1].base.winners:
        raise UnsupportedModelError("a pipeline ends with a linear layer; this network's integer part does not")
    return links


def _link(graph: Graph, node: Conv2d | Linear, links: list[_Link], mode: Mode) -> _Link:
    kind, source = graph.types[node.name], _source(graph, links)
    if isinstance(node, Conv2d):
        plain = node.groups == 1 and node.padding == (0, 0, 0, 0) and node.stride[0] == node.stride[1]
        if not plain or node.requantization is None:
            raise UnsupportedModelError(
                f"{node.name} has groups {node.groups}, padding {node.padding}, stride {node.stride} and "
                f"{'no' if node.requantization is None else 'a'} requantization; a pipeline's convolution has one "
                "group, no padding, equal strides and a requantization"
            )
        kernel, stride, (height, width, _) = node.kernel, node.stride[0], kind.shape
    else:
        kernel, stride, height, width = (source["in_height"], source["in_width"]), 1, 1, 1
    packed = node.weight if isinstance(node.weight, PackedMatrix) and mode != "dense" else None
    if packed is not None and packed.set_size == 1:
        packed = None
    if node.kernels > _MAX_CHANNELS:
        raise UnsupportedModelError(f"{node.name} has {node.kernels} kernels; a pipeline's layer has at most 65536")
    base = Layer(
        **source,
        name=node.name,
        is_linear=isinstance(node, Linear),
        kernel=kernel,
        stride=stride,
        out_height=height,
        out_width=width,
        kernels=node.kernels,
        slots=packed.set_size if packed else 1,
        columns=packed.block[1] if packed else 1,
        sets=1,
        passes=1,
        tap_lanes=1,
        entry_lanes=1,
        interval=1,
        total_bits=32,
        requantize=node.requantization is not None,
        out_signed=kind.dtype == "int8",
        pool="",
        winners=0,
        scatter=mode != "sparse-sparse",
        channel_of=(),
        ultra=False,
    )
    if packed is not None:
        _check_places(node.name, packed)
    return _Link(node, base, packed.sets if packed else node.kernels, node.name, kind)


def _source(graph: Graph, links: list[_Link]) -> dict[str, Any]:
    """The input memory of the next layer."""
    if not links:
        *grid, channels = graph.input.shape
        height, width = grid or (1, channels)
        depth = channels if grid else 1
        signed = graph.input.dtype == "int8"
        return _memory(height, width, depth, depth, signed=signed)
    before = links[-1].base
    if not before.is_linear:
        indexed = bool(before.winners) and not before.scatter
        step = before.pool_order
        grid_shape = before.out_height // step, before.out_width // step
        return _memory(*grid_shape, before.kernels, before.out_entries, signed=before.out_signed, indexed=indexed)
    if before.winners and not before.scatter:
        return _memory(1, before.winners, before.kernels, 1, signed=before.out_signed, indexed=True, absolute=True)
    return _memory(1, before.kernels, 1, 1, signed=before.out_signed)


def _memory(
    height: int, width: int, channels: int, entries: int, *, signed: bool, indexed: bool = False, absolute: bool = False
) -> dict[str, Any]:
    return {
        "in_height": height,
        "in_width": width,
        "channels": channels,
        "entries": entries,
        "signed": signed,
        "indexed": indexed,
        "absolute": absolute,
    }


def _followed(graph: Graph, link: _Link, node: Node) -> _Link:
    """The layer with what a node after it adds."""
    base, kind = link.base, graph.types[node.name]
    if not base.requantize:
        raise UnsupportedModelError(f"{node.name} reads accumulators, on which a pipeline computes nothing")
    if isinstance(node, MaxPool):
        fits = node.kernel == node.stride == (2, 2) and node.padding == (0, 0, 0, 0)
        if base.is_linear or base.pool or not fits or min(base.out_height, base.out_width) < 2:
            raise UnsupportedModelError(f"{node.name}: a pipeline pools 2 x 2 by steps of 2, once after a convolution")
        pool: Pool = "after" if base.winners else "before"
        base = replace(base, pool=pool, out_height=base.out_height // 2 * 2, out_width=base.out_width // 2 * 2)
    elif isinstance(node, KWTA):
        base = _with_winners(base, node, kind)
    elif not isinstance(node, Reshape):
        raise UnsupportedModelError(f"{node.name}: a pipeline holds no {type(node).__name__}")
    return replace(link, base=base, output=node.name, output_type=kind)


def _with_winners(base: Layer, node: KWTA, kind: TensorType) -> Layer:
    if node.factor is not None:
        raise UnsupportedModelError(f"{node.name} ranks by a factor per channel, which a pipeline does not hold")
    if base.winners or (not base.is_linear and node.scope == "global"):
        raise UnsupportedModelError(f"{node.name}: one k-WTA per layer, local after a convolution")
    if node.k >= node.scope_size(kind):
        return base
    return replace(base, winners=node.k)


# --- where kernels are -----------------------------------------------------------------------------------------------


def kernel_places(layer: Layer, node: Conv2d | Linear) -> NDArray[np.int64]:
    """The kernel at each place `[passes, slots, sets, columns]`, in the order of the engine; -1 for nobody's."""
    if layer.slots == 1:
        places = np.arange(layer.passes * layer.columns).reshape(layer.passes, 1, 1, layer.columns)
    else:
        assert isinstance(node.weight, PackedMatrix)
        members = np.full((layer.passes * layer.sets, layer.slots), -1, np.int64)
        members[: node.weight.sets] = node.weight.members
        blocks = members.reshape(layer.passes, layer.sets, layer.slots).swapaxes(1, 2)[..., None]
        places = np.where(blocks < 0, -1, blocks * layer.columns + np.arange(layer.columns))
    return np.where(places < layer.kernels, places, -1)


def _with_channels(layer: Layer, link: _Link) -> Layer:
    """A convolution's channels are wired; a linear layer's are parameters."""
    if layer.is_linear:
        return layer
    return replace(layer, channel_of=tuple(kernel_places(layer, link.node).reshape(-1).tolist()))


def _check_places(name: str, packed: PackedMatrix) -> None:
    used = packed.members[packed.members >= 0]
    if len(np.unique(used)) != len(used) or len(used) != packed.kernel_blocks:
        raise UnsupportedModelError(
            f"{name} has kernels in several sets, or in none; a pipeline sums each kernel in one place: pack a "
            "mask that is complementary"
        )
    if packed.set_size > _MAX_SLOTS:
        raise UnsupportedModelError(f"{name} has sets of {packed.set_size} kernels; a pipeline's have at most 255")


# --- small arithmetic ------------------------------------------------------------------------------------------------


def ceil_log2(n: int) -> int:
    """Bits that count n things."""
    return (n - 1).bit_length()


def index_bits(n: int) -> int:
    """Bits of an index below n; at least one, as in the hardware."""
    return max(1, ceil_log2(n))


def round_up(n: int, step: int) -> int:
    """The multiple of step that holds n."""
    return -(-n // step) * step


def _signed_bits(magnitude: int) -> int:
    return magnitude.bit_length() + 1


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


assert MAGNITUDE == {"uint8": 255, "int8": 128}  # what Layer.lane_bits counts with
assert {field.name for field in fields(Plan)} >= {"layers"}
