"""PyTorch modules become graphs that compute the same."""

from __future__ import annotations

import copy
import io
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra csengine[torch]")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from csengine import Engine, ModelFormatError, UnsupportedModelError, reference  # noqa: E402
from csengine.container import Model  # noqa: E402
from csengine.convert import convert, pack_graph  # noqa: E402
from csengine.graph import KWTA, Activation, Affine, Conv2d, Graph, Linear, Packing, Product  # noqa: E402
from csengine.importers.torch import load, load_checkpoint  # noqa: E402
from csengine.packing import PackedMatrix  # noqa: E402
from csengine.quantization import relative_error  # noqa: E402
from csengine.torch import KWinners, attach_mask, mask_of, prune, random_mask  # noqa: E402
from csengine.torch.layers import masked_weight_of  # noqa: E402


def settle(module: Any, *shape: int) -> Any:
    """Give batch norms statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, *shape))
    return module.eval()


def assert_same(module: nn.Module, graph: Graph, *shape: int) -> None:
    x = torch.randn(8, *shape)
    with torch.no_grad():
        expected = module(x).numpy()
    nhwc = np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1)) if len(shape) == 3 else x.numpy()
    got = reference.run(graph, nhwc)
    if got.ndim == 4:
        got = got.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def image_network() -> nn.Sequential:
    """Most layers that the importer knows, nested."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=(1, 0), groups=8, bias=False), nn.BatchNorm2d(8, affine=False))
    head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(40), nn.Linear(40, 20), KWinners(5, "global"), nn.Dropout())
    return nn.Sequential(
        stem,
        nn.Identity(),
        depthwise,
        KWinners(3, "local"),
        nn.AvgPool2d((1, 2), 1),
        head,
        nn.Linear(20, 6),
        nn.Softmax(1),
    )


def test_a_network_of_every_layer() -> None:
    module = settle(image_network(), 3, 20, 16)
    graph = load(module, (3, 20, 16))
    assert graph.layout == "NCHW"
    assert_same(module, graph, 3, 20, 16)


def test_global_average_pooling_and_image_outputs() -> None:
    module = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
    assert_same(module, load(module, (2, 9, 7)), 2, 9, 7)
    module = nn.Sequential(nn.Conv2d(2, 5, (1, 3), stride=(2, 1))).eval()
    assert_same(module, load(module, (2, 9, 7)), 2, 9, 7)


def test_local_response_normalization() -> None:
    network = settle(nn.Sequential(nn.Conv2d(3, 7, 3), nn.LocalResponseNorm(3, 0.5, 0.6, 2.0)), 3, 6, 5)
    assert_same(network, load(network, (3, 6, 5)), 3, 6, 5)


def test_a_network_with_local_response_normalization_is_quantized() -> None:
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.LocalResponseNorm(5, 0.1), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3)]
    network = settle(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)), 3, 12, 12)
    graph, x = load(network, (3, 12, 12)), np.random.default_rng(0).standard_normal((32, 12, 12, 3), np.float32)
    model, _ = convert(graph, x)
    assert relative_error(reference.run(model.graph, x), reference.run(graph, x)) < 0.02
    for backend in ("cpp", "numba"):
        got = Engine(model, backend=backend).run(x.transpose(0, 3, 1, 2))  # type: ignore[arg-type]
        expected = reference.run(model.graph, x)
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_vectors() -> None:
    module = settle(nn.Sequential(nn.Linear(10, 30), nn.BatchNorm1d(30), KWinners(4, "local"), nn.Linear(30, 2)), 10)
    assert_same(module, load(module, (10,)), 10)


def test_boosting_is_kept_as_a_ranking_factor() -> None:
    winners = KWinners(3, "local", units=8, boost_strength=2.0)
    module = settle(nn.Sequential(nn.Conv2d(1, 8, 3), winners), 1, 6, 6)
    graph = load(module, (1, 6, 6))
    node = graph.output
    assert isinstance(node, KWTA)
    assert node.factor is not None
    assert np.ptp(node.factor) > 0
    assert_same(module, graph, 1, 6, 6)


def test_boosting_between_a_flatten_and_a_linear_layer_is_reordered() -> None:
    winners = KWinners(6, "global", units=48, boost_strength=1.5)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.BatchNorm1d(48), winners, nn.Linear(48, 4))
    assert_same(settle(module, 1, 6, 6), load(module, (1, 6, 6)), 1, 6, 6)


