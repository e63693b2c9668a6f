"""The paper's Google Speech Commands network in its variants.

Input 1×32×32 → conv 5×5, 64 → batch norm → pool 2 → ReLU → [k-winners] → conv 5×5, 64 → batch norm → pool 2 → ReLU →
[k-winners] → flatten 1600 → linear 1500 → batch norm → ReLU → [k-winners] → linear 12. Batch norm has no affine part;
only the convolutions have a bias. ReLU comes before k-winners, so that activations are never negative (an unsigned
8-bit integer holds them); pooling comes before k-winners, so that no more than k channels are active per position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from csengine.masks import matrix_from_weight
from csengine.pruning import complementary_mask
from csengine.torch import ComplementaryMask, KWinners, attach_mask, magnitude_mask, random_mask

IMAGE = (64, 5, 5)
"""The (C, H, W) that is flattened in front of the linear layer."""
HIDDEN = 1500
CLASSES = 12


@dataclass(frozen=True)
class LayerMask:
    """A mask by the size of its sets; see ``csengine.torch.random_mask``."""

    set_size: int
    block: tuple[int, int] = (1, 1)
    blocks_per_kernel: int | None = None

    def at_random(self, matrix: NDArray[np.float32], rng: np.random.Generator) -> ComplementaryMask:
        """Any such mask for weights [R, O]."""
        return random_mask(
            *matrix.shape, self.set_size, rng=rng, block=self.block, blocks_per_kernel=self.blocks_per_kernel
        )

    def strongest(self, matrix: NDArray[np.float32], rng: np.random.Generator, stages_left: int) -> ComplementaryMask:
        """The mask that keeps the strongest weights [R, O]. Every stage left halves the sets."""
        set_size = max(2, -(-self.set_size // 2**stages_left))
        count = self.blocks_per_kernel if set_size == self.set_size else None
        return magnitude_mask(matrix, set_size, rng=rng, block=self.block, blocks_per_kernel=count)


@dataclass(frozen=True)
class DensityMask:
    """A mask by the share of the weights that stays, in sets as large as that allows.

    ``is_static``: drawn at random whatever the weights are, and the same at every stage.
    """

    density: float
    block: tuple[int, int] = (1, 1)
    is_static: bool = False

    def at_random(self, matrix: NDArray[np.float32], rng: np.random.Generator) -> ComplementaryMask:
        """Any such mask for weights [R, O]."""
        return complementary_mask(rng.random(matrix.shape), self.density, self.block, rng, sweeps=0)

    def strongest(
        self, matrix: NDArray[np.float32], rng: np.random.Generator, stages_left: int
    ) -> ComplementaryMask | None:
        """The mask that keeps the strongest weights [R, O]. Every stage left doubles the density; None if all stay."""
        if self.is_static:
            return self.at_random(matrix, rng)
        density = self.density * 2**stages_left
        return complementary_mask(matrix, density, self.block, rng) if density < 1 else None


Masks: TypeAlias = Mapping[str, LayerMask | DensityMask]
"""By the name of a layer; the others stay dense."""


@dataclass(frozen=True)
class Variant:
    """``masks`` of the sparse layers; ``winners`` after conv1, conv2 and linear, or None for ReLU alone."""

    masks: Masks
    winners: tuple[int, int, int] | None = None


PAPER_MASKS: Masks = {
    "conv1": LayerMask(2, blocks_per_kernel=12),
    "conv2": LayerMask(8, blocks_per_kernel=200),
    "linear": LayerMask(25, blocks_per_kernel=64),
}
# On hardware with few multipliers the first layer, of which the paper keeps half, takes the longest.
FIRST_SPARSER: Masks = {**PAPER_MASKS, "conv1": LayerMask(5, blocks_per_kernel=5)}
# Blocks that a processor likes: V = 16 kernels fill a vector. In conv2 a block is one place of the 5×5 field, all 64
# channels of it, for 16 kernels: a whole tile of matrix instructions, multiplied or skipped. Four blocks of kernels
# make a set there, so that conv2 has twice the paper's weights; the other densities are the paper's.
BLOCKED_MASKS: Masks = {
    "conv1": LayerMask(2, block=(4, 16)),
    "conv2": LayerMask(4, block=(64, 16)),
    "linear": LayerMask(24, block=(1, 16)),
}
PAPER_WINNERS = (6, 8, 150)

TEACHER = "teacher"
"""The dense network that is trained from nothing; all others go on from it."""

METHODS = ("random", "magnitude", "blocks", "winners")
SPARSITIES = (0.75, 0.9, 0.95, 0.98)


def on_curve(method: str, sparsity: float) -> str:
    """The name of the variant whose hidden layers, conv2 and linear, are sparse by one of ``METHODS``."""
    return f"{method}-{sparsity * 100:g}"


def _variant_on_curve(method: str, sparsity: float) -> Variant:
    block = (4, 16) if method == "blocks" else (1, 1)
    mask = DensityMask(round(1 - sparsity, 6), block, is_static=method == "random")
    return Variant({"conv2": mask, "linear": mask}, PAPER_WINNERS if method == "winners" else None)


VARIANTS = {
    TEACHER: Variant({}),
    "dense": Variant({}),
    "sparse-dense": Variant(PAPER_MASKS),
    "sparse-sparse": Variant(PAPER_MASKS, PAPER_WINNERS),
    "sparse-sparse-first": Variant(FIRST_SPARSER, PAPER_WINNERS),
    "sparse-sparse-blocked": Variant(BLOCKED_MASKS, PAPER_WINNERS),
    **{
        on_curve(method, sparsity): _variant_on_curve(method, sparsity) for method in METHODS for sparsity in SPARSITIES
    },
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
        _attach_masks(network, name, seed)
    return network


def prune(network: nn.Sequential, name: str, seed: int = 0, stages_left: int = 0) -> None:
    """Give the layers the complementary masks that keep their strongest weights, in place of masks they have.

    ``stages_left``: with every stage that is still to come about twice as many weights stay.
    """
    _attach_masks(network, name, seed, stages_left)


def _attach_masks(network: nn.Sequential, name: str, seed: int, stages_left: int | None = None) -> None:
    """Masks of the strongest weights at a stage, or any."""
    rng = np.random.default_rng(seed)
    for layer_name, mask in VARIANTS[name].masks.items():
        layer = network.get_submodule(layer_name)
        image = IMAGE if layer_name == "linear" else None
        matrix = matrix_from_weight(layer.weight.detach().numpy(), image)
        made = mask.at_random(matrix, rng) if stages_left is None else mask.strongest(matrix, rng, stages_left)
        if made is not None:
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
