"""What a finished job leaves beside its model: the metrics as CSV, and the job report as JSON."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract.estimate.record import JobEstimate
from service.contract.memory import MemoryLedger
from service.contract.receipt import NumericsReceipt
from service.contract.spec import ResolvedOptions
from worker.events import RunSpec
from worker.training.checkpoint import Position

# Columns of the wire format's CSV, and what its events and checkpoints call the same.
_COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
}


def write_csv(position: Position, path: Path) -> None:
    """The metrics in the wire format's columns; a cell is empty where nothing was measured."""
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(_COLUMNS)
        table.writerows([row.get(name) for name in _COLUMNS.values()] for row in position.metrics)


@dataclass(frozen=True)
class Measured:
    """What a job has found out about itself; None for what was not measured, or not predicted."""

    ledger: MemoryLedger | None
    receipt: NumericsReceipt
    estimate: JobEstimate | None


def write_report(
    spec: RunSpec, resolved: ResolvedOptions, position: Position, measured: Measured, path: Path
) -> None:
    """What was asked, what was used, what came out, and what was measured on the way."""
    report: dict[str, Any] = {
        "job_id": spec.job_id,
        "asked": spec.job.model_dump(),
        "resolved": resolved.model_dump(),
        "training_file_sha256": spec.training.sha256,
        "steps": position.step,
        "trained_tokens": position.tokens,
        "final": position.metrics[-1] if position.metrics else None,
        "memory": measured.ledger.model_dump() if measured.ledger else None,
        "estimate": measured.estimate.model_dump() if measured.estimate else None,
        "receipt": measured.receipt.model_dump(),
    }
    path.write_text(json.dumps(report, indent=2))