def masked_network() -> nn.Sequential:
    rng = np.random.default_rng(0)
    conv, linear = nn.Conv2d(8, 16, 3), nn.Linear(256, 32)
    attach_mask(conv, random_mask(72, 16, 4, rng=rng, block=(4, 4)))
    attach_mask(linear, random_mask(256, 32, 8, rng=rng), (16, 4, 4))
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)


def test_masks_become_full_sets() -> None:
    module = masked_network().eval()
    graph = load(module, (8, 6, 6))
    assert_same(module, graph, 8, 6, 6)
    packed = [node.weight for node in pack_graph(graph).nodes if isinstance(node, (Conv2d, Linear))]
    assert [(weight.block, weight.sets, weight.set_size) for weight in packed] == [((4, 4), 1, 4), ((1, 1), 4, 8)]  # type: ignore[union-attr]
    assert all(weight.statistics().block_fill == 1.0 for weight in packed)  # type: ignore[union-attr]


def test_convert_quantizes_packs_and_runs() -> None:
    module = masked_network().eval()
    graph = load(module, (8, 6, 6))
    x = np.random.default_rng(1).random((64, 8, 6, 6), np.float32)
    model, errors = convert(graph, x.transpose(0, 2, 3, 1), labels=tuple("abcdefghijklmnopqrstuvwxyzABCDEF"))
    assert {error.dtype for error in errors} == {"uint8"}
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    got = Engine(model).run(x)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_convert_without_calibration_stays_float32_and_packs_by_default_only_what_is_sparse() -> None:
    module = nn.Sequential(nn.Linear(40, 16), nn.Linear(16, 16, bias=False)).eval()
    with torch.no_grad():
        module[1].weight *= torch.rand(16, 16) < 0.2
    model, errors = convert(load(module, (40,)), None, default=Packing(block=(4, 4)))
    assert errors == ()
    weights = [node.weight for node in model.graph.nodes if isinstance(node, Linear)]
    assert isinstance(weights[0], np.ndarray)
    assert isinstance(weights[1], PackedMatrix)
    assert weights[1].block == (4, 4)
    assert_same(module, model.graph, 40)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding mode 'reflect'"),
        (nn.AvgPool2d(4, 2, 1, ceil_mode=True), "ceil_mode and counts its padding"),
        (nn.AdaptiveAvgPool2d(2), "adaptive pooling to 2 of an image of 9 x 9 .*; choose sizes that divide"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices"),
        (nn.GroupNorm(1, 3), r"0 \(GroupNorm\): has no counterpart; train with batch norm"),
        (nn.LogSigmoid(), r"0 \(LogSigmoid\): has no counterpart; if it is last, leave it out"),
        (nn.ConvTranspose2d(3, 4, 2), r"0 \(ConvTranspose2d\): .*upsampling are not supported; import the parts"),
        (nn.BatchNorm2d(3, track_running_stats=False), "running statistics"),
        (nn.Softmax(2), "softmax"),
        (nn.Mish(), r"0 \(Mish\): has no counterpart; train with ReLU, LeakyReLU"),
        (nn.Conv1d(3, 4, 3), r"0 \(Conv1d\): slides 1-D windows over shape \(3, 9, 9\); expected 2-D ones"),
        (nn.AdaptiveAvgPool1d(1), "pools over 1 axes of shape"),
        (nn.LSTM(9, 4), r"0 \(LSTM\): .*; networks with memory"),
    ],
)
def test_what_cannot_be_exported_says_why(layer: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        load(nn.Sequential(layer).eval(), (3, 9, 9))


@pytest.mark.parametrize(
    "pool",
    [nn.AdaptiveAvgPool2d((2, 3)), nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(6)],
    ids=str,
)
def test_adaptive_pooling_whose_windows_are_alike(pool: nn.Module) -> None:
    module = nn.Sequential(nn.Conv2d(2, 5, 3), pool).eval()
    assert_same(module, load(module, (2, 8, 8)), 2, 8, 8)


@pytest.mark.parametrize("shape", [3, (), (3, 0, 9), (3.0, 9, 9), "abc"])
def test_a_shape_that_is_none_is_explained(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"expected the shape of one sample, such as \(3, 224, 224\)"):
        load(nn.Conv2d(3, 4, 3), shape)


def test_what_is_no_module_is_explained() -> None:
    with pytest.raises(TypeError, match="module is a dict; expected"):
        load({}, (3,))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch advises against tracing
        traced = torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(UnsupportedModelError, match="is a ScriptModule; give"):
        load(traced, (3,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's compiler when it is imported
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, nn.Module.double, nn.Module.half, nn.Module.bfloat16])
def test_wrapped_and_cast_modules_keep_their_masks(wrap: Any) -> None:
    module = pruned_network(0.8)
    wrapped = wrap(copy.deepcopy(module))
    graph = load(wrapped, [2, 6, 6])  # type: ignore[arg-type]
    packings = [node.packing for node in graph.nodes if isinstance(node, (Conv2d, Linear))]
    assert [packing is not None for packing in packings] == [True, True, False]
    x = torch.randn(4, 2, 6, 6)
    expected = module(x).detach().numpy()
    tolerance = 0.05 if wrap is nn.Module.bfloat16 else 0.01
    assert np.abs(Engine(Model(graph)).run(x) - expected).max() < tolerance * np.abs(expected).max()
    assert {item.dtype for item in wrapped.parameters()} == {item.dtype for item in wrap(module).parameters()}


def test_all_unknown_layers_are_listed() -> None:
    with pytest.raises(UnsupportedModelError) as error:
        load(nn.Sequential(nn.Mish(), nn.Conv2d(3, 4, 3), nn.Softplus()).eval(), (3, 9, 9))
    assert "0 (Mish): has no counterpart" in str(error.value)
    assert "2 (Softplus): has no counterpart" in str(error.value)
    with pytest.raises(UnsupportedModelError) as error:
        load(nn.Sequential(nn.Bilinear(2, 2, 2), nn.CosineSimilarity(), nn.Linear(9, 9)).eval(), (9,))
    assert str(error.value).count("known are") == 1


# --- activations -----------------------------------------------------------------------------------------------------


class Written(nn.Module):
    """Swish and hard swish, written out, and functions."""

    def forward(self, x: Any) -> Any:
        x = x * torch.sigmoid(x)
        x = functional.hardsigmoid(x) * x
        x = x * (functional.relu6(x + 3) / 6)
        x = x * functional.relu6(x + 3) / 6
        return functional.elu(functional.leaky_relu(x, 0.3).tanh(), 0.7) + functional.silu(x)


ACTIVATIONS: dict[str, nn.Module] = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "silu": nn.SiLU(inplace=True),
    "hard_sigmoid": nn.Hardsigmoid(),
    "hard_swish": nn.Hardswish(),
    "elu": nn.ELU(0.7),
    "leaky_relu": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(),
    "written": Written(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    """Float32 equals PyTorch, and integers, between layers with weights, are near."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), ACTIVATIONS[name], nn.Conv2d(16, 8, 3)).eval()
    graph = load(network, (3, 9, 9))
    assert_same(network, graph, 3, 9, 9)
    functions = [node.function for node in graph.nodes if isinstance(node, Activation)]
    wanted = {
        "prelu": ["leaky_relu"],
        "written": ["silu", "hard_swish", "hard_swish", "hard_swish", "leaky_relu", "tanh", "elu", "silu"],
    }
    assert functions == wanted.get(name, [name])
    x = np.random.default_rng(0).standard_normal((32, 3, 9, 9), np.float32)
    model, _ = convert(graph, graph.from_caller(x))
    assert not any(
        kind.dtype == "float32" for name, kind in model.graph.types.items() if name != graph.output.name + ".scaled"
    )
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    results = [Engine(model, backend=backend).run(x) for backend in ("reference", "cpp", "numba")]  # type: ignore[arg-type]
    assert relative_error(results[0], expected) < (0.06 if name == "written" else 0.03)  # which rounds often
    assert all(np.array_equal(results[0], result) for result in results[1:])


class Gate(nn.Module):
    """Squeeze and excitation, by 1 x 1 convolutions or by linear layers."""

    def __init__(self, channels: int, is_linear: bool = False) -> None:
        super().__init__()
        self.is_linear, fewer = is_linear, max(1, channels // 4)
        layers = (nn.Linear(channels, fewer), nn.Linear(fewer, channels))
        convs = (nn.Conv2d(channels, fewer, 1), nn.Conv2d(fewer, channels, 1))
        self.down, self.up = layers if is_linear else convs

    def forward(self, x: Any) -> Any:
        mean = functional.adaptive_avg_pool2d(x, 1)
        if not self.is_linear:
            return functional.hardsigmoid(self.up(functional.relu(self.down(mean)))) * x
        gate = torch.sigmoid(self.up(functional.silu(self.down(mean.flatten(1)))))
        return x * gate.view(-1, x.shape[1], 1, 1).expand_as(x)


class Inverted(nn.Module):
    """A block of MobileNetV3: expand, depthwise, gate, project (Howard et al. 2019, arXiv 1905.02244)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int, gate: Any, activation: Any) -> None:
        super().__init__()
        self.is_residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation()),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            *(nn.BatchNorm2d(hidden), activation(), gate(hidden)),
            *(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x: Any) -> Any:
        return x + self.layers(x) if self.is_residual else self.layers(x)


