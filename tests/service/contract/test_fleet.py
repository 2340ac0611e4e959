"""Which workers are alive: told, renewed, silent, stopped."""

import time

from redis import Redis

from service.contract import keys
from service.contract.device import Device
from service.contract.fleet import Fleet, LiveWorker

H200 = Device(kind="cuda", name="NVIDIA H200", total_bytes=150_000_000_000)
CPU = Device(kind="cpu", name="cpu", total_bytes=16_000_000_000)


def test_nobody_is_alive_until_somebody_tells(redis: Redis) -> None:
    fleet = Fleet(redis)
    assert fleet.live() == []
    two, one = LiveWorker(name="two", device=H200), LiveWorker(name="one", device=CPU)
    fleet.announce(two, ttl_s=30)
    fleet.announce(one, ttl_s=30)
    fleet.announce(two, ttl_s=30)
    assert fleet.live() == [one, two]


def test_what_a_worker_told_last_counts(redis: Redis) -> None:
    fleet = Fleet(redis)
    fleet.announce(LiveWorker(name="one", device=CPU), ttl_s=30)
    fleet.announce(LiveWorker(name="one", device=H200), ttl_s=30)
    assert [worker.device for worker in fleet.live()] == [H200]


def test_a_silent_worker_is_gone_and_leaves_nothing(redis: Redis) -> None:
    fleet = Fleet(redis)
    fleet.announce(LiveWorker(name="silent", device=CPU), ttl_s=0.2)
    time.sleep(0.3)
    assert fleet.live() == []
    fleet.announce(LiveWorker(name="other", device=CPU), ttl_s=30)
    assert redis.zrange(keys.WORKERS, 0, -1) == ["other"]


def test_a_stopped_worker_is_gone_at_once(redis: Redis) -> None:
    fleet = Fleet(redis)
    fleet.announce(LiveWorker(name="one", device=CPU), ttl_s=30)
    fleet.retire("one")
    assert fleet.live() == []
    assert redis.exists(keys.WORKERS) == 0
