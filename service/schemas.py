"""What the API answers: the objects of the OpenAI wire format, with Headroom's extension fields."""

import time
from collections.abc import Sequence
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, Field

from service.contract.estimate.record import JobEstimate, MicroBatch
from service.contract.files import FileRecord
from service.contract.job import (
    Checkpoint,
    JobError,
    JobRecord,
    JobStatus,
    Level,
    Progress,
    ReducedBatch,
    StoredEvent,
)
from service.contract.memory import MemoryLedger, StepPhases
from service.contract.models import ModelFile, ModelRecord
from service.contract.receipt import NumericsReceipt
from service.contract.spec import (
    ComparisonOptions,
    DataFormat,
    Hyperparameters,
    Purpose,
    ResolvedOptions,
    Trained,
    TrainingOptions,
)
from service.job_request import Method, Supervised

Item = TypeVar("Item")


class Listing(BaseModel, Generic[Item]):
    """A page of a list; `after=last_id` asks for the next one."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, items: Sequence[Item], *, has_more: bool = False) -> Self:
        """A page of objects that have an `id`."""
        ids: list[str] = [item.id for item in items]  # type: ignore[attr-defined] # see above
        first, last = (ids[0], ids[-1]) if ids else (None, None)
        return cls(data=list(items), has_more=has_more, first_id=first, last_id=last)


class Deleted(BaseModel):
    """An object that is gone."""

    id: str
    object: Literal["file", "model"]
    deleted: bool = True


class File(BaseModel):
    """An uploaded file, or a result of a job."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None
    expires_at: int | None
    format: DataFormat | None = Field(description="Extension: what the check found it to be.")
    rows: int | None = Field(description="Extension: training examples.")
    sha256: str = Field(description="Extension: of the bytes, in hex.")

    @classmethod
    def of(cls, record: FileRecord) -> Self:
        """The file of a record."""
        return cls(**record.model_dump(exclude={"org"}))


class Model(BaseModel):
    """A base model, or one that a job made."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds; 0 for a base model.")
    owned_by: str
    base: str | None = Field(None, description="Extension: what it was trained from.")
    job_id: str | None = Field(None, description="Extension: the job that made it.")
    kind: Trained | None = Field(
        None, description="Extension: full weights, or an adapter that needs its base."
    )
    step: int | None = Field(None, description="Extension: the step of a checkpoint's model.")
    files: list[ModelFile] = Field([], description="Extension: what can be downloaded, by name.")

    @classmethod
    def of_base(cls, name: str) -> Self:
        """A model of the allow-list."""
        return cls(id=name, created=0, owned_by="headroom")

    @classmethod
    def of(cls, record: ModelRecord) -> Self:
        """A fine-tuned model."""
        values = record.model_dump(exclude={"org", "created_at", "path"})
        return cls(**values, created=record.created_at, owned_by=record.org)


class ModelFiles(BaseModel):
    """The files of a fine-tuned model."""

    object: Literal["list"] = "list"
    data: list[ModelFile]
    has_more: bool = False


class JobEvent(BaseModel):
    """A line of a job's history; `metrics` events carry step, train_loss and the like."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    created_at: int
    level: Level
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]

    @classmethod
    def of(cls, event: StoredEvent) -> Self:
        """The event of a record."""
        return cls(**dict(event))


class MetricPoint(BaseModel):
    """A point of the loss curve."""

    id: str
    created_at: int
    step: int
    total_steps: int | None = None
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    learning_rate: float | None = None
    filtered_mass_p50: float | None = None
    filtered_mass_p99: float | None = None
    filter_error_p50: float | None = None
    filter_error_max: float | None = None
    filter_fallbacks: int | None = None

    @classmethod
    def of(cls, event: StoredEvent) -> Self:
        """The point that a metrics event tells."""
        return cls(**{**event.data, "id": event.id, "created_at": event.created_at})


