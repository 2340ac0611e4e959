"""The losses that a job can be measured with: ours, and the named baselines.

Each maps hidden states and the head to the sum over predictions, a scalar in fp32; `position t`
predicts the label at `t + 1`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cce_core import IGNORE_INDEX, LossConfig, linear_cross_entropy
from service.contract.memory import LossName
from worker.training.model import Split

_CHUNK_ROWS = 1024
SumLoss = Callable[[torch.Tensor, torch.Tensor], Any]


def cce(model: Split, config: LossConfig) -> SumLoss:
    """Ours; returns a `LossOutput`."""

    def loss(hidden: torch.Tensor, labels: torch.Tensor) -> Any:
        return linear_cross_entropy(
            hidden,
            model.weight,
            labels,
            model.bias,
            softcap=model.softcap,
            reduction="sum",
            shift=1,
            logit_scale=model.scale,
            return_stats=True,
            config=config,
        )

    return loss


def full_logits(model: Split) -> SumLoss:
    """All logits at once, upcast to fp32 as transformers does."""

    def loss(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _rows(model, hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    return loss


def chunked(model: Split) -> SumLoss:
    """A thousand rows of logits at a time, made again in the backward: the common practice."""

    def loss(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        chunks = zip(torch.split(rows, _CHUNK_ROWS), torch.split(targets, _CHUNK_ROWS), strict=True)
        parts = [checkpoint(_rows, model, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(parts).sum()

    return loss


BASELINES: dict[LossName, Callable[[Split], SumLoss]] = {
    "full_logits": full_logits,
    "chunked": chunked,
}


def _rows(model: Split, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = functional.linear(rows, model.weight, model.bias).float() * model.scale
    if model.softcap is not None:
        logits = model.softcap * torch.tanh(logits / model.softcap)
    return functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
