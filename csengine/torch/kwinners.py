"""k-winners (k-WTA): only the k largest activations stay, and only they learn.

The definition is the engine's: exactly k winners per scope, ordered by (ranking descending, index ascending), index in
NHWC order; losers become 0. Boosting follows Ahmad and Scheinkman, *How Can We Be So Dense?* (arXiv 1903.11257):
units that have rarely won rank by ``value · exp(strength · (target − duty cycle))``; the value passed on is unboosted.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Scope = Literal["local", "global"]


class KWinners(nn.Module):
    """Keep the k largest activations of each scope, set the others to 0.

    Input [N, C, H, W], [N, positions, features] or [N, features], float; the output has the input's shape. Scope
    ``local``: the k winners are chosen among the channels (features) of one position. ``global``: among the
    whole sample, ties going to the lower index in (y, x, channel) order. ``k`` of at least the scope's size is the
    identity.

    ``k_inference``: number of winners in evaluation, by default ``k``; :attr:`winners` is the one in force.
    ``units``: number of channels (features), needed for boosting. ``boost_strength`` is a buffer, so that a checkpoint
    keeps it; lower it to 0 during training with :meth:`set_boost_strength` and evaluation ranks by the plain value,
    otherwise :attr:`factor` ranks in evaluation too, as in the literature.
    ``duty_cycle_period``: number of samples over which winning is averaged; nothing is counted without boosting.

    Raises ``ValueError`` for k < 1, an unknown scope, or boosting without ``units``.
    """

    boost_strength: Tensor
    duty_cycle: Tensor

    def __init__(
        self,
        k: int,
        scope: Scope,
        *,
        units: int | None = None,
        k_inference: int | None = None,
        boost_strength: float = 0.0,
        duty_cycle_period: int = 1000,
    ) -> None:
        super().__init__()
        if scope not in ("local", "global"):
            raise ValueError(f"got scope {scope!r}, expected 'local' or 'global'")
        if k < 1 or (k_inference is not None and k_inference < 1):
            raise ValueError(f"got k = {k}, k_inference = {k_inference}; expected at least one winner")
        if boost_strength and units is None:
            raise ValueError("boosting needs `units`, the number of channels or features")
        self.k = k
        self.scope: Scope = scope
        self.k_inference = k if k_inference is None else k_inference
        self.duty_cycle_period = duty_cycle_period
        self.register_buffer("boost_strength", torch.tensor(float(boost_strength)))
        self.register_buffer("duty_cycle", torch.zeros(units or 0))

    @property
    def winners(self) -> int:
        """How many win per scope in the present mode (training or evaluation)."""
        return self.k if self.training else self.k_inference

    @property
    def factor(self) -> Tensor | None:
        """Ranking factor per channel (feature) [units], or None when ranking is by the plain value.

        Winning rarely gives more than 1, winning often less.
        """
        if not self.duty_cycle.numel():
            return None
        if not torch.compiler.is_exporting() and not self.boost_strength.item():  # an export knows no values
            return None
        return torch.exp(self.boost_strength * (self.duty_cycle.mean() - self.duty_cycle))

    def set_boost_strength(self, strength: float) -> None:
        """Change the strength of boosting; 0 ends it."""
        if strength and not self.duty_cycle.numel():
            raise ValueError("boosting needs `units`, the number of channels or features")
        self.boost_strength.fill_(strength)

    def forward(self, x: Tensor) -> Tensor:
        """The winners of [N, C, H, W], [N, positions, features] or [N, features]; gradients pass to winners only."""
        output = k_winners(x, self.winners, self.scope, self.factor)
        if self.training and self.boost_strength.item():
            self._count(output)
        return output

    @torch.no_grad()
    def _count(self, output: Tensor) -> None:
        """Move the duty cycle of every unit towards the share of places where it was active."""
        channels = output.ndim - 1 if output.ndim < 4 else 1
        others = [axis for axis in range(output.ndim) if axis != channels]
        active = (output != 0).to(self.duty_cycle.dtype).mean(dim=others)
        self.duty_cycle.lerp_(active, min(1.0, output.shape[0] / self.duty_cycle_period))

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"k={self.k}, scope={self.scope!r}, k_inference={self.k_inference}"


def k_winners(x: Tensor, k: int, scope: Scope, factor: Tensor | None = None) -> Tensor:
    """Keep the ``k`` winners per scope; see :class:`KWinners`.

    ``factor`` [C] or [features]: rank by x · factor, pass x.
    """
    if x.ndim not in (2, 3, 4):
        expected = "[N, C, H, W], [N, positions, features] or [N, features]"
        raise ValueError(f"got an input of shape {tuple(x.shape)}, expected {expected}")
    rows = x.permute(0, 2, 3, 1) if x.ndim == 4 else x  # NHWC: ties go to the lower index in this order
    ranking = rows.detach() if factor is None else rows.detach() * factor
    if scope == "global":
        ranking = ranking.flatten(1)
    if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():  # as other tools, and our importer, know it
        k = min(k, ranking.shape[-1])
        winners = torch.zeros_like(ranking).scatter(-1, ranking.topk(k, dim=-1).indices, 1.0).reshape(rows.shape)
    else:
        winners = winner_mask(ranking, k).reshape(rows.shape)
    if x.ndim == 4:
        winners = winners.permute(0, 3, 1, 2)
    return x * winners.to(x.dtype)


def winner_mask(ranking: Tensor, k: int) -> Tensor:
    """Which ``k`` entries of each row of [..., n] win by (value descending, index ascending): 1 or 0, like ``ranking``.

    Not bool, because PyTorch's loops over a mixture of types are not vectorized: they take ten times as long.
    """
    if k >= ranking.shape[-1]:
        return torch.ones_like(ranking)
    flat = ranking.reshape(-1, ranking.shape[-1])
    threshold = _kth_largest(flat, k)
    mask = torch.ge(flat, threshold, out=torch.empty_like(flat))
    tied = mask.sum(dim=-1, dtype=torch.float32) > k
    if tied.any():
        mask[tied] = _break_ties(flat[tied], threshold[tied], k).to(mask.dtype)
    return mask.reshape(ranking.shape)


def _kth_largest(rows: Tensor, k: int) -> Tensor:
    """The k-th largest of each row of [m, n]: [m, 1]."""
    if rows.device.type != "cpu":
        return rows.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    # NumPy's vectorized partition is five times faster than topk for rows of 64. It knows no 16-bit floats, but these
    # are ordered like integers of their bits, once those of negative numbers are inverted.
    is_short = rows.element_size() == 2
    values = _invert_negatives(rows.view(torch.int16)) if is_short else rows
    place = rows.shape[-1] - k
    found = torch.from_numpy(np.partition(values.numpy(), place, axis=-1)[:, place : place + 1])
    return _invert_negatives(found).view(rows.dtype) if is_short else found


def _invert_negatives(bits: Tensor) -> Tensor:
    """int16 bits of sign and magnitude to integers of the same order, and back."""
    return bits ^ ((bits >> 15) & 0x7FFF)


def _break_ties(rows: Tensor, threshold: Tensor, k: int) -> Tensor:
    """All entries above the threshold, and the first of those equal to it, ``k`` in all."""
    above = rows > threshold
    equal = rows == threshold
    free = k - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= free))
