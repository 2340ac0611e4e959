"""How far the gradients of a loss are from fp32, on one batch."""

from dataclasses import replace

import torch

from cce_core import baselines
from cce_core.baselines import Baseline
from cce_core.head import Head
from cce_core.models import Split
from service.contract.comparison import GradientError
from worker.training.batches import Batch
from worker.training.model import hidden_states


def gradient_error(model: Split, batch: Batch, loss: Baseline) -> GradientError:
    """Compare with the gradients of fp32 logits, a thousand rows at a time.

    Args:
        model: Trunk and head; the hidden states are taken as the trunk gives them.
        batch: All of it counts.
        loss: Summed over the predictions.
    """
    with torch.no_grad():
        hidden = hidden_states(model, batch)
    head = model.head
    truth = _gradients(baselines.chunked, hidden.float(), in_fp32(head), batch)
    found = _gradients(loss, hidden, head, batch)
    errors = [relative_error(*pair) for pair in zip(found, truth, strict=True)]
    return GradientError(hidden=errors[0], head=errors[1] if len(errors) > 1 else None)


def in_fp32(head: Head) -> Head:
    """The head in fp32, apart from the model; its weight is trained where the model's is."""
    return replace(
        head,
        weight=head.weight.detach().float().requires_grad_(head.weight.requires_grad),
        bias=None if head.bias is None else head.bias.detach().float(),
    )


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """||found - truth|| / ||truth||, with an fp32 truth."""
    norm = torch.linalg.vector_norm
    return float(norm(found.float() - truth) / norm(truth).clamp_min(1e-30))


def _gradients(
    loss: Baseline, hidden: torch.Tensor, head: Head, batch: Batch
) -> list[torch.Tensor]:
    """Of the mean loss: by the hidden states, and by the weight where it is trained."""
    leaf = hidden.detach().requires_grad_()
    leaves = [leaf, head.weight] if head.weight.requires_grad else [leaf]
    return list(torch.autograd.grad(loss(leaf, head, batch.labels) / batch.supervised, leaves))
