"""The trainer's two interfaces: the run spec it reads, and the JSON lines that it writes.

The supervisor writes a `RunSpec` to a file and starts the trainer on it; the trainer answers with
one event a line on a pipe of its own, so that stdout and stderr stay free for the log. The lines
have no Redis and no job status in them: what an event means for the record is the supervisor's.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter

from service.contract.errors import JobFailureCode
from service.contract.estimate.record import JobEstimate, MicroBatch
from service.contract.job import DataSize, Level, Progress
from service.contract.memory import MemoryLedger, StepPhases
from service.contract.receipt import NumericsReceipt
from service.contract.spec import DataFormat, JobSpec, ResolvedOptions, Trained

Mode = Literal["validate", "train"]
DeviceChoice = Literal["auto", "cuda", "cpu"]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSource(_Line):
    """A checked dataset on the local disk."""

    path: Path
    format: DataFormat
    sha256: str


class RunSpec(_Line):
    """All that a trainer needs for one attempt.

    Attributes:
        mode: `validate` tokenizes the data and reports faults; `train` does the job.
        job: What the caller asked for.
        model_source: What `from_pretrained` loads: a folder, or a hub id of the allow-list.
        base_model: The folder or hub id under an adapter, where the model to tune is one.
        workdir: Where the trainer may write; it writes nowhere else.
        resume_from: A checkpoint's folder, or None to start from the beginning.
        device: What to train on; `auto` is a GPU where there is one.
        max_micro_batch_size: The most sequences at once, since more did not fit; None for any.
        settled: The micro-batch of an earlier attempt, which need not be found again on a device
            like that one's.
        ledger: That of an earlier attempt, which stands for the same micro-batch on such a device.
    """

    mode: Mode
    job_id: str
    job: JobSpec
    model_source: str
    base_model: str | None = None
    training: DataSource
    validation: DataSource | None = None
    workdir: Path
    resume_from: Path | None = None
    device: DeviceChoice = "auto"
    max_micro_batch_size: int | None = None
    settled: MicroBatch | None = None
    ledger: MemoryLedger | None = None


class Message(_Line):
    """Something for the job's history."""

    kind: Literal["message"] = "message"
    message: str
    level: Level = "info"
    data: dict[str, Any] = {}


class Validated(_Line, DataSize):
    """The data is fit to train on: `validate` mode's last line."""

    kind: Literal["validated"] = "validated"


class Resolved(_Line):
    """Every "auto" resolved."""

    kind: Literal["resolved"] = "resolved"
    options: ResolvedOptions


class MicroBatchSettled(_Line):
    """How many sequences are on the device at once; the options that follow."""

    kind: Literal["micro_batch"] = "micro_batch"
    micro_batch: MicroBatch
    options: ResolvedOptions


class Estimated(_Line):
    """The peak of memory as predicted; sent again when it was measured."""

    kind: Literal["estimate"] = "estimate"
    estimate: JobEstimate


class Ledger(_Line):
    """The memory ledger, measured."""

    kind: Literal["ledger"] = "ledger"
    ledger: MemoryLedger


class Receipt(_Line):
    """The numerics receipt, within tolerance."""

    kind: Literal["receipt"] = "receipt"
    receipt: NumericsReceipt


class Phases(_Line):
    """Where the time of a step goes, from a few steps."""

    kind: Literal["phases"] = "phases"
    phases: StepPhases


class ProgressLine(_Line):
    """The latest progress; sent at every phase change and at most a few times a second."""

    kind: Literal["progress"] = "progress"
    progress: Progress


class Metrics(_Line):
    """A point of the loss curve: one a logging step, and one an evaluation."""

    kind: Literal["metrics"] = "metrics"
    step: int
    total_steps: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    learning_rate: float | None = None
    filtered_mass_p50: float | None = None
    filtered_mass_p99: float | None = None
    filter_error_p50: FiniteFloat | None = None
    filter_error_max: FiniteFloat | None = None
    filter_fallbacks: int | None = None


class CheckpointWritten(_Line):
    """A checkpoint folder is whole on the local disk: resumable, and loadable as a model.

    Attributes:
        path: The folder; `model/` in it is the model, `state/` what a resume needs.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: Path
    metrics: dict[str, float]


class Result(_Line):
    """The job is done: `train` mode's last line.

    Attributes:
        model: Folder with weights as safetensors, tokenizer and config.
        metrics_csv: The metrics as the wire format's CSV.
        report: The job report as JSON.
        outliers_csv: The training rows with the highest loss, by epoch.
        receipt: The numerics receipt, with what the filter left out over the whole run.
    """

    kind: Literal["result"] = "result"
    model: Path
    model_kind: Trained
    metrics_csv: Path
    report: Path
    outliers_csv: Path
    receipt: NumericsReceipt
    trained_tokens: int


class Compared(_Line):
    """The comparison is done: the last line of `train` mode on such a job.

    Attributes:
        json_report: A `ComparisonReport`.
        csv_table: Its figures, a row for each cell.
        html_report: The same with plots, in one file that needs no other.
    """

    kind: Literal["compared"] = "compared"
    json_report: Path
    csv_table: Path
    html_report: Path


class Failed(_Line):
    """The job cannot go on; a last line of either mode."""

    kind: Literal["failed"] = "failed"
    code: JobFailureCode
    message: str
    param: str | None = None
    data: dict[str, Any] = {}


Line = Annotated[
    Message
    | Validated
    | Resolved
    | MicroBatchSettled
    | Estimated
    | Ledger
    | Receipt
    | Phases
    | ProgressLine
    | Metrics
    | CheckpointWritten
    | Result
    | Compared
    | Failed,
    Field(discriminator="kind"),
]
LINE: TypeAdapter[Line] = TypeAdapter(Line)
