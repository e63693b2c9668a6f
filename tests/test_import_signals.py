"""Signals: 1-D convolutions and pools, from PyTorch and from ONNX, equal to PyTorch and to ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra csengine[torch]")
onnx = pytest.importorskip("onnx", reason="needs the extra csengine[onnx]")
pytest.importorskip("onnxruntime", reason="compares with ONNX Runtime")

from test_import_onnx import SIGNALS, model_of  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils.parametrizations import weight_norm  # noqa: E402

from csengine import Engine, UnsupportedModelError, reference  # noqa: E402
from csengine.cli import main  # noqa: E402
from csengine.convert import convert, pack_graph  # noqa: E402
from csengine.graph import Conv2d, Reshape, Transpose  # noqa: E402
from csengine.importers import onnx as onnx_importer  # noqa: E402
from csengine.importers.check import check  # noqa: E402
from csengine.importers.torch import load  # noqa: E402
from csengine.packing import NOBODY, PackedMatrix  # noqa: E402
from csengine.quantization import relative_error  # noqa: E402
from csengine.torch import KWinners, prune  # noqa: E402

RNG = np.random.default_rng(0)


class Chomp(nn.Module):
    """Cuts off the end, which a causal convolution must not see."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    """Two causal dilated convolutions with a residual connection (Bai, Kolter and Koltun 2018)."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            conv = nn.Conv1d(channels, outputs, 3, padding=2 * dilation, dilation=dilation)
            layers += [weight_norm(conv), Chomp(2 * dilation), nn.ReLU(), nn.Dropout(0.2)]
        self.layers = nn.Sequential(*layers)
        self.down = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.down(x))


class TemporalNetwork(nn.Module):
    """What is said of a signal when it ends."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [TemporalBlock(4, 8, 1), TemporalBlock(8, 8, 2), TemporalBlock(8, 12, 4)]
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[:, :, -1])


class Pooled(nn.Module):
    """Functions instead of modules, with padding of its own, and two kinds of global pools."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(4, 8, 5), nn.BatchNorm1d(8), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(functional.pad(x, (4, 0)))))
        x = functional.avg_pool1d(functional.max_pool1d(x, 3, 2, 1), 2)
        maximum = functional.adaptive_max_pool1d(x, 1).squeeze(-1)
        return self.head(torch.cat([maximum, x.mean(-1), torch.max(x, dim=2)[0]], 1))


class Words(nn.Module):
    """Convolutions over words, which come as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.winners, self.head = nn.Conv1d(4, 16, 3), KWinners(4, "local"), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.winners(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.head(torch.cat([x.mean(1), x.amax(1)], 1))


def electrocardiogram() -> nn.Sequential:
    """One lead, depthwise separable."""
    return nn.Sequential(
        *(nn.Conv1d(1, 8, 7, stride=2, padding=3), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(8, 8, 5, padding="same", groups=8, dilation=2), nn.Conv1d(8, 16, 1), nn.BatchNorm1d(16)),
        *(nn.ReLU6(), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


def vibration() -> nn.Sequential:
    """Raw samples as a vector."""
    layers = (nn.Conv1d(1, 4, 5), nn.ReLU(), nn.MaxPool1d(3, 2, 1, ceil_mode=True))
    return nn.Sequential(nn.Unflatten(1, (1, -1)), *layers, nn.Flatten())


NETWORKS = {
    "temporal": (TemporalNetwork, (4, 40), "NCW"),
    "electrocardiogram": (electrocardiogram, (1, 80), "NCW"),
    "pooled": (Pooled, (4, 21), "NCW"),
    "padded": (lambda: nn.Sequential(nn.ConstantPad1d((2, 1), 0.0), nn.Conv1d(3, 5, 4, 2)), (3, 20), "NCW"),
    "words": (Words, (15, 4), "NWC"),
    "vibration": (vibration, (33,), "NCHW"),
}
INTEGER_ERROR = {"words": 0.1}  # some winners change


def trained(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network whose batch normalizations have seen something."""
    torch.manual_seed(0)
    build, shape, _ = NETWORKS[name]
    module = build()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, *shape))
    return module.eval(), shape


