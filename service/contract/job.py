"""The job record, its states and legal edges, and what hangs on it: events and checkpoints."""

import secrets
import time
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from service.contract.estimate.record import JobEstimate, MicroBatch
from service.contract.memory import MemoryLedger, StepPhases
from service.contract.receipt import NumericsReceipt
from service.contract.spec import JobSpec, ResolvedOptions


class JobStatus(StrEnum):
    """Where a job is in its life; the values are the wire format's."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = JobStatus
TERMINAL = frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED})
# running -> queued is a retry: the attempt's lease expired, or its worker was told to stop.
EDGES: dict[JobStatus, frozenset[JobStatus]] = {
    _S.VALIDATING_FILES: frozenset({_S.QUEUED, _S.FAILED, _S.CANCELLED}),
    _S.QUEUED: frozenset({_S.RUNNING, _S.FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.QUEUED, _S.SUCCEEDED, _S.FAILED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}

Level = Literal["info", "warn", "error"]
Phase = Literal["loading", "validating", "measuring", "training", "evaluating", "saving"]


def new_id(prefix: str) -> str:
    """A fresh id such as `ftjob-019a...`: the prefix, 48 bits of time and 80 random ones, in hex.

    The time, in milliseconds, comes first: ids of one kind sort by when they were made.
    """
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


class JobError(BaseModel):
    """Why a job failed, in the wire format's three keys."""

    model_config = ConfigDict(frozen=True)
    code: str
    message: str
    param: str | None = None


class DataSize(BaseModel):
    """What tokenizing a job's training file has shown.

    Attributes:
        supervised_tokens: Of them, those that are trained on.
        longest: Tokens of the longest example.
    """

    model_config = ConfigDict(frozen=True)

    examples: int
    tokens: int
    supervised_tokens: int
    longest: int


class Progress(BaseModel):
    """Where a running job stands; every field is the latest known value.

    Attributes:
        tokens: Supervised and unsupervised tokens processed so far, over all attempts that count.
        tokens_per_s: Throughput over the last steps.
        eta_s: Seconds to the last step at that throughput.
        device_memory_bytes: Memory in use on the device now (on CPU: resident set).
        device_memory_peak_bytes: Its peak since training began (on CPU: since the process did).
    """

    phase: Phase = "loading"
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    tokens: int = 0
    tokens_per_s: float | None = None
    eta_s: float | None = None
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    learning_rate: float | None = None
    device: str | None = None
    device_memory_bytes: int | None = None
    device_memory_peak_bytes: int | None = None


class Event(BaseModel):
    """One line of a job's history.

    `type` is `message` or `metrics`; metrics carry step, train_loss and the like in `data`.
    """

    level: Level = "info"
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = {}


class StoredEvent(Event):
    """An event with its place in the stream; `id` is a stable cursor."""

    id: str
    created_at: int


class Checkpoint(BaseModel):
    """A checkpoint that is whole, in the storage, and can be resumed from while its job goes on.

    Attributes:
        path: Storage path of the checkpoint's folder: `model/`, and `state/` until the job ends.
        model: Id of the model that it can be downloaded as.
    """

    id: str
    created_at: int
    step: int
    path: str
    model: str
    metrics: dict[str, float]


class ReducedBatch(BaseModel):
    """What running out of memory left of the micro-batch; the effective batch is the same.

    Attributes:
        micro_batch_size: The most sequences that the next attempt works on at once.
        times: How often it was halved.
    """

    model_config = ConfigDict(frozen=True)
    micro_batch_size: int
    times: int


class JobRecord(BaseModel):
    """The truth about a job, as Redis holds it.

    Attributes:
        token: Fencing token: the number of claims so far. Writes with an older one are refused.
        attempt: Claims that reached the training phase.
        version: Grows with every write; the ETag of the status resource.
        cancel_requested: A caller asked to cancel, and a worker holds the job.
    """

    id: str
    org: str
    created_at: int
    spec: JobSpec
    status: JobStatus = JobStatus.VALIDATING_FILES
    token: int = 0
    attempt: int = 0
    version: int = 0
    cancel_requested: bool = False
    worker: str | None = None
    started_at: int | None = None
    finished_at: int | None = None
    error: JobError | None = None
    data: DataSize | None = None
    resolved: ResolvedOptions | None = None
    reduced_batch: ReducedBatch | None = None
    progress: Progress | None = None
    memory: MemoryLedger | None = None
    micro_batch: MicroBatch | None = None
    estimate: JobEstimate | None = None
    phases: StepPhases | None = None
    receipt: NumericsReceipt | None = None
    trained_tokens: int | None = None
    fine_tuned_model: str | None = None
    result_files: list[str] = []

    @property
    def terminal(self) -> bool:
        """Whether the job has ended; a terminal status never changes."""
        return self.status in TERMINAL
