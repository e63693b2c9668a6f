"""Whole networks, from a source to int8: pruned, quantized, packed, and equal to the reference bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra csengine[onnx]")
torch = pytest.importorskip("torch", reason="needs the extra csengine[torch]")

from light_models import light  # noqa: E402
from torch import nn  # noqa: E402

from csengine import Engine, reference  # noqa: E402
from csengine.convert import convert  # noqa: E402
from csengine.graph import Graph  # noqa: E402
from csengine.importers import onnx as onnx_importer  # noqa: E402
from csengine.importers import torch as torch_importer  # noqa: E402
from csengine.pruning import prune  # noqa: E402


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, filter each channel, project without an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else _unit(inputs, inner, 1)
        layers += [*_unit(inner, inner, 3, stride, inner), nn.Conv2d(inner, outputs, 1, bias=False)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(outputs))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        return x + self.layers(x) if self.is_residual else self.layers(x)


def _unit(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU6()]


def mobilenet_v2() -> nn.Sequential:
    """As published (arXiv 1801.04381), with random weights and settled statistics."""
    torch.manual_seed(0)
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers, channels = _unit(3, 32, 3, 2), 32
    for expansion, outputs, count, stride in stages:
        for i in range(count):
            layers.append(InvertedResidual(channels, outputs, stride if i == 0 else 1, expansion))
            channels = outputs
    layers += [*_unit(channels, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 100)]
    network = nn.Sequential(*layers)
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(4, 3, 64, 64))
    return network.eval()


def resnet50() -> Graph:
    """The graph of the `onnx` package, over smaller images: its last pool then covers all of its input."""
    model = light("resnet50")
    for node in model.graph.node:
        if node.op_type == "AveragePool":
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
    return onnx_importer.read(model, (3, 64, 64)).graph


NETWORKS = {
    "resnet50": (resnet50, 0.9, 53),
    "mobilenet_v2": (lambda: torch_importer.load(mobilenet_v2(), (3, 64, 64)), 0.75, 36),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pruned_int8_network_equals_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSENGINE_PLANNER", "model")  # the same plan on every machine
    build, sparsity, layers = NETWORKS[name]
    x = np.random.default_rng(0).standard_normal((2, 64, 64, 3), np.float32)
    pruned, losses = prune(build(), sparsity, block=(4, 16))
    model, errors = convert(pruned, x)
    assert len(losses) >= layers - 4
    assert np.median([error.relative_error for error in errors]) < 0.1
    expected = reference.trace(model.graph, x)
    for mode, threads in (("auto", 1), ("sparse-dense", 2)):
        engine = Engine(model, backend="cpp", mode=mode, threads=threads)
        got = engine.trace(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        for tensor, kind in model.graph.types.items():
            if kind.is_integer:
                np.testing.assert_array_equal(got[tensor], expected[tensor], err_msg=tensor)
    plan = engine.plan()
    done, dense = sum(row.macs_done for row in plan), sum(row.macs_dense for row in plan)
    assert any(row.mode == "sparse-dense" for row in plan)
    assert done < 0.5 * dense
