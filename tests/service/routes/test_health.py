"""Health, and what becomes of every route when Redis or the storage is away."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from service.contract.storage import Storage
from service.settings import ServiceSettings
from tests.service.support import CHAT, JOBS, error_of, send, submit, upload
from tests.support.redis_server import RedisServer
from tests.support.server import serve
from tests.support.stack import TINY


@pytest.fixture
def own_http(own_redis: RedisServer, service_settings: ServiceSettings) -> Iterator[httpx.Client]:
    settings = service_settings.model_copy(update={"redis_url": own_redis.url})
    with serve(settings) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


def test_all_is_well(http: httpx.Client) -> None:
    for path in ("/healthz", "/readyz"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert answer.headers["x-request-id"].startswith("req_")


def test_without_redis_every_route_says_so_and_recovers_by_itself(
    own_redis: RedisServer, own_http: httpx.Client, storage: Storage
) -> None:
    client = openai.OpenAI(base_url=f"{own_http.base_url}/v1", api_key="none", max_retries=0)
    with client:
        file = upload(client).id
        job = submit(client, file).id
        stored = storage.children("files")
        own_redis.kill()
        body = {"model": TINY, "training_file": file}
        answers = [
            own_http.get("/readyz"),
            own_http.get("/v1/files"),
            own_http.get(f"/v1/files/{file}"),
            own_http.get(f"/v1/files/{file}/content"),
            own_http.delete(f"/v1/files/{file}"),
            send(own_http, CHAT),
            own_http.get(JOBS),
            own_http.post(JOBS, json=body),
            own_http.get(f"{JOBS}/{job}"),
            own_http.post(f"{JOBS}/{job}/cancel"),
            own_http.get(f"{JOBS}/{job}/events"),
            own_http.get(f"{JOBS}/{job}/metrics"),
            own_http.get(f"{JOBS}/{job}/checkpoints"),
            own_http.get("/v1/models"),
            own_http.get("/v1/models/ft:tiny:org-local::1"),
            own_http.delete("/v1/models/ft:tiny:org-local::1"),
        ]
        for answer in answers:
            assert answer.status_code == 503, answer.request.url
            assert int(answer.headers["Retry-After"]) > 0
            error = error_of(answer)
            assert (error["type"], error["code"]) == ("server_error", "storage_unavailable")
        assert own_http.get("/healthz").status_code == 200
        assert storage.children("files") == stored
        own_redis.start()
        assert own_http.get("/readyz").status_code == 200
        assert client.fine_tuning.jobs.retrieve(job).status == "validating_files"
        assert [each.id for each in client.files.list()] == [file]


def test_the_client_bridges_a_short_outage(own_redis: RedisServer, own_http: httpx.Client) -> None:
    """Its own retries, and our `Retry-After`, are enough."""
    with openai.OpenAI(base_url=f"{own_http.base_url}/v1", api_key="none") as client:
        upload(client)
        own_redis.kill()
        with pytest.raises(openai.InternalServerError):
            client.with_options(max_retries=0).files.list()
        own_redis.start()
        assert len(client.files.list().data) == 1


def test_a_hanging_redis_is_an_outage_within_seconds(
    own_redis: RedisServer, own_http: httpx.Client
) -> None:
    own_http.get("/readyz")
    own_redis.pause()
    try:
        began = time.monotonic()
        assert own_http.get("/readyz").status_code == 503
        assert time.monotonic() - began < 20
    finally:
        own_redis.resume()
    assert own_http.get("/readyz").status_code == 200


def test_without_storage_nothing_is_recorded_and_readiness_says_so(
    service_settings: ServiceSettings, http: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "no-folder").write_text("")
    settings = service_settings.model_copy(
        update={"storage_url": str(tmp_path / "no-folder" / "storage")}
    )
    with serve(settings) as url, httpx.Client(base_url=url, timeout=60) as broken:
        for answer in (broken.get("/readyz"), send(broken, CHAT)):
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
            assert error_of(answer)["code"] == "storage_unavailable"
        assert broken.get("/healthz").status_code == 200
        assert broken.get("/v1/files").json()["data"] == []
