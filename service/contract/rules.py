"""What may become of a job, from its record alone: who may write, along which edges, and what.

Pure functions; `store.py` makes their answers true in Redis.
"""

import time
from dataclasses import dataclass
from typing import Any

from service.contract.errors import Conflict, LostClaim
from service.contract.job import EDGES, Event, JobRecord, JobStatus

# A queued job is claimed for training, one that waits for validation for that.
CLAIMABLE = frozenset({JobStatus.VALIDATING_FILES, JobStatus.QUEUED})
# Where an attempt works on a job; in any other status its claim is over.
CLAIMED = frozenset({JobStatus.VALIDATING_FILES, JobStatus.RUNNING})
# What no caller may set by name: the store keeps these.
_KEPT = frozenset({"id", "org", "created_at", "spec", "status", "token", "version"})

Changes = dict[str, Any]
# The fields that change, and what to tell about it.
Decision = tuple[Changes, Event | None]

CANCELLED = Event(level="warn", message="Cancelled by request.")
_CANCEL_ASKED = Event(level="warn", message="Cancellation requested.")


@dataclass(frozen=True)
class Claim:
    """The right to work on a job, until the lease runs out or another attempt takes over."""

    job_id: str
    token: int


def held(record: JobRecord | None, claim: Claim) -> JobRecord:
    """The record, if the claim still holds it.

    Raises:
        LostClaim: Another attempt has the job, or it has ended.
    """
    if record is None or record.token != claim.token or record.status not in CLAIMED:
        raise LostClaim(f"Attempt {claim.token} no longer holds job {claim.job_id}.")
    return record


def check_names(changes: Changes) -> None:
    """Refuse a field that is not there, or is not a caller's to set."""
    assert changes.keys() <= JobRecord.model_fields.keys() - _KEPT, changes


def start(record: JobRecord, claim: Claim, worker: str) -> Decision:
    """A claim on a job that waits."""
    changes: Changes = {"token": claim.token, "worker": worker}
    if record.status is not JobStatus.QUEUED:
        return changes, Event(message="Validating the training file.")
    attempt = record.attempt + 1
    changes |= {
        "status": JobStatus.RUNNING,
        "attempt": attempt,
        "started_at": record.started_at or int(time.time()),
    }
    return changes, Event(message="Job started." if attempt == 1 else f"Attempt {attempt}.")


def move(record: JobRecord, to: JobStatus, event: Event, changes: Changes) -> Decision:
    """A step along an edge; back to the queue goes no job that was asked to be cancelled.

    Raises:
        Conflict: There is no such edge.
    """
    _check_edge(record, to)
    if to is JobStatus.QUEUED and record.cancel_requested:
        return cancelled()
    return {**_arrival(to), **changes}, event


def cancel(record: JobRecord, *, leased: bool) -> Decision:
    """A request to cancel: heard by the attempt that holds the job, or done at once.

    Raises:
        Conflict: The job has ended.
    """
    if record.terminal:
        raise Conflict(
            f"Job {record.id} has ended already; its status is {record.status}.",
            code="illegal_transition",
        )
    if not leased:
        return cancelled()
    return {"cancel_requested": True}, None if record.cancel_requested else _CANCEL_ASKED


def cancelled() -> Decision:
    """The end that a caller asked for."""
    return _arrival(JobStatus.CANCELLED), CANCELLED


def _check_edge(record: JobRecord, to: JobStatus) -> None:
    if to not in EDGES[record.status]:
        raise Conflict(
            f"Job {record.id} is {record.status}; it cannot become {to}.",
            code="illegal_transition",
        )


def _arrival(to: JobStatus) -> Changes:
    """The fields that every step to `to` sets."""
    finished = {"finished_at": int(time.time())} if not EDGES[to] else {}
    return {"status": to, "cancel_requested": False, **finished}
