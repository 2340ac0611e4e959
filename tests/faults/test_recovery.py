"""The real trainer under a real worker while things break: the promise, on the loss itself."""

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from service.contract.job import Phase
from tests.faults.conftest import EVERY, Curve, points, submit
from tests.support.redis_server import RedisServer
from tests.worker.support import Deployment, alive, until

Faulty = tuple[Deployment, RedisServer]


def trainers(worker_pid: int) -> list[int]:
    """The processes that a worker has started."""
    tasks = Path(f"/proc/{worker_pid}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def descendants(pid: int) -> list[int]:
    below = [child for each in trainers(pid) for child in descendants(each)]
    return [pid, *below]


def reaches_step(deployment: Deployment, job_id: str, step: int) -> None:
    def there() -> bool:
        assert not deployment.store.get(job_id).terminal, deployment.store.get(job_id).error
        return any(at >= step for at, _ in points(deployment, job_id))

    until(there, 60.0, f"step {step}")


def check_recovery(deployment: Deployment, job_id: str, undisturbed: Curve) -> None:
    """The job resumed from a checkpoint, and nothing of the fault is left in its losses."""
    record = deployment.reaches(job_id, "succeeded", "failed", timeout_s=90.0)
    assert record.status == "succeeded", record.error
    curve = points(deployment, job_id)
    (resumed,) = [now for (before, _), (now, _) in pairwise(curve) if now <= before]
    assert resumed > EVERY
    assert resumed % EVERY == 1
    assert dict(curve) == pytest.approx(undisturbed, rel=1e-6)
    assert len(deployment.models.all(record.org)) == 1 + deployment.settings.keep_checkpoints


def test_a_killed_trainer_costs_no_more_than_the_steps_since_its_checkpoint(
    faulty: Faulty, texts: list[str], undisturbed: Curve
) -> None:
    deployment, _ = faulty
    worker = deployment.worker("validate", "train")
    job_id = submit(deployment, texts)
    reaches_step(deployment, job_id, EVERY + EVERY // 2)
    (trainer,) = trainers(worker.pid)
    os.kill(trainer, signal.SIGKILL)
    check_recovery(deployment, job_id, undisturbed)
    assert deployment.store.get(job_id).attempt == 2


def test_a_killed_worker_costs_no_more_and_leaves_no_process(
    faulty: Faulty, texts: list[str], undisturbed: Curve
) -> None:
    deployment, _ = faulty
    worker = deployment.worker("validate", "train")
    job_id = submit(deployment, texts)
    reaches_step(deployment, job_id, EVERY + EVERY // 2)
    family = descendants(worker.pid)
    worker.kill()
    deployment.worker("train")
    until(lambda: not any(alive(pid) for pid in family), 6.0, "the trainer's end")
    check_recovery(deployment, job_id, undisturbed)
    assert deployment.store.get(job_id).attempt == 2


def test_a_restart_of_redis_costs_nothing(
    faulty: Faulty, texts: list[str], undisturbed: Curve
) -> None:
    deployment, server = faulty
    deployment.worker("validate", "train")
    job_id = submit(deployment, texts)
    reaches_step(deployment, job_id, EVERY)
    server.kill()
    time.sleep(0.5)
    server.start()
    record = deployment.reaches(job_id, "succeeded", "failed", timeout_s=90.0)
    assert (record.status, record.attempt) == ("succeeded", 1)
    assert dict(points(deployment, job_id)) == pytest.approx(undisturbed, rel=1e-6)


@pytest.mark.parametrize("phase", ["loading", "validating", "measuring", "training"])
def test_a_cancellation_takes_seconds_in_every_phase(
    faulty: Faulty, texts: list[str], phase: Phase
) -> None:
    deployment, _ = faulty
    worker = deployment.worker("validate", "train")
    job_id = submit(deployment, texts, memory_ledger=True)

    def there() -> bool:
        progress = deployment.store.get(job_id).progress
        return progress is not None and progress.phase == phase

    until(there, 60.0, f"phase {phase}")
    family = [pid for trainer in trainers(worker.pid) for pid in descendants(trainer)]
    deployment.store.request_cancel(job_id)
    deployment.reaches(job_id, "cancelled", timeout_s=5.0)
    until(lambda: not any(alive(pid) for pid in family), 2.0, "the trainer's end")
