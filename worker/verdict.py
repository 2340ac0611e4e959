"""What becomes of an attempt that failed: another try, a try at half the micro-batch, or the end.

Pure functions of the record and the failure; the runner makes their answers true.
"""

from dataclasses import dataclass
from typing import Any

from service.contract.errors import JobFailure
from service.contract.job import Event, JobError, JobRecord, ReducedBatch
from service.contract.memory import OutOfMemoryReport

# Another attempt, perhaps on another machine, may fare better.
_RETRIED = frozenset(
    {"trainer_crashed", "worker_lost", "storage_unavailable", "device_unavailable"}
)
MAX_HALVINGS = 3


@dataclass(frozen=True)
class Retry:
    """Back to the queue.

    Attributes:
        event: What to tell about it.
        changes: Fields of the record that the next attempt starts from.
    """

    event: Event
    changes: dict[str, Any]


def judge(
    failure: JobFailure, record: JobRecord, *, tries: int, max_tries: int
) -> Retry | JobError:
    """The fate of a job whose attempt, the `tries`-th of its kind, ended in `failure`."""
    message = failure.message
    if failure.code == "out_of_memory":
        if halved := _halved(failure, record):
            return halved
        if record.reduced_batch is not None:
            message = f"{message} The micro-batch was halved {record.reduced_batch.times} times."
    elif failure.code in _RETRIED and tries < max_tries:
        told = f"Attempt {tries} failed and is tried again: {message}"
        return Retry(_event(failure, told), {})
    return JobError(code=failure.code, message=message, param=failure.param)


def _halved(failure: JobFailure, record: JobRecord) -> Retry | None:
    """Half the micro-batch, where there is a half and the job has not been there too often.

    The attempt is not counted: nothing crashed, and each such retry is different from the last.
    """
    report = OutOfMemoryReport.model_validate(failure.data)
    times = 1 + (record.reduced_batch.times if record.reduced_batch else 0)
    size = report.micro_batch_size
    if size is None or size < 2 or times > MAX_HALVINGS:
        return None
    reduced = ReducedBatch(micro_batch_size=size // 2, times=times)
    told = (
        f"Out of memory at a micro-batch of {size}. The job goes on from its last checkpoint at "
        f"{reduced.micro_batch_size}, with the same effective batch."
    )
    changes = {"reduced_batch": reduced, "attempt": max(0, record.attempt - 1)}
    return Retry(_event(failure, told), changes)


def _event(failure: JobFailure, message: str) -> Event:
    return Event(level="warn", message=message, data={"code": failure.code, **failure.data})
