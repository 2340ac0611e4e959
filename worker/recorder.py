"""What a trainer's lines mean for the job record."""

import time

from service.contract.events import Events
from service.contract.job import Event, Progress
from service.contract.store import Store
from worker.events import (
    CheckpointWritten,
    Compared,
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
from worker.findings import told
from worker.lease import Lease
from worker.publish import Publisher

Final = Validated | Result | Compared | Failed
_THIN_EVERY = 100


class Recorder:
    """Writes lines to the record under a lease; progress no more often than is of use."""

    def __init__(
        self, store: Store, events: Events, publisher: Publisher, lease: Lease, interval_s: float
    ) -> None:
        self._store = store
        self._events = events
        self._publisher = publisher
        self._lease = lease
        self._interval_s = interval_s
        self._progress: Progress | None = None
        self._next_progress = 0.0
        self._points = 0

    def record(self, line: Line) -> None:
        """Write one line that is not the last.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
            JobFailure: A checkpoint could not be published.
        """
        match line:
            case ProgressLine():
                self._progress = line.progress
            case Metrics():
                self._update(_metrics_event(line))
                self._thin()
            case Message():
                self._update(Event(level=line.level, message=line.message, data=line.data))
            case Resolved() | MicroBatchSettled() | Estimated() | Ledger() | Receipt() | Phases():
                event, changes = told(line)
                self._update(event, **changes)
            case CheckpointWritten():
                self._publisher.checkpoint(line)
            case Validated() | Result() | Compared() | Failed():
                raise AssertionError(f"a last line is the runner's: {line}")

    def flush(self, *, now: bool = False) -> None:
        """Write the latest progress, if it is time, or `now`."""
        if self._progress is None or (not now and time.monotonic() < self._next_progress):
            return
        self._update(None, progress=self._progress)
        self._progress = None
        self._next_progress = time.monotonic() + self._interval_s

    def _update(self, event: Event | None, **changes: object) -> None:
        self._lease.insist(lambda: self._store.update(self._lease.claim, event, **changes))

    def _thin(self) -> None:
        self._points += 1
        if self._points % _THIN_EVERY == 0:
            self._lease.insist(lambda: self._events.thin(self._lease.claim.job_id))


def _metrics_event(line: Metrics) -> Event:
    """A point of the loss curve, as the wire format's metrics event."""
    values = line.model_dump(exclude={"kind"}, exclude_none=True)
    losses = [
        f"{label}={loss:.4f}"
        for label, loss in (
            ("training loss", line.train_loss),
            ("validation loss", line.valid_loss),
            ("full validation loss", line.full_valid_loss),
        )
        if loss is not None
    ]
    where = f"Step {line.step}/{line.total_steps}"
    return Event(type="metrics", message=": ".join([where, ", ".join(losses)]), data=values)