class JobCheckpoint(BaseModel):
    """A checkpoint; its model can be downloaded and trained on."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]

    @classmethod
    def of(cls, job_id: str, checkpoint: Checkpoint) -> Self:
        """The checkpoint of a job."""
        return cls(
            id=checkpoint.id,
            created_at=checkpoint.created_at,
            fine_tuned_model_checkpoint=checkpoint.model,
            fine_tuning_job_id=job_id,
            step_number=checkpoint.step,
            metrics={"step": checkpoint.step, **checkpoint.metrics},
        )


class JobMemory(BaseModel):
    """What a job measured of its memory and time before it trained, and in its first steps."""

    object: Literal["fine_tuning.job.memory"] = "fine_tuning.job.memory"
    fine_tuning_job_id: str
    ledger: MemoryLedger
    phases: StepPhases | None = Field(description="Known after the first few steps.")
    reduced_batch: ReducedBatch | None = Field(
        description="The micro-batch after the device ran out of memory."
    )

    @classmethod
    def of(cls, record: JobRecord, ledger: MemoryLedger) -> Self:
        """The measurements of a record."""
        return cls(
            fine_tuning_job_id=record.id,
            ledger=ledger,
            phases=record.phases,
            reduced_batch=record.reduced_batch,
        )


class JobHead(BaseModel):
    """The fields of the wire format, and what Headroom reports beside them."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None = Field(description="Unix seconds, for a running job.")
    status: JobStatus
    error: JobError | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: Hyperparameters = Field(description="Resolved values, once they are known.")
    method: Method
    integrations: list[Any] = []
    metadata: dict[str, str]
    suffix: str | None = Field(description="Extension.")
    started_at: int | None = Field(description="Extension: when training first began.")
    cancel_requested: bool = Field(description="Extension: the worker has yet to hear of it.")
    queue_position: int | None = Field(
        description="Extension: 1 for the next job that a worker will take."
    )
    attempt: int = Field(description="Extension: how often training was begun.")
    worker: str | None = Field(description="Extension: who holds the job, or held it last.")
    progress: Progress | None = Field(description="Extension: where the job stands.")
    memory: MemoryLedger | None = Field(
        description="Extension: the measured memory of the loss layer against named baselines."
    )
    estimate: JobEstimate | None = Field(
        description="Extension: the peak of memory, predicted before the first step and measured "
        "after the last; null for a model family that nothing is predicted for."
    )
    micro_batch: MicroBatch | None = Field(
        description="Extension: how many sequences are on the device at once, why, and how many "
        "times what full logits would have allowed."
    )
    phases: StepPhases | None = Field(
        description="Extension: where the time of a step goes, in seconds."
    )
    receipt: NumericsReceipt | None = Field(
        description="Extension: the loss and its gradients against fp32 on the first batch, what"
        " the filter left out since and the error that it estimated, and what computed it."
    )
    resolved: ResolvedOptions | None = Field(
        description='Extension: every "auto" resolved, once the trainer has done so.'
    )
    reduced_batch: ReducedBatch | None = Field(
        description="Extension: the micro-batch after the device ran out of memory; gradient"
        " accumulation keeps the effective batch."
    )
    comparison: ComparisonOptions | None = Field(
        description="Extension: what a comparison compares; its reports are the `result_files`."
    )


class Job(TrainingOptions, JobHead):
    """A fine-tuning job; its options are echoed, resolved once that is known."""

    @classmethod
    def of(cls, record: JobRecord, queue_position: int | None) -> Self:
        """The job of a record."""
        spec = record.spec
        hyperparameters = _resolved(spec.hyperparameters, record.resolved)
        return cls(
            **{name: getattr(record, name) for name in _SAME},
            **dict(_resolved(spec.options, record.resolved)),
            estimated_finish=_estimated_finish(record),
            organization_id=record.org,
            model=spec.model,
            training_file=spec.training_file,
            validation_file=spec.validation_file,
            seed=spec.seed,
            suffix=spec.suffix,
            metadata=spec.metadata,
            comparison=spec.comparison,
            hyperparameters=hyperparameters,
            method=Method(supervised=Supervised(hyperparameters=hyperparameters)),
            queue_position=queue_position if record.status is JobStatus.QUEUED else None,
        )


# What the record and the job on the wire call by the same name.
_SAME = sorted(JobHead.model_fields.keys() & JobRecord.model_fields.keys())
Options = TypeVar("Options", Hyperparameters, TrainingOptions)


def _resolved(asked: Options, resolved: ResolvedOptions | None) -> Options:
    """The options as asked for, with the resolved values in the place of "auto"."""
    if resolved is None:
        return asked
    known = {
        name: value for name, value in dict(resolved).items() if name in type(asked).model_fields
    }
    if isinstance(asked, TrainingOptions):
        loss = {"implementation": resolved.loss_implementation}
        known["loss"] = asked.loss.model_copy(update=loss)
    return asked.model_copy(update=known)


def _estimated_finish(record: JobRecord) -> int | None:
    eta_s = record.progress.eta_s if record.progress else None
    if record.status is not JobStatus.RUNNING or eta_s is None:
        return None
    return int(time.time() + eta_s)
