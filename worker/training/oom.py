"""Running out of memory as a typed failure, with the allocator's account of who holds what.

The error is caught where it leaves the training: until then its traceback keeps alive what was
allocated, so that the account is that of the moment when the allocator gave up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch

from service.contract.errors import JobFailure
from service.contract.memory import MemoryByCategory, OutOfMemoryReport
from service.contract.units import size
from worker.training import device as device_of
from worker.training.allocator import asked_bytes, is_out_of_memory
from worker.training.checkpoint import Run
from worker.training.held import Held
from worker.training.session import Session


class OutOfMemory(JobFailure):
    """The device has no memory for the job; `data` is an `OutOfMemoryReport`."""

    def __init__(self, report: OutOfMemoryReport, advice: str) -> None:
        super().__init__(
            "out_of_memory", f"{_account(report)} {advice}", data=report.model_dump(mode="json")
        )


@contextmanager
def besides_training() -> Iterator[None]:
    """Make of running out of memory in the block a failure that no smaller batch would avert.

    It is for all that a job does but to measure and to train: load the model, save.

    Raises:
        OutOfMemory: Of the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        advice = "What helps: a LoRA adapter, a smaller model, or a larger device."
        raise OutOfMemory(_report(error, device, None, None), advice) from error


@contextmanager
def while_training(session: Session) -> Iterator[None]:
    """Make of running out of memory in the block a failure that tells of the micro-batch.

    Raises:
        OutOfMemory: Of the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        micro = session.resolved.micro_batch_size
        report = _report(error, session.device, micro, _categories(session.run, session.device))
        raise OutOfMemory(report, _advice(session)) from error


def _report(
    error: RuntimeError,
    device: torch.device,
    micro_batch_size: int | None,
    categories: MemoryByCategory | None,
) -> OutOfMemoryReport:
    cuda = device.type == "cuda"
    return OutOfMemoryReport(
        device=device_of.name(device),
        micro_batch_size=micro_batch_size,
        asked_bytes=asked_bytes(error),
        allocated_bytes=torch.cuda.memory_allocated(device) if cuda else None,
        reserved_bytes=torch.cuda.memory_reserved(device) if cuda else None,
        total_bytes=device_of.total_bytes(device),
        categories=categories,
    )


def _categories(run: Run, device: torch.device) -> MemoryByCategory:
    held, other = Held.by(run.model, run.optimizer), None
    if device.type == "cuda":
        other = max(0, torch.cuda.memory_allocated(device) - held.total)
    return MemoryByCategory(**asdict(held), other=other)


def _account(report: OutOfMemoryReport) -> str:
    """What happened, in a sentence or two."""
    asked = "" if report.asked_bytes is None else f" {size(report.asked_bytes)} were asked for,"
    in_use = (
        "" if report.allocated_bytes is None else f" with {size(report.allocated_bytes)} in use"
    )
    total = f"{size(report.total_bytes)} of {report.device}"
    batch = report.micro_batch_size
    doing = "besides training" if batch is None else f"at a micro-batch of {batch}"
    return f"The device ran out of memory {doing}:{asked}{in_use} of the {total}."


def _advice(session: Session) -> str:
    resolved, options = session.resolved, session.spec.job.options
    helps = [f"a lower max_seq_length than {resolved.max_seq_length}"]
    if resolved.micro_batch_size > 1:
        helps.append("more gradient_accumulation_steps")
    if not resolved.gradient_checkpointing:
        helps.append("gradient_checkpointing")
    if options.adapter is None:
        helps.append("a LoRA adapter")
    return f"What helps: {', '.join(helps)}, or a larger device."
