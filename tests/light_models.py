"""Networks of others with random weights: those that the `onnx` package carries, MobileNetV2, an encoder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def light(name: str) -> Any:
    """A network of the onnx package with random weights in place of its constant ones."""
    rng = np.random.default_rng(0)
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    layers = {n.input[1] for n in model.graph.node if n.op_type in ("Conv", "Gemm")}
    kept = []
    for made in model.graph.node:
        if made.op_type == "ConstantOfShape" and made.output[0] in layers:
            shape = shapes[made.input[0]]
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), made.output[0]))
        else:
            kept.append(made)
    model.ir_version = 8  # initializers need not be inputs
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def mobilenet_v2(size: int, classes: int) -> Any:
    """MobileNetV2 of the `transformers` package as PyTorch exports it, its batch normalizations settled on noise."""
    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    network = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=classes, image_size=size))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the mean of all batches
        network.train()(torch.randn(8, 3, size, size))
    return _exported(network.eval(), torch.randn(1, 3, size, size))


def encoder() -> Any:
    """Six layers as in the first transformer's base model (arXiv 1706.03762), for 64 positions."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(512, 8, 2048, activation="gelu", batch_first=True)
    network = torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    return _exported(network.eval(), torch.randn(1, 64, 512))


def _exported(network: Any, x: Any) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        return torch.onnx.export(network, (x,), dynamo=True, verbose=False).model_proto
