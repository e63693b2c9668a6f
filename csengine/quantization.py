"""A float network and calibration samples become an integer network.

Weights are int8 with one scale per output channel; activations are uint8 where they cannot be negative, else int8, with
one scale per tensor; every zero point is 0, so what was inactive stays exactly 0. ReLU becomes the clamp of an unsigned
result. What has no integer form stays float32 (`csengine.islands`), between a `Dequantize` and a `Quantize`. `Graph`
then proves that no accumulator can overflow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from csengine import reference
from csengine.errors import GraphError, QuantizationError
from csengine.graph import (
    KWTA,
    Activation,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv2d,
    Dequantize,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Packing,
    Product,
    Quantize,
    Relu,
    Requantization,
    Reshape,
    Softmax,
    Transpose,
)
from csengine.islands import float_operations
from csengine.packing import PackedMatrix

Array = NDArray[Any]
_PASSING = (Relu, Clip, MaxPool, KWTA, Reshape, Transpose)  # operations whose result has the scale of their input
_BATCH = 64  # calibration samples traced at a time
_BINS = 4096  # of a calibration histogram
_LARGEST = {"uint8": 255, "int8": 127}
_RATIOS = 2.0**-32, 65535 * 2.0**-1  # what a multiplier and a shift can express


@dataclass(frozen=True)
class KnownScale:
    """What a quantized source says of an activation: its type and the real value of 1.

    is_exact: whether these are the source's own; otherwise they were made from its range, for a zero point that is
    not 0.
    """

    dtype: Literal["uint8", "int8"]
    scale: float
    is_exact: bool = True


@dataclass(frozen=True, eq=False)
class KnownScales:
    """What a quantized source says: of float tensors, and of the weights of layers, `[O]`, by name."""

    activations: Mapping[str, KnownScale] = field(default_factory=dict)
    weights: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerError:
    """What quantization did to one tensor, measured on the calibration samples.

    relative_error: root of the mean squared difference over the root mean square of the float values.
    saturated: share of the values that lie at the end of the integer range.
    """

    name: str
    dtype: str
    scale: float
    relative_error: float
    saturated: float


def quantize(
    graph: Graph,
    samples: NDArray[np.float32] | None,
    *,
    percentile: float | None = None,
    integer_output: bool = False,
    known: KnownScales | None = None,
) -> tuple[Graph, tuple[LayerError, ...]]:
    """The integer network of a float one, and the error it makes per layer.

    samples: calibration inputs `[B, ...]` in NHWC, an array or what becomes one. percentile: None scales every tensor
    to its largest magnitude seen; a number such as 99.99 to that percentile of its non-zero magnitudes, and saturates
    the rest. integer_output: leave the result as integers, unless it is of an operation that has no integer form.
    known: scales to use instead of calibrated ones; if it has all of them, samples may be None, and no errors are
    measured. Raises QuantizationError.
    """
    if any(kind.is_integer for kind in graph.types.values()):
        raise QuantizationError("the network holds integers already; expected a float32 network")
    if samples is not None:
        samples = np.asarray(samples, np.float32)
        _check_samples(graph, samples)
    if percentile is not None and not 50.0 < percentile <= 100.0:
        raise QuantizationError(f"percentile is {percentile}; expected between 50 and 100")
    graph = fold_affines(_without_dead_ends(graph))
    floats = float_operations(graph, integer_output)
    graph = _with_affines_as_layers(graph, floats)
    ranges = None if samples is None else observe(graph, samples, percentile)
    quantizer = _Quantizer(graph, ranges, integer_output, known or KnownScales(), floats)
    try:
        result = Graph(tuple(quantizer.build()), graph.layout)
    except GraphError as error:
        raise QuantizationError(str(error)) from error
    if not any(kind.is_integer for kind in result.types.values()):
        raise QuantizationError("nothing in the network has an integer form; keep it float32 (--float)")
    return result, () if samples is None else measure_errors(graph, result, quantizer.source_of, samples)


def _check_samples(graph: Graph, samples: Array) -> None:
    if samples.shape[1:] != graph.input.shape or len(samples) == 0 or not np.isfinite(samples).all():
        shape = ", ".join(map(str, graph.input.shape))
        is_turned = samples.shape[1:] == graph.outside(graph.input.shape)
        hint = f"; these are {graph.layout}: give graph.from_caller(samples)" if is_turned else ""
        raise QuantizationError(
            f"calibration needs finite samples [B, {shape}] in NHWC, B > 0; got shape {samples.shape}{hint}"
        )


# --- simplification --------------------------------------------------------------------------------------------------


def _without_dead_ends(graph: Graph) -> Graph:
    """The network without what its result does not depend on."""
    needed = {graph.input.name, graph.output.name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return Graph(tuple(node for node in graph.nodes if node.name in needed), graph.layout)


def fold_affines(graph: Graph) -> Graph:
    """Fold every affine into the convolution or linear layer before it, where nothing else reads that layer.

    The layer keeps its name and takes the affine's place in the order.
    """
    folded: dict[str, Node] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        is_only_reader = bool(node.inputs) and len(graph.readers[node.inputs[0]]) == 1
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        source = folded[node.inputs[0]] if isinstance(node, Affine) else None
        if isinstance(node, Affine) and isinstance(source, (Conv2d, Linear)) and is_only_reader:
            del folded[source.name]
            folded[source.name] = _fold(source, node)
            renamed[node.name] = source.name
        else:
            folded[node.name] = node
    return Graph(tuple(folded.values()), graph.layout)


def _with_affines_as_layers(graph: Graph, floats: Collection[str]) -> Graph:
    """Every affine that could not be folded and does not stay float32 as a convolution per channel of its image."""
    nodes = (node if node.name in floats else _as_layer(node) for node in graph.nodes)
    return Graph(tuple(nodes), graph.layout)


def _as_layer(node: Node) -> Node:
    if not isinstance(node, Affine):
        return node
    return Conv2d(
        name=node.name,
        inputs=node.inputs,
        weight=node.scale[None],
        bias=node.shift,
        kernel=(1, 1),
        groups=len(node.scale),
    )


def _fold(layer: Conv2d | Linear, affine: Affine) -> Conv2d | Linear:
    """A layer that includes the affine after it; computed in double."""
    scale = affine.scale.astype(np.float64)
    bias = np.zeros(layer.kernels) if layer.bias is None else layer.bias.astype(np.float64)
    return replace(
        layer,
        weight=(layer.dense_weight * scale).astype(np.float32),
        bias=(bias * scale + affine.shift).astype(np.float32),
        packing=_packing_of(layer),
    )


def _packing_of(layer: Conv2d | Linear) -> Packing | None:
    """The packing that a layer has or wants."""
    if isinstance(layer.weight, PackedMatrix):
        return Packing(layer.weight.block, layer.weight.set_size, layer.weight.members)
    return layer.packing


# --- calibration -----------------------------------------------------------------------------------------------------


def observe(graph: Graph, samples: Array, percentile: float | None) -> dict[str, tuple[float, float]]:
    """Lowest value and largest magnitude (or its percentile) of every tensor."""
    lowest = dict.fromkeys(graph.types, np.inf)
    largest = dict.fromkeys(graph.types, 0.0)
    for batch in _batches(samples):
        for name, values in reference.trace(graph, batch).items():
            lowest[name] = min(lowest[name], float(values.min()))
            largest[name] = max(largest[name], float(np.abs(values).max()))
    if percentile is not None:
        largest = _percentiles(graph, samples, largest, percentile)
    return {name: (lowest[name], largest[name]) for name in graph.types}


def _percentiles(graph: Graph, samples: Array, largest: Mapping[str, float], percentile: float) -> dict[str, float]:
    """Percentile of the non-zero magnitudes of every tensor, from histograms."""
    counts = {name: np.zeros(_BINS, np.int64) for name in graph.types}
    for batch in _batches(samples):
        for name, values in reference.trace(graph, batch).items():
            magnitudes = np.abs(values[values != 0]).astype(np.float64)
            counts[name] += np.histogram(magnitudes, _BINS, (0.0, largest[name] or 1.0))[0]
    found = {}
    for name, histogram in counts.items():
        reached = np.searchsorted(np.cumsum(histogram), percentile / 100.0 * histogram.sum())
        found[name] = largest[name] * (min(int(reached), _BINS - 1) + 1) / _BINS
    return found


def _batches(samples: Array) -> list[Array]:
    return [samples[i : i + _BATCH] for i in range(0, len(samples), _BATCH)]


# --- numbers ---------------------------------------------------------------------------------------------------------


def multiplier_and_shift(ratio: NDArray[np.float64]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """`ratio ~ M / 2**s` with `2**15 <= M < 2**16` and `1 <= s <= 47`. Raises QuantizationError."""
    mantissa, exponent = np.frexp(ratio)
    multiplier = np.rint(mantissa * 2**16)
    carried = multiplier == 2**16
    multiplier, shift = np.where(carried, 2**15, multiplier), 16 - exponent - carried
    if not (np.isfinite(ratio).all() and (ratio > 0).all() and (shift >= 1).all() and (shift <= 47).all()):
        raise QuantizationError(
            f"scale ratios from {ratio.min()} to {ratio.max()} do not fit; expected 2**-32 to 2**15"
        )
    return multiplier.astype(np.uint16), shift.astype(np.uint8)


def _nearest(ratio: NDArray[np.float64]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """`multiplier_and_shift` of the nearest ratio that fits.

    Others come from tensors that calibration saw as zero. The greatest saturates every non-zero integer; the least
    takes any activation to 0 (`quantize_weights` keeps accumulators above it).
    """
    return multiplier_and_shift(np.clip(ratio, *_RATIOS))


def quantize_weights(
    layer: Conv2d | Linear,
    input_scale: float,
    output_scale: float | None,
    known: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.int32] | None, NDArray[np.float64]]:
    """int8 weights, int32 bias, and the real value `[O]` of 1 in each accumulator.

    known: the real value `[O]` of 1 in the weights, used if they are whole numbers of it.
    """
    weight = layer.dense_weight.astype(np.float64)
    bias = np.zeros(layer.kernels) if layer.bias is None else layer.bias.astype(np.float64)
    scale = np.abs(weight).max(axis=0, initial=0.0) / 127.0
    if known is not None and _fits(weight / known):
        scale = known
    scale = np.maximum(scale, np.abs(bias) / (input_scale * 2.0**30))  # the bias has to fit, too
    if output_scale is not None:
        scale = np.maximum(scale, output_scale / input_scale * 2.0**-30)  # below that, nothing rounds to 1
    scale = np.where(scale > 0, scale, 1.0)
    unit = scale * input_scale
    quantized = np.clip(np.rint(weight / scale), -128, 127).astype(np.int8)
    return quantized, None if layer.bias is None else np.rint(bias / unit).astype(np.int32), unit


def _fits(levels: NDArray[np.float64]) -> bool:
    """Whether these are weights of int8, as precisely as float32 holds their real values."""
    return bool(np.abs(levels).max(initial=0.0) < 128.5 and np.abs(levels - np.rint(levels)).max(initial=0.0) < 1e-3)


def table_of(
    node: Activation, input_scale: float, is_unsigned: bool, dtype: Literal["uint8", "int8"], scale: float
) -> NDArray[np.uint8] | NDArray[np.int8]:
    """The function of every integer of 8 bits `[256]`, by its byte, rounded to the integers of the result."""
    integers = np.arange(256, dtype=np.uint8).view(np.uint8 if is_unsigned else np.int8)
    exact = reference.activate(node, integers.astype(np.float64) * input_scale)
    limits = np.iinfo(dtype)
    table: NDArray[Any] = np.clip(np.rint(exact / scale), limits.min, limits.max).astype(dtype)
    return table


def _starts_at_zero(node: Node) -> bool:
    return isinstance(node, Clip) and node.minimum == 0


def _clip(node: Clip, inputs: tuple[str, ...], scale: float, dtype: str) -> Clip:
    """The clip of integers of this scale."""
    limits = np.iinfo(dtype)
    low, high = (
        None if bound is None else float(np.clip(np.rint(bound / scale), limits.min, limits.max))
        for bound in (node.minimum, node.maximum)
    )
    return replace(node, inputs=inputs, minimum=low, maximum=high)


# --- the rewrite -----------------------------------------------------------------------------------------------------


class _Quantizer:
    """Walks a float graph once and builds the integer one. floats: operations that stay float32."""

    def __init__(
        self,
        graph: Graph,
        ranges: Mapping[str, tuple[float, float]] | None,
        integer_output: bool,
        known: KnownScales,
        floats: Collection[str],
    ) -> None:
        self.graph = graph
        self.ranges = ranges
        self.integer_output = integer_output
        self.known = known
        self.floats = floats
        self.nodes: list[Node] = []
        self.name_of: dict[str, str] = {}  # float tensor -> the tensor that stands for it, integer or not
        self.source_of: dict[str, str] = {}  # that -> the float tensor it stands for
        self.scale_of: dict[str, float] = {}  # integer tensor -> real value of 1
        self.unsigned: dict[str, bool] = {}  # integer tensor -> whether it is uint8
        self.dropped: set[str] = set()  # ReLUs that became a clamp
        self.dequantized: dict[str, str] = {}  # integer tensor -> the same in float32
        self.quantized: dict[str, str] = {}  # float tensor that stays -> the same as integers

    def build(self) -> Sequence[Node]:
        for node in self.graph.nodes:
            if node.name in self.dropped:
                self._stands_for(self.name_of[node.inputs[0]], node.name)
            else:
                self.nodes.extend(self._convert(node))
        if not self.integer_output:
            self._as_float(self.graph.output.name)
        return self.nodes

    def _stands_for(self, tensor: str, source: str) -> None:
        self.name_of[source] = tensor
        self.source_of[tensor] = source

    def _convert(self, node: Node) -> list[Node]:
        self._stands_for(node.name, node.name)
        if self._stays_float(node):
            return [replace(node, inputs=tuple(self._as_float(name) for name in node.inputs))]
        inputs = tuple(self._as_integers(name) for name in node.inputs)
        if isinstance(node, _PASSING):
            self.scale_of[node.name], self.unsigned[node.name] = self.scale_of[inputs[0]], self.unsigned[inputs[0]]
            if isinstance(node, Clip):
                return self._convert_clip(node, inputs)
            return [replace(node, inputs=inputs)]
        if isinstance(node, (Conv2d, Linear)) and self._leaves_accumulators(node):
            return self._convert_last(node, inputs)
        dtype, scale = self._result_type(node, inputs)
        self.scale_of[node.name], self.unsigned[node.name] = scale, dtype == "uint8"
        if isinstance(node, Input):
            return [replace(node, dtype=dtype, scale=scale)]
        if isinstance(node, (Conv2d, Linear)):
            weight, bias, unit = self._quantize_weights(node, inputs, scale)
            requantization = Requantization(*_nearest(unit / scale), dtype, scale)
            packing = _packing_of(node)
            changes = {"weight": weight, "bias": bias, "requantization": requantization, "packing": packing}
            return [replace(node, inputs=inputs, **changes)]
        if isinstance(node, Activation):
            table = table_of(node, self.scale_of[inputs[0]], self.unsigned[inputs[0]], dtype, scale)
            return [replace(node, inputs=inputs, table=table, scale=scale)]
        if isinstance(node, (AveragePool, Add, Product, Concat)):
            return [replace(node, inputs=inputs, requantization=self._rescale(node, inputs, dtype, scale))]
        raise AssertionError(f"{node.name}: {type(node).__name__} has an integer form that is not written")

    def _stays_float(self, node: Node) -> bool:
        """Besides islands: a softmax at the end, and what arranges its result."""
        is_after = any(self.name_of[name] not in self.scale_of for name in node.inputs)
        is_layer = isinstance(node, (Conv2d, Linear))
        return node.name in self.floats or isinstance(node, Softmax) or (is_after and not is_layer)

    def _as_float(self, name: str) -> str:
        """The tensor of the new network that holds a float tensor in float32."""
        tensor = self.name_of[name]
        if tensor not in self.scale_of:
            return tensor
        if tensor not in self.dequantized:
            scaled = Dequantize(
                name=self._fresh(f"{tensor}.scaled"), inputs=(tensor,), scale=np.array([self.scale_of[tensor]])
            )
            self.nodes.append(scaled)
            self.dequantized[tensor] = scaled.name
        return self.dequantized[tensor]

    def _as_integers(self, name: str) -> str:
        """The tensor of the new network that holds a float tensor as integers."""
        tensor = self.name_of[name]
        if tensor in self.scale_of:
            return tensor
        if tensor not in self.quantized:
            dtype, scale = self._island_type(name)
            made = Quantize(name=self._fresh(f"{tensor}.quantized"), inputs=(tensor,), dtype=dtype, scale=scale)
            self.nodes.append(made)
            self.quantized[tensor], self.source_of[made.name] = made.name, name
            self.scale_of[made.name], self.unsigned[made.name] = scale, dtype == "uint8"
        return self.quantized[tensor]

    def _fresh(self, name: str) -> str:
        """A name that no tensor has."""
        taken = {*self.graph.types, *self.quantized.values(), *self.dequantized.values()}
        while name in taken:
            name += "_"
        return name

    def _island_type(self, name: str) -> tuple[Literal["uint8", "int8"], float]:
        """Type and scale of a float tensor that a layer reads."""
        made_by = {node.name: node for node in self.graph.nodes}
        source = made_by[name]
        while source.name not in self.known.activations and isinstance(source, _PASSING):
            source = made_by[source.inputs[0]]
        known = self.known.activations.get(source.name)
        if known is not None:
            return known.dtype, known.scale
        lowest, largest = self._range(name, name)
        dtype: Literal["uint8", "int8"] = "uint8" if lowest >= 0 else "int8"
        return dtype, max(largest, 1e-12) / _LARGEST[dtype]

    def _range(self, name: str, owner: str) -> tuple[float, float]:
        """What samples gave a float tensor. owner: who asks."""
        if self.ranges is None:
            raise QuantizationError(f"{owner}: the source has no scale for it; give samples to calibrate with")
        return self.ranges[name]

    def _quantize_weights(self, node: Conv2d | Linear, inputs: Sequence[str], scale: float | None) -> Any:
        return quantize_weights(node, self.scale_of[inputs[0]], scale, self.known.weights.get(node.name))

    def _convert_clip(self, node: Clip, inputs: tuple[str, ...]) -> list[Node]:
        """Nothing, where the integers' own range clips already."""
        dtype = "uint8" if self.unsigned[node.name] else "int8"
        clip, limits = _clip(node, inputs, self.scale_of[node.name], dtype), np.iinfo(dtype)
        bounds = (clip.minimum or limits.min, limits.max if clip.maximum is None else clip.maximum)
        if bounds != (limits.min, limits.max):
            return [clip]
        self._stands_for(inputs[0], node.name)
        return []

    def _chain(self, node: Node) -> list[Node]:
        """The node and the scale-keeping operations after it, while each is read by one other only."""
        chain = [node]
        while len(readers := self.graph.readers[chain[-1].name]) == 1 and isinstance(readers[0], _PASSING):
            chain.append(readers[0])
        return chain

    def _result_type(self, node: Node, inputs: Sequence[str]) -> tuple[Literal["uint8", "int8"], float]:
        """Type and scale of a requantized result; a ReLU that follows becomes the clamp of an unsigned one."""
        chain = self._chain(node)
        # Calibration never saw more than a clip lets through, so saturation stands for its upper end.
        relus = {item.name for item in chain if isinstance(item, Relu) or _starts_at_zero(item)}
        known = [self.known.activations[item.name] for item in chain if item.name in self.known.activations]
        if known:
            self.dropped |= relus if known[-1].dtype == "uint8" else set()
            return known[-1].dtype, known[-1].scale
        lowest, largest = self._range(chain[-1].name, node.name)
        self.dropped |= relus
        if isinstance(node, Input):
            unsigned = bool(relus) or lowest >= 0
        else:
            is_weighted = isinstance(node, (Conv2d, Linear))
            is_positive = isinstance(node, Activation) and node.function in ("sigmoid", "hard_sigmoid")
            keeps_sign = not is_weighted and all(self.unsigned[name] for name in inputs)
            unsigned = bool(relus) or is_positive or keeps_sign
        dtype: Literal["uint8", "int8"] = "uint8" if unsigned else "int8"
        return dtype, max(largest, 1e-12) / _LARGEST[dtype]

    def _rescale(
        self,
        node: AveragePool | Add | Product | Concat,
        inputs: Sequence[str],
        dtype: Literal["uint8", "int8"],
        scale: float,
    ) -> Requantization:
        ratio = np.array([self.scale_of[name] / scale for name in inputs])
        if isinstance(node, Add):
            _, shift = _nearest(ratio.max(keepdims=True))
            multiplier = np.minimum(np.rint(ratio * 2.0 ** shift.astype(np.float64)), 2**16 - 1).astype(np.uint16)
            return Requantization(multiplier, shift, dtype, scale)
        if isinstance(node, Product):
            return Requantization(*_nearest(ratio[:1] * self.scale_of[inputs[1]]), dtype, scale)
        if isinstance(node, AveragePool):
            area = node.kernel[0] * node.kernel[1]
            ratio = ratio / (area if node.count_padding else np.arange(1, area + 1))
        return Requantization(*_nearest(ratio), dtype, scale)

    def _leaves_accumulators(self, node: Node) -> bool:
        """Whether only the network's user, or float32, reads the node."""
        readers = self.graph.readers[node.name]
        return all(isinstance(reader, Softmax) or reader.name in self.floats for reader in readers)

    def _convert_last(self, node: Conv2d | Linear, inputs: tuple[str, ...]) -> list[Node]:
        weight, bias, unit = self._quantize_weights(node, inputs, None)
        layer = replace(node, inputs=inputs, weight=weight, bias=bias, packing=_packing_of(node))
        if self.integer_output and not self.graph.readers[node.name]:
            return [layer]
        scaled = Dequantize(name=self._fresh(f"{node.name}.scaled"), inputs=(node.name,), scale=unit)
        self._stands_for(scaled.name, node.name)
        self.dequantized[node.name] = scaled.name
        return [layer, scaled]


