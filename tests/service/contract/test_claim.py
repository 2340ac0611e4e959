"""Claims: one holder, a lease in real time, and a token that old attempts cannot write with."""

import time

import pytest
from redis import Redis

from service.contract import keys, rules
from service.contract.errors import Conflict, LostClaim
from service.contract.job import JobRecord, JobStatus
from service.contract.models import Models
from service.contract.store import Claim, Store
from tests.service.contract.support import (
    EVENT,
    ORG,
    WAITING,
    checkpoint,
    create,
    lose,
    queued,
    raw,
    running,
    take,
)


@pytest.fixture
def hasty(redis: Redis) -> Store:
    """A store whose leases are short."""
    return Store(redis, lease_s=0.3)


def test_a_claim_on_a_queued_job_makes_it_run(store: Store) -> None:
    job_id = queued(store)
    claim = store.claim(job_id, "gpu-1", JobStatus.QUEUED)
    job = store.get(job_id)
    assert claim == Claim(job_id, 1)
    assert (job.status, job.token, job.attempt, job.worker) == ("running", 1, 1, "gpu-1")
    assert job.started_at is not None


def test_a_claim_on_a_validation_keeps_the_status_and_is_no_attempt(store: Store) -> None:
    job_id = create(store)
    assert store.claim(job_id, "cpu-1", JobStatus.VALIDATING_FILES) == Claim(job_id, 1)
    job = store.get(job_id)
    assert (job.status, job.token, job.attempt) == ("validating_files", 1, 0)


def test_tokens_grow_over_phases_and_attempts(store: Store, redis: Redis) -> None:
    validation = take(store, create(store))
    store.transition(validation.job_id, JobStatus.QUEUED, EVENT, token=validation.token)
    first = take(store, validation.job_id)
    started = store.get(first.job_id).started_at
    lose(redis, first)
    store.transition(first.job_id, JobStatus.QUEUED, EVENT)
    second = take(store, first.job_id)
    job = store.get(first.job_id)
    assert [claim.token for claim in (validation, first, second)] == [1, 2, 3]
    assert (job.attempt, job.started_at) == (2, started)


@pytest.mark.parametrize("waiting", WAITING)
def test_a_held_job_is_not_given_twice(store: Store, redis: Redis, waiting: JobStatus) -> None:
    job_id = create(store) if waiting is JobStatus.VALIDATING_FILES else queued(store)
    assert store.claim(job_id, "one", waiting) is not None
    before = raw(redis, job_id)
    assert store.claim(job_id, "two", waiting) is None
    assert raw(redis, job_id) == before


def test_who_validates_takes_no_job_for_training(store: Store) -> None:
    assert store.claim(queued(store), "cpu-1", JobStatus.VALIDATING_FILES) is None
    assert store.claim(create(store), "gpu-1", JobStatus.QUEUED) is None


def test_a_lease_runs_out_in_real_time(hasty: Store) -> None:
    claim = running(hasty)
    with pytest.raises(Conflict) as caught:
        hasty.transition(claim.job_id, JobStatus.QUEUED, EVENT)
    assert caught.value.code == "job_held"
    assert hasty.unheld() == {}
    time.sleep(0.4)
    assert hasty.unheld() == {claim.job_id: JobStatus.RUNNING}
    assert hasty.transition(claim.job_id, JobStatus.QUEUED, EVENT).status is JobStatus.QUEUED


def test_heartbeats_keep_a_lease(hasty: Store) -> None:
    claim = running(hasty)
    for _ in range(6):
        time.sleep(0.1)
        hasty.heartbeat(claim)
    assert hasty.has_lease(claim.job_id)
    time.sleep(0.4)
    assert not hasty.has_lease(claim.job_id)


def test_a_late_attempt_that_nobody_replaced_goes_on(hasty: Store) -> None:
    claim = running(hasty)
    time.sleep(0.4)
    hasty.update(claim, EVENT)
    hasty.heartbeat(claim)
    assert hasty.has_lease(claim.job_id)


def test_a_validation_whose_lease_ran_out_is_claimed_again(hasty: Store) -> None:
    old = take(hasty, create(hasty))
    time.sleep(0.4)
    new = take(hasty, old.job_id, "other")
    assert new.token == old.token + 1
    with pytest.raises(LostClaim):
        hasty.transition(old.job_id, JobStatus.QUEUED, EVENT, token=old.token)


@pytest.fixture
def stale(store: Store, redis: Redis) -> Claim:
    """The claim of an attempt that was given up, on a job that another attempt runs."""
    old = running(store)
    lose(redis, old)
    store.transition(old.job_id, JobStatus.QUEUED, EVENT)
    take(store, old.job_id, "other")
    return old


