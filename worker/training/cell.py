"""One cell of a comparison: one loss at one batch size, from the start that all cells share.

Every cell sees the same sequences in the same order, padded to the same length, so that its memory
and speed are those of the loss and the batch size, and not of the luck of the draw. The learning
rate is constant.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch.nn import functional

from cce_core import IGNORE_INDEX, baselines
from cce_core.baselines import Baseline
from cce_core.registry import ImplementationUnavailable
from service.contract.comparison import Cell
from service.contract.memory import LossName
from worker.training import checkpoint, full_logits
from worker.training.allocator import OutOfMemory, attempt, peak_of
from worker.training.batches import Batch
from worker.training.evaluation import evaluate
from worker.training.held import Held
from worker.training.model import hidden_states
from worker.training.parity import gradient_error
from worker.training.session import Row, Session, epoch_order

# Steps done in a cell, the loss of the last one, and tokens a second where that is known.
Tell = Callable[[int, float, float | None], None]


@dataclass(frozen=True)
class Bench:
    """What every cell is measured on.

    Attributes:
        session: The model and the data.
        steps: Of each cell.
        length: Tokens that every sequence is padded to.
        start: The trained weights before the first step, on the CPU.
    """

    session: Session
    steps: int
    length: int
    start: list[torch.Tensor]

    def rows(self, size: int, step: int) -> list[Row]:
        """The rows of a step: the same stream for every batch size, epoch after epoch."""
        return stream(self.session, size * step, size)

    def batch(self, size: int, step: int) -> Batch:
        """The same as tensors on the device."""
        data = self.session.data
        return _widened(data.batch(self.rows(size, step)), self.length, data.pad).to(
            self.session.device
        )

    def restart(self) -> None:
        """Put weights, optimizer and random numbers back to where every cell starts."""
        run = self.session.run
        with torch.no_grad():
            for weight, first in zip(checkpoint.trainable(run.model), self.start, strict=True):
                weight.copy_(first)
        run.optimizer.restart(self.session.resolved.learning_rate)
        checkpoint.seed_everything(self.session.spec.job.seed)

    @classmethod
    def of(cls, session: Session, steps: int, largest: int) -> Self:
        """A bench for cells of so many steps, of at most `largest` sequences each."""
        seen = stream(session, 0, steps * largest)
        length = max(sum(len(example.input_ids) for example in row) for row in seen)
        weights = checkpoint.trainable(session.run.model)
        return cls(session, steps, length, [w.detach().to("cpu", copy=True) for w in weights])


def stream(session: Session, start: int, count: int) -> list[Row]:
    """`count` rows from the `start`-th on, of all epochs in their order."""
    rows, seed = session.data.training, session.spec.job.seed
    places = [divmod(index, len(rows)) for index in range(start, start + count)]
    return [rows[epoch_order(len(rows), seed, epoch)[within]] for epoch, within in places]


def measure(bench: Bench, name: LossName, size: int, tell: Tell) -> Cell:
    """Train with one loss at one batch size; what keeps it from the end is its outcome."""
    cell = Cell(loss=name, batch_size=size, outcome="completed")
    if reason := _why_not(bench, name, size):
        return cell.model_copy(update={"outcome": "unavailable", "note": reason})
    bench.restart()
    # Compiled for this shape: past a few, torch would go on uncompiled and say nothing of it.
    torch.compiler.reset()
    try:
        found = attempt(lambda: _trained(bench, cell, tell))
    except ImplementationUnavailable as error:
        return cell.model_copy(update={"outcome": "unavailable", "note": str(error)})
    if isinstance(found, Cell):
        return found
    asked = f"{found.asked_bytes:,} bytes" if found.asked_bytes is not None else "too much"
    note = f"The allocator was asked for {asked} when nothing was left."
    return cell.model_copy(update={"outcome": "out_of_memory", "note": note})


def _trained(bench: Bench, cell: Cell, tell: Tell) -> Cell | OutOfMemory:
    """The steps, and what was measured on them: the second for memory, later ones for speed."""
    session, size, loss = bench.session, cell.batch_size, _loss(bench, cell.loss)
    errors = attempt(lambda: gradient_error(session.model, bench.batch(size, 0), loss))
    losses: list[float] = []

    def step() -> list[torch.Tensor]:
        losses.append(_step(bench, bench.batch(size, len(losses)), loss))
        return []

    step()
    held = Held.by(session.run.model, session.run.optimizer).total
    peak = peak_of(step, session.device)
    if isinstance(peak, OutOfMemory):
        return peak
    speed, first, started = None, len(losses), time.perf_counter()
    tokens = 0
    while len(losses) < bench.steps and math.isfinite(losses[-1]):
        tokens += _tokens(bench.rows(size, len(losses)))
        step()
        speed = tokens / (time.perf_counter() - started)
        tell(len(losses), losses[-1], speed)
    if not all(map(math.isfinite, losses)):
        note = f"The loss was {losses[-1]} at step {len(losses)}; try a lower learning rate."
        return cell.model_copy(update={"outcome": "diverged", "note": note})
    assert len(losses) > first, "no step was timed"
    update = {
        "peak_bytes": held + peak.bytes,
        "tokens_per_s": speed,
        "train_losses": tuple(losses),
        "gradient_error": None if isinstance(errors, OutOfMemory) else errors,
    }
    return cell.model_copy(update=update | _validated(session, size))


def _step(bench: Bench, batch: Batch, loss: Baseline) -> float:
    """One optimizer step on one batch; its mean loss."""
    session = bench.session
    total = loss(hidden_states(session.model, batch), session.model.head, batch.labels)
    mean = total / batch.supervised
    torch.autograd.backward(mean)
    session.run.optimizer.apply_gradients(session.spec.job.options.max_grad_norm)
    return float(mean.detach())


def _validated(session: Session, size: int) -> dict[str, float]:
    if not session.data.validation:
        return {}
    resolved = session.resolved.model_copy(update={"micro_batch_size": size})
    found = evaluate(replace(session, resolved=resolved))
    return {"valid_loss": found.loss, "valid_mean_token_accuracy": found.accuracy}


def _loss(bench: Bench, name: LossName) -> Baseline:
    """A loss by its name, summed over the predictions."""
    if name != "cce":
        return baselines.BY_NAME[name]
    return lambda hidden, head, labels: (
        head.loss(hidden, labels, bench.session.loss, shift=1, reduction="sum").loss
    )


def _why_not(bench: Bench, name: LossName, size: int) -> str | None:
    """Why a cell is not tried: nobody compiles on a CPU, whose memory must last for others too."""
    if name == "compiled_full_logits" and bench.session.device.type != "cuda":
        return "It is compiled on CUDA alone."
    if name == "full_logits":
        figure = full_logits.too_large(size * (bench.length - 1), bench.session.model.head)
        if figure is not None:
            needed = f"{figure.bytes:,} bytes"
            return f"Its logits take about {needed}, too much of what is free on this CPU."
    return None


def _widened(batch: Batch, length: int, pad: int) -> Batch:
    """A batch with padding up to `length` tokens."""
    more = length - batch.input_ids.shape[1]
    mask = batch.attention_mask
    return replace(
        batch,
        input_ids=functional.pad(batch.input_ids, (0, more), value=pad),
        labels=functional.pad(batch.labels, (0, more), value=IGNORE_INDEX),
        position_ids=functional.pad(batch.position_ids, (0, more)),
        attention_mask=None if mask is None else functional.pad(mask, (0, more)),
        owner=None,  # nobody asks here whose token it is
        examples=(),
    )


def _tokens(rows: list[Row]) -> int:
    return sum(len(example.input_ids) for row in rows for example in row)
