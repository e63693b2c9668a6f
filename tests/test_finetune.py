"""Hooks for making a trained network sparse: masks by magnitude, their schedule, distillation."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra csengine[torch]")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from csengine.convert import convert  # noqa: E402
from csengine.graph import Conv2d, Linear  # noqa: E402
from csengine.importers.torch import load  # noqa: E402
from csengine.packing import PackedMatrix  # noqa: E402
from csengine.torch import cubic_sparsity, distillation_loss, mask_of, prune  # noqa: E402


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 32, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.Linear(64, 5),
    )


def test_masks_keep_the_strongest_weights_and_hold() -> None:
    module = network()
    before = module[5].weight.detach().clone()
    losses = prune(module, 0.75, block=(4, 4), images={"5": (32, 4, 4)}, layers={"2": 0.5})
    assert [(loss.name, loss.density) for loss in losses] == [("2", 0.5), ("5", 0.25)]
    assert [mask_of(module[i]) is None for i in (0, 1, 2, 5, 6)] == [True, True, False, False, True]
    kept = module[5].weight != 0
    assert (before[kept] == module[5].weight[kept]).all()
    assert (before[kept] ** 2).mean() > 1.02 * (before**2).mean()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, weight_decay=0.1)
    functional.cross_entropy(module(torch.randn(4, 1, 10, 10)), torch.arange(4)).backward()
    optimizer.step()
    assert ((module[5].weight != 0) <= kept).all()


def test_pruned_layers_are_packed_into_full_sets() -> None:
    module = network()
    prune(module, 0.75, block=(4, 4), images={"5": (32, 4, 4)})
    graph = convert(load(module, (1, 10, 10)), None)[0].graph
    packed = {node.name: node.weight for node in graph.nodes if isinstance(node, (Conv2d, Linear))}
    for name in ("2", "5"):
        weight = packed[name]
        assert isinstance(weight, PackedMatrix)
        assert (weight.block, weight.set_size, weight.statistics().overflow_sets) == ((4, 4), 4, 0)


def test_pruning_again_replaces_the_masks() -> None:
    module = network()
    densities = [prune(module, sparsity)[1].density for sparsity in (0.5, 0.75, 0.9)]
    np.testing.assert_allclose(densities, [0.5, 0.25, 0.1], atol=0.01)
    assert len(list(module[5].parametrizations.weight)) == 1


def test_names_that_are_no_layers_are_refused() -> None:
    for names in ({"keep": ["7"]}, {"layers": {"relu": 0.5}}, {"images": {"4": (1, 2, 3)}}):
        with pytest.raises(ValueError, match=r"no layer .*; the module has 0, 1, 2, 5, 6"):
            prune(network(), 0.5, **names)


def test_sparsity_grows_quickly_first() -> None:
    steps = [cubic_sparsity(step, 4, 0.8) for step in range(6)]
    assert steps[3:] == [0.8, None, None]
    growth = np.diff([0.0, *steps[:4]])
    assert (growth > 0).all()
    assert (np.diff(growth) < 0).all()


def test_distillation_is_between_imitation_and_truth() -> None:
    logits, teacher, labels = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5), torch.arange(6) % 5
    truth = functional.cross_entropy(logits, labels)
    assert torch.allclose(distillation_loss(logits, teacher, labels, weight=0.0), truth)
    assert distillation_loss(teacher, teacher, labels, weight=1.0) == pytest.approx(0.0, abs=1e-6)
    half = distillation_loss(logits, teacher, labels, weight=0.5)
    imitation = distillation_loss(logits, teacher, labels, weight=1.0)
    assert torch.allclose(half, (truth + imitation) / 2)
    half.backward()
    assert logits.grad is not None


@pytest.mark.parametrize("sparsity", [90, 1.0, -0.1, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ValueError, match="expected at least 0 and below 1"):
        prune(nn.Sequential(nn.Linear(8, 8)), sparsity, keep=())
    with pytest.raises(ValueError, match="expected at least 0 and below 1"):
        prune(nn.Sequential(nn.Linear(8, 8)), 0.5, layers={"0": sparsity})
