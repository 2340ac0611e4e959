"""The losses that are measured, ours and the baselines, each by its name, and a pass with one."""

from collections.abc import Callable
from typing import get_args

import torch

from cce_core import LossConfig, baselines
from cce_core.models import Split
from service.contract.memory import LossName
from worker.training.batches import Batch
from worker.training.model import hidden_states

# Hidden states (B, T, D) and labels (B, T) to the summed loss, a scalar.
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def losses_of(model: Split, config: LossConfig) -> dict[LossName, Loss]:
    """Each loss on the model's head, by its name; ours as `config` says."""
    head = model.head
    losses: dict[LossName, Loss] = {
        "full_logits": lambda hidden, labels: baselines.full_logits(hidden, head, labels),
        "chunked": lambda hidden, labels: baselines.chunked(hidden, head, labels),
        "cce": lambda hidden, labels: (
            head.loss(hidden, labels, config, shift=1, reduction="sum").loss
        ),
    }
    if head.weight.is_cuda:  # elsewhere nobody compiles for the sake of the loss
        losses["compiled_full_logits"] = lambda hidden, labels: baselines.compiled_full_logits(
            hidden, head, labels
        )
    return {name: losses[name] for name in get_args(LossName) if name in losses}


def forward_backward(model: Split, batch: Batch, loss: Loss) -> torch.Tensor:
    """A pass of the model on a batch on its device, whose gradients are added to those there.

    Returns the loss, a scalar without a graph, for which the host has not waited.
    """
    total = loss(hidden_states(model, batch), batch.labels)
    torch.autograd.backward(total)
    return total.detach()
