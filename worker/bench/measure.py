"""Measure one case: for each loss the largest batch that fits, and the peak at a given one.

Every figure stands beside what `service/contract/estimate` predicts for it. Sequences are random
and equally long. On CUDA the device is the limit; on CPU a number of bytes, and the allocator's
events are counted.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
import transformers

from cce_core import LossConfig
from service.contract.device import DeviceKind
from service.contract.estimate.fit import largest_predicted, usable_bytes
from service.contract.estimate.peak import moments, step_bytes
from service.contract.estimate.workload import Workload
from service.contract.memory import LossName
from service.contract.spec import DtypeName, LoraAdapter
from worker.bench.models import Subject, build
from worker.training import device as device_of
from worker.training.allocator import OutOfMemory, peak_of
from worker.training.batches import Batch
from worker.training.losses import forward_backward, losses_of
from worker.training.probe import Probe, cuda_limit

_LIMIT = 2**16
_RANK = 16


class OutOfTime(Exception):
    """The run's minutes are used up."""


@dataclass(frozen=True)
class Case:
    """What is trained, and how."""

    model: str
    mode: str  # full, or lora
    checkpointing: bool

    @property
    def adapter(self) -> LoraAdapter | None:
        """LoRA on every linear layer but the head, where that is the mode."""
        return LoraAdapter(rank=_RANK) if self.mode == "lora" else None


@dataclass(frozen=True)
class Conditions:
    """What all cases have in common.

    Attributes:
        seq_length: Tokens a sequence.
        reference: Sequences of the batch whose peak is measured with every loss.
        memory_bytes: What may be in use on CPU; on CUDA the device has its own limit.
        deadline: On the monotonic clock.
        commit: What is measured, as its caller knows it.
    """

    device: torch.device
    losses: tuple[LossName, ...]
    seq_length: int
    reference: int
    memory_bytes: int | None
    deadline: float
    commit: str | None

    @property
    def kind(self) -> DeviceKind:
        """Of the device."""
        return "cuda" if self.device.type == "cuda" else "cpu"

    @property
    def dtype(self) -> DtypeName:
        """As a job's "auto"."""
        return "bfloat16" if self.kind == "cuda" else "float32"

    @property
    def limit(self) -> int:
        """Bytes that may be in use."""
        if self.kind == "cuda":
            return cuda_limit(self.device, slack=0.0)
        assert self.memory_bytes is not None
        return self.memory_bytes

    @property
    def predicted_limit(self) -> int:
        """Bytes that the estimate takes a step to have."""
        if self.kind == "cuda":
            return usable_bytes(device_of.total_bytes(self.device), "cuda")
        assert self.memory_bytes is not None
        return self.memory_bytes


@dataclass(frozen=True)
class Row:
    """One loss on one case; None for what was not found out, and `status` says why."""

    model: str
    mode: str
    checkpointing: bool
    loss: LossName
    dtype: str
    seq_length: int
    device: str
    torch: str
    transformers: str
    commit: str | None
    status: str = "measured"
    largest: int | None = None
    largest_predicted: int | None = None
    reference: int | None = None
    peak_bytes: int | None = None
    peak_predicted_bytes: int | None = None
    peak_predicted_at: str | None = None

    @property
    def error(self) -> float | None:
        """Predicted over measured peak, less 1."""
        if self.peak_bytes is None or self.peak_predicted_bytes is None:
            return None
        return self.peak_predicted_bytes / self.peak_bytes - 1

    def as_json(self) -> dict[str, object]:
        """All of it."""
        return {**asdict(self), "error": self.error}


def measure(case: Case, conditions: Conditions) -> Iterator[Row]:
    """A row for each loss, as it is found.

    Raises:
        OutOfTime: Before a loss; one whose peak is known has a row that says so.
        RuntimeError: The allocator's, where not even the model fits, or another of the device.
    """
    dtype = getattr(torch, conditions.dtype)
    subject = build(
        case.model, case.adapter, conditions.device, dtype, checkpointing=case.checkpointing
    )
    _first_step(subject, conditions)
    work = Workload(
        dtype=conditions.dtype,
        device=conditions.kind,
        micro_batch=1,
        seq_length=conditions.seq_length,
        checkpointing=case.checkpointing,
        adapter=case.adapter,
        implementation="triton" if conditions.kind == "cuda" else "blocked",
    )
    for loss in conditions.losses:
        yield _row(case, subject, work, loss, conditions)


def blank(case: Case, loss: LossName, conditions: Conditions) -> Row:
    """A row without figures."""
    return Row(
        model=case.model,
        mode=case.mode,
        checkpointing=case.checkpointing,
        loss=loss,
        dtype=conditions.dtype,
        seq_length=conditions.seq_length,
        device=device_of.name(conditions.device),
        torch=torch.__version__,
        transformers=transformers.__version__,
        commit=conditions.commit,
    )


def _row(
    case: Case, subject: Subject, work: Workload, loss: LossName, conditions: Conditions
) -> Row:
    predicted = largest_predicted(subject.shape, work, loss, conditions.predicted_limit)
    at = work.of_size(conditions.reference)
    found = moments(subject.shape, at, loss)
    config = LossConfig(implementation=work.implementation)
    probe = _Probe(
        model=subject.model,
        optimizer=subject.optimizer,
        loss=losses_of(subject.model, config)[loss],
        sequences=lambda count: _sequences(subject, count, conditions),
        limit=conditions.limit,
        deadline=conditions.deadline,
    )
    row = replace(
        blank(case, loss, conditions),
        largest_predicted=predicted,
        reference=conditions.reference,
        peak_bytes=probe.peak(conditions.reference, accumulating=False),
        peak_predicted_bytes=step_bytes(subject.shape, at, loss),
        peak_predicted_at=max(found, key=found.__getitem__),
    )
    try:
        return replace(row, largest=probe.largest(start=predicted, batch=1, limit=_LIMIT))
    except OutOfTime:  # the peak is worth a row
        return replace(row, status="out of time")


@dataclass(frozen=True)
class _Probe(Probe):
    """Tries until the time is up."""

    deadline: float

    def peak(self, size: int, *, accumulating: bool) -> int | None:
        """The peak, if there is time."""
        if time.monotonic() > self.deadline:
            raise OutOfTime
        return super().peak(size, accumulating=accumulating)


def _first_step(subject: Subject, conditions: Conditions) -> None:
    """Let the optimizer allocate what it holds, and the libraries what they need."""
    model, optimizer = subject.model, subject.optimizer
    batch = _sequences(subject, 1, conditions)
    model.model.train()
    forward_backward(model, batch, losses_of(model, LossConfig())["cce"])

    def run() -> list[torch.Tensor]:
        optimizer.apply_gradients(math.inf)
        return []

    if isinstance(taken := peak_of(run, conditions.device), OutOfMemory):
        raise torch.OutOfMemoryError(f"the optimizer's step asks for {taken.asked_bytes} bytes")


def _sequences(subject: Subject, count: int, conditions: Conditions) -> Batch:
    """Random sequences, of full length and without padding."""
    size = (count, conditions.seq_length)
    ids = torch.randint(subject.shape.vocab_size, size, device=conditions.device)
    positions = torch.arange(conditions.seq_length, device=conditions.device).repeat(count, 1)
    return Batch(ids, ids.clone(), positions, torch.ones_like(ids))
