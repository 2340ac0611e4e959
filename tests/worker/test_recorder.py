"""What becomes of each line: a field of the record, an event, a point of the curve, or nothing."""

import pytest

from service.contract.errors import LostClaim
from service.contract.job import Progress
from tests.worker.support import ORG, Deployment
from tests.worker.test_events import (
    ESTIMATE,
    LEDGER,
    LINES,
    MICRO_BATCH,
    OPTIONS,
    PHASES,
    RECEIPT,
    SCORED,
)
from worker.events import (
    CheckpointWritten,
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
    Validated,
)
from worker.publish import Publisher
from worker.recorder import Recorder

EXACT = SCORED.model_copy(update={"measured_bytes": SCORED.predicted_bytes, "error": -1e-4})
TINY = SCORED.model_copy(update={"measured_bytes": 4 << 20, "predicted_bytes": 3 << 20})
RESOLVED = (
    "Options resolved: batch size 4, learning rate 2e-05, 100 steps, "
    "sequences of at most 512 tokens, float32."
)
SETTLED = (
    "Micro-batches of 6 for a batch of 4, the largest that fits. "
    "That is 3 times what full logits would have allowed."
)
LAST = [line for line in LINES if isinstance(line, Validated | Result | Failed)]


@pytest.fixture
def job_id(deployment: Deployment) -> str:
    return deployment.create()


def recorder(deployment: Deployment, job_id: str, interval_s: float = 0.0) -> Recorder:
    """The recorder of a new attempt."""
    lease = deployment.hold(job_id)
    record = deployment.store.get(job_id)
    publisher = Publisher(
        deployment.store, deployment.storage, lease, record, base="base", keep_checkpoints=3
    )
    return Recorder(deployment.store, deployment.events, publisher, lease, interval_s)


@pytest.mark.parametrize(
    ("line", "field", "value", "message"),
    [
        (
            Resolved(options=OPTIONS),
            "resolved",
            OPTIONS,
            RESOLVED,
        ),
        (
            Estimated(estimate=ESTIMATE),
            "estimate",
            ESTIMATE,
            "Peak memory predicted: 3.0 GiB, at the loss.",
        ),
        (
            Estimated(estimate=SCORED),
            "estimate",
            SCORED,
            "Peak memory measured: 4.0 GiB; predicted were 3.0 GiB, -25.0%.",
        ),
        (
            Estimated(estimate=TINY),
            "estimate",
            TINY,
            "Peak memory measured: 4.0 MiB; predicted were 3.0 MiB, -25.0%.",
        ),
        (
            Estimated(estimate=EXACT),
            "estimate",
            EXACT,
            "Peak memory measured: 3.0 GiB, as predicted.",
        ),
        (
            MicroBatchSettled(micro_batch=MICRO_BATCH, options=OPTIONS),
            "micro_batch",
            MICRO_BATCH,
            SETTLED,
        ),
        (Ledger(ledger=LEDGER), "memory", LEDGER, "Memory ledger measured."),
        (Receipt(receipt=RECEIPT), "receipt", RECEIPT, "Loss verified."),
        (
            Phases(phases=PHASES),
            "phases",
            PHASES,
            "A step takes 1.5 s: data 7%, forward 13%, loss 20%, backward 27%, optimizer 33%.",
        ),
    ],
)
def test_what_is_known_of_a_job_is_a_field_and_an_event(
    deployment: Deployment, job_id: str, line: Line, field: str, value: object, message: str
) -> None:
    recorder(deployment, job_id).record(line)
    assert getattr(deployment.store.get(job_id), field) == value
    event = deployment.messages(job_id)[-1]
    assert (event.message, event.level, event.type) == (message, "info", "message")
    assert type(value).model_validate(event.data) == value


