"""Makes a trained network sparse and trains it on: masks by magnitude, in steps, and distillation.

    teacher = copy.deepcopy(network)
    for epoch in range(epochs):
        if (sparsity := cubic_sparsity(epoch, steps, 0.9)) is not None:
            prune(network, sparsity, block=(4, 16))  # between steps: never between forward and backward
        for x, labels in batches:
            loss = distillation_loss(network(x), teacher(x), labels)
            ...

Masks hold while the network is trained (`csengine.torch.attach_mask`); `prune` gives the layers new ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from csengine.masks import Image, matrix_from_weight
from csengine.pruning import LayerLoss, complementary_mask, measure_loss
from csengine.torch.layers import attach_mask


def prune(
    module: nn.Module,
    sparsity: float,
    *,
    block: tuple[int, int] = (1, 1),
    keep: Collection[str] | None = None,
    layers: Mapping[str, float] | None = None,
    images: Mapping[str, Image] | None = None,
    seed: int = 0,
) -> tuple[LayerLoss, ...]:
    """Give the layers of a module complementary masks that keep their strongest weights; what each layer lost.

    sparsity: share of the weights to remove; layers: of single layers. keep: layers without a mask; None keeps the
    first and the last, in the order of `named_modules`. images: for a linear layer behind a flatten, the (C, H, W) that
    was flattened, which blocks of several rows need. Grouped convolutions never get a mask. Raises ValueError for a
    name that is no layer, a sparsity below 0 or not below 1.
    """
    for share in (sparsity, *(layers or {}).values()):
        if not 0.0 <= share < 1.0:
            raise ValueError(
                f"sparsity is {share}; expected at least 0 and below 1, such as 0.9 for nine in ten weights"
            )
    known = {name: item for name, item in module.named_modules() if isinstance(item, (nn.Conv1d, nn.Conv2d, nn.Linear))}
    kept = set(list(known)[:1] + list(known)[-1:]) if keep is None else set(keep)
    for name in (*kept, *(layers or {}), *(images or {})):
        if name not in known:
            raise ValueError(f"no layer {name!r}; the module has {', '.join(known) or 'none'}")
    rng = np.random.default_rng(seed)
    losses = []
    for name, layer in known.items():
        is_grouped = isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups > 1
        if is_grouped or (name in kept and name not in (layers or {})):
            continue
        image = (images or {}).get(name)
        matrix = matrix_from_weight(layer.weight.detach().cpu().numpy(), image)
        mask = complementary_mask(matrix, 1.0 - (layers or {}).get(name, sparsity), block, rng)
        attach_mask(layer, mask, image)
        losses.append(measure_loss(name, matrix, mask))
    return tuple(losses)


def cubic_sparsity(step: int, steps: int, final: float) -> float | None:
    """The sparsity of a step, 0 to steps - 1, that grows quickly first and slowly later; None after the last step.

    Zhu and Gupta 2017, arXiv 1710.01878.
    """
    return final * (1.0 - (1.0 - (step + 1) / steps) ** 3) if step < steps else None


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float = 4.0, weight: float = 0.9
) -> Tensor:
    """Cross entropy with the labels `[n]`, and with the softened answers of a teacher `[n, classes]`, weighted.

    Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
    """
    soft = functional.log_softmax(teacher_logits.detach() / temperature, dim=1)
    student = functional.log_softmax(logits / temperature, dim=1)
    imitation = functional.kl_div(student, soft, reduction="batchmean", log_target=True) * temperature**2
    truth = functional.cross_entropy(logits, labels)
    return torch.lerp(truth, imitation, weight)
