"""PyTorch chains become graphs that compute the same."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra csengine[torch]")

from torch import nn  # noqa: E402

from csengine import Engine, UnsupportedModelError, reference  # noqa: E402
from csengine.convert import convert, pack_graph  # noqa: E402
from csengine.graph import KWTA, Conv2d, Graph, Linear, Packing  # noqa: E402
from csengine.packing import PackedMatrix  # noqa: E402
from csengine.torch import KWinners, attach_mask, random_mask  # noqa: E402
from csengine.torch.export import export  # noqa: E402


def settle(module: nn.Sequential, *shape: int) -> nn.Sequential:
    """Give batch norms statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, *shape))
    return module.eval()


def assert_same(module: nn.Sequential, graph: Graph, *shape: int) -> None:
    x = torch.randn(8, *shape)
    with torch.no_grad():
        expected = module(x).numpy()
    nhwc = np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1)) if len(shape) == 3 else x.numpy()
    got = reference.run(graph, nhwc)
    if got.ndim == 4:
        got = got.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def image_network() -> nn.Sequential:
    """Every layer that the exporter knows, nested."""
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
    graph = export(module, (3, 20, 16))
    assert graph.layout == "NCHW"
    assert_same(module, graph, 3, 20, 16)


def test_global_average_pooling_and_image_outputs() -> None:
    module = nn.Sequential(nn.Conv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
    assert_same(module, export(module, (2, 9, 7)), 2, 9, 7)
    module = nn.Sequential(nn.Conv2d(2, 5, (1, 3), stride=(2, 1))).eval()
    assert_same(module, export(module, (2, 9, 7)), 2, 9, 7)


def test_vectors() -> None:
    module = settle(nn.Sequential(nn.Linear(10, 30), nn.BatchNorm1d(30), KWinners(4, "local"), nn.Linear(30, 2)), 10)
    assert_same(module, export(module, (10,)), 10)


def test_boosting_is_kept_as_a_ranking_factor() -> None:
    winners = KWinners(3, "local", units=8, boost_strength=2.0)
    module = settle(nn.Sequential(nn.Conv2d(1, 8, 3), winners), 1, 6, 6)
    graph = export(module, (1, 6, 6))
    node = graph.output
    assert isinstance(node, KWTA)
    assert node.factor is not None
    assert np.ptp(node.factor) > 0
    assert_same(module, graph, 1, 6, 6)


def test_boosting_between_a_flatten_and_a_linear_layer_is_reordered() -> None:
    winners = KWinners(6, "global", units=48, boost_strength=1.5)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.BatchNorm1d(48), winners, nn.Linear(48, 4))
    assert_same(settle(module, 1, 6, 6), export(module, (1, 6, 6)), 1, 6, 6)


def masked_network() -> nn.Sequential:
    rng = np.random.default_rng(0)
    conv, linear = nn.Conv2d(8, 16, 3), nn.Linear(256, 32)
    attach_mask(conv, random_mask(72, 16, 4, rng=rng, block=(4, 4)))
    attach_mask(linear, random_mask(256, 32, 8, rng=rng), (16, 4, 4))
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)


def test_masks_become_full_sets() -> None:
    module = masked_network().eval()
    graph = export(module, (8, 6, 6))
    assert_same(module, graph, 8, 6, 6)
    packed = [node.weight for node in pack_graph(graph).nodes if isinstance(node, (Conv2d, Linear))]
    assert [(weight.block, weight.sets, weight.set_size) for weight in packed] == [((4, 4), 1, 4), ((1, 1), 4, 8)]  # type: ignore[union-attr]
    assert all(weight.statistics().block_fill == 1.0 for weight in packed)  # type: ignore[union-attr]


def test_convert_quantizes_packs_and_runs() -> None:
    module = masked_network().eval()
    graph = export(module, (8, 6, 6))
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
    model, errors = convert(export(module, (40,)), None, default=Packing(block=(4, 4)))
    assert errors == ()
    weights = [node.weight for node in model.graph.nodes if isinstance(node, Linear)]
    assert isinstance(weights[0], np.ndarray)
    assert isinstance(weights[1], PackedMatrix)
    assert weights[1].block == (4, 4)
    assert_same(module, model.graph, 40)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(3, 4, 3, dilation=2), "dilation"),
        (nn.Conv2d(3, 4, 3, padding="same"), "padding 'same'"),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding mode 'reflect'"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), "count_include_pad"),
        (nn.AdaptiveAvgPool2d(2), "adaptive pooling to 2"),
        (nn.BatchNorm2d(3, track_running_stats=False), "running statistics"),
        (nn.Flatten(2), "flatten"),
        (nn.Softmax(2), "softmax"),
        (nn.GELU(), "GELU has no counterpart"),
    ],
)
def test_what_cannot_be_exported_says_why(layer: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        export(nn.Sequential(layer).eval(), (3, 9, 9))


def test_all_unknown_layers_are_listed() -> None:
    with pytest.raises(UnsupportedModelError) as error:
        export(nn.Sequential(nn.GELU(), nn.Conv2d(3, 4, 3), nn.Tanh()).eval(), (3, 9, 9))
    assert "0: GELU" in str(error.value)
    assert "2: Tanh" in str(error.value)
