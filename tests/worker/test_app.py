"""Real workers: what the queue, a worker or Redis may do to a job, and what becomes of it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract.queue import TRAIN, VALIDATE
from tests.support.redis_server import RedisServer
from tests.worker.support import Deployment, alive, until
from worker.app import answers

TRAINING = (["train", 6, 6, 0.15, 2], ["result"])
LONG = (["train", 4, 400, 0.05, 2], ["say_spec"], ["sleep", 60])


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[tuple[RedisServer, Deployment]]:
    """A Redis that the test may kill, and a deployment on it."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    deployment = Deployment(server.url, tmp_path, lease_s=6.0)
    yield server, deployment
    deployment.close()
    server.kill()


def start(deployment: Deployment, *script: list) -> str:
    """A job that is queued, with its message."""
    job_id = deployment.create(*script)
    deployment.queue.send(job_id, TRAIN)
    return job_id


def trainer_of(deployment: Deployment, job_id: str) -> int:
    """Process id of the trainer, once it is at work."""
    return deployment.said(job_id, "spec")["pid"]


def steps(deployment: Deployment, job_id: str) -> list[int]:
    points = deployment.events.metrics(job_id, resolution=10_000)
    return [point.data["step"] for point in points]


# The main path


def test_a_job_goes_from_upload_to_model(deployment: Deployment) -> None:
    deployment.worker("validate")
    deployment.worker("train")
    job_id = deployment.submit(*TRAINING)
    record = deployment.reaches(job_id, "succeeded", "failed")
    assert record.status == "succeeded"
    assert (record.attempt, record.worker) == (1, "test-1")
    assert steps(deployment, job_id) == [1, 2, 3, 4, 5, 6]


def test_one_worker_can_serve_both_queues(deployment: Deployment) -> None:
    deployment.worker("validate", "train")
    job_id = deployment.submit(["result"])
    deployment.reaches(job_id, "succeeded")


def test_a_validation_does_not_wait_behind_a_training(deployment: Deployment) -> None:
    deployment.worker("validate")
    deployment.worker("train")
    busy = start(deployment, *LONG)
    trainer_of(deployment, busy)
    job_id = deployment.submit(["result"])
    deployment.reaches(job_id, "queued", timeout_s=5.0)
    assert deployment.status(busy) == "running"


def test_an_idle_worker_gets_the_job_that_a_busy_one_would_hoard(deployment: Deployment) -> None:
    deployment.worker("train").ready()
    trainer_of(deployment, start(deployment, *LONG))
    waiting = start(deployment, *LONG)
    time.sleep(0.5)
    assert deployment.queue.waiting(TRAIN) == {waiting}
    deployment.worker("train")
    record = deployment.reaches(waiting, "running")
    assert record.worker == "test-1"


def test_the_supervisor_never_imports_torch(deployment: Deployment) -> None:
    worker = deployment.worker("train").ready()
    deployment.reaches(start(deployment, ["result"]), "succeeded")
    assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()


# Messages


def test_a_running_job_has_no_message_that_could_be_redelivered(deployment: Deployment) -> None:
    deployment.worker("train")
    trainer_of(deployment, start(deployment, *LONG))
    assert deployment.redis.hlen("unacked") == 0
    assert deployment.redis.llen(TRAIN) == 0


def test_a_job_whose_message_is_lost_is_sent_again(deployment: Deployment) -> None:
    job_id = start(deployment, ["result"])
    deployment.redis.delete(TRAIN)
    deployment.worker("train")
    deployment.reaches(job_id, "succeeded")


def test_a_job_with_many_messages_is_run_once(deployment: Deployment) -> None:
    job_id = start(deployment, *TRAINING)
    for _ in range(3):
        deployment.queue.send(job_id, TRAIN)
    deployment.worker("train")
    deployment.worker("train")
    record = deployment.reaches(job_id, "succeeded")
    until(lambda: deployment.redis.llen(TRAIN) == 0)
    assert (record.token, record.attempt) == (1, 1)
    assert steps(deployment, job_id) == [1, 2, 3, 4, 5, 6]


def test_a_message_for_no_job_is_dropped(deployment: Deployment) -> None:
    deployment.worker("train")
    deployment.queue.send("ftjob-none", TRAIN)
    deployment.reaches(start(deployment, ["result"]), "succeeded")


# Signals


def test_a_busy_worker_answers_a_ping(deployment: Deployment) -> None:
    deployment.worker("train").ready()
    trainer_of(deployment, start(deployment, *LONG))
    settings = deployment.settings.model_copy(update={"worker_name": "test-0"})
    assert answers(settings, [TRAIN])
    assert not answers(settings, [VALIDATE])


def test_a_cancellation_reaches_a_real_worker_in_seconds(deployment: Deployment) -> None:
    deployment.worker("train")
    job_id = start(deployment, *LONG)
    trainer = trainer_of(deployment, job_id)
    deployment.store.request_cancel(job_id)
    deployment.reaches(job_id, "cancelled", timeout_s=3.0)
    assert not alive(trainer)
    deployment.reaches(start(deployment, ["result"]), "succeeded")  # the worker works on


