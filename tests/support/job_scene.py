"""Jobs for somebody to watch: records driven through the store as a worker drives them."""

import math
import time
from collections.abc import Iterable, Sequence

from service.contract.comparison import Cell
from service.contract.estimate.record import JobEstimate, MicroBatch
from service.contract.job import Event, JobError, JobRecord, JobStatus, Progress, new_id
from service.contract.memory import MemoryLedger
from service.contract.receipt import NumericsReceipt
from service.contract.spec import ComparisonOptions, JobSpec
from service.contract.store import Claim, Store
from tests.support.measured import (
    ESTIMATE,
    LEDGER,
    MIB,
    PHASES,
    RECEIPT,
    RESOLVED,
    SCORED,
    TOTAL_STEPS,
)

ORG = "org-local"


class SceneJob:
    """One job, and what a worker writes about it."""

    def __init__(
        self,
        store: Store,
        *,
        org: str = ORG,
        model: str = "tiny-llama",
        suffix: str | None = "docs",
        comparison: ComparisonOptions | None = None,
        validation_file: str | None = "file-validation",
    ) -> None:
        self._store = store
        spec = JobSpec(
            model=model,
            training_file="file-training",
            validation_file=validation_file,
            suffix=suffix,
            seed=1,
            comparison=comparison,
        )
        record = JobRecord(id=new_id("ftjob-"), org=org, created_at=int(time.time()), spec=spec)
        created = Event(message=f"Created fine-tuning job: {record.id}")
        self.id = record.id
        self._claim: Claim | None = None
        store.create(record, dedupe_key=None, dedupe_s=0, event=created)

    def queue(self) -> None:
        """Validate the files and wait for a worker."""
        claim = self._store.claim(self.id, "validator", JobStatus.VALIDATING_FILES)
        assert claim is not None
        self._store.transition(
            self.id,
            JobStatus.QUEUED,
            Event(message="Files validated, moving job to queued state."),
            token=claim.token,
        )

    def start(self, *, ledger: bool = True) -> None:
        """Claim the job for training, resolve its options and measure its ledger."""
        self._claim = self._store.claim(self.id, "gpu-node-1", JobStatus.QUEUED)
        self._update(Event(message="Options resolved."), resolved=RESOLVED)
        self._update(None, progress=Progress(phase="measuring"))
        if ledger:
            self.measure(LEDGER)

    def measure(self, ledger: MemoryLedger) -> None:
        """Measure the loss and the phases of a step."""
        self._update(Event(message="Memory ledger measured."), memory=ledger, phases=PHASES)

    def settle(self, micro_batch: MicroBatch) -> None:
        """Choose a micro-batch, and predict what it takes."""
        self._update(Event(message="Micro-batch settled."), micro_batch=micro_batch)
        self._update(Event(message="Memory predicted."), estimate=ESTIMATE)

    def score(self, estimate: JobEstimate = SCORED) -> None:
        """Compare the prediction with what the steps took."""
        self._update(Event(message="Prediction scored."), estimate=estimate)

    def verify(self, receipt: NumericsReceipt = RECEIPT) -> None:
        """Compare the loss with fp32."""
        self._update(Event(message="Loss verified."), receipt=receipt)

    def train(self, steps: Iterable[int]) -> None:
        """Report steps; every twentieth is evaluated."""
        for step in steps:
            loss = train_loss(step)
            data: dict[str, float] = {"step": step, "total_steps": TOTAL_STEPS, "train_loss": loss}
            if step % 20 == 0:
                data["full_valid_loss"] = valid_loss(step)
            message = f"Step {step}/{TOTAL_STEPS}: training loss={loss:.4f}"
            event = Event(type="metrics", message=message, data=data)
            self._update(event, progress=_progress(step))

    def checkpoint(self, step: int) -> None:
        """Tell of a checkpoint."""
        self._update(Event(message=f"Checkpoint created at step {step}."))

    def compare(self, cell: Cell) -> None:
        """Tell what one loss of a comparison takes at one batch size."""
        data = cell.model_dump(mode="json", exclude={"train_losses"})
        message = f"{cell.loss} at batch size {cell.batch_size}: {cell.outcome}."
        self._update(Event(message=message, data=data))

    def conclude(self, result_files: list[str]) -> None:
        """End a comparison well."""
        message = "The comparison succeeded; its reports are the result files."
        self._end(JobStatus.SUCCEEDED, Event(message=message), result_files=result_files)

    def succeed(self, result_files: Sequence[str] = ()) -> None:
        """End well."""
        model = f"ft:tiny-llama:{ORG}:docs:{self.id.removeprefix('ftjob-')}"
        self._end(
            JobStatus.SUCCEEDED,
            Event(message=f"The job succeeded. New model: {model}"),
            fine_tuned_model=model,
            result_files=[*result_files],
            trained_tokens=120_000,
        )

    def fail(self, code: str, message: str) -> None:
        """End badly."""
        event = Event(level="error", message=f"The job failed: {message}")
        self._end(JobStatus.FAILED, event, error=JobError(code=code, message=message))

    def _end(self, status: JobStatus, event: Event, **changes: object) -> None:
        assert self._claim is not None
        self._store.transition(self.id, status, event, token=self._claim.token, **changes)

    def _update(self, event: Event | None, **changes: object) -> None:
        assert self._claim is not None
        self._store.update(self._claim, event, **changes)


def train_loss(step: int) -> float:
    """A curve as training makes them: it falls, and trembles."""
    return 3.1 + 7.2 * math.exp(-step / 45) + 0.25 * math.sin(step * 2.3) * math.exp(-step / 150)


def valid_loss(step: int) -> float:
    """The smoother curve of validation."""
    return 3.4 + 7.0 * math.exp(-step / 48)


def _progress(step: int) -> Progress:
    return Progress(
        phase="training",
        step=step,
        total_steps=TOTAL_STEPS,
        epoch=3 * step / TOTAL_STEPS,
        tokens=step * 812,
        tokens_per_s=3418.0,
        eta_s=(TOTAL_STEPS - step) * 0.24,
        train_loss=train_loss(step),
        train_mean_token_accuracy=0.6 - 0.5 * math.exp(-step / 80),
        valid_loss=valid_loss(step - step % 20),
        learning_rate=2e-4 * (1 - step / TOTAL_STEPS),
        device="cpu",
        device_memory_bytes=731 * MIB,
        device_memory_peak_bytes=918 * MIB,
    )
