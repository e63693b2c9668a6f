"""Accuracy against sparsity on the handwritten digits that scikit-learn carries.

    python study.py                 # bench/results/digits.json, about fifteen minutes on one core
    python study.py --quick         # a few epochs of one seed, to see that it runs; give --output, too

A small convolutional network is trained dense, then made sparse and trained for as long again, in four ways:

    random      a random complementary pattern from the start, never changed (the paper's)
    magnitude   complementary patterns that keep the strongest weights, 1x1 blocks, in steps
    blocks      the same in blocks of 4 rows by 16 kernels, which processors like
    winners     as magnitude, and k-winners instead of ReLU alone: sparse twice

Pruning reaches its sparsity after a quarter of the training.

Accuracies are those of the packed int8 network, as the engine computes it, on digits that were not trained on.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from csengine import Engine
from csengine.convert import convert
from csengine.importers.torch import load
from csengine.masks import matrix_from_weight, random_mask
from csengine.torch import KWinners, attach_mask, cubic_sparsity, distillation_loss, prune

IMAGE = (64, 4, 4)
"""The (C, H, W) that is flattened in front of the hidden layer."""
RESULTS = Path(__file__).parents[2] / "bench" / "results" / "digits.json"
SPARSITIES = (0.75, 0.9, 0.95, 0.98, 0.99)
WINNERS = {"winners2": 16, "winners3": 38}  # a quarter of the channels, 15 % of the hidden units


@dataclass(frozen=True)
class Digits:
    """Images float32 [n, 1, 8, 8] in 0..1 and labels [n]."""

    x: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True)
class Result:
    """One trained network. density: share of the weights of the sparse layers that are not 0."""

    method: str
    sparsity: float
    seed: int
    density: float
    accuracy: float


def digits(seed: int) -> tuple[Digits, Digits]:
    """Training and test images, a quarter of all."""
    found = load_digits()
    x = (found.images / 16.0).astype(np.float32)[:, None]
    parts = train_test_split(x, found.target.astype(np.int64), test_size=0.25, random_state=seed, stratify=found.target)
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return Digits(train_x, train_y), Digits(test_x, test_y)


def build(winners: bool = False) -> nn.Sequential:
    """Two convolutions, a hidden layer, ten outputs."""
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(1, 32, 3, padding=1))
    network.add_module("norm1", nn.BatchNorm2d(32))
    network.add_module("relu1", nn.ReLU())
    network.add_module("conv2", nn.Conv2d(32, 64, 3, padding=1))
    network.add_module("norm2", nn.BatchNorm2d(64))
    network.add_module("pool", nn.MaxPool2d(2))
    network.add_module("relu2", nn.ReLU())
    if winners:
        network.add_module("winners2", KWinners(WINNERS["winners2"], "local", units=64))
    network.add_module("flatten", nn.Flatten())
    network.add_module("hidden", nn.Linear(int(np.prod(IMAGE)), 256))
    network.add_module("norm3", nn.BatchNorm1d(256))
    network.add_module("relu3", nn.ReLU())
    if winners:
        network.add_module("winners3", KWinners(WINNERS["winners3"], "global", units=256))
    network.add_module("output", nn.Linear(256, 10))
    return network


def train(
    network: nn.Sequential,
    data: Digits,
    epochs: int,
    *,
    teacher: nn.Module | None = None,
    before_epoch: Callable[[int], None] | None = None,
) -> None:
    """Adam with a falling rate, images shifted by up to a pixel; with a teacher, distillation from it."""
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        if before_epoch is not None:
            before_epoch(epoch)
        network.train()
        for chosen in torch.randperm(len(data.x)).split(64):
            shift = torch.randint(-1, 2, (2,)).tolist()
            x, y = torch.roll(data.x[chosen], shift, (2, 3)), data.y[chosen]
            logits = network(x)
            if teacher is None:
                loss = nn.functional.cross_entropy(logits, y)
            else:
                with torch.no_grad():
                    answers = teacher(x)
                loss = distillation_loss(logits, answers, y, weight=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    network.eval()


def accuracy(network: nn.Sequential, train_data: Digits, test: Digits) -> float:
    """Share of the test images that the packed int8 network recognises."""
    calibration: NDArray[np.float32] = train_data.x[:512].numpy().transpose(0, 2, 3, 1)
    model, _ = convert(load(network, (1, 8, 8)), np.ascontiguousarray(calibration))
    answers = Engine(model, threads=1).run(test.x.numpy()).argmax(axis=1)
    return float((answers == test.y.numpy()).mean())


def attach_random_masks(network: nn.Sequential, sparsity: float, seed: int) -> None:
    """Static patterns in the two middle layers."""
    rng = np.random.default_rng(seed)
    for name, image in (("conv2", None), ("hidden", IMAGE)):
        layer = network.get_submodule(name)
        rows, kernels = matrix_from_weight(layer.weight.detach().numpy(), image).shape
        each = max(1, round((1 - sparsity) * rows))
        mask = random_mask(rows, kernels, min(rows // each, kernels), rng=rng, blocks_per_kernel=each)
        attach_mask(layer, mask, image)


def sparsify(method: str, sparsity: float, dense: nn.Sequential, data: Digits, epochs: int, seed: int) -> nn.Sequential:
    """A sparse network, trained."""
    if method == "random":
        network = build()
        attach_random_masks(network, sparsity, seed)
        train(network, data, 2 * epochs)
        return network
    network = build(winners=method == "winners")
    network.load_state_dict(dense.state_dict(), strict=False)
    block = (4, 16) if method == "blocks" else (1, 1)

    def mask(epoch: int) -> None:
        if (now := cubic_sparsity(epoch, max(1, epochs // 2), sparsity)) is not None:
            prune(network, now, block=block, images={"hidden": IMAGE}, seed=seed)

    train(network, data, 2 * epochs, teacher=copy.deepcopy(dense).eval(), before_epoch=mask)
    return network


def density(network: nn.Sequential) -> float:
    """Share of the weights of the two middle layers that are not 0."""
    weights = [network.get_submodule(name).weight for name in ("conv2", "hidden")]
    return float(sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights))


def study(seeds: int, epochs: int, sparsities: tuple[float, ...]) -> list[Result]:
    """Every method at every sparsity."""
    results = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        data, test = digits(seed)
        dense = build()
        train(dense, data, 2 * epochs)
        results.append(Result("dense", 0.0, seed, density(dense), accuracy(dense, data, test)))
        for method in ("random", "magnitude", "blocks", "winners"):
            for sparsity in sparsities:
                network = sparsify(method, sparsity, dense, data, epochs, seed)
                results.append(Result(method, sparsity, seed, density(network), accuracy(network, data, test)))
                print(results[-1], flush=True)
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, one sparsity")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--epochs",
        type=int,
        default=10,
        help="half of every training",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more only wait for each other over networks this small
    quick = (1, 2, (0.75,))
    results = study(*quick) if arguments.quick else study(arguments.seeds, arguments.epochs, SPARSITIES)
    report = {"results": [asdict(result) for result in results]}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