def test_docker_stop_gives_the_job_back_at_once_and_another_worker_resumes_it(
    deployment: Deployment,
) -> None:
    first = deployment.worker("train").ready()
    job_id = start(
        deployment,
        ["train", 4, 6, 0.05, 2],
        ["say_spec"],
        ["sleep_unless_resumed", 60],
        ["train", 6, 6, 0.0, 2],
        ["result"],
    )
    trainer = trainer_of(deployment, job_id)
    began = time.monotonic()
    assert first.terminate() == 0
    assert time.monotonic() - began < 5.0
    assert not alive(trainer)
    assert deployment.status(job_id) == "queued"
    deployment.worker("train")
    record = deployment.reaches(job_id, "succeeded")
    assert (record.attempt, record.worker) == (1, "test-1")
    assert steps(deployment, job_id) == [1, 2, 3, 4, 5, 6]


# Deaths


def test_the_trainer_is_killed_as_the_oom_killer_does(deployment: Deployment) -> None:
    deployment.worker("train")
    job_id = start(deployment, ["train", 4, 6, 0.0, 2], ["kill_unless_resumed"], *TRAINING)
    record = deployment.reaches(job_id, "succeeded")
    assert record.attempt == 2
    assert steps(deployment, job_id)[:6] == [1, 2, 3, 4, 5, 6]


def test_a_killed_worker_leaves_no_trainer_and_another_worker_resumes_the_job(
    deployment: Deployment,
) -> None:
    first = deployment.worker("train").ready()
    job_id = start(
        deployment,
        ["train", 4, 6, 0.05, 2],
        ["say_spec"],
        ["sleep_unless_resumed", 60],
        ["train", 6, 6, 0.0, 2],
        ["result"],
    )
    trainer = trainer_of(deployment, job_id)
    deployment.worker("train").ready()
    first.kill()
    until(lambda: not alive(trainer), 2.0)
    record = deployment.reaches(job_id, "succeeded")
    assert (record.attempt, record.worker) == (2, "test-1")
    assert steps(deployment, job_id) == [1, 2, 3, 4, 5, 6]
    until(lambda: not list((deployment.folder / "work").iterdir()), what="an empty work folder")


def test_a_job_that_kills_every_worker_is_no_poison(deployment: Deployment) -> None:
    job_id = start(deployment, ["say_spec"], ["sleep", 60])
    for attempt in (1, 2):
        worker = deployment.worker("train", max_attempts=2, lease_s=1.0)
        until(lambda attempt=attempt: deployment.store.get(job_id).attempt == attempt)
        worker.kill()
    deployment.worker("train", max_attempts=2, lease_s=1.0)
    record = deployment.reaches(job_id, "failed")
    assert record.error.code == "worker_lost"


# Redis


def test_redis_restarts_in_the_middle_of_a_job(own_redis: tuple[RedisServer, Deployment]) -> None:
    server, deployment = own_redis
    deployment.worker("train").ready()
    job_id = start(deployment, ["train", 30, 30, 0.1, 10], ["result"])
    until(lambda: len(steps(deployment, job_id)) > 3)
    server.kill()
    time.sleep(1.0)
    server.start()
    record = deployment.reaches(job_id, "succeeded")
    assert (record.token, record.attempt) == (1, 1)
    assert sorted(set(steps(deployment, job_id))) == list(range(1, 31))
    deployment.reaches(start(deployment, ["result"]), "succeeded", timeout_s=10.0)


def test_redis_is_away_for_longer_than_the_lease(
    own_redis: tuple[RedisServer, Deployment],
) -> None:
    server, deployment = own_redis
    deployment.worker("train", lease_s=1.5).ready()
    job_id = start(deployment, ["say_spec"], ["sleep_unless_resumed", 5], *TRAINING)
    trainer = trainer_of(deployment, job_id)
    server.kill()
    until(lambda: not alive(trainer), 3.0, "the trainer's end")
    server.start()
    record = deployment.reaches(job_id, "succeeded", timeout_s=30.0)
    assert record.attempt == 2


def test_a_worker_that_starts_before_redis_waits_for_it(
    own_redis: tuple[RedisServer, Deployment],
) -> None:
    server, deployment = own_redis
    job_id = start(deployment, ["result"])
    server.kill()
    worker = deployment.worker("train")
    until(lambda: "Cannot connect" in worker.log.read_text())
    server.start()
    deployment.reaches(job_id, "succeeded")


def test_workers_outlast_a_redis_whose_disk_is_full(
    own_redis: tuple[RedisServer, Deployment], tmp_path: Path
) -> None:
    """It then refuses even pings; here since it cannot save."""
    _, deployment = own_redis
    redis = deployment.redis
    running = deployment.worker("train").ready()
    (tmp_path / "redis" / "dump.rdb" / "in the way").mkdir(parents=True)
    redis.config_set("save", "3600 1")
    redis.bgsave()
    until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
    until(lambda: "MISCONF" in running.log.read_text())
    starting = deployment.worker("train", worker_name="starting")
    until(lambda: "MISCONF" in starting.log.read_text(), what=starting.log.read_text())
    redis.config_set("stop-writes-on-bgsave-error", "no")
    for worker in (running, starting):
        until(
            lambda worker=worker: "Connected to" in worker.log.read_text().partition("MISCONF")[2]
        )
        assert alive(worker.pid)
    deployment.reaches(start(deployment, ["result"]), "succeeded", timeout_s=30.0)


def test_a_second_sigterm_does_not_lose_the_job(deployment: Deployment) -> None:
    worker = deployment.worker("train").ready()
    job_id = start(deployment, ["ignore_term"], ["say_spec"], ["sleep", 60])
    trainer = trainer_of(deployment, job_id)
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert worker.terminate() == 0
    assert not alive(trainer)
    assert deployment.status(job_id) == "queued"
    assert deployment.queue.waiting(TRAIN) == {job_id}
    assert deployment.queue.waiting(VALIDATE) == set()
