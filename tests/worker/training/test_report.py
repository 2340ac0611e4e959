import csv
import json
from pathlib import Path

from service.contract.receipt import NumericsReceipt
from tests.worker.training.support import chats, make_spec, resolved
from worker.training.checkpoint import Position
from worker.training.report import Measured, write_csv, write_report

RECEIPT = NumericsReceipt(
    implementation="blocked",
    preset="default",
    rows=8,
    loss=1.0,
    loss_reference=1.0,
    loss_error=0.0,
    hidden_grad_error=0.0,
    head_grad_error=None,
    tolerance=1e-3,
    filtered=[],
    seed=1,
    training_file_sha256="0" * 64,
    resumed_from_step=None,
    versions={},
)
POSITION = Position(
    step=2,
    tokens=50,
    metrics=[
        {"step": 0, "valid_loss": 3.0, "valid_mean_token_accuracy": 0.0},
        {"step": 1, "train_loss": 2.5, "train_mean_token_accuracy": 0.25},
        {"step": 2, "train_loss": 2.0, "train_mean_token_accuracy": 0.5, "valid_loss": 2.25},
    ],
)


def test_a_cell_is_empty_where_nothing_was_measured(tmp_path: Path) -> None:
    write_csv(POSITION, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"],
            ["0", "", "", "3.0", "0.0"],
            ["1", "2.5", "0.25", "", ""],
            ["2", "2.0", "0.5", "2.25", ""],
        ]


def test_the_report_tells_what_was_asked_used_and_measured(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "nowhere", chats(2), adapter={"type": "lora", "rank": 4})
    options = resolved(total_steps=2)
    measured = Measured(ledger=None, receipt=RECEIPT, estimate=None)
    write_report(spec, options, POSITION, measured, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["job_id"] == spec.job_id
    assert report["asked"]["options"]["adapter"]["rank"] == 4
    assert report["asked"]["seed"] == 7
    assert report["resolved"] == options.model_dump()
    assert report["training_file_sha256"] == spec.training.sha256
    assert (report["steps"], report["trained_tokens"]) == (2, 50)
    assert report["final"] == POSITION.metrics[-1]
    assert report["memory"] is report["estimate"] is None
    assert NumericsReceipt.model_validate(report["receipt"]) == RECEIPT