def expected(module: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(module(torch.from_numpy(x)).numpy())


def export(module: nn.Module, *shape: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(module, (torch.zeros(1, *shape),), dynamo=True, verbose=False).model_proto


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_equals_pytorch_in_both_kinds_of_numbers(name: str) -> None:
    module, shape = trained(name)
    graph = load(module, shape)
    assert graph.layout == NETWORKS[name][2]
    x = RNG.standard_normal((64, *shape), np.float32)
    wanted = expected(module, x)
    integer, errors = convert(graph, graph.from_caller(x))
    floats, _ = convert(graph, None)
    assert {error.dtype for error in errors} <= {"uint8", "int8"}
    for backend in ("reference", "cpp", "numba"):
        engine = Engine(floats, backend=backend)  # type: ignore[arg-type]
        assert (engine.input_shape, engine.output_shape) == (shape, wanted.shape[1:])
        np.testing.assert_allclose(engine.run(x), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert relative_error(Engine(integer, backend=backend).run(x), wanted) < INTEGER_ERROR.get(name, 0.03)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_equals_onnx_runtime(name: str) -> None:
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")
    module, shape = trained(name)
    model = export(module, *shape)
    imported = onnx_importer.read(model)
    assert imported.graph.layout == NETWORKS[name][2]
    x = imported.graph.from_caller(RNG.standard_normal((16, *shape), np.float32))
    found = check(model, imported, x)
    assert len(found.tensors) > 1
    assert max(item.relative_error for item in found.tensors) < 1e-5
    integer, _ = convert(imported.graph, x)
    assert check(model, imported, x, integer.graph).result.relative_error < INTEGER_ERROR.get(name, 0.03)


def test_a_causal_network_pays_nothing_for_its_zeros() -> None:
    """Neither for what it cuts off, nor for an order of axes, nor for the zeros between taps."""
    module, shape = trained("temporal")
    prune(module, 0.8, block=(4, 4), keep=())
    graph = pack_graph(load(module, shape))
    layers = [node for node in graph.nodes if isinstance(node, Conv2d)]
    *convs, last = layers
    assert not any(isinstance(node, Transpose) for node in graph.nodes)
    assert {node.padding[3] for node in convs} == {0}
    assert last.groups == 12  # chooses the last position
    dilated = [node for node in convs if node.kernel == (1, 9)]
    assert len(dilated) == 2
    for layer in dilated:
        assert isinstance(layer.weight, PackedMatrix)
        assert layer.weight.block == (4, 4)
        assert (layer.weight.sets, layer.weight.set_size) == (1, 3)  # as the mask has them
        by_tap = layer.weight.kid.reshape(9, -1)
        stored = np.flatnonzero((by_tap != NOBODY).any(axis=1))
        assert 0 < len(stored) <= 3
        assert set(stored) <= {0, 4, 8}
    x = RNG.standard_normal((8, *shape), np.float32)
    wanted = expected(module, x)
    np.testing.assert_allclose(graph.to_caller(reference.run(graph, graph.from_caller(x))), wanted, rtol=0, atol=1e-5)


def test_masks_of_signals_survive_a_checkpoint(tmp_path: Path) -> None:
    from csengine.importers.torch import load_checkpoint

    module = nn.Sequential(nn.Conv1d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 6, 4)).eval()
    prune(module, 0.75, block=(4, 4), keep=("3",))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    again = load_checkpoint(
        nn.Sequential(nn.Conv1d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)), tmp_path / "m.pt"
    )
    graph = load(again, (4, 8))
    layer = graph.nodes[1]
    assert isinstance(layer, Conv2d)
    assert layer.packing is not None
    assert layer.packing.block == (4, 4)
    x = RNG.standard_normal((4, 4, 8), np.float32)
    np.testing.assert_allclose(reference.run(graph, graph.from_caller(x)), expected(module, x), rtol=0, atol=1e-5)


def test_cut_convolutions_have_less_padding() -> None:
    graph = onnx_importer.read(model_of(*SIGNALS["conv_cut"], shape=(6, 14))).graph
    assert [(node.padding, node.groups) for node in graph.nodes if isinstance(node, Conv2d)] == [((0, 1, 0, 1), 1)]


def test_a_signal_of_one_channel_needs_no_reshape() -> None:
    graph = load(nn.Sequential(nn.Conv1d(1, 4, 3)).eval(), (1, 9))
    assert not any(isinstance(node, (Reshape, Transpose)) for node in graph.nodes)
    assert (graph.outside((1, 9, 1)), graph.outside(graph.output_type.shape)) == ((1, 9), (4, 7))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"), "padding mode 'circular'"),
        (nn.MaxPool1d(2, return_indices=True), "return_indices"),
        (nn.AvgPool1d(4, 2, 1, ceil_mode=True), "ceil_mode"),
        (nn.AdaptiveAvgPool1d(2), "adaptive pooling to 2 of an image of 9 is not supported"),
        (nn.MaxPool2d(2), "slides 2-D windows over shape \\(4, 9\\)"),
        (nn.ConstantPad1d((0, -1), 0.0), "pads"),
    ],
)
def test_what_cannot_be_imported_says_why(layer: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        load(nn.Sequential(layer).eval(), (4, 9))


def test_the_command_line_converts_compares_and_prunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")
    module, shape = trained("electrocardiogram")
    source, samples = str(tmp_path / "m.onnx"), str(tmp_path / "x.npy")
    onnx.save(export(module, *shape), source)
    np.save(samples, RNG.standard_normal((32, *shape), np.float32))
    packed, sparse = str(tmp_path / "packed"), str(tmp_path / "sparse")
    assert main(["convert", source, "-o", packed, "--calibrate", samples]) == 0
    assert main(["compare", source, packed, "--tolerance", "0.1"]) == 0
    assert main(["prune", source, "-o", sparse, "--sparsity", "0.5", "--calibrate", samples]) == 0
    assert main(["run", sparse, samples]) == 0
    capsys.readouterr()
    engine = Engine.load(packed)
    assert engine.input_shape == shape
    x = np.load(samples)
    assert relative_error(engine.run(x), expected(module, x)) < 0.03
