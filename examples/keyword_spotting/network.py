"""The paper's Google Speech Commands network in four variants.

Input 1×32×32 → conv 5×5, 64 → batch norm → pool 2 → ReLU → [k-winners] → conv 5×5, 64 → batch norm → pool 2 → ReLU →
[k-winners] → flatten 1600 → linear 1500 → batch norm → ReLU → [k-winners] → linear 12. Batch norm has no affine part;
only the convolutions have a bias. ReLU comes before k-winners, so that activations are never negative (an unsigned
8-bit integer holds them); pooling comes before k-winners, so that no more than k channels are active per position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from csengine.masks import matrix_from_weight
from csengine.torch import KWinners, attach_mask, magnitude_mask, random_mask

IMAGE = (64, 5, 5)
"""The (C, H, W) that is flattened in front of the linear layer."""
HIDDEN = 1500
CLASSES = 12


@dataclass(frozen=True)
class LayerMask:
    """How one layer's mask is made; see ``csengine.torch.random_mask``."""

    set_size: int
    block: tuple[int, int] = (1, 1)
    blocks_per_kernel: int | None = None


@dataclass(frozen=True)
class Variant:
    """``masks`` for (conv1, conv2, linear) or None for dense weights; ``winners`` likewise or None for ReLU alone."""

    masks: tuple[LayerMask, LayerMask, LayerMask] | None
    winners: tuple[int, int, int] | None


PAPER_MASKS = (
    LayerMask(2, blocks_per_kernel=12),
    LayerMask(8, blocks_per_kernel=200),
    LayerMask(25, blocks_per_kernel=64),
)
# Blocks that a processor likes: V = 16 kernels fill a vector. In conv2 a block is one place of the 5×5 field, all 64
# channels of it, for 16 kernels: a whole tile of matrix instructions, multiplied or skipped. Four blocks of kernels
# make a set there, so that conv2 has twice the paper's weights; the other densities are the paper's.
BLOCKED_MASKS = (LayerMask(2, block=(4, 16)), LayerMask(4, block=(64, 16)), LayerMask(24, block=(1, 16)))
PAPER_WINNERS = (6, 8, 150)

TEACHER = "teacher"
"""The dense network that is trained from nothing; all others go on from it."""

VARIANTS = {
    TEACHER: Variant(None, None),
    "dense": Variant(None, None),
    "sparse-dense": Variant(PAPER_MASKS, None),
    "sparse-sparse": Variant(PAPER_MASKS, PAPER_WINNERS),
    "sparse-sparse-blocked": Variant(BLOCKED_MASKS, PAPER_WINNERS),
}


def build_network(name: str, seed: int = 0, *, masked: bool = True) -> nn.Sequential:
    """The variant ``name`` with random masks drawn from ``seed``; initial weights come from PyTorch's own generator.

    ``masked=False`` leaves all weights free until :func:`prune`.
    Input float32 [n, 1, 32, 32], output [n, 12]. The children are named, in order, conv1, norm1, pool1, relu1,
    winners1, conv2, … winners2, flatten, linear, norm3, relu3, winners3, output; ``winners*`` only with k-winners.
    """
    winners = VARIANTS[name].winners or (None, None, None)
    network = nn.Sequential()
    for index, channels in ((1, 1), (2, 64)):
        network.add_module(f"conv{index}", nn.Conv2d(channels, 64, 5))
        network.add_module(f"norm{index}", nn.BatchNorm2d(64, affine=False))
        network.add_module(f"pool{index}", nn.MaxPool2d(2))
        _add_activation(network, index, winners[index - 1], "local", 64)
    network.add_module("flatten", nn.Flatten())
    network.add_module("linear", nn.Linear(int(np.prod(IMAGE)), HIDDEN, bias=False))
    network.add_module("norm3", nn.BatchNorm1d(HIDDEN, affine=False))
    _add_activation(network, 3, winners[2], "global", HIDDEN)
    network.add_module("output", nn.Linear(HIDDEN, CLASSES, bias=False))
    if masked:
        _attach_masks(network, name, seed, by_magnitude=False)
    return network


def prune(network: nn.Sequential, name: str, seed: int = 0, stages_left: int = 0) -> None:
    """Give the layers the complementary masks that keep their strongest weights, in place of masks they have.

    ``stages_left``: every stage that is still to come halves the sets, so that about twice as many weights stay.
    """
    _attach_masks(network, name, seed, by_magnitude=True, stages_left=stages_left)


def _attach_masks(network: nn.Sequential, name: str, seed: int, *, by_magnitude: bool, stages_left: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for layer_name, mask in zip(("conv1", "conv2", "linear"), VARIANTS[name].masks or (), strict=False):
        layer = network.get_submodule(layer_name)
        image = IMAGE if layer_name == "linear" else None
        matrix = matrix_from_weight(layer.weight.detach().numpy(), image)
        set_size = max(2, -(-mask.set_size // 2**stages_left))
        count = mask.blocks_per_kernel if set_size == mask.set_size else None
        if by_magnitude:
            made = magnitude_mask(matrix, set_size, rng=rng, block=mask.block, blocks_per_kernel=count)
        else:
            made = random_mask(*matrix.shape, set_size, rng=rng, block=mask.block, blocks_per_kernel=count)
        attach_mask(layer, made, image)


def _add_activation(network: nn.Sequential, index: int, k: int | None, scope: str, units: int) -> None:
    network.add_module(f"relu{index}", nn.ReLU())
    if k is not None:
        network.add_module(f"winners{index}", KWinners(k, scope, units=units))


def pool_first(network: nn.Sequential) -> nn.Sequential:
    """The same modules with each pooling in front of its batch norm, for training.

    Without an affine part, batch norm is increasing and commutes with max-pooling: in evaluation both orders are the
    same function. In training the statistics are those of the pooled values, which are a quarter as many.
    """
    names = [name for name, _ in network.named_children()]
    for index in (1, 2):
        norm, pool = names.index(f"norm{index}"), names.index(f"pool{index}")
        names[norm], names[pool] = names[pool], names[norm]
    return nn.Sequential(*(network.get_submodule(name) for name in names))


def count_nonzeros(network: nn.Sequential) -> int:
    """Non-zero weights and biases of the network; a bias counts whatever its value."""
    layers = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights = sum(int((layer.weight != 0).sum()) for layer in layers)
    return weights + sum(layer.bias.numel() for layer in layers if layer.bias is not None)
