"""What is made of the row statistics: the loss of a row, and the loss of a batch.

    row   = lse - (1 - a) label_logit - a mean_logit + b lse^2       a label_smoothing, b z_loss
    sum   = sum_i w_i row_i                                          w row weights, 1 by default
    mean  = sum / num_items                                          by default sum_i w_i

over the rows that count. Smoothing spreads a over the whole vocabulary (Szegedy et al.,
arXiv:1512.00567, as torch does); the z-loss keeps lse near zero (Chowdhery et al.,
arXiv:2204.02311, section 5).
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

import torch

from cce_core.config import check_kind, choice_error
from cce_core.problem import Head, RowStats

IGNORE_INDEX = -100
Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Objective:
    """What is computed; `linear_cross_entropy` documents each field.

    Raises:
        TypeError: A field is no number. A tensor is none: its gradient would be lost.
        ValueError: A field is outside its range.
    """

    ignore_index: int = IGNORE_INDEX
    softcap: float | None = None
    logit_scale: float = 1.0
    reduction: Reduction = "mean"
    shift: int = 0
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        if self.reduction not in get_args(Reduction):
            raise choice_error("reduction", self.reduction, get_args(Reduction))
        for name in ("ignore_index", "shift"):
            check_kind(name, getattr(self, name), Integral, "an int")
        for name in ("logit_scale", "label_smoothing", "z_loss"):
            check_kind(name, getattr(self, name), Real, "a number")
        if self.softcap is not None:
            check_kind("softcap", self.softcap, Real, "a number or None")
        if self.softcap is not None and not (0 < self.softcap < math.inf):
            raise ValueError(f"softcap must be positive or None; got {self.softcap}")
        if not 0 < abs(self.logit_scale) < math.inf:
            raise ValueError(f"logit_scale must be finite and not zero; got {self.logit_scale}")
        if self.shift < 0:
            raise ValueError(f"shift must not be negative; got {self.shift}")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1]; got {self.label_smoothing}")
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"z_loss must not be negative; got {self.z_loss}")

    @property
    def head(self) -> Head:
        """How a dot product becomes a logit."""
        return Head(self.softcap, self.logit_scale)


def check_num_items(num_items: object, reduction: Reduction) -> None:
    """Check the denominator that a caller gives, without waiting for its value.

    Raises:
        TypeError: It is neither an int nor a tensor.
        ValueError: It is not one number, or nothing is divided by it.
    """
    if num_items is None:
        return
    if reduction != "mean":
        raise ValueError(
            f"num_items is what reduction='mean' divides by; got reduction={reduction!r}"
        )
    if not isinstance(num_items, torch.Tensor):
        check_kind("num_items", num_items, Integral, "an int or a tensor of one number")
    elif num_items.numel() != 1:
        raise ValueError(f"num_items must be one number; got shape {tuple(num_items.shape)}")


def row_losses(stats: RowStats, objective: Objective) -> torch.Tensor:
    """The loss of each row, (N,), unweighted; zero where a row does not count."""
    loss = stats.lse - (1 - objective.label_smoothing) * stats.label_logit
    if stats.mean_logit is not None and objective.label_smoothing > 0:
        loss = loss - objective.label_smoothing * stats.mean_logit
    if objective.z_loss > 0:
        loss = loss + objective.z_loss * stats.lse.square()
    return loss


def batch_loss(
    losses: torch.Tensor,
    counted: torch.Tensor,
    weights: torch.Tensor | None,
    num_items: int | torch.Tensor | None,
    reduction: Reduction,
) -> torch.Tensor:
    """Weigh and reduce.

    Args:
        losses: (N,), zero where a row does not count.
        counted: (N,) bool.
        weights: (N,) or None; of any dtype, and any value where a row does not count.
        num_items: The mean's denominator, or None for the weights' sum.
        reduction: "none" returns (N,), the others ().

    Returns:
        The loss. Where the denominator is zero, the sum: zero, if nothing counts.
    """
    if weights is not None:
        weights = weights.to(losses.dtype).masked_fill(~counted, 0)
        losses = losses * weights
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if num_items is None:
        num_items = counted.sum() if weights is None else weights.sum()
    if not isinstance(num_items, torch.Tensor):
        return total / (num_items or 1)
    count = num_items.reshape(()).to(total.dtype)
    return total / torch.where(count == 0, 1.0, count)
