"""What a packed network computes, in the forms that other runtimes take: real numbers, images as (C, H, W)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csengine import quantization, reference
from csengine.container import Model
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
    Node,
    Product,
    Quantize,
    Relu,
    Reshape,
)

Array = NDArray[Any]
Image = tuple[int, int, int]


def units(graph: Graph, node: Conv2d | Linear) -> NDArray[np.float64]:
    """The real value `[O]` of 1 in each accumulator of an integer layer."""
    q = node.requantization
    if q is not None:
        return np.asarray(q.scale * q.multiplier / 2.0 ** q.shift.astype(np.float64))
    for reader in graph.readers[node.name]:
        if isinstance(reader, Dequantize):
            return np.broadcast_to(reader.scale, node.kernels)
    return np.ones(node.kernels)  # the result is the accumulators themselves


def weight_scale(graph: Graph, node: Conv2d | Linear) -> NDArray[np.float64]:
    """The real value `[O]` of 1 in the weights of an integer layer."""
    return units(graph, node) / (graph.input_types(node)[0].scale or 1.0)


def real(graph: Graph) -> Graph:
    """The float32 network of which an integer one is the quantization; a float32 network as it is.

    Tensors keep their names. Rounding and the upper end of the integer range are gone; clamping at 0 is a ReLU.
    """
    return Graph(tuple(made for node in graph.nodes for made in _real(graph, node)), graph.layout)


def _real(graph: Graph, node: Node) -> tuple[Node, ...]:
    if isinstance(node, (Conv2d, Linear)) and graph.input_types(node)[0].is_integer:
        scale = units(graph, node)
        bias = None if node.bias is None else (node.bias * scale).astype(np.float32)
        weight = (node.dense_weight * weight_scale(graph, node)).astype(np.float32)
        return _clamped(graph, replace(node, weight=weight, bias=bias, requantization=None, packing=None))
    match node:
        case Input():
            return (replace(node, dtype="float32", scale=None),)
        case Clip():
            low, high = real_bounds(graph, node)
            return (replace(node, minimum=low, maximum=high),)
        case Activation():
            return _clamped(graph, replace(node, table=None, scale=None))
        case AveragePool() | Add() | Product() | Concat():
            return _clamped(graph, replace(node, requantization=None))
        case Dequantize():
            ratio = rescaling(graph, node)
            if ratio is None:
                return (Reshape(name=node.name, inputs=node.inputs, shape=graph.types[node.name].shape),)
            return (Affine(name=node.name, inputs=node.inputs, scale=ratio, shift=np.zeros_like(ratio)),)
        case Quantize():
            return _clamped(graph, Reshape(name=node.name, inputs=node.inputs, shape=graph.types[node.name].shape))
    return (node,)


def real_bounds(graph: Graph, node: Clip) -> tuple[float | None, float | None]:
    """What a node clips to, in real numbers."""
    scale = graph.types[node.name].scale or 1.0
    low, high = (None if bound is None else bound * scale for bound in (node.minimum, node.maximum))
    return low, high


def rescaling(graph: Graph, node: Dequantize) -> NDArray[np.float32] | None:
    """The factors `[C]` by which a result differs from the real numbers that it is given; None if by none."""
    source = graph.input_types(node)[0]
    if source.scale is None:  # accumulators, whose real values are what this node says
        return None
    ratio = np.broadcast_to(node.scale / source.scale, source.channels).astype(np.float32)
    return None if np.allclose(ratio, 1.0, rtol=1e-6) else ratio


def _clamped(graph: Graph, node: Node) -> tuple[Node, ...]:
    """A node that can give values below 0, with the ReLU that an unsigned result means."""
    if graph.types[node.name].dtype != "uint8":
        return (node,)
    total = f"{node.name}.sum"
    return replace(node, name=total), Relu(name=node.name, inputs=(total,))


def has_winners(graph: Graph) -> bool:
    """Whether k-winners are part of the network."""
    return any(isinstance(node, KWTA) for node in graph.nodes)


def is_linear(graph: Graph) -> bool:
    """Whether the network is one linear layer and what follows it element by element."""
    kinds = [type(node) for node in graph.nodes[1:]]
    return kinds[:1] == [Linear] and all(kind in (Relu, Dequantize) for kind in kinds[1:])


def without_winners(model: Model) -> Model:
    """The same network with all values instead of k winners: what runtimes without k-winners can run at speed."""
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    for node in model.graph.nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        if isinstance(node, KWTA):
            renamed[node.name] = inputs[0]
        else:
            nodes.append(replace(node, inputs=inputs))
    return replace(model, graph=Graph(tuple(nodes), model.graph.layout))


def padded(graph: Graph, multiple: int) -> Graph:
    """The same function with the outputs of its larger linear layers padded to a multiple by kernels of zeros.

    The result, too, may end in zeros. A layer whose values do not go straight into linear layers stays as it is, and
    so does one whose values compete and may be negative: zeros would win.
    """
    grown: dict[str, int] = {}  # tensor -> its padded size
    nodes: list[Node] = []
    for node in graph.nodes:
        if isinstance(node, Linear):
            size = node.kernels
            if size >= multiple and _only_feeds(graph, node.name, padding=True):
                size = grown[node.name] = -(-size // multiple) * multiple
            nodes.append(_pad(node, grown.get(node.inputs[0], node.rows), size))
            continue
        if node.inputs and node.inputs[0] in grown:  # one of those that `_only_feeds` lets pass
            grown[node.name] = grown[node.inputs[0]]
        nodes.append(node)
    return Graph(tuple(nodes), graph.layout)


def _pad(node: Linear, rows: int, kernels: int) -> Linear:
    """A layer with more rows and kernels, of zeros."""
    more = kernels - node.kernels
    q, weight, bias = node.requantization, node.dense_weight, node.bias
    changes: dict[str, Any] = {"weight": np.pad(weight, ((0, rows - node.rows), (0, more)))}
    if bias is not None:
        changes["bias"] = np.pad(bias, (0, more))
    if q is not None:
        repeated: dict[str, Any] = {
            name: np.pad(getattr(q, name), (0, more), "edge") for name in ("multiplier", "shift")
        }
        changes["requantization"] = replace(q, **repeated)
    return replace(node, **changes)


def _only_feeds(graph: Graph, name: str, *, padding: bool = False) -> bool:
    """Whether a vector's values reach only linear layers, or the result, with k-winners and ReLU at most between.

    padding: whether zeros at its end would make no difference there.
    """

    def is_fine(reader: Node) -> bool:
        if isinstance(reader, KWTA) and (reader.factor is not None or (padding and graph.types[name].dtype != "uint8")):
            return False
        return isinstance(reader, Linear) or (
            isinstance(reader, (Relu, KWTA)) and _only_feeds(graph, reader.name, padding=padding)
        )

    return all(is_fine(reader) for reader in graph.readers[name])


# --- (H, W, C) to (C, H, W) ------------------------------------------------------------------------------------------


def flattened(graph: Graph) -> Mapping[str, Image]:
    """The vectors that a runtime with images in (C, H, W) order may keep in that order, with the shape (H, W, C).

    Their values go into linear layers only, whose rows `linear_weight` reorders instead.
    """
    found: dict[str, Image] = {}
    for node in graph.nodes:
        if not node.inputs:
            continue
        shape = graph.types[node.inputs[0]].shape
        if isinstance(node, Reshape) and len(shape) == 3 and len(node.shape) == 1:
            if graph.readers[node.name] and _only_feeds(graph, node.name):
                found[node.name] = (shape[0], shape[1], shape[2])
        elif node.inputs[0] in found and not isinstance(node, Linear):
            found[node.name] = found[node.inputs[0]]
    return found


def per_channel(graph: Graph, node: Node, values: Array) -> Array:
    """Values `[C]` in a shape that broadcasts to a batch of a node's."""
    return values.reshape(-1, 1, 1) if len(graph.types[node.name].shape) == 3 else values


