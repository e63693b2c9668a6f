"""Random valid networks and inputs for them, the same for every test and every backend.

    graph = random_graph(seed, integer=True)        # any operation, any option; a run takes milliseconds
    x = random_input(graph, batch=7, seed=seed)     # float32; direct=True gives the model's own input type
    assert_matches(graph, node_name, got, expected) # exact where results are defined exactly

`graphs(integer=...)` is the hypothesis strategy: the same generator, but it shrinks.

Integer networks use the full value range, with many ties and zeros, and accumulators up to the 32-bit limit; their
requantizations come from the spread of the accumulators, so that results are neither all zero nor all saturated.
Float networks compute with small multiples of powers of two, and k-WTA reads only tensors whose sums are exact in any
order: rounding can then not turn into another choice of winners, and backends can be compared with a tolerance.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from csengine import reference
from csengine.graph import (
    ACCUMULATOR_LIMIT,
    FUNCTIONS,
    KWTA,
    MAGNITUDE,
    Activation,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv2d,
    Dequantize,
    Gelu,
    Graph,
    Input,
    LayerNorm,
    Linear,
    LocalResponseNorm,
    MatMul,
    MaxPool,
    Node,
    Product,
    Quantize,
    Relu,
    Requantization,
    Reshape,
    Softmax,
    TensorType,
    Transpose,
)
from csengine.packing import PackedMatrix, pack

Array = NDArray[Any]
Weights = Literal["any", "dense", "packed"]

#: Around the widths of vector registers, small ones more often.
CHANNELS = (1, 2, 3, 4, 5, 7, 8, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65)
BLOCKS = ((1, 1), (4, 1), (1, 16), (4, 16), (64, 8))
DENSITIES = (0.0, 0.02, 0.05, 0.1, 0.3, 0.7, 1.0)
#: Multiply-accumulates of one layer and sample, so that the reference stays fast.
MAX_MACS = 2**15
_SAMPLES = 6


def random_graph(seed: int, *, integer: bool, length: int | None = None, weights: Weights = "any") -> Graph:
    """The random network of a seed.

    integer: integer activations (which may end in a dequantization and a softmax), or float32 throughout.
    length: operations before the final ones, by default 1 to 8. weights: "packed" and "dense" force one kind (grouped
    convolutions are always dense).
    """
    return _Builder(random.Random(seed), integer, weights).build(length)


@st.composite
def graphs(draw: st.DrawFn, integer: bool | None = None, length: int | None = None) -> Graph:
    """Random networks that shrink: to fewer and smaller operations."""
    is_integer = draw(st.booleans()) if integer is None else integer
    return _Builder(draw(st.randoms(use_true_random=False)), is_integer, "any").build(length)


def random_input(graph: Graph, batch: int, seed: int, *, direct: bool = False) -> Array:
    """A batch `[B, ...]` in NHWC; samples differ in kind: full range, few values, extremes, sparse, all zero.

    float32, or with direct=True the model's own input type. For integer models, float32 values lie also half-way
    between two integers and beyond the range.
    """
    rng = np.random.default_rng(seed)
    kind = graph.types[graph.input.name]
    values = np.stack([_sample(rng, kind, i + seed) for i in range(batch)]) if batch else np.zeros((0, *kind.shape))
    if kind.scale is None:
        return (values / 8).astype(np.float32)
    if direct:
        return values.astype(kind.dtype)
    jitter = rng.choice([0.0, 0.0, 0.25, -0.5, 0.5], values.shape) * (values != 0)
    jitter = np.where(rng.random(values.shape) < 0.02, values * 3, jitter)
    return ((values + jitter) * kind.scale).astype(np.float32)


def _sample(rng: np.random.Generator, kind: TensorType, number: int) -> Array:
    """One sample of whole numbers in the range of the type (int8's for float32)."""
    limits = np.iinfo("int8" if kind.dtype == "float32" else kind.dtype)
    full = rng.integers(limits.min, limits.max, kind.shape, endpoint=True)
    return [
        full,
        rng.choice([0, 1, 2], kind.shape),
        rng.choice([limits.min, 0, limits.max - 1, limits.max], kind.shape),
        full * (rng.random(kind.shape) < 0.1),
        np.zeros(kind.shape),
        np.full(kind.shape, rng.choice([limits.min, limits.max, 1])),
    ][number % 6]


def assert_matches(graph: Graph, name: str, got: Array, expected: Array) -> None:
    """Fail unless a backend's tensor is what the reference computes.

    Integers and dequantized integers are compared bit for bit; other float32 to 1e-5 of the tensor's scale.
    """
    node = next(node for node in graph.nodes if node.name == name)
    assert got.dtype == expected.dtype, f"{name} is {got.dtype}; expected {expected.dtype}"
    assert got.shape == expected.shape, f"{name} has shape {got.shape}; expected {expected.shape}"
    if graph.types[name].is_integer or _is_dequantized(graph, node):
        np.testing.assert_array_equal(got, expected, err_msg=name)
    else:
        scale = float(np.abs(expected).max(initial=0.0))
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale + 1e-30, err_msg=name)


