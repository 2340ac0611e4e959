"""The memory ledger: what each loss costs on the job's own first batch.

The loss layer is measured on the batch's hidden states: peak of its forward and backward above the
inputs and the gradients themselves. The step is a whole forward and backward pass of the model as
in the midst of gradient accumulation: every weight has its gradient already, and the peak is above
them. Full logits that are too large to try on this CPU are modelled, as `full_logits` has it.

On CUDA the step is measured at half the micro-batch too, for what `fit` makes of it.

Speed is that of a step that its loss has warmed up for. On CUDA, where the allocator counts for
nothing, it is the step that is counted; on CPU the profiler that counts takes a good part of the
time, so another step is timed without it.

What that costs: on CUDA a step to warm up, and one and a half for each loss, on CPU two for each,
whatever the job. To compile takes much longer than a step, so it is done only where the whole
ledger is expected to stay within 2 % of the passes that the job is to do; in a shorter job compiled
logits are modelled.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cce_core import LossConfig
from cce_core.models import Split
from service.contract.memory import Figure, LossMemory, LossName, MemoryLedger
from worker.training import device as device_of
from worker.training import full_logits
from worker.training.allocator import OutOfMemory, Peak, Work, attempt, peak_of
from worker.training.batches import Batch
from worker.training.fit import largest_batch
from worker.training.losses import Loss, forward_backward, losses_of
from worker.training.model import hidden_states
from worker.training.savings import savings

# Compiled for one shape: another micro-batch would compile again.
_COMPILED: frozenset[LossName] = frozenset({"compiled_full_logits"})
_SHARE = 0.02
# Of torch.compile, where nothing was compiled before.
_COMPILE_S = 30.0


@dataclass(frozen=True)
class Bench:
    """What every loss is measured on.

    Attributes:
        hidden: What the head sees of the batch.
        room: Bytes of the device that a micro-batch may take; None on CPU.
    """

    model: Split
    batch: Batch
    hidden: torch.Tensor
    room: int | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.head.weight.device

    @property
    def on_cpu(self) -> bool:
        """Whether memory is counted by a profiler."""
        return self.device.type == "cpu"

    @property
    def size(self) -> int:
        """Sequences of the micro-batch."""
        return len(self.batch.input_ids)

    @property
    def predictions(self) -> int:
        """Rows of logits, those that don't count included."""
        return self.batch.labels[:, 1:].numel()


def measure(
    model: Split,
    batch: Batch,
    config: LossConfig,
    *,
    passes: int,
    optimizer_bytes: int = 0,
) -> MemoryLedger:
    """Run every loss on `batch`, and say what ours saves against each baseline.

    Nothing of it stays: no gradient, no weight changes. A loss that does not fit is an entry.

    Args:
        model: The job's model, on its device.
        batch: A micro-batch there.
        config: How ours is computed.
        passes: Micro-batches that the job is to train on: what the ledger's time is a share of.
        optimizer_bytes: What the optimizer has still to allocate.

    Raises:
        torch.OutOfMemoryError: Not even the model itself fits with this micro-batch.
    """
    started = time.perf_counter()
    losses = losses_of(model, config)
    with _as_in_training(model):
        with torch.no_grad():
            hidden = hidden_states(model, batch)
        bench = Bench(model, batch, hidden, _room(hidden.device, optimizer_bytes))
        if not bench.on_cpu:  # there each loss is counted, slowly, before it is timed
            _step(bench, losses["cce"], bench.size)
        entries = _entries(bench, losses, passes, started)
    weight = model.head.weight
    return MemoryLedger(
        device=device_of.name(weight.device),
        method="CUDA allocator peak" if weight.is_cuda else "CPU allocator events",
        micro_batch_size=batch.input_ids.shape[0],
        seq_length=batch.input_ids.shape[1],
        tokens=batch.supervised,
        vocab_size=weight.shape[0],
        hidden_size=weight.shape[1],
        dtype=str(weight.dtype).removeprefix("torch."),
        room_bytes=bench.room,
        losses=entries,
        savings=savings(entries),
    )


@contextmanager
def _as_in_training(model: Split) -> Iterator[None]:
    """Dropout and checkpointing as they will be, and a gradient for every trained weight."""
    trained = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    training, gradients = model.model.training, [parameter.grad for parameter in trained]
    model.model.train()
    try:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        yield
    finally:
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        model.model.train(training)


