"""Sequences: encoders as PyTorch and as ONNX, alone and pruned, equal to PyTorch and to ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra csengine[torch]")
onnx = pytest.importorskip("onnx", reason="needs the extra csengine[onnx]")
pytest.importorskip("onnxscript", reason="PyTorch exports with it")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from csengine import Engine, UnsupportedModelError, reference  # noqa: E402
from csengine.cli import main  # noqa: E402
from csengine.convert import convert  # noqa: E402
from csengine.graph import KWTA, Conv2d, Gelu, LayerNorm, Linear, MatMul  # noqa: E402
from csengine.importers import onnx as onnx_importer  # noqa: E402
from csengine.importers.check import check  # noqa: E402
from csengine.importers.torch import load  # noqa: E402
from csengine.packing import PackedMatrix  # noqa: E402
from csengine.quantization import relative_error  # noqa: E402
from csengine.torch import KWinners, prune  # noqa: E402

POSITIONS, CHANNELS, HEADS = 10, 32, 4
RNG = np.random.default_rng(0)


class Encoder(nn.Module):
    """Learned positions, PyTorch's own layers, a mean over positions, and a classifier."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, POSITIONS, CHANNELS))
        layer = nn.TransformerEncoderLayer(CHANNELS, HEADS, 64, batch_first=True, **options)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(CHANNELS), enable_nested_tensor=False)
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x + self.positions).mean(1))


class Block(nn.Module):
    """A layer of operations: heads from one projection, k-winners in the feed-forward block."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.project, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.up, self.down = nn.Linear(CHANNELS, 64), nn.Linear(64, CHANNELS)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, channels = x.shape
        q, k, v = self.project(self.norm1(x)).chunk(3, dim=-1)
        q = q.view(batch, positions, HEADS, -1).transpose(1, 2)
        k = k.view(batch, positions, HEADS, -1).permute(0, 2, 3, 1)
        v = v.view(batch, positions, HEADS, -1).transpose(1, 2)
        shares = functional.softmax((q @ k) * (channels // HEADS) ** -0.5, dim=-1)
        x = x + self.out(torch.matmul(shares, v).transpose(1, 2).reshape(batch, positions, channels))
        return x + self.down(self.activation(self.up(self.norm2(x))))


def first_position(activation: nn.Module) -> nn.Module:
    """An encoder whose answer is that of its first position."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(activation), nn.Linear(CHANNELS, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x)[:, 0])

    return Network()


