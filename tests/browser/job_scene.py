"""Jobs for the status page to show: records driven through the store as a worker drives them."""

import math
import time
from collections.abc import Iterable

from service.contract.job import Event, JobError, JobRecord, JobStatus, Progress, new_id
from service.contract.memory import Figure, LossMemory, MemoryLedger, Saving, StepPhases
from service.contract.receipt import FilteredMass, NumericsReceipt
from service.contract.spec import JobSpec, ResolvedOptions
from service.contract.store import Claim, Store

ORG = "org-local"
TOTAL_STEPS = 240
MIB = 1 << 20

LEDGER = MemoryLedger(
    device="cpu",
    method="allocator bytes",
    micro_batch_size=4,
    seq_length=256,
    tokens=812,
    vocab_size=32_768,
    hidden_size=256,
    dtype="float32",
    losses=[
        LossMemory(
            loss="full_logits",
            loss_layer=Figure(bytes=305 * MIB, provenance="measured"),
            step=Figure(bytes=612 * MIB, provenance="measured"),
        ),
        LossMemory(
            loss="compiled_full_logits",
            loss_layer=Figure(bytes=203 * MIB, provenance="modelled", formula="two_logits"),
        ),
        LossMemory(
            loss="chunked",
            loss_layer=Figure(bytes=77 * MIB, provenance="measured"),
            step=Figure(bytes=381 * MIB, provenance="measured"),
        ),
        LossMemory(
            loss="cce",
            loss_layer=Figure(bytes=6 * MIB, provenance="measured"),
            step=Figure(bytes=309 * MIB, provenance="measured"),
        ),
    ],
    savings=[
        Saving(
            baseline="full_logits",
            loss_layer_bytes=299 * MIB,
            loss_layer_ratio=50.8,
            step_bytes=303 * MIB,
            step_ratio=1.98,
            micro_batch_ratio=9.0,
        ),
        Saving(
            baseline="chunked",
            loss_layer_bytes=71 * MIB,
            loss_layer_ratio=12.8,
            step_bytes=72 * MIB,
            step_ratio=1.23,
        ),
    ],
)

PHASES = StepPhases(steps=3, data=0.01, forward=0.06, loss=0.02, backward=0.1, optimizer=0.01)

RECEIPT = NumericsReceipt(
    implementation="blocked",
    preset="default",
    rows=256,
    loss=10.4127,
    loss_reference=10.4128,
    loss_error=9.6e-6,
    hidden_grad_error=3.1e-6,
    head_grad_error=2.7e-6,
    tolerance=1e-3,
    filtered=[FilteredMass(step=0, p50=1.1e-3, p99=4.2e-2, fallbacks=0)],
    seed=1,
    training_file_sha256="0" * 64,
    resumed_from_step=None,
    versions={"python": "3.11.7", "torch": "2.13.0", "transformers": "5.17.0"},
)

RESOLVED = ResolvedOptions(
    trained="full",
    batch_size=8,
    micro_batch_size=4,
    gradient_accumulation_steps=2,
    n_epochs=3,
    learning_rate_multiplier=1,
    learning_rate=2e-4,
    max_seq_length=256,
    gradient_checkpointing=False,
    dtype="float32",
    loss_implementation="blocked",
    checkpoint_every=24,
    total_steps=TOTAL_STEPS,
)


class SceneJob:
    """One job, and what a worker writes about it."""

    def __init__(
        self,
        store: Store,
        *,
        org: str = ORG,
        model: str = "tiny-llama",
        suffix: str | None = "docs",
    ) -> None:
        self._store = store
        spec = JobSpec(model=model, training_file="file-training", suffix=suffix, seed=1)
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
            self._update(Event(message="Memory ledger measured."), memory=LEDGER, phases=PHASES)

    def verify(self) -> None:
        """Compare the loss with fp32."""
        self._update(Event(message="Loss verified."), receipt=RECEIPT)

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

    def succeed(self) -> None:
        """End well."""
        model = f"ft:tiny-llama:{ORG}:docs:{self.id.removeprefix('ftjob-')}"
        self._end(
            JobStatus.SUCCEEDED,
            Event(message=f"The job succeeded. New model: {model}"),
            fine_tuned_model=model,
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
