"""The numerics receipt: our loss and gradients on the first real batch, against fp32 full logits.

The loss is compared with the unmodified model's own logits, so that anything a family does to its
logits that we don't know of shows here, before training. Gradients are compared on a slice of rows.
"""

import platform
from dataclasses import replace

import torch
import transformers
from torch.nn import functional

from cce_core import IGNORE_INDEX, LossConfig, baselines
from cce_core.head import Head
from cce_core.models import Split
from cce_core.registry import ImplementationUnavailable
from service.contract.errors import JobFailure
from service.contract.memory import NumericsReceipt
from worker.training.batches import Batch
from worker.training.model import hidden_states

_ROWS = 256
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


def check(model: Split, batch: Batch, config: LossConfig, seed: int) -> NumericsReceipt:
    """Compare, on the first sequences of a batch.

    Raises:
        JobFailure: `loss_parity_failed`: an error is over the tolerance, and nothing was trained.
    """
    part = _slice(batch)
    tolerance = _TOLERANCE[model.head.weight.dtype]
    training = model.model.training
    model.model.eval()  # dropout would differ between the two passes
    hidden, own = _forward(model, part)
    model.model.train(training)
    ours = _ours(model.head, hidden, part, config)
    truth = _truth(model.head, hidden, part)
    receipt = NumericsReceipt(
        implementation=config.implementation,
        preset=config.preset,
        rows=part.supervised,
        loss=ours[0],
        loss_reference=own,
        loss_error=abs(ours[0] - own) / max(abs(own), 1e-12),
        hidden_grad_error=_error(ours[1][0], truth[1][0]),
        head_grad_error=_error(ours[1][1], truth[1][1]) if len(truth[1]) > 1 else None,
        tolerance=tolerance,
        seed=seed,
        versions=_versions(),
    )
    _judge(receipt)
    return receipt


def _judge(receipt: NumericsReceipt) -> None:
    errors = {
        "loss": receipt.loss_error,
        "gradient of the hidden states": receipt.hidden_grad_error,
        "gradient of the head": receipt.head_grad_error or 0.0,
    }
    for name, error in errors.items():
        if not error <= receipt.tolerance:  # NaN fails too
            raise JobFailure(
                "loss_parity_failed",
                f"The {name} is off by {error:.2e} of the fp32 reference; expected at most "
                f"{receipt.tolerance:.0e}. Nothing was trained.",
            )


def _slice(batch: Batch) -> Batch:
    """The first sequence, cut where enough predictions are in."""
    counted = (batch.labels[0, 1:] != IGNORE_INDEX).cumsum(0)
    enough = int((counted < _ROWS).sum()) + 2
    mask = batch.attention_mask
    return Batch(
        batch.input_ids[:1, :enough],
        batch.labels[:1, :enough],
        batch.position_ids[:1, :enough],
        None if mask is None else mask[:1, :enough],
    )


@torch.no_grad()
def _forward(model: Split, part: Batch) -> tuple[torch.Tensor, float]:
    """Hidden states, and the mean loss of the model's own logits."""
    hidden = hidden_states(model, part)
    logits = model.model(
        input_ids=part.input_ids,
        attention_mask=part.attention_mask,
        position_ids=part.position_ids,
        use_cache=False,
    ).logits
    loss = functional.cross_entropy(
        logits[0, :-1].float(), part.labels[0, 1:], ignore_index=IGNORE_INDEX
    )
    return hidden, float(loss)


def _ours(
    head: Head, hidden: torch.Tensor, part: Batch, config: LossConfig
) -> tuple[float, list[torch.Tensor]]:
    """Mean loss and gradients as the job will compute them."""
    leaf = hidden.detach().clone().requires_grad_()
    try:
        loss = head.loss(leaf, part.labels, config, shift=1).loss
    except ImplementationUnavailable as error:
        raise JobFailure("unsupported_model", str(error), param="loss.implementation") from error
    return _with_gradients(loss, leaf, head)


def _truth(head: Head, hidden: torch.Tensor, part: Batch) -> tuple[float, list[torch.Tensor]]:
    """The same in fp32 with full logits."""
    leaf = hidden.detach().float().requires_grad_()
    weight = head.weight.detach().float().requires_grad_(head.weight.requires_grad)
    exact = replace(head, weight=weight, bias=None if head.bias is None else head.bias.float())
    loss = baselines.full_logits(leaf, exact, part.labels) / part.supervised
    return _with_gradients(loss, leaf, exact)


def _with_gradients(
    loss: torch.Tensor, leaf: torch.Tensor, head: Head
) -> tuple[float, list[torch.Tensor]]:
    leaves = [leaf, head.weight] if head.weight.requires_grad else [leaf]
    return float(loss.detach()), list(torch.autograd.grad(loss, leaves))


def _error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    norm = torch.linalg.vector_norm
    return float(norm(ours.float() - truth) / norm(truth).clamp_min(1e-30))


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": str(torch.version.cuda),
    }