def test_an_old_token_writes_nothing(store: Store, redis: Redis, stale: Claim) -> None:
    before = raw(redis, stale.job_id), redis.pttl(keys.lease(stale.job_id))
    for late in (
        lambda: store.update(stale, EVENT, trained_tokens=1),
        lambda: store.heartbeat(stale),
        lambda: store.release(stale, EVENT),
        lambda: store.add_checkpoint(stale, *checkpoint(stale, 5), keep=3),
        lambda: store.transition(stale.job_id, JobStatus.SUCCEEDED, EVENT, token=stale.token),
        lambda: store.transition(stale.job_id, JobStatus.QUEUED, EVENT, token=stale.token),
    ):
        with pytest.raises(LostClaim):
            late()
    assert raw(redis, stale.job_id) == before[0]
    assert redis.pttl(keys.lease(stale.job_id)) <= before[1]
    assert store.checkpoints(stale.job_id) == []
    assert Models(redis).all(ORG) == []


def test_a_token_from_the_future_writes_nothing(store: Store) -> None:
    claim = running(store)
    with pytest.raises(LostClaim):
        store.update(Claim(claim.job_id, claim.token + 1), EVENT)


def test_a_validation_that_is_given_back_waits_again(store: Store) -> None:
    claim = take(store, create(store))
    store.release(claim, EVENT)
    assert not store.has_lease(claim.job_id)
    assert take(store, claim.job_id).token == claim.token + 1


# Checkpoints


def test_the_newest_checkpoints_are_kept_with_their_models(store: Store, redis: Redis) -> None:
    claim, models = running(store), Models(redis)
    made = {step: checkpoint(claim, step) for step in (2, 4, 6, 10)}
    dropped = [
        old.step
        for step, pair in made.items()
        for old in store.add_checkpoint(claim, *pair, keep=2)
    ]
    assert dropped == [2, 4]
    assert [each.step for each in store.checkpoints(claim.job_id)] == [10, 6]
    assert {model.step for model in models.all(ORG)} == {6, 10}


def test_a_checkpoint_that_others_need_outlives_its_turn(store: Store, redis: Redis) -> None:
    claim, models = running(store), Models(redis)
    for step in (2, 4, 6):
        store.add_checkpoint(claim, *checkpoint(claim, step), keep=3)
    of_step = {model.step: model for model in models.all(ORG)}
    user = queued(store, model=of_step[2].id)
    adapter = of_step[4].model_copy(update={"id": "ft:on-4", "kind": "lora"})
    adapter = adapter.model_copy(update={"base": of_step[4].id})
    models.add(adapter)
    assert store.add_checkpoint(claim, *checkpoint(claim, 8), keep=1)[0].step == 6
    assert [each.step for each in store.checkpoints(claim.job_id)] == [8, 4, 2]
    store.transition(user, JobStatus.CANCELLED, EVENT)
    models.remove(adapter)
    dropped = store.add_checkpoint(claim, *checkpoint(claim, 10), keep=1)
    assert [old.step for old in dropped] == [2, 4, 8]


def test_a_checkpoint_does_not_wait_until_no_more_jobs_come(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, held, looks = running(store), rules.held, []
    store.add_checkpoint(claim, *checkpoint(claim, 2), keep=1)

    def held_while_another_comes(record: JobRecord | None, claim: Claim) -> JobRecord:
        looks.append(create(store))
        return held(record, claim)

    monkeypatch.setattr(rules, "held", held_while_another_comes)
    assert [old.step for old in store.add_checkpoint(claim, *checkpoint(claim, 4), keep=1)] == [2]
    assert len(looks) == 1


def test_a_checkpoint_of_the_same_step_is_replaced(store: Store, redis: Redis) -> None:
    first = running(store)
    store.add_checkpoint(first, *checkpoint(first, 5), keep=3)
    lose(redis, first)
    store.transition(first.job_id, JobStatus.QUEUED, EVENT)
    second = take(store, first.job_id)
    new, model = checkpoint(second, 5)
    dropped = store.add_checkpoint(second, new, model, keep=3)
    assert [old.path for old in dropped] == [f"checkpoints/{first.job_id}/1-5"]
    assert store.checkpoints(first.job_id) == [new]
    assert Models(redis).all(ORG) == [model]


def test_a_checkpoint_that_is_recorded_twice_is_one(store: Store) -> None:
    claim = running(store)
    pair = checkpoint(claim, 5)
    for _ in range(2):  # as after an answer that was lost
        assert store.add_checkpoint(claim, *pair, keep=1) == []
    assert store.checkpoints(claim.job_id) == [pair[0]]
