"""Many writers at once, on connections of their own: exactly one wins, and nothing is lost."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest
from redis import Redis

from service.contract import connection
from service.contract.commands import typed
from service.contract.connection import transaction
from service.contract.errors import Conflict, LostClaim, Unavailable
from service.contract.events import Events
from service.contract.job import Event, JobRecord, JobStatus
from service.contract.store import Claim, Store
from tests.service.contract.support import (
    EVENT,
    checkpoint,
    create,
    lose,
    queued,
    record,
    running,
    take,
)

T = TypeVar("T")
WRITERS = 8


@pytest.fixture(scope="module")
def race() -> Iterator[Callable[..., list[Any]]]:
    """Calls each of its arguments in a thread, all let go together; their results."""
    with ThreadPoolExecutor(WRITERS) as threads:

        def run_all(*calls: Callable[[], T]) -> list[T]:
            gate = threading.Barrier(len(calls))

            def run(call: Callable[[], T]) -> T:
                gate.wait()
                return call()

            return [future.result() for future in [threads.submit(run, call) for call in calls]]

        yield run_all


Race = Callable[..., list[Any]]


def outcome(call: Callable[..., object], *args: Any, **options: Any) -> Callable[[], str]:
    """A call that tells what became of it: its error's name, or `done`."""

    def run() -> str:
        try:
            call(*args, **options)
        except (Conflict, LostClaim) as refused:
            return type(refused).__name__
        return "done"

    return run


@pytest.mark.parametrize("make", [create, queued])
def test_one_of_many_claimers_wins(store: Store, race: Race, make: Any) -> None:
    for _ in range(15):
        job_id = make(store)
        claim = partial(store.claim, job_id, "worker", store.get(job_id).status)
        assert [won for won in race(*[claim] * WRITERS) if won] == [Claim(job_id, 1)]
        assert store.get(job_id).token == 1


def test_one_of_many_reapers_requeues(store: Store, redis: Redis, race: Race) -> None:
    for _ in range(15):
        claim = running(store)
        lose(redis, claim)
        requeue = outcome(store.transition, claim.job_id, JobStatus.QUEUED, EVENT)
        assert sorted(race(*[requeue] * WRITERS)) == ["Conflict"] * (WRITERS - 1) + ["done"]


def test_a_heartbeat_and_a_reaper_do_not_both_win(store: Store, redis: Redis, race: Race) -> None:
    for _ in range(40):
        claim = running(store)
        lose(redis, claim)
        outcomes = race(
            outcome(store.heartbeat, claim),
            outcome(store.transition, claim.job_id, JobStatus.QUEUED, EVENT),
        )
        assert outcomes in (["done", "Conflict"], ["LostClaim", "done"])
        assert store.has_lease(claim.job_id) == (outcomes[0] == "done")


@pytest.mark.parametrize("leased", [True, False])
def test_a_job_that_is_cancelled_while_it_finishes_ends_once(
    store: Store, redis: Redis, race: Race, leased: bool
) -> None:
    for _ in range(40):
        claim = running(store)
        if not leased:
            lose(redis, claim)
        succeed = partial(store.transition, claim.job_id, JobStatus.SUCCEEDED, EVENT)
        cancelled, succeeded = race(
            outcome(store.request_cancel, claim.job_id), outcome(succeed, token=claim.token)
        )
        job = store.get(claim.job_id)
        assert not job.cancel_requested
        if leased:  # the attempt decides, and this one does not listen
            assert (job.status, succeeded) == (JobStatus.SUCCEEDED, "done")
        else:
            assert [cancelled, succeeded].count("done") == 1
            assert job.status == ("cancelled" if cancelled == "done" else "succeeded")


def test_a_cancellation_is_heard_or_done_whatever_the_attempt_does_meanwhile(
    store: Store, race: Race
) -> None:
    for _ in range(40):
        claim = take(store, create(store))
        race(partial(store.request_cancel, claim.job_id), partial(store.release, claim, EVENT))
        assert store.get(claim.job_id).status is JobStatus.CANCELLED


def test_one_of_many_creates_makes_the_job(store: Store, race: Race) -> None:
    def make(key: str) -> tuple[JobRecord, bool]:
        return store.create(record(), dedupe_key=key, dedupe_s=60, event=EVENT)

    for number in range(15):
        made = race(*[partial(make, str(number))] * WRITERS)
        assert len({job.id for job, _ in made}) == 1
        assert sum(is_new for _, is_new in made) == 1
        assert len(store.active()) == number + 1


def test_no_write_is_lost_among_others(store: Store, redis: Redis, race: Race) -> None:
    claim, each = running(store), 10
    before = store.get(claim.job_id).version

    def write() -> None:
        for _ in range(each):
            store.update(claim, Event(message="written"))

    race(*[write] * WRITERS)
    assert store.get(claim.job_id).version == before + each * WRITERS
    events = Events(redis, cap=1000).since(claim.job_id, after=None, limit=1000).items
    assert sum(event.message == "written" for event in events) == each * WRITERS


def test_a_checkpoint_and_an_update_do_not_undo_each_other(store: Store, race: Race) -> None:
    claim = running(store)
    for step in range(20):
        race(
            partial(store.add_checkpoint, claim, *checkpoint(claim, step), keep=2),
            partial(store.update, claim, trained_tokens=step),
        )
        assert store.checkpoints(claim.job_id)[0].step == step
        assert store.get(claim.job_id).trained_tokens == step
    assert len(store.checkpoints(claim.job_id)) == 2


def test_a_transaction_runs_again_where_another_writer_came_in_between(redis: Redis) -> None:
    redis.set("number", 0)
    seen: list[int] = []

    def add_one(pipe: Any) -> int:
        seen.append(int(pipe.get("number")))
        if len(seen) == 1:
            redis.set("number", 10)
        pipe.multi()
        pipe.set("number", seen[-1] + 1)
        return seen[-1] + 1

    assert transaction(typed(redis), add_one, "number") == 11
    assert seen == [0, 10]
    assert redis.get("number") == "11"


def test_a_transaction_that_never_gets_through_gives_up(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_MAX_PAUSE_S", 0.001)
    tries = []

    def hopeless(pipe: Any) -> None:
        tries.append(redis.incr("number"))
        pipe.multi()
        pipe.set("never", 1)

    with pytest.raises(Unavailable, match="Too many writers"):
        transaction(typed(redis), hopeless, "number")
    assert len(tries) == 100
    assert not redis.exists("never")
