"""Transitions: every edge, the token, the lease, and what goes with a change."""

from itertools import product

import pytest
from redis import Redis

from service.contract import keys
from service.contract.errors import Conflict, LostClaim, NotFound
from service.contract.events import Events
from service.contract.files import Files
from service.contract.job import EDGES, Event, JobError, JobStatus, Progress
from service.contract.models import Models
from service.contract.store import CANCELLED, Claim, Store
from tests.service.contract.support import (
    EVENT,
    ORG,
    TERMINAL,
    checkpoint,
    create,
    file_record,
    job_in,
    lose,
    model_record,
    queued,
    raw,
    record,
    running,
    take,
)

TARGETS = [status for status in JobStatus if status is not JobStatus.RUNNING]
STEPS = list(product(JobStatus, TARGETS))
LEGAL = [(start, to) for start, to in STEPS if to in EDGES[start]]
ILLEGAL = [(start, to) for start, to in STEPS if to not in EDGES[start]]


@pytest.fixture
def events(redis: Redis) -> Events:
    return Events(redis, cap=1000)


def last_message(events: Events, job_id: str) -> str:
    return events.page(job_id, after=None, limit=1).items[0].message


# Edges


def test_the_edges_are_those_of_the_design() -> None:
    named = {f"{start}->{to}" for start, ends in EDGES.items() for to in ends}
    assert named == {
        "validating_files->queued", "validating_files->failed", "validating_files->cancelled",
        "queued->running", "queued->failed", "queued->cancelled",
        "running->queued", "running->succeeded", "running->failed", "running->cancelled",
    }  # fmt: skip


@pytest.mark.parametrize(("start", "to"), LEGAL)
def test_a_legal_edge_is_taken_and_told(
    store: Store, redis: Redis, events: Events, start: JobStatus, to: JobStatus
) -> None:
    job_id = job_in(store, redis, start)
    before = store.get(job_id)
    after = store.transition(job_id, to, Event(message=f"Now {to}."))
    assert after == store.get(job_id)
    assert after.status is to
    assert after.version == before.version + 1
    assert (after.finished_at is not None) == after.terminal
    assert last_message(events, job_id) == f"Now {to}."


@pytest.mark.parametrize(("start", "to"), ILLEGAL)
def test_an_illegal_edge_is_refused_and_nothing_is_written(
    store: Store, redis: Redis, start: JobStatus, to: JobStatus
) -> None:
    job_id = job_in(store, redis, start)
    before = raw(redis, job_id)
    with pytest.raises(Conflict) as caught:
        store.transition(job_id, to, EVENT, also=lambda pipe: pipe.set("also", 1))
    assert caught.value.code == "illegal_transition"
    assert raw(redis, job_id) == before
    assert not redis.exists("also")


@pytest.mark.parametrize("start", [s for s in JobStatus if s is not JobStatus.QUEUED])
def test_only_a_queued_job_starts_to_run(store: Store, redis: Redis, start: JobStatus) -> None:
    job_id = job_in(store, redis, start)
    before = raw(redis, job_id)
    assert store.claim(job_id, "worker", JobStatus.QUEUED) is None
    assert raw(redis, job_id) == before


def test_only_a_claim_makes_a_job_run(store: Store) -> None:
    with pytest.raises(AssertionError):
        store.transition(queued(store), JobStatus.RUNNING, EVENT)


@pytest.mark.parametrize("end", TERMINAL)
def test_an_ended_job_is_nobodys_business(store: Store, redis: Redis, end: JobStatus) -> None:
    claim = running(store)
    store.transition(claim.job_id, end, EVENT, token=claim.token)
    before = raw(redis, claim.job_id)
    for late in (
        lambda: store.update(claim, EVENT),
        lambda: store.heartbeat(claim),
        lambda: store.add_checkpoint(claim, *checkpoint(claim, 1), keep=1),
        lambda: store.transition(claim.job_id, JobStatus.FAILED, EVENT, token=claim.token),
    ):
        with pytest.raises(LostClaim):
            late()
    with pytest.raises(Conflict):
        store.request_cancel(claim.job_id)
    assert raw(redis, claim.job_id) == before
    assert not store.has_lease(claim.job_id)


# What goes with a change