def conv_weight(node: Conv2d) -> Array:
    """`[O, C / groups, kh, kw]`."""
    matrix = node.dense_weight
    depth = node.rows // prod(node.kernel)
    return np.ascontiguousarray(matrix.reshape(*node.kernel, depth, node.kernels).transpose(3, 2, 0, 1))


def linear_weight(node: Linear, image: Image | None) -> Array:
    """`[R, O]`, its rows in the order of an image (C, H, W) if the input is one of `flattened`."""
    matrix = node.dense_weight
    if image is None:
        return np.ascontiguousarray(matrix)
    rows = prod(image)  # there may be more of them, of padding
    ordered = matrix[:rows].reshape(*image, -1).transpose(2, 0, 1, 3).reshape(rows, -1)
    return np.concatenate([ordered, matrix[rows:]])


def channels_first(graph: Graph, x: Array) -> Array:
    """A batch as the user gives it, with images as `[B, C, H, W]`."""
    inside = graph.from_caller(x)
    return np.ascontiguousarray(inside.transpose(0, 3, 1, 2)) if inside.ndim == 4 else inside


def as_the_user_sees(graph: Graph, y: Array) -> Array:
    """A result with images as `[B, C, H, W]` in the user's layout; what padding added is cut off."""
    shape = graph.output_type.shape
    if y.ndim == 2:
        return y[:, : shape[0]]
    return graph.to_caller(y.transpose(0, 2, 3, 1))


# --- what is right ---------------------------------------------------------------------------------------------------


def real_values(graph: Graph, y: Array) -> Array:
    """A result in real numbers: integers times their scale."""
    scale = graph.output_type.scale
    return y.astype(np.float32) if scale is None else (y * scale).astype(np.float32)


def real_input(graph: Graph, x: Array) -> NDArray[np.float32]:
    """A batch in real numbers: integers of the model's own type times their scale."""
    scale = graph.input.scale
    return np.asarray(x * scale if x.dtype != np.float32 and scale is not None else x, np.float32)


def peers_input(graph: Graph, batches: Sequence[Array], *, direct: bool = False) -> list[Array]:
    """Batches as runtimes with images in (C, H, W) order take them. direct: as they are, not in real numbers."""
    return [channels_first(graph, x if direct else real_input(graph, x)) for x in batches]


def expected(graph: Graph, x: Array, *, exact: bool) -> Array:
    """What a network should give for a batch in the user's layout, in real numbers and the same layout.

    exact: as the integers have it; otherwise as its `real` function has it.
    """
    x = x if exact else real_input(graph, x)
    x = graph.from_caller(x)
    y = real_values(graph, reference.run(graph, x)) if exact else reference.run(real(graph), x)
    return graph.to_caller(y)


def relative_error(got: Array, wanted: Array) -> float:
    """As `csengine.quantization.relative_error`; infinite for another shape, or values that are not finite."""
    if got.shape != wanted.shape or not np.isfinite(got).all():
        return float("inf")
    return quantization.relative_error(got, wanted)
