"""Request ids and the limits of bodies, through a server with small limits."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from service.contract.settings import Settings
from service.settings import ServiceSettings
from tests.service.support import CHAT, JOBS, error_of, jsonl, upload
from tests.support.server import serve

MAX_FILE, MAX_BODY = 100_000, 5_000
FORM = 64 * 1024


@pytest.fixture(scope="module")
def small(service_settings: ServiceSettings) -> Iterator[str]:
    limits = {"max_file_bytes": MAX_FILE, "max_body_bytes": MAX_BODY}
    with serve(service_settings.model_copy(update=limits)) as url:
        yield url


@pytest.fixture
def limited(small: str, settings: Settings) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small, timeout=30) as client:
        yield client


def _refused(answer: httpx.Response, param: str | None = None) -> None:
    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (413, "too_large")
    assert error["param"] == param


def test_every_answer_has_an_id_of_its_own(http: httpx.Client) -> None:
    paths = ["/", "/docs", "/openapi.json", "/healthz", "/v1/files", "/nowhere", "/dashboard/x"]
    ids = [http.get(path).headers["x-request-id"] for path in paths * 2]
    assert len({*ids}) == len(ids)


def test_the_client_reads_the_id(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        client.files.retrieve("file-nothing")
    assert error.value.request_id is not None
    assert error.value.request_id.startswith("req_")


@pytest.mark.parametrize("size", [MAX_FILE + 1, MAX_FILE + FORM, 30 * MAX_FILE])
def test_a_file_over_the_limit_is_refused(limited: httpx.Client, size: int) -> None:
    row = b'{"text": "a"}\n'
    content = row * (size // len(row)) + b" " * (size % len(row))
    files = {"file": ("a.jsonl", content)}
    answer = limited.post("/v1/files", files=files, data={"purpose": "fine-tune"})
    _refused(answer, "file" if size < MAX_FILE + FORM else None)
    assert limited.get("/v1/files").json()["data"] == []


def test_a_file_at_the_limit_is_taken(small: str, settings: Settings) -> None:
    content = jsonl({"text": "x" * 1000}) * (MAX_FILE // 1013)
    with openai.OpenAI(base_url=f"{small}/v1", api_key="none", max_retries=0) as client:
        assert upload(client, content).bytes == len(content) <= MAX_FILE


def test_the_openai_client_hears_of_the_limit(small: str, settings: Settings) -> None:
    with openai.OpenAI(base_url=f"{small}/v1", api_key="none", max_retries=0) as client:
        for size in (MAX_FILE * 2, MAX_FILE * 200):
            with pytest.raises(openai.APIStatusError) as error:
                upload(client, CHAT + b"x" * size)
            assert (error.value.status_code, error.value.code) == (413, "too_large")


def test_a_body_over_the_limit_is_refused(limited: httpx.Client) -> None:
    _refused(limited.post(JOBS, json={"suffix": "x" * MAX_BODY}))


def test_a_body_of_no_declared_length_is_counted(limited: httpx.Client) -> None:
    portions = (b"{" + b" " * 999 for _ in range(MAX_BODY // 1000 + 1))
    _refused(limited.post(JOBS, content=portions, headers={"Content-Type": "application/json"}))


def test_a_declared_length_is_refused_before_any_of_it_comes(small: str) -> None:
    where = urlsplit(small)
    head = f"POST {JOBS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.create_connection((where.hostname, where.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {MAX_BODY + 1}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_the_server_goes_on_after_a_refusal(limited: httpx.Client) -> None:
    for _ in range(3):
        _refused(limited.post(JOBS, content=b" " * (20 * MAX_BODY)))
    assert limited.get("/readyz").status_code == 200