def test_indexes_follow_the_status(store: Store, redis: Redis) -> None:
    job_id = create(store)
    assert store.active() == [job_id]
    assert store.queue_position(job_id) is None
    store.transition(job_id, JobStatus.QUEUED, EVENT)
    assert store.queue_position(job_id) == 1
    claim = take(store, job_id)
    assert store.queue_position(job_id) is None
    assert store.has_lease(job_id)
    store.transition(job_id, JobStatus.SUCCEEDED, EVENT, token=claim.token)
    assert store.active() == []
    assert not store.has_lease(job_id)


def test_a_requeue_gives_the_lease_back_and_queues_behind_the_others(store: Store) -> None:
    claim, other = running(store), queued(store)
    store.transition(claim.job_id, JobStatus.QUEUED, EVENT, token=claim.token)
    assert not store.has_lease(claim.job_id)
    assert store.queue_positions([other, claim.job_id, "ftjob-none"]) == [1, 2, None]
    with pytest.raises(LostClaim):
        store.heartbeat(claim)


def test_records_appear_with_the_transition_that_names_them(store: Store, redis: Redis) -> None:
    claim, file = running(store), file_record()
    models, files = Models(redis), Files(redis)
    model = model_record("ft:base:org::1")

    def name_them(pipe: object) -> None:
        models.write(pipe, model)
        files.write(pipe, file)

    with pytest.raises(LostClaim):
        store.transition(
            claim.job_id, JobStatus.SUCCEEDED, EVENT, token=claim.token - 1, also=name_them
        )
    assert models.all(ORG) == []
    after = store.transition(
        claim.job_id, JobStatus.SUCCEEDED, EVENT, token=claim.token, also=name_them,
        fine_tuned_model=model.id, result_files=[file.id], trained_tokens=7,
    )  # fmt: skip
    assert models.get(ORG, model.id) == model
    assert files.get(ORG, file.id) == file
    assert (after.fine_tuned_model, after.result_files) == (model.id, [file.id])
    assert store.get(claim.job_id) == after


def test_every_field_comes_back_as_it_went_in(store: Store) -> None:
    claim = running(store, metadata={"ключ": "значение"}, suffix="s")
    progress = Progress(step=3, train_loss=0.25, device="cpu")
    store.update(claim, progress=progress, error=JobError(code="c", message="m"))
    after = store.get(claim.job_id)
    assert after.progress == progress
    assert after.error == JobError(code="c", message="m")
    assert after.spec.metadata == {"ключ": "значение"}
    store.update(claim, progress=None)
    assert store.get(claim.job_id).progress is None


def test_a_number_that_json_does_not_know_survives(store: Store) -> None:
    claim = running(store)
    store.update(claim, progress=Progress(train_loss=float("inf")))
    assert store.get(claim.job_id).progress.train_loss == float("inf")


@pytest.mark.parametrize("name", ["status", "token", "version", "id", "progres"])
def test_a_field_that_is_not_a_callers_to_set_is_refused(store: Store, name: str) -> None:
    with pytest.raises(AssertionError):
        store.update(running(store), **{name: 1})


def test_a_value_of_the_wrong_type_is_not_written(store: Store, redis: Redis) -> None:
    claim = running(store)
    before = raw(redis, claim.job_id)
    with pytest.raises(ValueError, match="trained_tokens"):
        store.update(claim, EVENT, trained_tokens="many")
    assert raw(redis, claim.job_id) == before


def test_a_job_that_is_not_there(store: Store) -> None:
    for touch in (
        store.get,
        store.version,
        store.request_cancel,
        lambda job_id: store.transition(job_id, JobStatus.FAILED, EVENT),
    ):
        with pytest.raises(NotFound) as caught:
            touch("ftjob-none")
        assert caught.value.code == "job_not_found"
    assert store.claim("ftjob-none", "worker", JobStatus.QUEUED) is None
    with pytest.raises(LostClaim):
        store.heartbeat(Claim("ftjob-none", 1))


@pytest.mark.parametrize("suffix", [":events", ":lease", ":checkpoints", "\n", " "])
def test_no_id_from_a_caller_names_another_key(store: Store, suffix: str) -> None:
    claim = running(store)
    store.add_checkpoint(claim, *checkpoint(claim, 1), keep=1)
    for job_id in (claim.job_id + suffix, f"ftjob-{suffix}"):
        with pytest.raises(NotFound):
            store.get(job_id)


# Creating