def test_a_message_is_an_event(deployment: Deployment, job_id: str) -> None:
    line = Message(message="Careful.", level="warn", data={"n": 1})
    recorder(deployment, job_id).record(line)
    event = deployment.messages(job_id)[-1]
    assert (event.message, event.level, event.data) == ("Careful.", "warn", {"n": 1})


@pytest.mark.parametrize(
    ("line", "message", "data"),
    [
        (
            Metrics(step=3, total_steps=9, train_loss=1.5, learning_rate=1e-4),
            "Step 3/9: training loss=1.5000",
            {"step": 3, "total_steps": 9, "train_loss": 1.5, "learning_rate": 1e-4},
        ),
        (
            Metrics(step=9, total_steps=9, valid_loss=2.0, full_valid_loss=2.25),
            "Step 9/9: validation loss=2.0000, full validation loss=2.2500",
            {"step": 9, "total_steps": 9, "valid_loss": 2.0, "full_valid_loss": 2.25},
        ),
    ],
)
def test_metrics_are_points_of_the_curve_in_the_wire_formats_names(
    deployment: Deployment, job_id: str, line: Metrics, message: str, data: dict
) -> None:
    recorder(deployment, job_id).record(line)
    (point,) = deployment.events.metrics(job_id, resolution=10)
    assert (point.message, point.data) == (message, data)


def test_a_long_curve_is_thinned_and_keeps_its_ends(deployment: Deployment, job_id: str) -> None:
    deployment.events = type(deployment.events)(deployment.redis, cap=100)
    writes = recorder(deployment, job_id)
    for step in range(1, 301):
        writes.record(Metrics(step=step, total_steps=300, train_loss=1.0))
    steps = [point.data["step"] for point in deployment.events.metrics(job_id, resolution=1000)]
    assert len(steps) < 300
    assert (steps[0], steps[-1]) == (1, 300)


def test_progress_waits_until_it_is_time(deployment: Deployment, job_id: str) -> None:
    writes = recorder(deployment, job_id, interval_s=60.0)
    for step in (1, 2, 3):
        writes.record(ProgressLine(progress=Progress(step=step)))
        writes.flush()
    assert deployment.store.get(job_id).progress == Progress(step=1)
    writes.flush(now=True)
    assert deployment.store.get(job_id).progress == Progress(step=3)


def test_without_news_nothing_is_written(deployment: Deployment, job_id: str) -> None:
    writes = recorder(deployment, job_id)
    writes.record(ProgressLine(progress=Progress(step=1)))
    writes.flush()
    version = deployment.store.get(job_id).version
    writes.flush()
    writes.flush(now=True)
    assert deployment.store.get(job_id).version == version


def test_a_checkpoint_is_published(deployment: Deployment, job_id: str) -> None:
    writes = recorder(deployment, job_id)
    folder = deployment.folder / "checkpoint-4"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    writes.record(CheckpointWritten(step=4, path=folder, metrics={"train_loss": 1.5}))
    (checkpoint,) = deployment.store.checkpoints(job_id)
    assert (checkpoint.step, checkpoint.metrics) == (4, {"train_loss": 1.5})
    assert deployment.models.get(ORG, checkpoint.model).step == 4


@pytest.mark.parametrize("line", LAST, ids=lambda line: line.kind)
def test_a_last_line_is_not_for_the_recorder(
    deployment: Deployment, job_id: str, line: Line
) -> None:
    with pytest.raises(AssertionError, match="the runner's"):
        recorder(deployment, job_id).record(line)


def test_a_lost_claim_writes_nothing(deployment: Deployment, job_id: str) -> None:
    writes = recorder(deployment, job_id)
    deployment.lose(job_id)
    before = deployment.store.get(job_id), deployment.messages(job_id)
    with pytest.raises(LostClaim):
        writes.record(Message(message="Too late."))
    writes.record(ProgressLine(progress=Progress(step=1)))
    with pytest.raises(LostClaim):
        writes.flush(now=True)
    assert (deployment.store.get(job_id), deployment.messages(job_id)) == before
