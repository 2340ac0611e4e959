"""What a run's tensors hold in memory, by what they are for."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from worker.training.optimizer import MasterAdamW


@dataclass(frozen=True)
class Held:
    """Bytes, counted tensor by tensor.

    Attributes:
        weights: Of the model, its buffers included.
        gradients: Of the model's weights.
        optimizer: The state of AdamW, and what its masters have beyond the model's weights.
    """

    weights: int
    gradients: int
    optimizer: int

    @classmethod
    def by(cls, model: nn.Module, optimizer: MasterAdamW) -> "Held":
        """What a model and its optimizer hold now."""
        weights = [*model.parameters(), *model.buffers()]
        state = [value for values in optimizer.state.values() for value in values.values()]
        return cls(
            weights=_size(weights),
            gradients=_size(p.grad for p in model.parameters() if p.grad is not None),
            optimizer=_size([*optimizer.rests, *(v for v in state if isinstance(v, torch.Tensor))]),
        )

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
