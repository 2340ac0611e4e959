"""The workers that are alive, and what they train on.

A worker that trains tells what its device is, again and again; what it told expires soon after it
has stopped telling.
"""

import time

from pydantic import BaseModel, ConfigDict
from redis import Redis

from service.contract import keys
from service.contract.commands import typed
from service.contract.connection import available
from service.contract.device import Device


class LiveWorker(BaseModel):
    """A worker that has told of itself lately."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    device: Device


class Fleet:
    """What the workers have told."""

    def __init__(self, redis: Redis) -> None:
        self._redis = typed(redis)

    def announce(self, worker: LiveWorker, ttl_s: float) -> None:
        """Tell that a worker is alive, for `ttl_s`."""
        ttl_ms, now = int(ttl_s * 1000), _now_ms()
        with available(), self._redis.pipeline() as pipe:
            pipe.set(keys.worker(worker.name), worker.model_dump_json(), px=ttl_ms)
            pipe.zadd(keys.WORKERS, {worker.name: now + ttl_ms})
            pipe.zremrangebyscore(keys.WORKERS, "-inf", now)
            pipe.execute()

    def retire(self, name: str) -> None:
        """Tell that a worker has stopped."""
        with available(), self._redis.pipeline() as pipe:
            pipe.delete(keys.worker(name))
            pipe.zrem(keys.WORKERS, name)
            pipe.execute()

    def live(self) -> list[LiveWorker]:
        """The workers that are alive, by name."""
        with available():
            names = sorted(self._redis.zrange(keys.WORKERS, 0, -1))
            told = self._redis.mget([keys.worker(name) for name in names]) if names else []
        return [LiveWorker.model_validate_json(raw) for raw in told if raw is not None]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
