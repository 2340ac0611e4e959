"""The report of a comparison as files: JSON for programs, CSV for tables, HTML for people."""

import csv
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from service.contract.comparison import (
    CSV_NAME,
    HTML_NAME,
    JSON_NAME,
    Cell,
    ComparisonReport,
    Conditions,
)
from worker.events import Compared
from worker.training import device
from worker.training.cell import Bench
from worker.training.comparison_html import page
from worker.training.session import Session


def write(bench: Bench, cells: list[Cell], folder: Path) -> Compared:
    """Write the files into `folder`; the supervisor publishes them."""
    report = ComparisonReport(
        job_id=bench.session.spec.job_id,
        conditions=_conditions(bench),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cuda": str(torch.version.cuda),
        },
        cells=cells,
    )
    written = Compared(
        json_report=folder / JSON_NAME, csv_table=folder / CSV_NAME, html_report=folder / HTML_NAME
    )
    written.json_report.write_text(report.model_dump_json(indent=2))
    write_csv(report, written.csv_table)
    written.html_report.write_text(page(report))
    return written


def write_csv(report: ComparisonReport, path: Path) -> None:
    """A row for each cell; a field is empty where nothing was measured."""
    rows = [_row(cell) for cell in report.cells]
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0])
        table.writeheader()
        table.writerows(rows)


def _row(cell: Cell) -> dict[str, object]:
    about = {name: getattr(cell, name) for name in ("batch_size", "loss", "outcome", "note")}
    return {**about, **cell.figures}


def _conditions(bench: Bench) -> Conditions:
    session, weight = bench.session, bench.session.model.head.weight
    spec, cuda = session.spec, session.device.type == "cuda"
    return Conditions(
        model=spec.job.model,
        training_file_sha256=spec.training.sha256,
        validation_file_sha256=spec.validation.sha256 if spec.validation else None,
        seed=spec.job.seed,
        steps=bench.steps,
        seq_length=bench.length,
        vocab_size=weight.shape[0],
        hidden_size=weight.shape[1],
        parameters=sum(parameter.numel() for parameter in session.run.model.parameters()),
        options=_options(session),
        device=device.name(session.device),
        method="CUDA allocator peak" if cuda else "CPU allocator events",
    )


def _options(session: Session) -> dict[str, Any]:
    """The options that bear on a comparison, resolved."""
    options, resolved = session.spec.job.options, session.resolved
    adapter = options.adapter
    return {
        "learning_rate": resolved.learning_rate,
        "max_seq_length": resolved.max_seq_length,
        "packing": options.packing,
        "gradient_checkpointing": resolved.gradient_checkpointing,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "dtype": resolved.dtype,
        "adapter": adapter.model_dump(mode="json") if adapter else None,
        "cce": f"{resolved.loss_implementation}, {options.loss.preset}",
    }
