"""PyTorch: eager and compiled, float32 and bfloat16; a linear layer also as a compressed sparse row matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from csengine.container import Model
from csengine.errors import UnsupportedModelError
from csengine.graph import (
    KWTA,
    Activation,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv2d,
    Graph,
    Linear,
    MaxPool,
    Node,
    Product,
    Relu,
    Reshape,
    Softmax,
)
from csengine.peers import functions
from csengine.peers.runtime import Loaded

_INDUCTOR: dict[str, Any] = {
    "max_autotune": True,
    "freezing": True,
    "cpp_wrapper": True,
}  # with what compiled networks are fastest


def load(model: Model, variant: str, batches: Sequence[NDArray[Any]], threads: int) -> Loaded:
    """See `csengine.peers.runtime`."""
    torch.set_num_threads(threads)
    precision, _, how = variant.partition("-")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    graph = functions.real(model.graph)
    network = Network(graph, dtype, csr=how == "csr").eval()
    inputs = [torch.from_numpy(x) for x in functions.peers_input(model.graph, batches)]
    if inputs[0].ndim == 4:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = [x.to(memory_format=torch.channels_last) for x in inputs]
    source = inputs[0].clone()
    run: Callable[[Tensor], Tensor] = network
    if how == "compiled":
        run = torch.compile(network, dynamic=False, options=_INDUCTOR)
    results: list[Tensor] = []

    def feed(number: int) -> None:
        source.copy_(inputs[number])

    def call() -> None:
        with torch.no_grad():
            results[:] = [run(source)]

    return Loaded(feed, call, lambda: functions.as_the_user_sees(graph, results[0].float().numpy()))


class Network(nn.Module):
    """A float32 graph, node by node; float32 in and out, in between the given type."""

    def __init__(self, graph: Graph, dtype: torch.dtype, csr: bool) -> None:
        super().__init__()
        flat = functions.flattened(graph)
        self.dtype = dtype
        self.steps = nn.ModuleList(_step(graph, node, flat.get(_first(node)), csr) for node in graph.nodes[1:])
        self.names = [node.name for node in graph.nodes[1:]]
        self.sources = [node.inputs for node in graph.nodes[1:]]
        self.input = graph.input.name
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The result of a batch."""
        tensors = {self.input: x.to(self.dtype)}
        for name, sources, step in zip(self.names, self.sources, self.steps, strict=True):
            tensors[name] = step(*(tensors[source] for source in sources))
        return tensors[self.names[-1]].float()


def _first(node: Node) -> str:
    return node.inputs[0]


def _step(graph: Graph, node: Node, image: functions.Image | None, csr: bool) -> nn.Module:
    match node:
        case Conv2d():
            return _convolution(graph, node)
        case Linear():
            weight, bias = torch.from_numpy(functions.linear_weight(node, image).T.copy()), _tensor(node.bias)
            return SparseLinear(weight, bias) if csr else _linear(weight, bias)
        case Relu():
            return nn.ReLU()
        case Clip():
            return Bounds(node.minimum, node.maximum)
        case Activation():
            return Elementwise(node)
        case Affine():
            return Scale(*(functions.per_channel(graph, node, values) for values in (node.scale, node.shift)))
        case MaxPool() if node.padding[:2] == node.padding[2:]:
            return nn.MaxPool2d(node.kernel, node.stride, node.padding[:2])
        case AveragePool() if node.padding[:2] == node.padding[2:]:
            return nn.AvgPool2d(node.kernel, node.stride, node.padding[:2], count_include_pad=node.count_padding)
        case KWTA() if node.factor is None and (node.scope == "local" or len(graph.types[node.name].shape) == 1):
            return Winners(node.k)
        case Reshape() if node.shape == graph.types[node.inputs[0]].shape:
            return nn.Identity()
        case Reshape() if node.name in functions.flattened(graph):
            return nn.Flatten()
        case Softmax():
            return nn.Softmax(dim=1)
        case Add():
            return Sum()
        case Product():
            return Factor()
        case Concat():
            return Join()
    raise UnsupportedModelError(f"{node.name}: no PyTorch form of this {type(node).__name__}")


