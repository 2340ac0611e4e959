"""Follow a job by polling its status and events, as any client would."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.client import Client, Job
from service.contract.job import StoredEvent

POLL_S = 0.5


@dataclass(frozen=True)
class Update:
    """What one poll brought: the job as it stands, and the events since the last poll.

    The event of a job's end comes with the job that has ended, as its last one.
    """

    job: Job
    events: list[StoredEvent]


def follow(
    client: Client, job_id: str, *, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[Update]:
    """Poll until the job has ended; the last update holds its end and its last events.

    Args:
        client: Where the job is.
        job_id: Which job.
        meanwhile: Called between two polls.
    """
    last: str | None = None
    while True:
        # Read before the status, so that the event of the end is not told of a job that runs; and
        # after an end again, so that it is there with the end.
        events = client.events_since(job_id, last)
        last = events[-1].id if events else last
        job = client.job(job_id)
        if job.terminal:
            events += client.events_since(job_id, last)
        yield Update(job, events)
        if job.terminal:
            return
        meanwhile()
        time.sleep(POLL_S)
