"""Following a job to its end, by polling a real server."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.client import ApiError, Client
from service.contract.job import Event, JobStatus
from service.contract.store import Claim, Store
from service.watch import follow
from tests.service.contract.support import create, take
from tests.service.support import enqueue, start


@pytest.fixture
def api(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr("service.watch.POLL_S", 0.0)
    with Client(url) as api:
        yield api


def _life(store: Store, job_id: str) -> Iterator[None]:
    """A job's life, a step between two polls."""
    yield enqueue(store, job_id)
    claim = take(store, job_id)
    yield None
    for step in range(3):
        yield store.update(claim, Event(message=f"Step {step}"))
    yield _succeed(store, claim)


def _succeed(store: Store, claim: Claim) -> None:
    event = Event(message="The job succeeded.")
    store.transition(claim.job_id, JobStatus.SUCCEEDED, event, token=claim.token)


def _between(life: Iterator[None]) -> Callable[[], None]:
    return lambda: next(life)


def test_every_event_comes_once_and_the_last_update_has_the_end(api: Client, store: Store) -> None:
    job_id = create(store, org="org-local")
    meanwhile = _between(_life(store, job_id))
    updates = list(follow(api, job_id, meanwhile=meanwhile))
    assert [update.job.status for update in updates] == [
        JobStatus.VALIDATING_FILES,
        JobStatus.QUEUED,
        *[JobStatus.RUNNING] * 4,
        JobStatus.SUCCEEDED,
    ]
    events = [event for update in updates for event in update.events]
    assert events == api.events_since(job_id, None)
    assert [event.message for event in updates[-1].events] == ["The job succeeded."]
    assert [len(update.events) for update in updates[3:6]] == [1, 1, 1]


def test_a_job_that_has_ended_is_told_at_once(api: Client, store: Store) -> None:
    job_id = create(store, org="org-local")
    store.request_cancel(job_id)
    [update] = follow(api, job_id, meanwhile=lambda: pytest.fail("it waits"))
    assert update.job.status is JobStatus.CANCELLED
    assert len(update.events) == 2


@pytest.mark.parametrize("which", ["job", "events_since"])
def test_the_event_of_an_end_is_the_last_one_of_the_last_update_and_of_no_other(
    api: Client, store: Store, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """Wherever the job ends between two requests."""
    claim = start(store, create(store, org="org-local"))
    read = getattr(api, which)

    def read_before_the_end(*arguments: Any) -> Any:
        found = read(*arguments)
        monkeypatch.setattr(api, which, read)
        _succeed(store, claim)
        return found

    monkeypatch.setattr(api, which, read_before_the_end)
    *earlier, last = follow(api, claim.job_id)
    assert last.job.status is JobStatus.SUCCEEDED
    assert last.events[-1].message == "The job succeeded."
    assert all(event.message != "The job succeeded." for each in earlier for event in each.events)


def test_a_job_that_is_not_there_is_an_error(api: Client) -> None:
    with pytest.raises(ApiError, match="No such fine-tuning job"):
        next(follow(api, "ftjob-nothing"))
