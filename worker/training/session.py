"""What a training run works with: the data in rows, the model in parts, the options."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from cce_core import LossConfig
from cce_core.api import LossOutput
from cce_core.models import Split
from service.contract.spec import ResolvedOptions
from worker.events import RunSpec
from worker.training import batches
from worker.training.batches import Batch
from worker.training.checkpoint import Run
from worker.training.examples import Example
from worker.training.model import hidden_states
from worker.training.reporter import Reporter

# An order is as long as the data, and asked for at every step: the last ones are kept.
epoch_order = lru_cache(maxsize=2)(batches.order)
# Examples that share a sequence: one, or several if packed.
Row = list[Example]


@dataclass(frozen=True)
class Data:
    """Tokenized training and validation data, in rows."""

    training: list[Row]
    validation: list[Row]
    pad: int
    packed: bool

    def batch(self, rows: list[Row]) -> Batch:
        """Rows as tensors."""
        return batches.collate(rows, self.pad, packed=self.packed)

    def batches(self, rows: list[Row], size: int) -> Iterator[Batch]:
        """Rows as batches of at most `size`, in order."""
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size])


@dataclass(frozen=True)
class Session:
    """One attempt at a job, all of it resolved and loaded."""

    spec: RunSpec
    resolved: ResolvedOptions
    data: Data
    run: Run
    model: Split
    loss: LossConfig
    reporter: Reporter

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training data."""
        return -(-len(self.data.training) // self.resolved.batch_size)

    def passes_from(self, step: int) -> int:
        """Micro-batches from a step to the end."""
        left = self.resolved.total_steps - step
        return left * self.resolved.gradient_accumulation_steps

    def rows_at(self, step: int) -> list[Row]:
        """The rows of a step: a function of the seed and the step alone."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = epoch_order(len(self.data.training), self.spec.job.seed, epoch)
        start = within * self.resolved.batch_size
        return [self.data.training[i] for i in order[start : start + self.resolved.batch_size]]

    def first_batch(self) -> Batch:
        """The micro-batch that the job begins with, on its device."""
        return self.data.batch(self.rows_at(0)[: self.resolved.micro_batch_size]).to(self.device)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """What the head sees of a batch on the device, (B, T, D)."""
        return hidden_states(self.model, batch)

    def loss_of(self, hidden: torch.Tensor, batch: Batch) -> LossOutput:
        """The summed loss of a batch, and its rows' statistics."""
        return self.model.head.loss(hidden, batch.labels, self.loss, shift=1, reduction="sum")
