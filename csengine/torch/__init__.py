"""Training layers for networks that are sparse twice; needs the extra ``csengine[torch]``."""

from csengine.masks import ComplementaryMask, magnitude_mask, random_mask
from csengine.torch.finetune import cubic_sparsity, distillation_loss, prune
from csengine.torch.kwinners import KWinners, k_winners
from csengine.torch.layers import attach_mask, mask_of

__all__ = [
    "ComplementaryMask",
    "KWinners",
    "attach_mask",
    "cubic_sparsity",
    "distillation_loss",
    "k_winners",
    "magnitude_mask",
    "mask_of",
    "prune",
    "random_mask",
]
