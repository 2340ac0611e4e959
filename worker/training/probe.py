"""Try micro-batches: what a forward and backward pass of a given size takes, and which one fits.

Nothing of a try stays: no gradient, no weight changes. What the optimizer has yet to allocate, and
what its step takes, are added by count, as `service/contract/estimate/peak.py` has them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cce_core.models import Split
from service.contract.estimate.fit import SLACK, largest
from worker.training.allocator import OutOfMemory, Peak, peak_of
from worker.training.batches import Batch
from worker.training.checkpoint import trainable
from worker.training.held import Held
from worker.training.losses import Loss, forward_backward
from worker.training.optimizer import MasterAdamW

# A micro-batch that is within this share of the largest is as good.
RESOLUTION = 1 / 16


@dataclass(frozen=True)
class Probe:
    """A model on its device, with the loss and the sequences to try.

    Attributes:
        sequences: Makes a batch of so many sequences, the longest that the run has.
        limit: Bytes that may be in use at once.
    """

    model: Split
    optimizer: MasterAdamW
    loss: Loss
    sequences: Callable[[int], Batch]
    limit: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device

    def largest(self, *, start: int, batch: int, limit: int) -> int:
        """The largest micro-batch of at most `limit` that fits; 0 where not one sequence does.

        Args:
            start: Where to begin: what a prediction says.
            batch: The effective batch. Where a micro-batch is less, gradients are held meanwhile;
                1 for none to be held.
            limit: The largest of use.
        """
        return largest(
            lambda size: self.fits(size, accumulating=size < batch),
            start=start,
            limit=limit,
            resolution=RESOLUTION,
        )

    def fits(self, size: int, *, accumulating: bool) -> bool:
        """Whether a step with micro-batches of this size does."""
        peak = self.peak(size, accumulating=accumulating)
        return peak is not None and peak <= self.limit

    def peak(self, size: int, *, accumulating: bool) -> int | None:
        """Bytes in use at the peak of a step; None where the device has fewer."""
        trained = trainable(self.model.model)
        batch = self.sequences(size).to(self.device)

        def run() -> list[torch.Tensor]:
            if accumulating:
                for weight in trained:
                    weight.grad = torch.zeros_like(weight)
            forward_backward(self.model, batch, self.loss)
            return []

        training = self.model.model.training
        self.model.model.train()  # with its dropout, and checkpointing, which is off otherwise
        try:
            taken = peak_of(run, self.device)
            return None if isinstance(taken, OutOfMemory) else self._in_use(taken)
        finally:
            self.model.model.train(training)
            for weight in trained:
                weight.grad = None

    def _in_use(self, taken: Peak) -> int:
        """The larger of the pass and of the optimizer's step, both above the gradients."""
        held, cuda = Held.by(self.model.model, self.optimizer), self.device.type == "cuda"
        now = torch.cuda.memory_allocated(self.device) if cuda else held.total
        return now + self.optimizer.unmade_bytes + max(taken.bytes, self.optimizer.scratch_bytes)


def cuda_limit(device: torch.device, slack: float = SLACK) -> int:
    """Bytes that a run may have in use: what it holds and what is free, but for some slack."""
    free, _ = torch.cuda.mem_get_info(device)
    return int((free + torch.cuda.memory_reserved(device)) * (1 - slack))
