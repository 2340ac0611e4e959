"""The numerics receipt: our loss and gradients on the first real batch, against fp32 full logits.

The loss is compared with the unmodified model's own logits, so that anything a family does to its
logits that we don't know of shows here, before training. Gradients are compared on a slice of rows.
"""

import platform

import torch
import transformers
from torch.nn import functional

from cce_core import IGNORE_INDEX, LossConfig
from service.contract.errors import JobFailure
from service.contract.memory import NumericsReceipt
from worker.training.data import Batch
from worker.training.losses import cce, full_logits
from worker.training.model import Split

_ROWS = 256
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


def check(model: Split, batch: Batch, config: LossConfig, seed: int) -> NumericsReceipt:
    """Compare, on the first sequences of a batch.

    Raises:
        JobFailure: `loss_parity_failed`: an error is over the tolerance, and nothing was trained.
    """
    part = _slice(batch)
    tolerance = _TOLERANCE[model.dtype]
    training = model.full.training
    model.full.eval()  # dropout would differ between the two passes
    hidden, own = _forward(model, part)
    model.full.train(training)
    ours = _gradients(model, hidden, part, config)
    truth = _gradients(model, hidden, part, None)
    receipt = NumericsReceipt(
        implementation=config.implementation,
        preset=config.preset,
        rows=part.supervised,
        loss=ours[0],
        loss_reference=own,
        loss_error=abs(ours[0] - own) / max(abs(own), 1e-12),
        hidden_grad_error=_error(ours[1], truth[1]),
        head_grad_error=None if truth[2] is None else _error(ours[2], truth[2]),
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
    with model.autocast():
        hidden = model.hidden(part)
        logits = model.full(
            input_ids=part.input_ids,
            attention_mask=part.attention_mask,
            position_ids=part.position_ids,
            use_cache=False,
        ).logits
    loss = functional.cross_entropy(
        logits[0, :-1].float(), part.labels[0, 1:], ignore_index=IGNORE_INDEX
    )
    return hidden, float(loss)


def _gradients(
    model: Split, hidden: torch.Tensor, part: Batch, config: LossConfig | None
) -> tuple[float, torch.Tensor, torch.Tensor | None]:
    """Mean loss and gradients: ours, or in fp32 with full logits where `config` is None."""
    leaf = hidden.detach().clone().requires_grad_()
    leaves = [leaf, model.weight] if model.weight.requires_grad else [leaf]
    if config is None:
        total = full_logits(model)(leaf.float(), part.labels)
    else:
        with model.autocast():
            total = cce(model, config)(leaf, part.labels).loss
    found = torch.autograd.grad(total / part.supervised, leaves)
    return float(total) / part.supervised, found[0], found[1] if len(found) > 1 else None


def _error(ours: torch.Tensor | None, truth: torch.Tensor) -> float:
    assert ours is not None
    norm = torch.linalg.vector_norm
    return float(norm((ours - truth).float()) / norm(truth.float()).clamp_min(1e-30))


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": str(torch.version.cuda),
    }
