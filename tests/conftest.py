"""Fixtures for every package's tests: a real Redis, empty for each test, and what speaks to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from service.contract.connection import connect
from service.contract.settings import Settings
from service.contract.store import Store
from tests.support.redis_server import RedisServer

pytest_plugins = ["tests.support.strict"]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The server that tests share; one that stops it must start it again."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    """Settings of a deployment of the test's own; its Redis is empty."""
    settings = Settings(redis_url=redis_server.url, storage_url=str(tmp_path / "storage"))
    with connect(settings) as redis:
        redis.flushall()
    return settings


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """A client of the test's Redis."""
    with connect(settings) as redis:
        yield redis


@pytest.fixture
def store(redis: Redis, settings: Settings) -> Store:
    """The job store on the test's Redis."""
    return Store(redis, lease_s=settings.lease_s)