def _is_dequantized(graph: Graph, node: Node) -> bool:
    """Whether only exact operations lie between a tensor and a dequantization."""
    while isinstance(node, (Reshape, Relu, Clip)):
        source = node.inputs[0]
        node = next(node for node in graph.nodes if node.name == source)
    return isinstance(node, Dequantize)


class _Builder:
    """Grows a network node by node and runs the reference on samples, from which scales are chosen."""

    def __init__(self, choices: random.Random, integer: bool, weights: Weights) -> None:
        self.choices = choices
        self.rng = np.random.default_rng(choices.getrandbits(32))
        self.integer = integer
        self.weights = weights
        self.nodes: list[Node] = []
        self.types: dict[str, TensorType] = {}
        self.samples: dict[str, Array] = {}
        # float32 only: every value is a multiple of `grid` below `bound`; exact while bound / grid < 2**24
        self.grid: dict[str, float] = {}
        self.bound: dict[str, float] = {}

    def build(self, length: int | None) -> Graph:
        current = self._input()
        for _ in range(self.choices.randint(1, 8) if length is None else length):
            source = self.choices.choice(self._joints()[-3:]) if self._chance(0.25) else current
            current = self.choices.choice(self._possible(source))(source)
        current = self._tail(current)
        if current != self.nodes[-1].name:  # the output is the last node
            current = self._add(Reshape, current, shape=self.types[current].shape)
        return Graph(tuple(self.nodes), self.choices.choice(["NHWC", "NCHW"]))

    def _joints(self) -> list[str]:
        """Tensors that any operation may read: not those within an island of float32."""
        return [name for name, kind in self.types.items() if kind.is_integer == self.integer]

    def _chance(self, probability: float) -> bool:
        return self.choices.random() >= 1 - probability  # shrinks to False

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _input(self) -> str:
        if self._chance(0.7):
            shape: tuple[int, ...] = (self.choices.randint(1, 8), self.choices.randint(1, 8), self._channels())
        else:
            shape = (self._channels(),)
        dtype = self._dtype() if self.integer else "float32"
        scale = self._scale() if self.integer else None
        node = Input(name="input", inputs=(), shape=shape, dtype=dtype, scale=scale)  # type: ignore[arg-type]
        kind = node.infer([])
        self.nodes, self.types = [node], {"input": kind}
        samples = np.stack([_sample(self.rng, kind, i) for i in range(_SAMPLES)])
        self.samples["input"] = samples.astype(kind.dtype) if self.integer else (samples / 8).astype(np.float32)
        self.grid["input"], self.bound["input"] = 1 / 8, 16.0
        return "input"

    def _possible(self, source: str) -> list[Callable[[str], str]]:
        kind = self.types[source]
        steps: list[Callable[[str], str]] = [self._relu, self._clip, self._reshape, self._branch, self._branch]
        steps += [self._activation]
        if len(kind.shape) == 3:
            steps += [self._conv2d] * 6 + [self._max_pool, self._max_pool, self._average_pool, self._transpose]
        else:
            steps += [self._linear] * 5
        if self.integer or self._is_exact(source):
            steps += [self._kwta] * 4
        if self.integer or self._is_exact(source):
            steps += [self._multiply]
        if self.integer:
            steps += [self._island]
        else:
            steps += [self._affine, self._gelu]
            # Where the largest values cancel out, rounding errors of their size would remain: none have been made yet.
            steps += [self._layer_norm, self._local_response_norm] if self._is_exact(source) else []
            steps += [self._matmul] if self._is_exact(source) and len(kind.shape) == 3 else []
        return steps

    def _add(self, kind: type[Node], *inputs: str, **attributes: Any) -> str:
        """Append a node; returns its name."""
        name = f"{kind.__name__.lower()}{len(self.nodes)}"
        return self._append(kind(name=name, inputs=inputs, **attributes))

    def _append(self, node: Node) -> str:
        self.nodes.append(node)
        self.types[node.name] = node.infer([self.types[name] for name in node.inputs])
        self.samples[node.name] = reference.apply(node, [self.samples[name] for name in node.inputs])
        self._track(node)
        return node.name

    def _conv2d(self, source: str) -> str:
        height, width, channels = self.types[source].shape
        padding = self._padding()
        kernel = (
            self.choices.randint(1, min(5, height + padding[0] + padding[2])),
            self.choices.randint(1, min(5, width + padding[1] + padding[3])),
        )
        stride = (self.choices.choice([1, 1, 2, 3]), self.choices.choice([1, 1, 2, 3]))
        groups = self.choices.choice([g for g in (1, 1, 1, 1, 2, 3, channels) if channels % g == 0])
        outputs = groups * self.choices.choice([1, 1, 2]) if groups > 1 else self._channels()
        positions = prod(
            (extent + before + after - k) // step + 1
            for extent, before, after, k, step in zip(
                (height, width), padding[:2], padding[2:], kernel, stride, strict=True
            )
        )
        if prod(kernel) * positions * channels // groups * outputs > MAX_MACS:
            kernel, stride, padding = (1, 1), (2, 2), (0, 0, 0, 0)
            outputs = outputs if groups > 1 else max(1, min(outputs, MAX_MACS // (channels * 16)))
        rows = prod(kernel) * channels // groups
        spatial = {"kernel": kernel, "stride": stride, "padding": padding, "groups": groups}
        return self._layer(Conv2d, source, rows, outputs, packable=groups == 1, **spatial)

    def _linear(self, source: str) -> str:
        rows = self.types[source].size
        outputs = min(self._channels(), max(1, MAX_MACS // rows))
        return self._layer(Linear, source, rows, outputs)

    def _layer(
        self, kind: type[Conv2d | Linear], source: str, rows: int, outputs: int, packable: bool = True, **spatial: Any
    ) -> str:
        matrix = self._matrix(rows, outputs)
        weight: Any = matrix
        if packable and self.weights != "dense" and (self.weights == "packed" or self._chance(0.7)):
            weight = self._pack(matrix)
        make = {"weight": weight, "bias": self._bias(source, matrix), **spatial}
        node = kind(name=f"{kind.__name__.lower()}{len(self.nodes)}", inputs=(source,), **make)
        if self.integer:
            accumulators = reference.apply(node, [self.samples[source]])
            spread = np.abs(accumulators.reshape(-1, outputs).astype(np.float64))
            node = replace(node, requantization=self._requantization(np.percentile(spread, 90, axis=0)))
        return self._append(node)

    def _affine(self, source: str) -> str:
        channels = self.types[source].channels
        scale = self.rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0], channels).astype(np.float32)
        shift = (self.rng.integers(-8, 9, channels) / 4).astype(np.float32)
        return self._add(Affine, source, scale=scale, shift=shift)

    def _relu(self, source: str) -> str:
        return self._add(Relu, source)

    def _clip(self, source: str) -> str:
        """Bounds that cut something off, or none; exact in float32."""
        peak, kind = self._peak(source), self.types[source]
        low, high = (self.choices.choice([None, 0.0, peak // 2]) for _ in range(2))
        low = None if low is None else -low
        if kind.is_integer:
            limits = np.iinfo(kind.dtype)
            low, high = (None if b is None else float(np.clip(b, limits.min, limits.max)) for b in (low, high))
        return self._add(Clip, source, minimum=low, maximum=high)

    def _activation(self, source: str) -> str:
        """Of integers, any table."""
        function = self.choices.choice(list(FUNCTIONS))
        attributes: dict[str, Any] = {
            "alpha": self.choices.choice([0.01, 1 / 6, 1.0, 1.5]) if FUNCTIONS[function] else 1.0
        }
        if self.integer:
            attributes["table"] = self.rng.integers(0, 256, 256).astype(np.uint8).view(self._dtype())
            attributes["scale"] = self._scale()
        return self._add(Activation, source, function=function, **attributes)

    def _kwta(self, source: str) -> str:
        kind = self.types[source]
        scope: Any = self.choices.choice(["local", "global"])
        size = kind.channels if scope == "local" else kind.size
        k = self.choices.choice([1, 2, max(1, size // 10), max(1, size // 3), max(1, size - 1), size, size + 3])
        factor = None
        if self._chance(0.3):
            few = self.rng.choice([0.5, 1.0, 1.0, 1.25, 3.0], size)
            factor = (few if self._chance(0.5) else self.rng.uniform(0.25, 4.0, size)).astype(np.float32)
        return self._add(KWTA, source, k=k, scope=scope, factor=factor)

    def _gelu(self, source: str) -> str:
        return self._add(Gelu, source, approximate=self.choices.choice(["none", "tanh"]))

    def _layer_norm(self, source: str) -> str:
        channels = self.types[source].channels
        scale, shift = self.rng.standard_normal((2, channels)).astype(np.float32)
        return self._add(LayerNorm, source, scale=scale, shift=shift, epsilon=self.choices.choice([1e-5, 1e-3]))

    def _local_response_norm(self, source: str) -> str:
        size = self.choices.choice([1, 3, 5, 9])
        alpha, beta = self.choices.choice([1e-4, 0.02]), self.choices.choice([0.5, 0.75, 1.3])
        return self._add(
            LocalResponseNorm, source, size=size, alpha=alpha, beta=beta, bias=self.choices.choice([1.0, 2.0])
        )

    def _island(self, source: str) -> str:
        """float32 within an integer network, where every operation is exact."""
        inside = self._dequantize(source)
        if self._chance(0.5):
            inside = self.choices.choice([self._relu, self._reshape])(inside)
        dtype, peak = self._dtype(), float(np.abs(self.samples[inside]).max()) or 1.0
        scale = peak / np.iinfo(dtype).max * self.rng.uniform(0.7, 3.0)
        return self._add(Quantize, inside, dtype=dtype, scale=scale)

    def _dequantize(self, source: str) -> str:
        kind = self.types[source]
        scale = self.rng.uniform(0.2, 5.0, kind.channels if self._chance(0.5) else 1) / self._peak(source)
        return self._add(Dequantize, source, scale=scale)

    def _matmul(self, source: str) -> str:
        """The source times itself, or times a layer of it; as in attention."""
        height, width, channels = self.types[source].shape
        if height * width * width * channels <= MAX_MACS and (width != channels or self._chance(0.5)):
            return self._add(MatMul, source, source, transposed=True)
        turned = self._add(Transpose, source, axes=(0, 2, 1))
        return self._add(MatMul, source, turned) if height * width * width * channels <= MAX_MACS else turned

    def _transpose(self, source: str) -> str:
        return self._add(Transpose, source, axes=tuple(self.choices.sample(range(3), 3)))

    def _max_pool(self, source: str) -> str:
        return self._add(MaxPool, source, **self._window(source))

    def _average_pool(self, source: str) -> str:
        window = self._window(source)
        area = prod(window["kernel"])
        counts = self._chance(0.6)
        divisors = np.array([1.0]) if counts else np.arange(1.0, area + 1) / area
        q = self._requantization(divisors * area * self._peak(source)) if self.integer else None
        return self._add(AveragePool, source, **window, requantization=q, count_padding=counts)

    def _window(self, source: str) -> dict[str, Any]:
        """Attributes of a pool that fits its input."""
        height, width, _ = self.types[source].shape
        if self._chance(0.2):
            return {"kernel": (height, width), "stride": (height, width)}
        kernel = self.choices.randint(1, min(3, height)), self.choices.randint(1, min(3, width))
        stride = self.choices.randint(1, 3), self.choices.randint(1, 3)
        top, left, bottom, right = self._padding()
        most = kernel[0] - 1, kernel[1] - 1
        padding = min(top, most[0]), min(left, most[1]), min(bottom, most[0]), min(right, most[1])
        return {"kernel": kernel, "stride": stride, "padding": padding}

    def _multiply(self, source: str) -> str:
        """By itself, or an image by the largest value of each channel; of integers, or by what a table makes of it."""
        shape, other = self.types[source].shape, source
        if len(shape) == 3 and self._chance(0.7):
            other = self._add(MaxPool, source, kernel=shape[:2], stride=shape[:2])
        if self.integer and self._chance(0.5):
            other = self._activation(other)
        q = self._requantization(np.array([self._peak(source) * self._peak(other)])) if self.integer else None
        return self._add(Product, source, other, requantization=q)

    def _branch(self, source: str) -> str:
        """An addition or a concatenation of the source and one or more other tensors that fit it."""
        shape = self.types[source].shape
        joins = self.choices.choice([Add, Concat])
        if self._chance(0.6):  # a detour, so that the source has two readers
            self.choices.choice([self._relu, self._sideways])(source)
        alike = [
            name
            for name in self._joints()
            if (self.types[name].shape == shape if joins is Add else self.types[name].shape[:-1] == shape[:-1])
        ]
        if joins is Add:
            others = [self.choices.choice(alike[-2:])]
        else:
            room = max(1, 96 // shape[-1])
            others = [self.choices.choice(alike) for _ in range(min(room, self.choices.randint(0, 3)))]
        inputs = [source, *others]
        self.choices.shuffle(inputs)
        q = None
        if self.integer:
            q = self._addition(inputs) if joins is Add else self._concatenation(inputs)
        return self._add(joins, *inputs, requantization=q)

    def _sideways(self, source: str) -> str:
        """A layer that keeps the shape."""
        kind = self.types[source]
        if len(kind.shape) == 1 and kind.size**2 <= MAX_MACS:
            return self._layer(Linear, source, kind.size, kind.size)
        if len(kind.shape) == 3 and kind.size * kind.channels <= MAX_MACS:
            return self._layer(Conv2d, source, kind.channels, kind.channels, kernel=(1, 1))
        return self._relu(source)

    def _reshape(self, source: str) -> str:
        shape = self.types[source].shape
        size = prod(shape)
        turned = (
            [(shape[1], shape[0], shape[2]), (1, size // shape[2], shape[2])] if len(shape) == 3 else [(1, 1, size)]
        )
        square = [(2, 2, size // 4)] if size % 4 == 0 else []
        return self._add(Reshape, source, shape=self.choices.choice([(size,), *turned, *square]))

    def _tail(self, current: str) -> str:
        """How networks end: as they are, in accumulators, dequantized, or in a softmax."""
        if self._chance(0.3):
            return current
        if self._chance(0.5):  # a classifier
            current = self._add(Reshape, current, shape=(self.types[current].size,))
            current = self._linear(current)
        elif self._chance(0.5) and len(self.types[current].shape) == 3:
            current = self._conv2d(current)
        if not self.integer:
            return self._softmax(current) if self._chance(0.5) else current
        last = self.nodes[-1]
        if isinstance(last, (Conv2d, Linear)) and last.name == current and self._chance(0.7):
            self.nodes.pop()
            current = self._append(replace(last, requantization=None))
        if self._chance(0.3):
            return current
        current = self._dequantize(current)
        return self._add(Softmax, current) if self._chance(0.5) else current

    def _softmax(self, source: str) -> str:
        """A softmax of small logits: errors of large ones would not be small any more."""
        peak = float(np.abs(self.samples[source]).max())
        channels = self.types[source].channels
        scale = np.full(channels, 2.0 ** -np.ceil(np.log2(max(peak, 1.0) / 4)), np.float32)
        source = self._add(Affine, source, scale=scale, shift=np.zeros(channels, np.float32))
        return self._add(Softmax, source)

    # --- attributes --------------------------------------------------------------------------------------------------

    def _channels(self) -> int:
        return self.choices.choice(CHANNELS)

    def _dtype(self) -> Literal["uint8", "int8"]:
        return self.choices.choice(["uint8", "int8"])

    def _scale(self) -> float:
        return 2.0 ** self.choices.randint(-12, 4) * self.choices.choice([1.0, 1.1, 1.7])

    def _padding(self) -> tuple[int, int, int, int]:
        if self._chance(0.5):
            return (
                self.choices.randint(0, 2),
                self.choices.randint(0, 2),
                self.choices.randint(0, 2),
                self.choices.randint(0, 2),
            )
        return (0, 0, 0, 0)

    def _matrix(self, rows: int, outputs: int) -> Array:
        """Weights: full range, few distinct values, or extremes; any density."""
        shape = rows, outputs
        kept = self.rng.random(shape) < self.choices.choice(DENSITIES)
        if self.integer:
            options = [
                lambda: self.rng.integers(-128, 127, shape, endpoint=True),
                lambda: self.rng.choice([-1, 1, 2], shape),
                lambda: self.rng.choice([-128, 127], shape),
            ]
            return np.where(kept, self.choices.choice(options)(), 0).astype(np.int8)
        values = self.rng.choice([-1.5, -1.0, -0.5, 0.25, 0.5, 1.0, 1.25], shape)
        fan_in = max(1, int(kept.sum(axis=0).max()))
        return np.where(kept, values * 2.0 ** -np.ceil(np.log2(fan_in) / 2), 0.0).astype(np.float32)

    def _pack(self, matrix: Array) -> PackedMatrix:
        block = self.choices.choice(BLOCKS)
        set_size = self.choices.choice([None, None, 1, 2, 5, 20])
        return pack(matrix, block=block, set_size=set_size, seed=self.choices.getrandbits(16))

    def _bias(self, source: str, matrix: Array) -> Array | None:
        """No bias, a moderate one, or (integers) one that takes some accumulators to their limit."""
        outputs = matrix.shape[1]
        if self._chance(0.3):
            return None
        if not self.integer:
            return (self.rng.integers(-16, 17, outputs) / 8).astype(np.float32)
        reach = np.abs(matrix.astype(np.int64)).sum(axis=0) * MAGNITUDE[self.types[source].dtype]
        bias = np.rint(self.rng.uniform(-0.3, 0.3, outputs) * np.maximum(reach, 10))
        if self._chance(0.15):
            full = (ACCUMULATOR_LIMIT - reach) * self.rng.choice([-1, 1], outputs)
            bias = np.where(self.rng.random(outputs) < 0.3, full, bias)
        return bias.astype(np.int32)

    def _requantization(self, peak: Array) -> Requantization:
        """One that brings accumulators of this size to the upper part of the result's range, or beyond it."""
        dtype = self._dtype()
        wanted = np.iinfo(dtype).max * self.rng.uniform(0.3, 1.5, peak.shape)
        multiplier, shift = _split(wanted / np.maximum(peak, 1.0))
        if self._chance(0.1):  # the ends of what is allowed
            edge = self.rng.random(peak.shape) < 0.3
            multiplier = np.where(edge, self.rng.choice([2**15, 2**16 - 1], peak.shape), multiplier)
            shift = np.where(edge, self.rng.choice([1, 2, 46, 47], peak.shape), shift)
        return Requantization(multiplier.astype(np.uint16), shift.astype(np.uint8), dtype, self._scale())

    def _addition(self, inputs: list[str]) -> Requantization:
        ratio = self.rng.uniform(0.1, 1.5, 2)
        if self._chance(0.2):
            ratio[self.choices.randint(0, 1)] = self.choices.choice([0.0, 1e-4])
        _, shift = _split(ratio.max(keepdims=True))
        multiplier = np.minimum(np.rint(ratio * 2.0 ** shift.astype(float)), 2**16 - 1).astype(np.uint16)
        return Requantization(multiplier, shift.astype(np.uint8), self._dtype(), self._scale())

    def _concatenation(self, inputs: list[str]) -> Requantization:
        dtype = self._dtype()
        ratio = self.rng.uniform(0.3, 1.3, len(inputs)) * np.iinfo(dtype).max
        multiplier, shift = _split(ratio / np.array([self._peak(name) for name in inputs]))
        return Requantization(multiplier.astype(np.uint16), shift.astype(np.uint8), dtype, self._scale())

    def _peak(self, name: str) -> float:
        return max(1.0, float(np.abs(self.samples[name].astype(np.float64)).max()))

    # --- exactness of float32 ----------------------------------------------------------------------------------------

    def _is_exact(self, name: str) -> bool:
        return self.bound[name] < 2**24 * self.grid[name]

    def _track(self, node: Node) -> None:
        """Multiples of what, and below what, the values of a float32 tensor are."""
        if self.integer:
            return
        grid = min(self.grid[name] for name in node.inputs)
        bound = max(self.bound[name] for name in node.inputs)
        if isinstance(node, (Conv2d, Linear)):
            weight = np.abs(node.dense_weight.astype(np.float64))
            bound = float(weight.sum(axis=0).max()) * bound + 2.0
            grid = min(grid * float(_granularity(weight)), 1 / 8)
        elif isinstance(node, Affine):
            grid, bound = min(grid / 2, 1 / 4), bound * float(np.abs(node.scale).max()) + 2.0
        elif isinstance(node, Add):
            bound = sum(self.bound[name] for name in node.inputs)
        elif isinstance(node, Product):
            grid, bound = (prod(known[name] for name in node.inputs) for known in (self.grid, self.bound))
        elif isinstance(node, MatMul):
            a, b = node.inputs
            grid = self.grid[a] * self.grid[b]
            bound = self.bound[a] * self.bound[b] * self.types[a].channels
        elif isinstance(node, (Activation, AveragePool, Gelu, LayerNorm, LocalResponseNorm, Softmax)):
            grid = 2.0**-149
        self.grid[node.name], self.bound[node.name] = grid, bound


def _granularity(values: Array) -> float:
    """The largest power of two, up to 1, of which all values are multiples."""
    grid = 1.0
    while np.any(values / grid != np.rint(values / grid)):
        grid /= 2
    return grid


def _split(ratio: Array) -> tuple[Array, Array]:
    """The ratio as multiplier / 2**shift, in range."""
    mantissa, exponent = np.frexp(ratio)
    multiplier = np.clip(np.rint(mantissa * 2**16), 2**15, 2**16 - 1)
    return multiplier.astype(np.int64), np.clip(16 - exponent, 1, 47)