# --- the report ------------------------------------------------------------------------------------------------------


def measure_errors(
    graph: Graph, integer: Graph, source_of: Mapping[str, str], samples: Array
) -> tuple[LayerError, ...]:
    """Compare every integer activation with the float tensor it stands for, on the first batch of samples."""
    batch = samples[:_BATCH]
    wanted, got = reference.trace(graph, batch), reference.trace(integer, batch)
    errors = []
    for name, kind in integer.types.items():
        if kind.scale is None:
            continue
        exact = wanted[source_of[name]].astype(np.float64)
        if kind.dtype == "uint8":
            exact = np.maximum(exact, 0.0)  # a ReLU further on became this tensor's clamp
        error = relative_error(got[name] * kind.scale, exact)
        saturated = float((np.abs(got[name].astype(np.int64)) >= _LARGEST[kind.dtype]).mean())
        errors.append(LayerError(name, kind.dtype, kind.scale, error, saturated))
    return tuple(errors)


def relative_error(got: Array, wanted: Array) -> float:
    """Root of the mean squared difference over the root mean square of what is wanted (over 1 if that is all zero)."""
    exact = wanted.astype(np.float64)
    return float(np.sqrt(np.square(got - exact).mean()) / (np.sqrt(np.square(exact).mean()) or 1.0))
