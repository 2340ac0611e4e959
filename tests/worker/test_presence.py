"""Real workers tell what they train on, as long as they live."""

import sys
from typing import Any

from service.contract.device import Device
from service.contract.fleet import Fleet
from tests.worker.support import DEVICE, Deployment, until
from worker.app import make_presence


def live(deployment: Deployment) -> dict[str, Device]:
    return {worker.name: worker.device for worker in Fleet(deployment.redis).live()}


def seen(deployment: Deployment, *names: str, timeout_s: float = 30.0) -> Any:
    return until(lambda: live(deployment).keys() == {*names}, timeout_s, f"{names} to be live")


def test_workers_that_train_are_listed_with_their_devices(deployment: Deployment) -> None:
    deployment.worker("train")
    deployment.worker("train", "validate")
    deployment.worker("validate").ready()
    seen(deployment, "test-0", "test-1")
    assert live(deployment)["test-0"] == DEVICE


def test_a_worker_is_listed_until_it_dies_and_for_no_longer_than_a_lease(
    deployment: Deployment,
) -> None:
    worker = deployment.worker("train")
    seen(deployment, "test-0")
    until(lambda: deployment.redis.pttl("worker:test-0") > 1900, what="the time to be renewed")
    worker.kill()
    seen(deployment, timeout_s=10.0)


def test_a_worker_that_is_stopped_is_gone_at_once(deployment: Deployment) -> None:
    worker = deployment.worker("train", lease_s=60.0)
    seen(deployment, "test-0")
    worker.terminate()
    assert live(deployment) == {}


def test_a_worker_whose_device_is_unknown_says_so_in_its_log(deployment: Deployment) -> None:
    command = [sys.executable, "-c", "raise SystemExit('CUDA does not start')"]
    worker = deployment.worker("train", device_command=command)
    until(lambda: "CUDA does not start" in worker.log.read_text(), 30.0)
    until(lambda: "will not be listed" in worker.log.read_text(), 30.0)
    assert live(deployment) == {}


def test_nothing_is_told_before_the_device_is_known(deployment: Deployment) -> None:
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    presence = make_presence(deployment.settings.model_copy(update={"device_command": slow}))
    presence.start()
    presence.tick()
    assert live(deployment) == {}
    presence.stop()
