"""Measure what the memory ledger of a job is held to, and what measuring takes from the job.

A full fine-tune with activation checkpointing, as a job's trainer runs it: the numerics receipt and
the memory ledger on the first batch, then training steps with our loss, whose time the ledger's is
held against; then a few training steps with each loss, from the same start, as in a comparison. A
loss that does not fit is a row that says so.

A forward and backward pass goes before, as every job has one: it compiles the loss's kernels, if
TRITON_CACHE_DIR has none of an earlier job, and what it took is told apart. The ledger compiles
logits only in a job that is long enough for it: see `--job-steps`. As the worker does for its
trainer, set PYTORCH_ALLOC_CONF=expandable_segments:True on CUDA, and on CPU KINETO_LOG_LEVEL=6,
which keeps the lines of torch's profiler from before the tables.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar, get_args

import torch

from service.contract.comparison import Cell
from service.contract.memory import LossMemory, LossName, MemoryLedger
from worker.bench import ledger_report as report
from worker.bench.ledger_report import Overhead, Row
from worker.bench.models import SHAPES
from worker.bench.session import full_fine_tuning
from worker.training import cell, trainer
from worker.training.cell import Bench
from worker.training.checkpoint import Position
from worker.training.device import pick_device
from worker.training.loop import Loop
from worker.training.losses import forward_backward, losses_of
from worker.training.meter import PeakMeter
from worker.training.session import Session
from worker.training.timing import StepClock

T = TypeVar("T")
_MODEL = "gemma-2-2b"
_CELL_STEPS = 6


@dataclass(frozen=True)
class Conditions:
    """What is trained: a batch of `sequences`, each of `seq_length` tokens, in one micro-batch.

    Attributes:
        steps: Plain training steps whose median is taken.
        job_steps: Of the job that pays for the ledger.
        commit: What is measured, as its caller knows it.
    """

    model: str
    sequences: int
    seq_length: int
    steps: int
    job_steps: int
    commit: str | None


def main(arguments: list[str]) -> int:
    """Measure, write the rows, and print the tables."""
    options = _parser().parse_args(arguments)
    device = pick_device("auto")
    if device.type == "cpu" and options.model is None:
        sys.stderr.write("without a GPU, --model must be named, for example tiny-gemma\n")
        return 2
    conditions = Conditions(
        options.model or _MODEL,
        options.sequences,
        options.seq_length,
        options.steps,
        options.job_steps,
        options.commit,
    )
    rows, overhead = measure(conditions, device)
    if options.json is not None:
        report.write(asdict(conditions), rows, overhead, options.json)
    sys.stdout.write(f"{report.tables(rows, overhead)}\n")
    return 0


def measure(conditions: Conditions, device: torch.device) -> tuple[list[Row], Overhead]:
    """A row for each loss, and what the ledger costs a job.

    Raises:
        JobFailure: The model itself does not fit, or its loss is not the reference's.
    """
    with full_fine_tuning(
        conditions.model,
        device,
        sequences=conditions.sequences,
        seq_length=conditions.seq_length,
        steps=conditions.job_steps,
        rows=conditions.sequences * conditions.steps,
    ) as session:
        first_pass, _ = _timed(lambda: _first_pass(session))
        start, (ledger, receipt) = _timed(lambda: trainer.measure(session, Position()))
        assert ledger is not None, "a job has one unless it asks for none"
        profiled, step = _steps(session, conditions.steps)
        overhead = Overhead(
            job_steps=conditions.job_steps,
            first_pass_seconds=first_pass,
            start_seconds=start,
            profiled_seconds=profiled,
            step_seconds=step,
        )
        bench = Bench.of(session, _CELL_STEPS, conditions.sequences)
        cells = [
            cell.measure(bench, loss, conditions.sequences, _quiet) for loss in get_args(LossName)
        ]
        versions = receipt.versions
    entries = {entry.loss: entry for entry in ledger.losses}
    rows = [_row(conditions, ledger, versions, entries.get(each.loss), each) for each in cells]
    return rows, overhead


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Its seconds, and what it makes."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _first_pass(session: Session) -> None:
    """Forward and backward of the first micro-batch, of which nothing stays."""
    model, batch = session.run.model, session.first_batch()
    training = model.training
    model.train()
    loss = losses_of(session.model, session.loss)["cce"]
    float(forward_backward(session.model, batch, loss))  # waits for the device
    model.zero_grad(set_to_none=True)
    model.train(training)


def _steps(session: Session, plain: int) -> tuple[float, float]:
    """Train as the job does: steps until the phases have been timed, and then `plain` ones.

    Returns by how many seconds the timed ones take longer, and those of a plain one.
    """
    session.run.model.train()
    clock = StepClock(session.device)
    loop = Loop(session, Position(), PeakMeter(session.run, session.device, None))

    def step() -> None:
        clock.start_step()
        loop.step(clock)

    timed: list[float] = []
    while (phases := clock.result()) is None:
        timed.append(_timed(step)[0])
    seconds = statistics.median(_timed(step)[0] for _ in range(plain))
    profiled = sum(timed[-phases.steps :]) - phases.steps * seconds
    return max(0.0, profiled), seconds


def _row(
    conditions: Conditions,
    ledger: MemoryLedger,
    versions: dict[str, str],
    entry: LossMemory | None,
    trained: Cell,
) -> Row:
    step = entry.step if entry else None
    return Row(
        model=conditions.model,
        loss=trained.loss,
        tokens=conditions.sequences * conditions.seq_length,
        dtype=ledger.dtype,
        loss_layer=entry.loss_layer.provenance if entry else None,
        loss_layer_bytes=entry.loss_layer.bytes if entry else None,
        step=step.provenance if step else None,
        step_bytes=step.bytes if step else None,
        training=trained.outcome,
        training_peak_bytes=trained.peak_bytes,
        tokens_per_second=trained.tokens_per_s,
        note=trained.note,
        device=ledger.device,
        torch=versions["torch"],
        triton=versions.get("triton"),
        transformers=versions["transformers"],
        commit=conditions.commit,
    )


def _quiet(steps: int, loss: float, tokens_per_s: float | None) -> None:
    """Nobody watches the steps of a cell."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker.bench.ledger",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        choices=SHAPES,
        help=f"size to build, with random weights (default on a GPU: {_MODEL})",
    )
    parser.add_argument(
        "--sequences", type=int, default=4, help="of a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--seq-length", type=int, default=2048, help="tokens a sequence (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        help="plain steps to take the median of (default: %(default)s)",
    )
    parser.add_argument(
        "--job-steps", type=int, default=500, help="of the job that pays (default: %(default)s)"
    )
    parser.add_argument("--commit", help="what is measured, to be kept with the rows")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