def mobile_network(gate: Any, activation: Any) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), activation()),
        Inverted(8, 16, 8, 1, gate, nn.ReLU),
        Inverted(8, 24, 12, 2, gate, activation),
        Inverted(12, 32, 12, 1, gate, activation),
        *(nn.Conv2d(12, 32, 1, bias=False), nn.BatchNorm2d(32), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(32, 24), activation(), nn.Dropout(0.2), nn.Linear(24, 5)),
    )


@pytest.mark.parametrize("through_onnx", [False, True])
@pytest.mark.parametrize("kind", ["MobileNetV3", "EfficientNet"])
def test_mobile_networks_with_gates(kind: str, through_onnx: bool) -> None:
    """Squeeze and excitation with hard swish, as MobileNetV3 has it, and with silu, as EfficientNet has."""
    is_v3 = kind == "MobileNetV3"
    network = settle(mobile_network(lambda n: Gate(n, not is_v3), nn.Hardswish if is_v3 else nn.SiLU), 3, 32, 32)
    graph = exported(network, 3, 32, 32) if through_onnx else load(network, (3, 32, 32))
    assert_same(network, graph, 3, 32, 32)
    assert sum(isinstance(node, Product) for node in graph.nodes) == 3
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)).numpy()
    model, _ = convert(graph, graph.from_caller(x))
    floats = [name for name, type_ in model.graph.types.items() if type_.dtype == "float32"]
    assert floats == [model.graph.output.name]
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    results = [Engine(model, backend=backend).run(x) for backend in ("reference", "cpp", "numba")]  # type: ignore[arg-type]
    assert relative_error(results[0], expected) < 0.08
    assert all(np.array_equal(results[0], result) for result in results[1:])


