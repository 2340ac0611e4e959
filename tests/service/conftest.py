"""Fixtures of the API's tests: one server for all of them, emptied for each, and its clients."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from redis import Redis

from service.client import Client
from service.contract.models import Models
from service.contract.settings import Settings
from service.contract.storage import Storage
from service.settings import ServiceSettings
from tests.service.support import CHAT, upload
from tests.support.redis_server import RedisServer
from tests.support.server import serve
from tests.support.stack import TINY


@pytest.fixture(scope="session")
def service_settings(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> ServiceSettings:
    """A service on the tests' Redis, with one base model in a folder and a pattern of hub ids."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "models" / TINY).mkdir(parents=True)
    (folder / "models" / TINY / "config.json").write_text("{}")
    return ServiceSettings(
        redis_url=redis_server.url,
        storage_url=str(folder / "storage"),
        model_folders=[folder / "models"],
        hub_models=["someone/*"],
    )


@pytest.fixture(scope="session")
def server(service_settings: ServiceSettings) -> Iterator[str]:
    """The URL of a started server."""
    with serve(service_settings) as url:
        yield url


@pytest.fixture
def url(server: str, settings: Settings) -> str:
    """The URL of the server; nothing is recorded in its Redis."""
    return server


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    """A plain HTTP client of the server."""
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    """The unchanged openai client, pointed at the server; it does not retry."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def training_file(client: openai.OpenAI) -> str:
    """The id of an uploaded training file."""
    return upload(client, CHAT).id


@pytest.fixture
def storage(service_settings: ServiceSettings) -> Storage:
    """The storage of the server."""
    return Storage(service_settings.storage_url)


@pytest.fixture
def models(redis: Redis) -> Models:
    """The records of fine-tuned models."""
    return Models(redis)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that no other test sees: to be stopped, paused and misconfigured."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.kill()


@pytest.fixture
def api(url: str) -> Iterator[Client]:
    """The client of the `headroom` command."""
    with Client(url) as api:
        yield api


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A training file."""
    path = tmp_path / "chat.jsonl"
    path.write_bytes(CHAT)
    return path
