import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract.errors import JobFailure, LostClaim, Unavailable
from service.contract.job import JobStatus
from tests.support.redis_server import RedisServer
from tests.worker.support import Deployment
from worker.lease import CancelRequested, Lease, WorkerStopping

LEASE_S = 1.5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to be stopped and started."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()


def held(deployment: Deployment, **changes: float) -> tuple[Lease, threading.Event]:
    """A lease on a new running job, and the worker's stop flag."""
    runner, _ = deployment.supervisor(**{"lease_s": LEASE_S, **changes})
    job_id, since = deployment.create(), time.monotonic()
    claim = runner.store.claim(job_id, "test", JobStatus.QUEUED)
    lease = Lease(runner.store, claim, runner.settings, since=since, stopping=runner.stopping)
    return lease, runner.stopping


def test_beating_keeps_the_lease(deployment: Deployment) -> None:
    lease, _ = held(deployment)
    deadline = time.monotonic() + 1.5 * LEASE_S
    while time.monotonic() < deadline:
        lease.beat()
        time.sleep(0.1)
    assert deployment.store.has_lease(lease.claim.job_id)


def test_without_a_beat_the_lease_runs_out(deployment: Deployment) -> None:
    lease, _ = held(deployment)
    time.sleep(LEASE_S + 0.1)
    assert not deployment.store.has_lease(lease.claim.job_id)


def test_a_beat_writes_only_when_it_is_time(deployment: Deployment) -> None:
    lease, _ = held(deployment, heartbeat_s=60.0)
    deployment.redis.config_resetstat()
    for _ in range(50):
        lease.beat()
    assert "cmdstat_set" not in deployment.redis.info("commandstats")


def test_a_beat_hears_a_cancellation(deployment: Deployment) -> None:
    lease, _ = held(deployment, heartbeat_s=0.0)
    deployment.store.request_cancel(lease.claim.job_id)
    with pytest.raises(CancelRequested):
        lease.beat()


def test_a_beat_hears_that_the_worker_is_to_stop(deployment: Deployment) -> None:
    lease, stopping = held(deployment)
    stopping.set()
    with pytest.raises(WorkerStopping):
        lease.beat()


def test_a_beat_hears_that_the_job_was_lost(deployment: Deployment) -> None:
    lease, _ = held(deployment, heartbeat_s=0.0)
    deployment.lose(lease.claim.job_id)
    with pytest.raises(LostClaim):
        lease.beat()


def test_the_lease_is_renewed_during_a_long_transfer(deployment: Deployment) -> None:
    lease, _ = held(deployment)
    assert lease.during(lambda: time.sleep(1.3 * LEASE_S) or "done") == "done"
    assert deployment.store.has_lease(lease.claim.job_id)


def test_a_cancellation_does_not_wait_for_a_transfer(deployment: Deployment) -> None:
    lease, _ = held(deployment)
    deployment.store.request_cancel(lease.claim.job_id)
    done, began = threading.Event(), time.monotonic()
    with pytest.raises(CancelRequested):
        lease.during(lambda: done.wait(10))
    assert time.monotonic() - began < 2.0
    done.set()


def test_a_transfer_that_fails_names_the_storage(deployment: Deployment) -> None:
    lease, _ = held(deployment)

    def fail() -> None:
        raise Unavailable("The storage does not answer: disk full.")

    with pytest.raises(JobFailure, match="disk full") as caught:
        lease.during(fail)
    assert caught.value.code == "storage_unavailable"


def test_a_write_waits_for_redis_to_come_back(server: RedisServer, tmp_path: Path) -> None:
    deployment = Deployment(server.url, tmp_path)
    lease, _ = held(deployment, heartbeat_s=0.0, lease_s=10.0)
    server.kill()
    timer = threading.Timer(1.0, server.start)
    timer.start()
    lease.beat()
    timer.join()
    assert deployment.store.has_lease(lease.claim.job_id)
    deployment.close()


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_lease_is_given_up_by_our_own_clock(
    server: RedisServer, tmp_path: Path, how: str
) -> None:
    deployment = Deployment(server.url, tmp_path)
    lease, _ = held(deployment, heartbeat_s=0.0, lease_s=2.0)
    getattr(server, how)()
    began = time.monotonic()
    with pytest.raises(LostClaim, match="ran out"):
        lease.beat()
    assert 1.5 < time.monotonic() - began < 2.1
    if how == "pause":
        server.resume()
    deployment.close()
