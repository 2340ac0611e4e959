"""API keys and organizations, through the server."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from service.auth import make_key
from service.contract.models import Models
from service.contract.settings import Settings
from service.contract.storage import Storage
from service.settings import ServiceSettings
from tests.service.support import JOBS, error_of, submit, tuned_model, upload
from tests.support.server import serve

ORGS = ("acme", "other")


@pytest.fixture(scope="module")
def keys() -> dict[str, tuple[str, str]]:
    return {org: make_key(org) for org in ORGS}


@pytest.fixture(scope="module")
def guarded(
    service_settings: ServiceSettings,
    keys: dict[str, tuple[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """A server that asks for keys."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("\n".join(line for _, line in keys.values()))
    with serve(service_settings.model_copy(update={"api_keys_file": file})) as url:
        yield url


@pytest.fixture
def acme(guarded: str, keys: dict[str, tuple[str, str]], settings: Settings) -> openai.OpenAI:
    with openai.OpenAI(base_url=f"{guarded}/v1", api_key=keys["acme"][0], max_retries=0) as client:
        yield client


@pytest.fixture
def other(guarded: str, keys: dict[str, tuple[str, str]], settings: Settings) -> httpx.Client:
    headers = {"Authorization": f"Bearer {keys['other'][0]}"}
    with httpx.Client(base_url=guarded, headers=headers) as client:
        yield client


@pytest.mark.parametrize("sent", [None, "Bearer sk-guessed", "Bearer", "Basic YTpi"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("GET", JOBS),
        ("POST", JOBS),
        ("GET", f"{JOBS}/ftjob-1"),
        ("GET", f"{JOBS}/ftjob-1/events"),
        ("GET", "/v1/models"),
        ("DELETE", "/v1/models/tiny"),
    ],
)
def test_without_a_key_nothing_is_told(
    guarded: str, settings: Settings, method: str, path: str, sent: str | None
) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    answer = httpx.request(method, f"{guarded}{path}", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


def test_the_openai_client_knows_the_error(guarded: str) -> None:
    with (
        openai.OpenAI(base_url=f"{guarded}/v1", api_key="sk-guessed") as client,
        pytest.raises(openai.AuthenticationError) as error,
    ):
        client.models.list()
    assert error.value.code == "invalid_api_key"
    assert error.value.request_id.startswith("req_")


def test_a_body_is_not_waited_for_without_a_key(guarded: str) -> None:
    head = "POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    where = urlsplit(guarded)
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: 500000000\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_health_needs_no_key(guarded: str) -> None:
    assert httpx.get(f"{guarded}/healthz").status_code == 200
    assert httpx.get(f"{guarded}/readyz").status_code == 200


def test_files_are_seen_by_their_organization_alone(
    acme: openai.OpenAI, other: httpx.Client
) -> None:
    file = upload(acme).id
    for path in (f"/v1/files/{file}", f"/v1/files/{file}/content"):
        assert error_of(other.get(path))["code"] == "file_not_found"
    assert other.delete(f"/v1/files/{file}").status_code == 404
    assert other.get("/v1/files").json()["data"] == []
    assert acme.files.retrieve(file).id == file


def test_jobs_are_seen_by_their_organization_alone(
    acme: openai.OpenAI, other: httpx.Client
) -> None:
    job = submit(acme, upload(acme).id)
    assert job.organization_id == "acme"
    for part in ("", "/events", "/metrics", "/memory", "/checkpoints"):
        answer = other.get(f"{JOBS}/{job.id}{part}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "job_not_found")
    assert other.post(f"{JOBS}/{job.id}/cancel").status_code == 404
    assert other.get(JOBS).json()["data"] == []
    assert acme.fine_tuning.jobs.retrieve(job.id).status == "validating_files"


def test_a_job_takes_no_file_or_model_of_another_organization(
    acme: openai.OpenAI, other: httpx.Client, models: Models, storage: Storage
) -> None:
    file = upload(acme).id
    body = {"model": "tiny", "training_file": file}
    assert error_of(other.post(JOBS, json=body))["param"] == "training_file"
    models.add(tuned_model(storage, "ft:tiny:acme::1", org="acme"))
    assert error_of(other.post(JOBS, json={**body, "model": "ft:tiny:acme::1"}))["param"] == "model"


def test_models_are_seen_by_their_organization_alone(
    acme: openai.OpenAI, other: httpx.Client, models: Models, storage: Storage
) -> None:
    model = "ft:tiny:acme::1"
    models.add(tuned_model(storage, model, org="acme"))
    for path in ("", "/files", "/files/config.json"):
        answer = other.get(f"/v1/models/{model}{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
    assert other.delete(f"/v1/models/{model}").status_code == 404
    assert [each["id"] for each in other.get("/v1/models").json()["data"]] == ["tiny"]
    assert acme.models.retrieve(model).owned_by == "acme"


def test_the_same_key_of_two_organizations_makes_two_jobs(
    acme: openai.OpenAI, other: httpx.Client
) -> None:
    headers = {"Idempotency-Key": "mine"}
    first = submit(acme, upload(acme).id, extra_headers=headers)
    files = {"file": ("a.jsonl", b'{"text": "a"}')}
    file = other.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
    body = {"model": "tiny", "training_file": file}
    second = other.post(JOBS, json=body, headers=headers)
    assert second.status_code == 201
    assert second.json()["id"] != first.id


def test_the_document_asks_for_a_key_only_where_one_is_needed(guarded: str, url: str) -> None:
    for server, needed in ((guarded, True), (url, False)):
        paths = httpx.get(f"{server}/openapi.json").json()["paths"]
        assert ("security" in paths["/v1/files"]["get"]) is needed
        assert "security" not in paths["/healthz"]["get"]
