import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer
from tests.worker.support import Deployment
from worker.runner import Runner


@pytest.fixture
def deployment(redis_server: RedisServer, tmp_path: Path) -> Iterator[Deployment]:
    """A deployment on an empty Redis, with the scripted trainer."""
    deployment = Deployment(redis_server.url, tmp_path)
    deployment.redis.flushall()
    yield deployment
    deployment.close()


@pytest.fixture
def runner(deployment: Deployment) -> Runner:
    """One worker's runner."""
    return deployment.supervisor()[0]


@pytest.fixture(params=["folder", "objects"])
def stored(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Iterator[Deployment]:
    """A deployment whose artefacts are in a folder, and one where they are in object storage."""
    objects = f"memory://{uuid.uuid4().hex}"
    url = str(tmp_path / "storage") if request.param == "folder" else objects
    deployment = Deployment(redis_server.url, tmp_path, storage_url=url, lease_s=60.0)
    deployment.redis.flushall()
    yield deployment
    deployment.close()