def exported(network: nn.Module, *shape: int) -> Graph:
    """The graph by way of ONNX."""
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")
    from csengine.importers import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(network, (torch.zeros(1, *shape),), dynamo=True, verbose=False)
    return onnx.read(made.model_proto).graph  # type: ignore[union-attr]


def test_what_is_repeated_is_only_multiplied() -> None:
    class Sum(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + functional.adaptive_avg_pool2d(x, 1).expand(-1, -1, 4, 4)

    with pytest.raises(UnsupportedModelError, match=r"repeats \(3, 1, 1\) to \(3, 4, 4\); only products"):
        load(Sum().eval(), (3, 4, 4))


def test_what_no_product_can_be_is_refused() -> None:
    class Spatial(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * torch.sigmoid(x[:, :1])

    with pytest.raises(UnsupportedModelError, match=r"multiplies activations of shapes .* a factor per channel"):
        load(Spatial().eval(), (3, 4, 4))


# --- more than chains ------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A bottleneck with a projection, as residual networks have it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


class Functional(nn.Module):
    """The same things as functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Linear(8 * 9, 5)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu6(self.stem(functional.pad(x, (1, 2, 0, 1)))), 2)
        x = torch.cat([self.left(x), self.right(x)], dim=1) * self.scale
        x = (x - 0.25) / 2.0 + functional.leaky_relu(x, 0.1)
        x = functional.avg_pool2d(functional.hardtanh(x, -0.5, 1.5), 3, 1, 1, count_include_pad=False)
        return functional.softmax(self.head(x.view(x.size(0), -1)), dim=1)


def test_residual_networks() -> None:
    module = settle(
        nn.Sequential(Residual(3, 16, 2), Residual(16, 24, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
        3, 12, 10,
    )  # fmt: skip
    graph = load(module, (3, 12, 10))
    assert_same(module, graph, 3, 12, 10)
    assert {"0.conv1", "1.shortcut.0"} <= graph.types.keys()
    folded = convert(graph, None)[0].graph
    assert not any(isinstance(node, Affine) for node in folded.nodes)


def test_functions_and_methods() -> None:
    module = settle(Functional(), 3, 8, 6)
    assert_same(module, load(module, (3, 8, 6)), 3, 8, 6)
    assert module.training is False


def test_a_shared_layer_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    module = Twice().eval()
    assert_same(module, load(module, (6,)), 6)


def test_a_graph_that_computes_something_else_is_refused() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x - 0.5
            return self.relu(y) + y  # y has changed meanwhile

    with pytest.raises(UnsupportedModelError, match=r"differs from the module .* operations in place"):
        load(InPlace(), (6,))
    assert load(InPlace(), (6,), check=False).output_type.shape == (6,)


class Causal(nn.Conv1d):
    """A layer that overrides what its class does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(functional.pad(x, (self.kernel_size[0] - 1, 0)))


class Standardized(nn.Conv2d):
    """Weights that are computed, by functions and methods, when the layer runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        weight = weight / weight.flatten(1).std(dim=1).view(-1, 1, 1, 1)
        return functional.conv2d(x, weight, self.bias, self.stride, "same")


class Patches(nn.Module):
    """A vision transformer: a class token before the patches, layers called by keyword, the token's result."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.places, self.norm = nn.Parameter(torch.randn(1, 10, 8)), nn.LayerNorm(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        x = x + self.attention(query=x, key=x, value=x, need_weights=False)[0]
        return self.head(input=self.norm(x)[:, 0])


class Arranged(nn.Module):
    """New axes, and signals joined along their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv1d(1, 4, 3), nn.Conv1d(1, 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        return torch.cat([self.left(x), self.right(x)], -1)[..., ::2, None].mean((2, 3))


class Doubled(nn.Linear):
    """A layer of one's own that will be masked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(x)


def masked(module: Any) -> Any:
    prune(module, 0.5, keep=())
    return module


class Embedded(nn.Module):
    """Places that are looked up, for which no activations are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.head = nn.Embedding(7, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.places(torch.arange(7)))


OF_PEOPLE: dict[str, tuple[Any, tuple[int, ...]]] = {
    "causal": (lambda: nn.Sequential(Causal(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)), (2, 12)),
    "standardized": (lambda: nn.Sequential(Standardized(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), (3, 6, 5)),
    "patches": (Patches, (3, 12, 12)),
    "arranged": (Arranged, (9,)),
    "hooks": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 4))), (6,)),
    "ceiled": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.AvgPool2d(2, 2, 0, True, False)), (3, 7, 8)),
    "masked": (lambda: masked(nn.Sequential(nn.Linear(6, 8), Doubled(8, 4))), (6,)),
    "embedded": (Embedded, (7, 8)),
    "in_place": (lambda: nn.Sequential(nn.Hardswish(inplace=True), nn.Linear(6, 4)), (6,)),
    "a_layer": (lambda: nn.Conv2d(3, 8, 2), (3, 7, 8)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PyTorch's older spectral normalization
@pytest.mark.parametrize("name", OF_PEOPLE)
def test_modules_as_people_write_them(name: str) -> None:
    torch.manual_seed(0)
    make, shape = OF_PEOPLE[name]
    module = make().eval()
    graph = load(module, shape)
    x = torch.randn(32, *shape)
    with torch.no_grad():
        expected = module(x.clone()).numpy()
    np.testing.assert_allclose(Engine(Model(graph)).run(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    model, _ = convert(graph, graph.from_caller(x.numpy()))
    results = [Engine(model, backend=backend).run(x) for backend in ("reference", "cpp", "numba")]  # type: ignore[arg-type]
    assert relative_error(results[0], expected) < 0.05
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=0.01 * np.abs(expected).max())


def test_a_result_of_other_axes_is_a_vector_in_its_order() -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 8, 3, (4, 1), 1), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).relu().mean(2).transpose(1, 2))

    patches = nn.Sequential(nn.Linear(8, 12), nn.Flatten(), nn.Unflatten(1, (3, 6, 10)))
    for module, shape in ((Columns().eval(), (1, 8, 20)), (patches.eval(), (15, 8))):
        engine, x = Engine(Model(load(module, shape))), torch.randn(3, *shape)
        expected = module(x).detach().flatten(1).numpy()
        assert engine.output_shape == expected.shape[1:]
        np.testing.assert_allclose(engine.run(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_the_module_does_not_take_is_said() -> None:
    with pytest.raises(UnsupportedModelError, match=r"itself does not run on samples of shape \(8, 8, 3\) \(Given"):
        load(nn.Sequential(nn.Conv2d(3, 3, 3)), (8, 8, 3))
    with pytest.raises(UnsupportedModelError, match=r"itself does not run .* without the batch"):
        load(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, 6)), nn.Linear(6, 2)), (6,))


def test_masks_of_attention_are_refused() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder(x, mask=self.mask)

    with pytest.raises(UnsupportedModelError, match=r"encoder \(TransformerEncoder\): has mask; only plain attention"):
        load(Masked(), (5, 8))


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
def test_both_exporters_keep_the_winners(dynamo: bool, is_open: bool) -> None:
    """Where the batch is left open, too, for which both write shapes that are computed."""
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")
    onnx = pytest.importorskip("onnx", reason="needs the extra csengine[onnx]")
    from csengine.importers.onnx import read

    network, buffer = settle(winners_network(), 1, 6, 6), io.BytesIO()
    options: dict[str, Any] = {"dynamo": dynamo, "input_names": ["x"]}
    if is_open:
        options |= {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    x = torch.zeros(2 if is_open else 1, 1, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(network, (x,), buffer, verbose=False, **options)
    model = made.model_proto if dynamo else onnx.load_from_string(buffer.getvalue())
    graph = read(model).graph
    assert [node.scope for node in graph.nodes if isinstance(node, KWTA)] == ["local", "global"]
    assert_same(network, graph, 1, 6, 6)


def test_what_fx_cannot_trace_goes_through_onnx() -> None:
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")

    class AsksForShapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = winners_network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[-1] != 6:
                raise ValueError("expected images of 6 columns")
            return self.network(x) if x.ndim == 4 else x

    network = AsksForShapes()
    network.network.cnn1_kwinner.set_boost_strength(1.0)
    settle(network, 1, 6, 6)
    graph = load(network, (1, 6, 6))
    assert {node.scope for node in graph.nodes if isinstance(node, KWTA)} == {"local", "global"}
    assert_same(network, graph, 1, 6, 6)


def test_functions_that_only_onnx_knows_go_through_it() -> None:
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")

    class OwnWinners(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            least = x.topk(3, dim=1).values[:, -1].unsqueeze(1)
            return torch.where(x < least, torch.zeros_like(x), x)

    class OwnActivation(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.erfinv(x)

    network = settle(nn.Sequential(nn.Conv2d(3, 16, 3), OwnWinners(), nn.Conv2d(16, 4, 1)), 3, 6, 5)
    graph = load(network, (3, 6, 5))
    assert [node.k for node in graph.nodes if isinstance(node, KWTA)] == [3]
    assert_same(network, graph, 3, 6, 5)
    with pytest.raises(UnsupportedModelError, match=r"erfinv \(erfinv\): has no counterpart; known are .* add"):
        load(OwnActivation(), (6,))


def test_what_cannot_be_followed_says_so() -> None:
    pytest.importorskip("onnxscript", reason="PyTorch exports with it")

    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    class TwoInputs(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    reason = r"fx cannot trace the module .* torch.export cannot follow it .* control flow must not depend on data"
    with pytest.raises(UnsupportedModelError, match=reason):
        load(Branches(), (6,))
    with pytest.raises(UnsupportedModelError, match="is a second input"):
        load(TwoInputs(), (6,))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def winners_network() -> nn.Sequential:
    """The layout of the k-winners literature's small network."""
    return nn.Sequential(
        OrderedDict(
            cnn1=nn.Conv2d(1, 6, 3),
            cnn1_batchnorm=nn.BatchNorm2d(6, affine=False),
            cnn1_maxpool=nn.MaxPool2d(2),
            cnn1_kwinner=KWinners(2, "local", units=6),
            flatten=nn.Flatten(),
            linear1=nn.Linear(24, 12),
            linear1_kwinner=KWinners(4, "global", units=12),
            output=nn.Linear(12, 3),
        )
    )


def literature_checkpoint() -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """A network, and its checkpoint as that literature writes it."""
    module = settle(winners_network(), 1, 6, 6)
    with torch.no_grad():
        for layer in (module.cnn1_kwinner, module.linear1_kwinner):
            layer.duty_cycle.copy_(torch.rand(layer.duty_cycle.shape))
            layer.set_boost_strength(1.5)
    state: dict[str, torch.Tensor] = {}
    for key, tensor in module.state_dict().items():
        wrapped = key.replace("cnn1.", "cnn1.module.").replace("linear1.", "linear1.module.")
        state[wrapped] = tensor.reshape(1, -1, 1, 1) if key == "cnn1_kwinner.duty_cycle" else tensor.clone()
    state["linear1.zero_weights"] = torch.zeros(2, 5, dtype=torch.int64)
    return module, state


def test_checkpoints_of_the_literature_are_read_by_key_names(tmp_path: Path) -> None:
    trained, state = literature_checkpoint()
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    module = load_checkpoint(winners_network(), path)
    graph = load(module, (1, 6, 6))
    assert_same(trained, graph, 1, 6, 6)
    factors = [node.factor for node in graph.nodes if isinstance(node, KWTA)]
    assert all(factor is not None and np.ptp(factor) > 0 for factor in factors)


def pruned_network(sparsity: float) -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 3)
    )
    if sparsity:
        prune(network, sparsity, block=(4, 16), images={"3": (8, 4, 4)}, keep=("5",))
    return network.eval()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8])
