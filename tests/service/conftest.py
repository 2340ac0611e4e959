"""Fixtures of the API's tests: a server of the test's own, and clients of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from service.contract.settings import Settings
from service.settings import ServiceSettings
from tests.support.server import serve
from tests.support.stack import TINY

CHAT = (
    json.dumps(
        {
            "messages": [
                {"role": "user", "content": "Hello?"},
                {"role": "assistant", "content": "Hi."},
            ]
        }
    )
    + "\n"
)


@pytest.fixture
def service_settings(settings: Settings, tmp_path: Path) -> ServiceSettings:
    """A service on the test's Redis, with one base model in a folder and a pattern of hub ids."""
    folder = tmp_path / "models" / TINY
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return ServiceSettings(
        **settings.model_dump(exclude={"model_folders", "hub_models"}),
        model_folders=[tmp_path / "models"],
        hub_models=["someone/*"],
    )


@pytest.fixture
def url(service_settings: ServiceSettings) -> Iterator[str]:
    """A started server."""
    with serve(service_settings) as url:
        yield url


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
    return client.files.create(file=("chat.jsonl", CHAT.encode()), purpose="fine-tune").id
