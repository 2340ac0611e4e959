from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer
from tests.worker.support import Deployment


@pytest.fixture
def deployment(redis_server: RedisServer, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment on an empty Redis, with the scripted trainer."""
    deployment = Deployment(redis_server.url, tmp_path)
    deployment.redis.flushall()
    yield deployment
    deployment.close()
