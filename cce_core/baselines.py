"""The losses that ours is measured against, each by its name, on the same head.

Each maps hidden states (B, T, D), the head and labels (B, T) to the sum over predictions, a scalar
in fp32; position t predicts the label at t + 1, and `IGNORE_INDEX` does not count.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cce_core.head import Head
from cce_core.objective import IGNORE_INDEX

CHUNK_ROWS = 1024
Baseline = Callable[[torch.Tensor, Head, torch.Tensor], torch.Tensor]


def full_logits(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
    """All logits at once, upcast to fp32: what transformers does."""
    return _rows_loss(head, *_shifted(hidden, labels))


def compiled_full_logits(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
    """The same under torch.compile, which fuses all but the logits themselves away."""
    loss: torch.Tensor = _compiled()(head, *_shifted(hidden, labels))
    return loss


def chunked(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
    """`CHUNK_ROWS` rows of logits at a time, computed again in the backward: common practice."""
    rows, targets = _shifted(hidden, labels)
    chunks = zip(torch.split(rows, CHUNK_ROWS), torch.split(targets, CHUNK_ROWS), strict=True)
    parts = [checkpoint(_rows_loss, head, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(parts).sum()


BY_NAME: dict[str, Baseline] = {
    loss.__name__: loss for loss in (full_logits, compiled_full_logits, chunked)
}


def _shifted(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def _rows_loss(head: Head, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = head.logits(rows)
    return functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")


@cache
def _compiled() -> Any:
    """Compiled once a process, for the shapes of the first call."""
    return torch.compile(_rows_loss, dynamic=False)
