"""From a trained PyTorch module to the engine's float32 graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from csengine.errors import UnsupportedModelError
from csengine.graph import (
    KWTA,
    Affine,
    AveragePool,
    Conv2d,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Packing,
    Relu,
    Reshape,
    Softmax,
)
from csengine.torch.kwinners import KWinners
from csengine.torch.layers import mask_of
from csengine.torch.masks import Image, matrix_from_weight

Array = NDArray[Any]


def export(module: nn.Sequential, input_shape: tuple[int, ...]) -> Graph:
    """The float32 graph of a chain of modules in evaluation mode; masks go along as the packing that layers want.

    input_shape: of one sample, (C, H, W) or (features,). Raises UnsupportedModelError with every layer of unknown kind
    and the first that cannot be represented, each with the reason. Batch normalization becomes an affine, which
    `csengine.quantization` folds.
    """
    exporter = _Exporter(input_shape)
    for name, layer in _flatten(module):
        exporter.add(name, layer)
    if exporter.problems:
        raise UnsupportedModelError("cannot export:\n  " + "\n  ".join(exporter.problems))
    return Graph(tuple(exporter.nodes), "NCHW")


def _flatten(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested chains, in order, by their names in the checkpoint."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from _flatten(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


class _Exporter:
    """Adds nodes one after the other.

    PyTorch flattens images in (C, H, W) order, the engine in (H, W, C): from a flatten to the next linear layer,
    `image` holds the shape that was flattened, by which everything with one value per feature is reordered.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        shape = (*input_shape[1:], input_shape[0]) if len(input_shape) == 3 else input_shape
        self.nodes: list[Node] = [Input(name="input", inputs=(), shape=shape)]
        self.shape = shape
        self.image: Image | None = None
        self.problems: list[str] = []

    def add(self, name: str, layer: nn.Module) -> None:
        if isinstance(layer, (nn.Identity, nn.Dropout, nn.Dropout2d)):
            return
        convert = next((function for kind, function in _CONVERTERS.items() if isinstance(layer, kind)), None)
        if convert is None:
            known = ", ".join(kind.__name__ for kind in _CONVERTERS)
            self.problems.append(f"{name}: {type(layer).__name__} has no counterpart; known are {known}")
            return
        if self.problems:  # shapes are no longer known
            return
        try:
            self.nodes.append(convert(self, layer, {"name": name, "inputs": (self.nodes[-1].name,)}))
        except UnsupportedModelError as error:
            self.problems.append(f"{name}: {error}")
            return
        self.shape = Graph(tuple(self.nodes)).output_type.shape

    def conv2d(self, layer: nn.Conv2d, place: dict[str, Any]) -> Node:
        _require(layer.dilation == (1, 1), f"dilation {layer.dilation} is not supported; expected 1")
        _require(layer.padding_mode == "zeros", f"padding mode {layer.padding_mode!r} is not supported; expected zeros")
        if isinstance(layer.padding, str):
            raise UnsupportedModelError(f"padding {layer.padding!r} is not supported; give numbers")
        return Conv2d(
            weight=_contiguous(matrix_from_weight(_numpy(layer.weight))),
            bias=None if layer.bias is None else _numpy(layer.bias),
            packing=_packing(layer),
            kernel=_pair(layer.kernel_size),
            stride=_pair(layer.stride),
            padding=_sides(layer.padding),
            groups=layer.groups,
            **place,
        )

    def linear(self, layer: nn.Linear, place: dict[str, Any]) -> Node:
        weight = _contiguous(matrix_from_weight(_numpy(layer.weight), self.image))
        self.image = None
        bias = None if layer.bias is None else _numpy(layer.bias)
        return Linear(weight=weight, bias=bias, packing=_packing(layer), **place)

    def batch_norm(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, place: dict[str, Any]) -> Node:
        if layer.running_mean is None or layer.running_var is None:
            raise UnsupportedModelError("batch normalization without running statistics has no form at inference")
        scale = 1.0 / np.sqrt(_numpy(layer.running_var).astype(np.float64) + layer.eps)
        shift = -_numpy(layer.running_mean) * scale
        if layer.affine:
            gain = _numpy(layer.weight).astype(np.float64)
            scale, shift = scale * gain, shift * gain + _numpy(layer.bias)
        return Affine(scale=self._ordered(scale), shift=self._ordered(shift), **place)

    def k_winners(self, layer: KWinners, place: dict[str, Any]) -> Node:
        factor = None if layer.factor is None else self._ordered(_numpy(layer.factor))
        if factor is not None and layer.scope == "global" and len(self.shape) == 3:
            factor = np.tile(factor, self.shape[0] * self.shape[1])
        scope = "global" if len(self.shape) == 1 else layer.scope
        return KWTA(k=layer.k_inference, scope=scope, factor=factor, **place)

    def relu(self, layer: nn.ReLU, place: dict[str, Any]) -> Node:
        return Relu(**place)

    def max_pool(self, layer: nn.MaxPool2d, place: dict[str, Any]) -> Node:
        _require(not layer.ceil_mode and _pair(layer.dilation) == (1, 1), "ceil_mode and dilation are not supported")
        return MaxPool(
            kernel=_pair(layer.kernel_size), stride=_pair(layer.stride), padding=_sides(layer.padding), **place
        )

    def average_pool(self, layer: nn.AvgPool2d, place: dict[str, Any]) -> Node:
        padding = _sides(layer.padding)
        counted = layer.count_include_pad or not any(padding)
        plain = not layer.ceil_mode and layer.divisor_override is None and counted
        _require(plain, "ceil_mode, divisor_override and count_include_pad=False are not supported")
        return AveragePool(kernel=_pair(layer.kernel_size), stride=_pair(layer.stride), padding=padding, **place)

    def global_average_pool(self, layer: nn.AdaptiveAvgPool2d, place: dict[str, Any]) -> Node:
        _require(
            layer.output_size in (1, (1, 1)), f"adaptive pooling to {layer.output_size} is not supported; expected 1"
        )
        size = (self.shape[0], self.shape[1])
        return AveragePool(kernel=size, stride=size, **place)

    def flatten(self, layer: nn.Flatten, place: dict[str, Any]) -> Node:
        _require(
            layer.start_dim == 1 and layer.end_dim == -1, "only a flatten of everything but the batch is supported"
        )
        if len(self.shape) == 3:
            height, width, channels = self.shape
            self.image = (channels, height, width)
        return Reshape(shape=(int(np.prod(self.shape)),), **place)

    def softmax(self, layer: nn.Softmax, place: dict[str, Any]) -> Node:
        _require(layer.dim in (1, -1) and len(self.shape) == 1, "softmax is supported over the features of a vector")
        return Softmax(**place)

    def _ordered(self, values: Array) -> NDArray[np.float32]:
        """One value per feature or channel, in the engine's order."""
        if self.image is not None:
            values = values.reshape(self.image).transpose(1, 2, 0).ravel()
        return _contiguous(values)


_CONVERTERS: Mapping[type[nn.Module], Callable[[_Exporter, Any, dict[str, Any]], Node]] = {
    nn.Conv2d: _Exporter.conv2d,
    nn.Linear: _Exporter.linear,
    nn.BatchNorm1d: _Exporter.batch_norm,
    nn.BatchNorm2d: _Exporter.batch_norm,
    KWinners: _Exporter.k_winners,
    nn.ReLU: _Exporter.relu,
    nn.MaxPool2d: _Exporter.max_pool,
    nn.AvgPool2d: _Exporter.average_pool,
    nn.AdaptiveAvgPool2d: _Exporter.global_average_pool,
    nn.Flatten: _Exporter.flatten,
    nn.Softmax: _Exporter.softmax,
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UnsupportedModelError(message)


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().cpu().float().numpy()
    return array


def _contiguous(array: Array) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, np.float32)


def _packing(layer: nn.Module) -> Packing | None:
    mask = mask_of(layer)
    return None if mask is None else Packing(mask.block, mask.members.shape[1], mask.members)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _sides(value: int | tuple[int, ...]) -> tuple[int, int, int, int]:
    vertical, horizontal = _pair(value)
    return vertical, horizontal, vertical, horizontal