def test_the_checkpoint_of_a_pruned_network_brings_its_masks(tmp_path: Path, sparsity: float) -> None:
    trained = pruned_network(0.8)
    torch.save({"state_dict": trained.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    module = load_checkpoint(pruned_network(sparsity), tmp_path / "checkpoint.pt")
    for got, wanted in ((module[0], trained[0]), (module[3], trained[3])):
        mask, original = mask_of(got), mask_of(wanted)
        assert mask is not None
        assert original is not None
        np.testing.assert_array_equal(mask.matrix, original.matrix)
        np.testing.assert_array_equal(mask.members, original.members)
        assert mask.block == original.block == (4, 16)
    assert mask_of(module[5]) is None
    x = torch.randn(4, 2, 6, 6)
    assert torch.equal(module(x), trained(x))
    assert masked_weight_of(module[3]).image == (8, 4, 4)  # type: ignore[union-attr]


def test_a_mask_for_a_layer_of_another_shape_is_reported() -> None:
    other = nn.Sequential(nn.Conv2d(2, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 3))
    with pytest.raises(UnsupportedModelError, match=r"0\.weight: missing"):
        load_checkpoint(other, pruned_network(0.8).state_dict())


def test_what_a_checkpoint_lacks_is_the_modules_own() -> None:
    _, state = literature_checkpoint()
    state = {key: tensor for key, tensor in state.items() if not key.endswith("boost_strength")}
    assert load_checkpoint(winners_network(), state).cnn1_kwinner.factor is None
    del state["cnn1_kwinner.duty_cycle"], state["output.bias"]
    state["linear1.module.weight"] = torch.zeros(12, 25)
    state["other.weight"] = torch.zeros(3)
    with pytest.raises(UnsupportedModelError) as error:
        load_checkpoint(winners_network(), state)
    for expected in (
        "cnn1_kwinner.duty_cycle: missing",
        "output.bias: missing",
        "linear1.weight: has shape (12, 25); expected (12, 24)",
        "other.weight: left over",
    ):
        assert expected in str(error.value)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize("content", [Evil(), {"state_dict": Evil()}, 3.0], ids=["code", "nested", "number"])
def test_files_that_hold_more_than_tensors_are_refused(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "evil.pt")
    with pytest.raises(ModelFormatError, match=r"holds something else than tensors|expected a state_dict"):
        load_checkpoint(winners_network(), tmp_path / "evil.pt")
    (tmp_path / "evil.pt").write_bytes(b"garbage")
    with pytest.raises(ModelFormatError):
        load_checkpoint(winners_network(), tmp_path / "evil.pt")
    assert "executed" not in capsys.readouterr().out