def _entries(
    bench: Bench, losses: dict[LossName, Loss], passes: int, started: float
) -> list[LossMemory]:
    """Ours, which tells how long the job will take, then the others, those to compile last."""
    found = {"cce": _entry(bench, "cce", losses["cce"])}
    deadline = started + _SHARE * passes * _pass_seconds(bench, found["cce"]) - _COMPILE_S
    for name in sorted(losses, key=_COMPILED.__contains__):
        if name in found:
            continue
        if modelled := _modelled(bench, name, deadline):
            found[name] = LossMemory(loss=name, loss_layer=modelled)
        else:
            found[name] = _entry(bench, name, losses[name])
    return [found[name] for name in losses]


def _modelled(bench: Bench, name: LossName, deadline: float) -> Figure | None:
    """The figure of a loss that is not to be tried; None for all others."""
    if name == "full_logits":
        return full_logits.too_large(bench.predictions, bench.model.head)
    if name in _COMPILED and time.perf_counter() > deadline:
        return full_logits.modelled_compiled(bench.predictions, bench.model.head)
    return None


def _pass_seconds(bench: Bench, entry: LossMemory) -> float:
    """Of a whole step; 0 where it did not fit."""
    speed = entry.tokens_per_s
    return bench.batch.input_ids.numel() / speed if speed is not None else 0.0


def _entry(bench: Bench, name: LossName, loss: Loss) -> LossMemory:
    layer = _loss_layer(bench, loss)
    step, seconds = _timed_step(bench, loss)
    tokens = bench.batch.input_ids.numel()
    largest = None
    if bench.room is not None:
        peaks = {bench.size: step}
        if name not in _COMPILED:
            peaks |= _smaller_steps(bench, loss, fits=isinstance(step, Peak))
        largest = largest_batch(peaks, bench.room)
    return LossMemory(
        loss=name,
        loss_layer=_figure(layer),
        step=_figure(step),
        tokens_per_s=tokens / seconds if seconds is not None else None,
        largest_micro_batch=largest,
    )


def _loss_layer(bench: Bench, loss: Loss) -> Peak | OutOfMemory:
    """On CUDA twice, since first launches compile and take work space."""
    hidden = bench.hidden.detach().requires_grad_()
    leaves = [hidden, *bench.model.head.parameters()]

    def run() -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss(hidden, bench.batch.labels), leaves))

    first = peak_of(run, bench.device)
    if bench.on_cpu or isinstance(first, OutOfMemory):
        return first
    return peak_of(run, bench.device)


def _timed_step(bench: Bench, loss: Loss) -> tuple[Peak | OutOfMemory, float | None]:
    """A step that is counted, and the seconds of one; None where it does not fit."""
    started = time.perf_counter()
    step = _step(bench, loss, bench.size)
    seconds = time.perf_counter() - started
    if isinstance(step, OutOfMemory):
        return step, None
    if not bench.on_cpu:
        return step, seconds
    started = time.perf_counter()
    again = attempt(_pass(bench, loss, bench.size))
    return step, None if isinstance(again, OutOfMemory) else time.perf_counter() - started


def _step(bench: Bench, loss: Loss, rows: int) -> Peak | OutOfMemory:
    return peak_of(_pass(bench, loss, rows), bench.device)


def _pass(bench: Bench, loss: Loss, rows: int) -> Work:
    """A forward and backward pass of the whole model on some of the batch."""
    batch = bench.batch.first(rows)

    def run() -> list[torch.Tensor]:
        forward_backward(bench.model, batch, loss)
        return []

    return run


def _smaller_steps(bench: Bench, loss: Loss, *, fits: bool) -> dict[int, Peak | OutOfMemory]:
    """The step at half the micro-batch; where the whole does not fit, on until one does."""
    found: dict[int, Peak | OutOfMemory] = {}
    rows = bench.size // 2
    while rows >= 1:
        found[rows] = _step(bench, loss, rows)
        if fits or isinstance(found[rows], Peak):
            break
        rows //= 2
    return found


def _room(device: torch.device, to_come: int) -> int | None:
    """What a micro-batch may take, weights and gradients being there; None on CPU."""
    if device.type == "cpu":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, free + idle - to_come)


def _figure(result: Peak | OutOfMemory) -> Figure:
    if isinstance(result, OutOfMemory):
        return Figure(bytes=result.asked_bytes or 0, provenance="out_of_memory")
    return Figure(bytes=result.bytes, provenance="measured")
