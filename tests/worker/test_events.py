"""The protocol between supervisor and trainer: what is written is what is read, and no more."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from service.contract.estimate.record import ComponentBytes, JobEstimate, MicroBatch
from service.contract.job import Progress
from service.contract.memory import Figure, LossMemory, MemoryLedger, Saving, StepPhases
from service.contract.receipt import FilteredMass, NumericsReceipt
from service.contract.spec import JobSpec, ResolvedOptions
from worker import events
from worker.events import (
    LINE,
    CheckpointWritten,
    Compared,
    DataSource,
    Estimated,
    Failed,
    Ledger,
    Line,
    Message,
    Metrics,
    MicroBatchSettled,
    Phases,
    ProgressLine,
    Receipt,
    Resolved,
    Result,
    RunSpec,
    Validated,
)

OPTIONS = ResolvedOptions(
    device="cpu",
    trained="full",
    batch_size=4,
    micro_batch_size=2,
    gradient_accumulation_steps=2,
    n_epochs=3,
    learning_rate_multiplier=1.0,
    learning_rate=2e-5,
    max_seq_length=512,
    gradient_checkpointing=False,
    dtype="float32",
    loss_implementation="blocked",
    checkpoint_every=10,
    total_steps=100,
)
LEDGER = MemoryLedger(
    device="cpu",
    method="CPU allocator events",
    micro_batch_size=2,
    seq_length=8,
    tokens=14,
    vocab_size=97,
    hidden_size=32,
    dtype="float32",
    losses=[LossMemory(loss="cce", loss_layer=Figure(bytes=10, provenance="measured"))],
    savings=[Saving(baseline="full_logits", loss_layer_bytes=90, loss_layer_ratio=10.0)],
)
RECEIPT = NumericsReceipt(
    implementation="blocked",
    preset="default",
    rows=14,
    loss=2.0,
    loss_reference=2.0,
    loss_error=1e-9,
    hidden_grad_error=1e-7,
    head_grad_error=None,
    tolerance=1e-3,
    filtered=[
        FilteredMass(step=1, p50=1e-300, p99=0.1 + 0.2, error_p50=None, error_max=None, fallbacks=1)
    ],
    seed=2**31 - 1,
    training_file_sha256="ab" * 32,
    resumed_from_step=20,
    versions={"torch": "2.11"},
)
PHASES = StepPhases(steps=3, data=0.1, forward=0.2, loss=0.3, backward=0.4, optimizer=0.5)
MICRO_BATCH = MicroBatch(
    size=6, chosen_by="probe", full_logits=2, provenance="measured", multiple=3.0, device="H200"
)
ESTIMATE = JobEstimate(
    micro_batch_size=6,
    seq_length=256,
    components=ComponentBytes(
        weights=1,
        optimizer=2,
        gradients=3,
        activations=4,
        attention=5,
        working=6,
        optimizer_step=7,
    ),
    predicted_bytes=3 * 2**30,
    predicted_at="loss",
)
SCORED = ESTIMATE.model_copy(
    update={"measured_bytes": 4 * 2**30, "error": -0.25, "method": "CUDA allocator peak"}
)
LINES: list[Line] = [
    Message(message="Größe\n\t\u2028", level="warn", data={"n": [1, 2.5, None], "s": {"a": "b"}}),
    Validated(examples=3, tokens=30, supervised_tokens=10, longest=12),
    Resolved(options=OPTIONS),
    MicroBatchSettled(micro_batch=MICRO_BATCH, options=OPTIONS),
    Estimated(estimate=ESTIMATE),
    Ledger(ledger=LEDGER),
    Receipt(receipt=RECEIPT),
    Phases(phases=PHASES),
    ProgressLine(progress=Progress(phase="training", step=3, train_loss=0.1 + 0.2)),
    Metrics(step=3, total_steps=100, train_loss=1 / 3, learning_rate=1e-300),
    CheckpointWritten(step=3, path=Path("/scratch/checkpoint-3"), metrics={"train_loss": 1.5}),
    Result(
        model=Path("/scratch/model"),
        model_kind="lora",
        metrics_csv=Path("/scratch/metrics.csv"),
        report=Path("/scratch/report.json"),
        outliers_csv=Path("/scratch/outliers.csv"),
        receipt=RECEIPT,
        trained_tokens=2**40,
    ),
    Compared(
        json_report=Path("/scratch/comparison.json"),
        csv_table=Path("/scratch/comparison.csv"),
        html_report=Path("/scratch/comparison.html"),
    ),
    Failed(code="out_of_memory", message="Too big.", param=None, data={"asked": 2**33}),
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.kind)
def test_a_line_is_read_as_it_was_written(line: Line) -> None:
    text = line.model_dump_json()
    assert "\n" not in text
    assert LINE.validate_json(text) == line


def test_every_kind_of_line_is_tried() -> None:
    kinds = get_args(get_args(events.Line)[0])
    assert {type(line) for line in LINES} == set(kinds)
    assert len({line.kind for line in LINES}) == len(kinds)


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "gossip", "message": "x"}',
        '{"message": "x"}',
        '{"kind": "message"}',
        '{"kind": "message", "message": "x", "status": "succeeded"}',
        '{"kind": "message", "message": "x", "level": "loud"}',
        '{"kind": "failed", "code": "bored", "message": "x"}',
        '{"kind": "validated", "examples": "many", "tokens": 1, "supervised_tokens": 1}',
        '["message", "x"]',
        "Traceback (most recent call last):",
        '{"kind": "message", "message": "cut o',
        "",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        LINE.validate_json(text)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "base_model": "/models/base",
            "validation": DataSource(path=Path("/data/v"), format="text", sha256="1" * 64),
            "resume_from": Path("/storage/checkpoints/1-4"),
        },
    ],
)
def test_a_run_spec_is_read_as_it_was_written(changes: dict[str, Any]) -> None:
    options = {"learning_rate": 1e-4, "adapter": {"type": "lora", "targets": ["q_proj"]}}
    spec = RunSpec(
        mode="train",
        job_id="ftjob-1",
        job=JobSpec(model="m", training_file="file-1", seed=3, options=options),
        model_source="/models/m",
        training=DataSource(path=Path("/data/t"), format="chat", sha256="0" * 64),
        workdir=Path("/work"),
        **changes,
    )
    text = spec.model_dump_json()
    assert RunSpec.model_validate_json(text) == spec
    with pytest.raises(ValidationError, match="Extra inputs"):
        RunSpec.model_validate({**json.loads(text), "redis_url": "redis://nowhere"})
