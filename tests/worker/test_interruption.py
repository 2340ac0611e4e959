"""A job under a runner that is cancelled, stopped, or loses its lease."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.contract.queue import TRAIN, VALIDATE
from tests.worker.support import ORG, Deployment, alive, until
from worker.runner import Runner


@contextmanager
def running(runner: Runner, job_id: str, queue: str = TRAIN) -> Iterator[None]:
    """Run a job beside the block, and wait for the runner's end after it."""
    thread = threading.Thread(target=runner.run, args=[job_id, queue])
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=15)
        assert not thread.is_alive()


# Cancellation and stopping


@pytest.mark.parametrize("queue", [VALIDATE, TRAIN])
def test_a_cancelled_job_ends_in_seconds_with_its_processes(
    deployment: Deployment, runner: Runner, queue: str
) -> None:
    status = "validating_files" if queue == VALIDATE else "queued"
    job_id = deployment.create(["ignore_term"], ["grandchild"], ["sleep", 60], status=status)
    with running(runner, job_id, queue):
        processes = deployment.said(job_id, "grandchild")
        deployment.store.request_cancel(job_id)
        began = time.monotonic()
        record = deployment.reaches(job_id, "cancelled", timeout_s=5.0)
    assert time.monotonic() - began < 3.0
    assert record.finished_at is not None
    assert not alive(processes["pid"])
    until(lambda: not alive(processes["child"]), 1.0)


def test_a_cancellation_between_two_heartbeats_outlives_the_requeue(
    deployment: Deployment,
) -> None:
    runner, _ = deployment.supervisor(heartbeat_s=2.5)
    job_id = deployment.create(["say_spec"], ["sleep", 0.5], ["exit", 1])
    with running(runner, job_id):
        deployment.said(job_id, "spec")
        deployment.store.request_cancel(job_id)
    assert deployment.status(job_id) == "cancelled"


def test_a_stopped_worker_gives_the_job_back_uncounted(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(["train", 4, 8, 0.0, 2], ["say_spec"], ["sleep", 60])
    with running(runner, job_id):
        pid = deployment.said(job_id, "spec")["pid"]
        began = time.monotonic()
        runner.stopping.set()
    assert time.monotonic() - began < 3.0
    record = deployment.store.get(job_id)
    assert (record.status, record.attempt) == ("queued", 0)
    assert not deployment.store.has_lease(job_id)
    assert deployment.queue.waiting(TRAIN) == {job_id}
    assert not alive(pid)
    assert [c.step for c in deployment.store.checkpoints(job_id)] == [4, 2]


def test_a_job_that_arrives_at_a_stopping_worker_waits_for_another(
    deployment: Deployment, runner: Runner
) -> None:
    runner.stopping.set()
    job_id = deployment.create(["result"])
    runner.run(job_id, TRAIN)
    assert deployment.status(job_id) == "queued"
    assert deployment.queue.waiting(TRAIN) == {job_id}


# Fencing


def test_a_second_message_for_a_running_job_is_harmless(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(["say_spec"], ["sleep", 1], ["result"])
    with running(runner, job_id):
        deployment.said(job_id, "spec")
        other, _ = deployment.supervisor(worker_name="other")
        other.run(job_id, TRAIN)
        assert deployment.store.get(job_id).worker == "test"
    runner.run(job_id, TRAIN)  # and one for a job that has ended
    record = deployment.store.get(job_id)
    assert (record.status, record.token) == ("succeeded", 1)


def test_a_worker_that_lost_its_lease_stops_its_trainer_and_publishes_nothing(
    deployment: Deployment, runner: Runner
) -> None:
    job_id = deployment.create(["say_spec"], ["sleep", 1.0], ["result"])
    with running(runner, job_id):
        pid = deployment.said(job_id, "spec")["pid"]
        deployment.lose(job_id)
        until(lambda: not alive(pid), 3.0)
    record = deployment.store.get(job_id)
    assert (record.status, record.fine_tuned_model) == ("queued", None)
    assert not deployment.store.has_lease(job_id)
    assert deployment.models.all(ORG) == []


def test_the_result_of_an_old_attempt_is_refused(deployment: Deployment) -> None:
    slow, _ = deployment.supervisor(heartbeat_s=60.0)  # it does not notice that it lost the job
    fast, _ = deployment.supervisor(worker_name="second")
    job_id = deployment.create(["say_spec"], ["sleep", 1.0], ["checkpoint", 2], ["result"])
    with running(slow, job_id):
        deployment.said(job_id, "spec")
        deployment.lose(job_id)
        fast.run(job_id, TRAIN)
    record = deployment.store.get(job_id)
    assert (record.status, record.worker) == ("succeeded", "second")
    model = deployment.models.get(ORG, record.fine_tuned_model)
    assert model.path == f"models/{job_id}/2"
    assert [c.path for c in deployment.store.checkpoints(job_id)] == [f"checkpoints/{job_id}/2-2"]
