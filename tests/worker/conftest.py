from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.support import Deployment, RedisServer


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def deployment(shared_redis: RedisServer, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment on an empty Redis, with the scripted trainer."""
    deployment = Deployment(shared_redis.url, tmp_path)
    deployment.redis.flushdb()
    yield deployment
    deployment.close()