def test_the_same_request_within_the_window_makes_one_job(store: Store, events: Events) -> None:
    first, made = store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT)
    again, made_again = store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT)
    assert (made, made_again) == (True, False)
    assert again == first
    assert store.active() == [first.id]
    assert len(events.since(first.id, after=None, limit=10).items) == 1


def test_a_request_of_another_organization_is_another_request(store: Store) -> None:
    ours, _ = store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT)
    theirs, made = store.create(record("org-2"), dedupe_key="k", dedupe_s=60, event=EVENT)
    assert made
    assert theirs.id != ours.id


def test_the_window_ends(store: Store, redis: Redis) -> None:
    first, _ = store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT)
    assert 0 < redis.ttl(keys.dedupe(ORG, "k")) <= 60
    redis.delete(keys.dedupe(ORG, "k"))
    second, made = store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT)
    assert made
    assert second.id != first.id


def test_a_repeated_body_may_follow_an_ended_job_but_a_callers_key_names_one_job(
    store: Store,
) -> None:
    first, _ = store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT)
    store.request_cancel(first.id)
    same, made = store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT, also_ended=True)
    assert (same.id, made) == (first.id, False)
    second, made = store.create(record(), dedupe_key="k", dedupe_s=60, event=EVENT)
    assert made
    assert second.id != first.id


def test_without_a_window_nothing_is_remembered(store: Store, redis: Redis) -> None:
    store.create(record(), dedupe_key="k", dedupe_s=0, event=EVENT)
    assert not redis.exists(keys.dedupe(ORG, "k"))


def test_a_create_that_was_answered_by_silence_is_not_done_twice(
    store: Store, redis: Redis
) -> None:
    job = record()
    store.create(job, dedupe_key=None, dedupe_s=0, event=EVENT)
    store.transition(job.id, JobStatus.QUEUED, EVENT)
    before = raw(redis, job.id)
    stands, made = store.create(job, dedupe_key=None, dedupe_s=0, event=EVENT)
    assert made
    assert stands.status is JobStatus.QUEUED
    assert raw(redis, job.id) == before


# Cancelling


@pytest.mark.parametrize("status", [s for s in JobStatus if s not in TERMINAL])
def test_a_job_that_nobody_holds_is_cancelled_at_once(
    store: Store, redis: Redis, events: Events, status: JobStatus
) -> None:
    job_id = job_in(store, redis, status)
    assert store.request_cancel(job_id).status is JobStatus.CANCELLED
    assert last_message(events, job_id) == CANCELLED.message


@pytest.mark.parametrize("make", [create, queued])
def test_who_holds_a_job_hears_of_the_cancellation(
    store: Store, events: Events, make: object
) -> None:
    claim = take(store, make(store))
    status = store.get(claim.job_id).status
    for _ in range(2):  # asking twice says no more than asking once
        assert store.request_cancel(claim.job_id).status is status
    assert store.heartbeat(claim).cancel_requested
    told = [event.message for event in events.since(claim.job_id, after=None, limit=99).items]
    assert told.count("Cancellation requested.") == 1
    after = store.transition(claim.job_id, JobStatus.CANCELLED, CANCELLED, token=claim.token)
    assert not after.cancel_requested


def test_a_cancellation_that_nobody_heard_is_done_at_the_requeue(
    store: Store, redis: Redis, events: Events
) -> None:
    claim = running(store)
    store.request_cancel(claim.job_id)
    lose(redis, claim)
    after = store.transition(claim.job_id, JobStatus.QUEUED, EVENT)
    assert after.status is JobStatus.CANCELLED
    assert last_message(events, claim.job_id) == CANCELLED.message


def test_a_cancellation_that_nobody_heard_is_done_at_the_next_claim(
    store: Store, redis: Redis
) -> None:
    claim = take(store, create(store))
    store.request_cancel(claim.job_id)
    lose(redis, claim)
    assert store.claim(claim.job_id, "worker", JobStatus.VALIDATING_FILES) is None
    assert store.get(claim.job_id).status is JobStatus.CANCELLED
    assert not store.has_lease(claim.job_id)


def test_a_cancelled_validation_is_not_given_back(store: Store) -> None:
    claim = take(store, create(store))
    store.request_cancel(claim.job_id)
    store.release(claim, EVENT)
    assert store.get(claim.job_id).status is JobStatus.CANCELLED