NETWORKS = {
    "gelu, norm first": lambda: Encoder(activation="gelu", norm_first=True),
    "relu, norm last": lambda: Encoder(activation="relu"),
    "k-winners": lambda: Block(KWinners(6, "local")),
    "first position": lambda: first_position(nn.GELU("tanh")),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"])
def test_a_module(name: str, backend: Any) -> None:
    module = network(name)
    graph = load(module, (POSITIONS, CHANNELS))
    assert graph.layout == "NWC"
    engine = Engine(convert(graph, None)[0], backend=backend)
    assert engine.input_shape == (POSITIONS, CHANNELS)
    x = RNG.standard_normal((3, *engine.input_shape), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    assert engine.output_shape == expected.shape[1:]
    np.testing.assert_allclose(engine.run(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("name", ["gelu, norm first", "k-winners"])
def test_an_export(name: str, opset: int, tmp_path: Path) -> None:
    module, x = network(name), torch.randn(1, POSITIONS, CHANNELS)
    if name == "k-winners":
        module = Block(nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        torch.onnx.export(
            module, (x,), tmp_path / "m.onnx", dynamo=True, opset_version=opset, external_data=False, verbose=False
        )
    model = onnx_importer.read_proto(tmp_path / "m.onnx")
    imported = onnx_importer.read(model)
    found = check(model, imported, RNG.standard_normal((1, *imported.graph.input.shape), np.float32))
    found.raise_if_far(1e-5)
    assert len(found.tensors) > 15
    assert max(item.relative_error for item in found.tensors) < 1e-5
    assert any(isinstance(node, MatMul) for node in imported.graph.nodes)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_layers_become_integer_and_the_rest_stays_float32(name: str, backend: Any) -> None:
    graph = load(network(name), (POSITIONS, CHANNELS))
    samples, x = (RNG.standard_normal((n, POSITIONS, CHANNELS), np.float32) for n in (64, 16))
    model, errors = convert(graph, graph.from_caller(samples))
    for node in model.graph.nodes:
        is_layer = isinstance(node, (Conv2d, Linear))
        assert not is_layer or all(kind.is_integer for kind in model.graph.input_types(node))
        if isinstance(node, (Gelu, LayerNorm, MatMul)):
            assert model.graph.types[node.name].dtype == "float32"
    assert np.median([error.relative_error for error in errors]) < 0.02
    expected = model.graph.to_caller(reference.run(model.graph, graph.from_caller(x)))
    exact = graph.to_caller(reference.run(graph, graph.from_caller(x)))
    assert relative_error(expected, exact) < 0.05
    got = Engine(model, backend=backend).run(x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_the_command_quantizes_an_encoder_and_compares_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(exported(network("gelu, norm first"), torch.randn(1, POSITIONS, CHANNELS)), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", RNG.standard_normal((64, POSITIONS, CHANNELS), np.float32))
    source, packed, samples = (str(tmp_path / name) for name in ("m.onnx", "m.safetensors", "x.npy"))
    assert main(["convert", source, "-o", packed, "--calibrate", samples]) == 0
    assert "calibrated" in capsys.readouterr().out
    assert main(["compare", source, packed, "--input", samples, "--batch", "8"]) == 0
    assert main(["compare", packed, "--backend", "cpp,reference", "--input", samples]) == 0
    assert main(["info", packed]) == 0
    assert main(["bench", packed, "--runs", "5"]) == 0
    assert "quantize" in capsys.readouterr().out


def test_the_feed_forward_blocks_are_pruned_and_packed_like_any_layer() -> None:
    module = network("k-winners")
    prune(module, 0.75, block=(4, 16), keep=("project", "out"))
    model, _ = convert(load(module, (POSITIONS, CHANNELS)), None)
    packed = [node for node in model.graph.nodes if isinstance(node, Conv2d) and isinstance(node.weight, PackedMatrix)]
    assert [node.name for node in packed] == ["up", "down"]
    assert any(isinstance(node, KWTA) and node.scope == "local" for node in model.graph.nodes)
    x = RNG.standard_normal((2, POSITIONS, CHANNELS), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    for mode in ("dense", "sparse-dense", "sparse-sparse"):
        engine = Engine(model, backend="cpp", mode=mode)  # type: ignore[arg-type]
        np.testing.assert_allclose(engine.run(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def sequence(nodes: list[Any], constants: dict[str, Any], batch: Any = 1) -> Any:
    """An ONNX model over a sequence."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, POSITIONS, CHANNELS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


HALF, ONE, ROOT = np.float32(0.5), np.float32(1), np.float32(2**0.5)
ERF = [helper.make_node("Div", ["x", "root"], ["d"]), helper.make_node("Erf", ["d"], ["e"])]
GELUS = {
    "x * (1 + erf) * 0.5": [("Add", "e", "one", "s"), ("Mul", "x", "s", "m"), ("Mul", "m", "half", "y")],
    "(x * 0.5) * (erf + 1)": [("Mul", "x", "half", "m"), ("Add", "one", "e", "s"), ("Mul", "s", "m", "y")],
    "x * (0.5 * (1 + erf))": [("Add", "e", "one", "s"), ("Mul", "half", "s", "m"), ("Mul", "x", "m", "y")],
}


@pytest.mark.parametrize("form", GELUS)
def test_gelu_written_out(form: str) -> None:
    nodes = [*ERF, *(helper.make_node(op, [a, b], [y]) for op, a, b, y in GELUS[form])]
    model = sequence(nodes, {"half": HALF, "one": ONE, "root": ROOT})
    imported = onnx_importer.read(model)
    check(model, imported, RNG.standard_normal((1, *imported.graph.input.shape), np.float32)).raise_if_far(1e-6)
    assert [type(node) for node in imported.graph.nodes[1:]] == [Gelu]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("Mul", "e", "x", "y")], "something else than GELU"),
        ([("Add", "e", "half", "y")], "something else than 1"),
        ([("Add", "e", "one", "s"), ("Relu", "s", "y")], "only as a part of GELU"),
    ],
)
def test_other_error_functions_are_refused(nodes: Any, reason: str) -> None:
    made = [*ERF, *(helper.make_node(op, inputs, [y]) for op, *inputs, y in nodes)]
    with pytest.raises(UnsupportedModelError, match=reason):
        onnx_importer.read(sequence(made, {"half": HALF, "one": ONE, "root": ROOT}))


@pytest.mark.parametrize("axis", [1, 2])
def test_parts(axis: int) -> None:
    """Channels of a layer become a smaller layer; of positions the first can be taken."""
    weight = RNG.standard_normal((CHANNELS, 12)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Gather", ["m", "i"], ["y"], axis=axis)]
    model = sequence(nodes, {"w": weight, "i": np.int64([0, 3, 5] if axis == 2 else 0)})
    imported = onnx_importer.read(model)
    check(model, imported, RNG.standard_normal((1, *imported.graph.input.shape), np.float32)).raise_if_far(1e-6)
    if axis == 2:
        assert [node.kernels for node in imported.graph.nodes if isinstance(node, (Conv2d, Linear))] == [3]


def test_a_batch_that_moves_has_to_be_one() -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), helper.make_node("Relu", ["t"], ["r"])]
    nodes.append(helper.make_node("Transpose", ["r"], ["y"], perm=[1, 0, 2]))
    imported = onnx_importer.read(sequence(nodes, {}))
    check(sequence(nodes, {}), imported, RNG.standard_normal((1, 1, POSITIONS, CHANNELS), np.float32)).raise_if_far(0)
    with pytest.raises(UnsupportedModelError, match="export a batch of one"):
        onnx_importer.read(sequence(nodes, {}, 2))


# --- k-winners as PyTorch exports them -------------------------------------------------------------------------------

#: What feeds the winners, how many of how many compete in a sample, and the shape of one.
EXPORTED: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    "image": (lambda: nn.Conv2d(3, 16, 3, padding=1), 16, (3, 6, 5)),
    "vector": (lambda: nn.Linear(20, 32), 32, (20,)),
    "flattened image": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten()), 120, (3, 6, 5)),
    "sequence": (lambda: nn.Linear(12, 32), 32, (7, 12)),
}


@pytest.mark.parametrize("boosting", ["none", "ended", "strong"])
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("source", EXPORTED)
def test_exported_k_winners(source: str, scope: Any, boosting: str) -> None:
    """As `torch.onnx.export` writes `KWinners` by default, with duty cycles that rank or no longer do."""
    torch.manual_seed(0)
    build, units, shape = EXPORTED[source]
    winners = KWinners(5, scope, units=None if boosting == "none" else units)
    winners.duty_cycle.uniform_(0, 0.5)
    if boosting == "strong":
        winners.set_boost_strength(2.0)
    module = nn.Sequential(build(), winners).eval()
    imported = onnx_importer.read(exported(module, torch.randn(1, *shape)))
    (made,) = (node for node in imported.graph.nodes if isinstance(node, KWTA))
    assert made.k == 5
    assert made.scope == (scope if len(shape) > 1 and source != "flattened image" else "global")
    assert (made.factor is not None) == (boosting == "strong")
    x = RNG.standard_normal((4, *shape), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    got = imported.graph.to_caller(reference.run(imported.graph, imported.graph.from_caller(x)))
    assert np.array_equal(got != 0, expected != 0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def exported(module: nn.Module, x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        return torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto
