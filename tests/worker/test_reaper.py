import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.contract import keys
from service.contract.errors import NotFound
from service.contract.job import Event, JobStatus
from service.contract.queue import TRAIN, VALIDATE, Queue
from tests.worker.support import ORG, Deployment, until
from worker.reaper import Reaper


@pytest.fixture
def reaper(deployment: Deployment) -> Reaper:
    return deployment.supervisor(resend_grace_s=0.2)[1]


def claim_and_vanish(deployment: Deployment, job_id: str) -> None:
    """What a worker leaves behind that is killed."""
    deployment.store.claim(job_id, "gone", deployment.status(job_id))
    deployment.redis.delete(keys.lease(job_id))


def test_a_running_job_without_a_lease_is_queued_again(
    deployment: Deployment, reaper: Reaper
) -> None:
    job_id = deployment.create()
    claim_and_vanish(deployment, job_id)
    reaper.sweep()
    assert deployment.status(job_id) == "queued"
    assert deployment.queue.waiting(TRAIN) == {job_id}
    last = deployment.messages(job_id)[-1]
    assert (last.level, "gone" in last.message) == ("warn", True)


def test_a_running_job_with_a_lease_is_left_alone(deployment: Deployment, reaper: Reaper) -> None:
    job_id = deployment.create()
    deployment.store.claim(job_id, "busy", JobStatus.QUEUED)
    reaper.sweep()
    assert deployment.status(job_id) == "running"
    assert deployment.queue.waiting(TRAIN) == set()


def test_a_job_whose_workers_keep_dying_fails(deployment: Deployment) -> None:
    _, reaper = deployment.supervisor(max_attempts=2)
    job_id = deployment.create()
    for expected in ("queued", "failed"):
        claim_and_vanish(deployment, job_id)
        reaper.sweep()
        assert deployment.status(job_id) == expected
    assert deployment.store.get(job_id).error.code == "worker_lost"


def test_a_lost_job_that_was_asked_to_be_cancelled_is_cancelled(
    deployment: Deployment, reaper: Reaper
) -> None:
    job_id = deployment.create()
    deployment.store.claim(job_id, "gone", JobStatus.QUEUED)
    deployment.store.request_cancel(job_id)
    deployment.redis.delete(keys.lease(job_id))
    reaper.sweep()
    assert deployment.status(job_id) == "cancelled"
    assert deployment.queue.waiting(TRAIN) == set()


@pytest.mark.parametrize(("status", "queue"), [("queued", TRAIN), ("validating_files", VALIDATE)])
def test_a_job_without_a_message_gets_one_after_the_grace(
    deployment: Deployment, reaper: Reaper, status: str, queue: str
) -> None:
    job_id = deployment.create(status=status)
    reaper.sweep()
    assert deployment.queue.waiting(queue) == set()
    time.sleep(0.25)
    reaper.sweep()
    reaper.sweep()
    assert deployment.redis.llen(queue) == 1
    assert deployment.queue.waiting(queue) == {job_id}


def test_a_job_with_a_message_gets_no_second_one(deployment: Deployment, reaper: Reaper) -> None:
    job_id = deployment.create()
    deployment.queue.send(job_id, TRAIN)
    for _ in range(3):
        reaper.sweep()
        time.sleep(0.15)
    assert deployment.redis.llen(TRAIN) == 1


def test_a_sweep_reads_no_record_of_a_job_that_waits_its_turn(
    deployment: Deployment, reaper: Reaper
) -> None:
    def read() -> int:
        return int(
            deployment.redis.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"]
        )

    for _ in range(5):
        deployment.queue.send(deployment.create(), TRAIN)
    before = read()
    reaper.sweep()
    assert read() == before


def test_a_job_that_is_taken_during_a_sweep_gets_no_message(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, reaper = deployment.supervisor(resend_grace_s=0.0)
    job_id = deployment.create()

    def waiting(_: Queue, queue: str) -> set[str]:
        deployment.store.claim(job_id, "busy", JobStatus.QUEUED)
        return set()

    monkeypatch.setattr(Queue, "waiting", waiting)
    reaper.sweep()
    assert deployment.status(job_id) == "running"
    assert deployment.redis.llen(TRAIN) == 0


def test_the_grace_begins_anew_where_a_message_was_there_in_between(
    deployment: Deployment, reaper: Reaper
) -> None:
    job_id = deployment.create()
    reaper.sweep()
    deployment.queue.send(job_id, TRAIN)
    reaper.sweep()
    deployment.redis.delete(TRAIN)
    time.sleep(0.25)
    reaper.sweep()
    assert deployment.redis.llen(TRAIN) == 0


def test_a_validation_that_kills_every_worker_fails(deployment: Deployment) -> None:
    _, reaper = deployment.supervisor(max_attempts=2, resend_grace_s=0.0)
    job_id = deployment.create(status="validating_files")
    for expected in (1, 0):
        claim_and_vanish(deployment, job_id)
        reaper.sweep()
        reaper.sweep()
        assert deployment.redis.llen(VALIDATE) == expected
        deployment.redis.delete(VALIDATE)
    record = deployment.store.get(job_id)
    assert (record.status, record.error.code) == ("failed", "worker_lost")


def test_several_reapers_repair_a_job_once(deployment: Deployment, reaper: Reaper) -> None:
    _, other = deployment.supervisor(resend_grace_s=0.2)
    job_id = deployment.create()
    claim_and_vanish(deployment, job_id)
    reaper.sweep()
    other.sweep()
    assert deployment.redis.llen(TRAIN) == 1
    assert len([e for e in deployment.messages(job_id) if "gone" in e.message]) == 1


def test_expired_files_go_with_their_bytes(deployment: Deployment, reaper: Reaper) -> None:
    soon = int(time.time()) + 3
    expiring, lasting = deployment.upload(expires_at=soon), deployment.upload()
    reaper.sweep()
    assert deployment.storage.exists(f"files/{expiring}")
    until(lambda: time.time() > soon + 0.1)
    reaper.sweep()
    assert not deployment.storage.exists(f"files/{expiring}")
    assert deployment.storage.exists(f"files/{lasting}")
    with pytest.raises(NotFound):
        deployment.files.get(ORG, expiring)
    assert deployment.redis.zrange(f"org:{ORG}:files", 0, -1) == [lasting]


def test_scratch_folders_that_nobody_works_in_are_removed(
    deployment: Deployment, reaper: Reaper
) -> None:
    busy, idle = deployment.create(), deployment.create()
    deployment.store.claim(busy, "busy", JobStatus.QUEUED)
    folders = [deployment.settings.work_dir / f"{job_id}-1" for job_id in (busy, idle)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "half-a-checkpoint").touch()
    other = Path(deployment.settings.work_dir / "somebody-elses")
    other.mkdir()
    reaper.sweep()
    assert [folder.exists() for folder in (*folders, other)] == [True, False, True]


def test_an_event_is_never_lost_to_a_sweep_of_ended_jobs(
    deployment: Deployment, reaper: Reaper
) -> None:
    job_id = deployment.create()
    deployment.store.transition(job_id, JobStatus.CANCELLED, Event(message="Done."))
    before = deployment.store.get(job_id).version
    reaper.sweep()
    assert deployment.store.get(job_id).version == before


# Jobs that have ended


def train(deployment: Deployment, *then: list[Any]) -> str:
    """A job with checkpoints at steps 2 and 4, whose trainer then does something."""
    job_id = deployment.create(["train", 4, 4, 0.0, 2], *then)
    deployment.supervisor(max_attempts=1)[0].run(job_id, TRAIN)
    return job_id


def succeed(deployment: Deployment) -> str:
    return train(deployment, ["result"])


def fail(deployment: Deployment) -> str:
    return train(deployment, ["kill"])


def cancel_while_it_waits_for_another_attempt(deployment: Deployment) -> str:
    job_id = give_back(deployment)
    deployment.store.request_cancel(job_id)
    return job_id


def give_back(deployment: Deployment) -> str:
    """A job that is queued again, and to be resumed."""
    job_id = deployment.create(["train", 4, 4, 0.0, 2], ["kill"])
    deployment.supervisor()[0].run(job_id, TRAIN)
    return job_id


def states(deployment: Deployment, job_id: str) -> list[bool]:
    """Which of a job's checkpoints could be resumed from; each is a model that is whole."""
    found = []
    for checkpoint in deployment.store.checkpoints(job_id):
        model = deployment.models.get(ORG, checkpoint.model)
        for file in model.files:
            with deployment.storage.read(f"{model.path}/{file.name}") as stream:
                assert len(stream.read()) == file.bytes
        found.append(deployment.storage.exists(f"{checkpoint.path}/state/step.json"))
    return found


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (succeed, "succeeded"),
        (fail, "failed"),
        (cancel_while_it_waits_for_another_attempt, "cancelled"),
    ],
)
def test_an_ended_job_keeps_of_its_checkpoints_the_models(
    stored: Deployment, end: Callable[[Deployment], str], status: str
) -> None:
    job_id = end(stored)
    _, reaper = stored.supervisor()
    assert (stored.status(job_id), states(stored, job_id)) == (status, [True, True])
    reaper.sweep()
    assert states(stored, job_id) == [False, False]
    reaper.sweep()
    assert stored.store.untidy() == []


def test_a_job_that_will_be_resumed_keeps_its_training_state(stored: Deployment) -> None:
    job_id = give_back(stored)
    stored.supervisor()[1].sweep()
    assert (stored.status(job_id), states(stored, job_id)) == ("queued", [True, True])


def test_tidying_up_goes_on_where_a_killed_reaper_left_off(stored: Deployment) -> None:
    job_id = succeed(stored)
    _, old = stored.store.checkpoints(job_id)
    stored.storage.delete(f"{old.path}/state")
    stored.supervisor()[1].sweep()
    assert states(stored, job_id) == [False, False]


def test_a_checkpoint_that_an_ended_job_did_not_get_to_record_goes(stored: Deployment) -> None:
    job_id = succeed(stored)
    leftover = f"checkpoints/{job_id}/1-3"
    with stored.storage.write(f"{leftover}/model/model.safetensors") as stream:
        stream.write(b"half")
    stored.supervisor()[1].sweep()
    assert not stored.storage.exists(leftover)
    assert len(states(stored, job_id)) == 2


def test_a_sweep_tidies_up_after_a_part_of_many_ended_jobs(
    deployment: Deployment, reaper: Reaper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.reaper._TIDIED_AT_ONCE", 2)
    for _ in range(3):
        deployment.store.request_cancel(deployment.create())
    left = []
    for _ in range(2):
        reaper.sweep()
        left.append(len(deployment.store.untidy()))
    assert left == [1, 0]


def test_a_storage_that_is_away_is_tidied_up_later(deployment: Deployment, reaper: Reaper) -> None:
    job_id = succeed(deployment)
    root = Path(deployment.settings.storage_url)
    unmounted = root.rename(deployment.folder / "elsewhere")
    reaper.sweep()
    assert deployment.store.untidy() == [job_id]
    unmounted.rename(root)
    reaper.sweep()
    assert states(deployment, job_id) == [False, False]
