"""Masks that hold: a layer whose weight is always its parameter times its complementary mask."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from csengine.masks import ComplementaryMask, Image, matrix_from_weight, weight_from_matrix

_MASK_KEY = "parametrizations.weight.0.mask"  # of a state_dict, after the layer's name


class MaskedWeight(nn.Module):
    """The parametrization of a masked weight.

    Buffers, kept in checkpoints: ``mask`` (bool, the weight's shape), ``members`` (int32 [T, S]) and ``form`` (int32
    [5]: the block's U and V, the image's C, H and W or zeros).
    """

    mask: Tensor
    members: Tensor
    form: Tensor

    def __init__(self, mask: Tensor, members: Tensor, block: tuple[int, int], image: Image | None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("members", members)
        self.register_buffer("form", torch.tensor((*block, *(image or (0, 0, 0))), dtype=torch.int32))

    @property
    def block(self) -> tuple[int, int]:
        """Rows and kernels of a block: (U, V)."""
        rows, kernels, *_ = self.form.tolist()
        return rows, kernels

    @property
    def image(self) -> Image | None:
        """The (C, H, W) that was flattened in front of a linear layer, or None."""
        _, _, channels, height, width = self.form.tolist()
        return (channels, height, width) if channels else None

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with 0 wherever the mask forbids one; no gradient flows there."""
        return weight * self.mask.to(weight.dtype)  # faster than torch.where

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Masked already when assigned, so that forbidden entries of the parameter are 0 and decay cannot matter."""
        return torch.where(self.mask, weight, 0.0)


def attach_mask(layer: nn.Linear | nn.Conv1d | nn.Conv2d, mask: ComplementaryMask, image: Image | None = None) -> None:
    """Make ``layer.weight`` obey ``mask`` from now on, through training and in checkpoints.

    ``image``: the (C, H, W) that was flattened in front of a linear layer; the rows of ``mask.matrix`` are in the
    engine's (y, x, channel) order. A layer that has a mask already gets the new one instead. The first mask leaves the
    layer's parameter the same object, so that an optimizer goes on with it.
    Raises ``ValueError`` if the mask's matrix has not the weight's size, or for a grouped convolution.
    """
    weight = layer.weight
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups != 1:
        raise ValueError(f"got a convolution of {layer.groups} groups; complementary masks need groups=1")
    expected = (weight[0].numel(), len(weight))
    if mask.matrix.shape != expected:
        raise ValueError(f"got a mask of shape {mask.matrix.shape}, expected [rows, kernels] = {expected}")
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight")
    pattern = torch.from_numpy(weight_from_matrix(mask.matrix, weight.shape, image))
    masked = MaskedWeight(pattern, torch.from_numpy(mask.members), mask.block, image)
    parametrize.register_parametrization(layer, "weight", masked.to(weight.device))


def attach_masks(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the layers of a module the masks that a ``state_dict`` of the same network holds, so that it can be loaded.

    Masks of layers that the module does not have, or has in another shape, are left out.
    """
    layers = dict(module.named_modules())
    for key, pattern in state.items():
        name = key.removesuffix(_MASK_KEY).rstrip(".")
        layer, form = layers.get(name), state.get(key.removesuffix("mask") + "form")
        if not key.endswith(_MASK_KEY) or form is None or not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            continue
        if layer.weight.shape == pattern.shape:
            stored = MaskedWeight(pattern, state[key.removesuffix("mask") + "members"], (1, 1), None)
            stored.form.copy_(form)
            attach_mask(layer, _mask_of(stored), stored.image)


def masked_weight_of(layer: nn.Module) -> MaskedWeight | None:
    """The layer's :class:`MaskedWeight`, or None if it has no mask."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    for module in layer.parametrizations["weight"]:  # type: ignore[index]
        if isinstance(module, MaskedWeight):
            return module
    return None


def mask_of(layer: nn.Module) -> ComplementaryMask | None:
    """The layer's complementary mask in the engine's matrix order, or None if it has none."""
    masked = masked_weight_of(layer)
    return None if masked is None else _mask_of(masked)


def _mask_of(masked: MaskedWeight) -> ComplementaryMask:
    matrix = matrix_from_weight(masked.mask.cpu().numpy(), masked.image)
    return ComplementaryMask(matrix, masked.members.cpu().numpy(), masked.block)