def _tensor(values: Any) -> Tensor | None:
    return None if values is None else torch.from_numpy(values.copy())


def _convolution(graph: Graph, node: Conv2d) -> nn.Module:
    weight, bias = torch.from_numpy(functions.conv_weight(node)), _tensor(node.bias)
    channels, (top, left, bottom, right) = graph.input_types(node)[0].channels, node.padding
    is_even = (top, left) == (bottom, right)
    padding = (top, left) if is_even else (0, 0)
    sizes = (channels, node.kernels, node.kernel, node.stride, padding, 1, node.groups, bias is not None)
    layer = _filled(nn.Conv2d(*sizes), weight, bias)
    return layer if is_even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), layer)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    return _filled(EagerLinear(weight.shape[1], weight.shape[0], bias is not None), weight, bias)


def _filled(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return layer


class EagerLinear(nn.Linear):
    """A linear layer that multiplies one vector as such: in bfloat16 that is a quarter faster than as a matrix."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, R] to [B, O]."""
        if len(x) > 1 or self.bias is None or torch.compiler.is_compiling():
            return super().forward(x)
        return torch.addmv(self.bias, self.weight, x[0])[None]


class SparseLinear(nn.Module):
    """A linear layer whose weight [O, R] is a compressed sparse row matrix."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        sparse = weight.to_sparse_csr()
        places = sparse.crow_indices().int(), sparse.col_indices().int()  # else MKL gets them converted in every call
        self.weight, self.bias = torch.sparse_csr_tensor(*places, sparse.values(), weight.shape), bias

    def forward(self, x: Tensor) -> Tensor:
        """[B, R] to [B, O]."""
        y = (self.weight @ x[0])[None] if len(x) == 1 else (self.weight @ x.T).T
        return y if self.bias is None else y + self.bias


class Winners(nn.Module):
    """The k largest along axis 1; which of equal ones win is PyTorch's choice."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x."""
        if self.k >= x.shape[1]:
            return x
        values, indices = torch.topk(x, self.k, dim=1, sorted=False)
        return torch.zeros_like(x).scatter(1, indices, values)


class Bounds(nn.Module):
    """Values clipped to a range; None is no bound."""

    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x."""
        return x if self.low is None and self.high is None else x.clamp(self.low, self.high)


class Elementwise(nn.Module):
    """A function of every element."""

    def __init__(self, node: Activation) -> None:
        super().__init__()
        alpha = node.alpha
        known: dict[str, Callable[[Tensor], Tensor]] = {
            "sigmoid": torch.sigmoid,
            "tanh": torch.tanh,
            "silu": functional.silu if alpha == 1.0 else lambda x: x * torch.sigmoid(alpha * x),
            "hard_sigmoid": lambda x: (alpha * x + 0.5).clamp(0.0, 1.0),
            "hard_swish": functional.hardswish,
            "elu": lambda x: functional.elu(x, alpha),
            "leaky_relu": lambda x: functional.leaky_relu(x, alpha),
        }
        self.function = known[node.function]

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x."""
        return self.function(x)


class Scale(nn.Module):
    """A factor and a summand per channel."""

    def __init__(self, scale: NDArray[Any], shift: NDArray[Any]) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(torch.from_numpy(values.copy()), requires_grad=False) for values in (scale, shift)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x."""
        return x * self.scale + self.shift


class Factor(nn.Module):
    """Element-wise product; the second may have one position."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The shape of a."""
        return a * b


class Sum(nn.Module):
    """Residual addition."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The shape of both."""
        return a + b


class Join(nn.Module):
    """Concatenation of channels."""

    def forward(self, *parts: Tensor) -> Tensor:
        """[B, sum of channels, ...]."""
        return torch.cat(parts, dim=1)
