"""The client of the command line and the demo, on a real server."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service import client as client_module
from service.auth import make_key
from service.client import ApiError, Client
from service.contract.job import Event, JobStatus
from service.contract.models import ModelFile, Models
from service.contract.storage import Storage
from service.contract.store import Store
from service.settings import ServiceSettings
from tests.service.contract.support import EVENT, create
from tests.service.support import jsonl, start, tuned_model
from tests.support.redis_server import RedisServer
from tests.support.server import serve
from tests.support.stack import TINY

TUNED = f"ft:{TINY}:org-local::1"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks again at once, and not for long."""
    monkeypatch.setattr(client_module, "_RETRY_S", 0.01)
    monkeypatch.setattr(client_module, "_AWAY_S", 0.3)


def test_from_the_upload_to_the_end(api: Client, store: Store, chat: Path) -> None:
    file_id = api.upload(chat)
    job = api.create({"model": TINY, "training_file": file_id, "suffix": "mine"})
    assert (job.status, job.terminal) == (JobStatus.VALIDATING_FILES, False)
    claim = start(store, job.id)
    assert api.job(job.id).status is JobStatus.RUNNING
    assert [each.id for each in api.jobs(limit=5)] == [job.id]
    assert api.cancel(job.id).status is JobStatus.RUNNING
    store.transition(job.id, JobStatus.CANCELLED, EVENT, token=claim.token)
    assert api.job(job.id).terminal
    assert api.models() == [TINY]


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_a_url_may_be_that_of_the_openai_client(url: str, end: str) -> None:
    with Client(url + end) as api:
        assert api.models() == [TINY]


def test_the_key_is_sent(service_settings: ServiceSettings, tmp_path: Path) -> None:
    key, line = make_key("acme")
    (tmp_path / "keys").write_text(line)
    settings = service_settings.model_copy(update={"api_keys_file": tmp_path / "keys"})
    with serve(settings) as url:
        with Client(url, key) as api:
            assert api.models() == [TINY]
        with Client(url) as stranger, pytest.raises(ApiError) as error:
            stranger.models()
    assert error.value.code == "invalid_api_key"


# Events


def test_events_come_oldest_first_page_by_page_and_each_once(
    api: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_EVENTS_PAGE", 3)
    claim = start(store, create(store, org="org-local"))
    for step in range(8):
        store.update(claim, Event(message=f"Step {step}"))
    every = api.events_since(claim.job_id, None)
    assert [event.message for event in every[-8:]] == [f"Step {step}" for step in range(8)]
    assert len({event.id for event in every}) == len(every) == 12
    for seen in (every[0], every[6], every[-2]):
        assert api.events_since(claim.job_id, seen.id) == every[every.index(seen) + 1 :]
    assert api.events_since(claim.job_id, every[-1].id) == []


# Downloads


def test_a_model_is_downloaded_with_its_folders(
    api: Client, models: Models, storage: Storage, tmp_path: Path
) -> None:
    record = tuned_model(storage, TUNED)
    content = bytes(range(256)) * 20_000
    with storage.write(f"{record.path}/part one/weights.bin") as file:
        file.write(content)
    files = [*record.files, ModelFile(name="part one/weights.bin", bytes=len(content))]
    models.add(record.model_copy(update={"files": files}))
    assert api.download(TUNED, tmp_path / "model") == files
    assert (tmp_path / "model" / "part one" / "weights.bin").read_bytes() == content
    assert (tmp_path / "model" / "config.json").read_bytes() == b"{}"


def test_a_base_model_is_not_downloaded_as_no_files(api: Client, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="tiny is a base model; only fine-tuned models can be down"):
        api.download(TINY, tmp_path / "model")


@pytest.mark.parametrize("name", ["../outside.json", "/outside.json", "a/../../outside.json"])
def test_no_file_is_written_outside_the_folder(
    api: Client, models: Models, storage: Storage, tmp_path: Path, name: str
) -> None:
    name = name.replace("/outside", f"{tmp_path}/outside") if name.startswith("/") else name
    files = [ModelFile(name=name, bytes=2)]
    models.add(tuned_model(storage, TUNED, files=files))
    with pytest.raises(ApiError, match="outside the folder"):
        api.download(TUNED, tmp_path / "model")
    assert not (tmp_path / "outside.json").exists()


def test_a_download_that_is_cut_short_leaves_no_file(tmp_path: Path) -> None:
    whole = b'{"id": "file-1", "filename": "a.csv", "sha256": "", "expires_at": null}'
    (tmp_path / "a.csv").write_text("an older one")
    with _stranger(200, whole) as url, Client(url) as api:
        assert api.save_file("file-1", tmp_path).read_bytes() == whole
    with (
        _stranger(200, b"step,", length=100) as url,
        Client(url) as api,
        pytest.raises(ApiError, match="No answer from"),
    ):
        api._save("files/file-1/content", tmp_path / "a.csv")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"a.csv": whole}


# Refusals


def test_a_refusal_has_the_words_and_the_code_of_the_api(api: Client) -> None:
    with pytest.raises(ApiError, match="Model 'gpt-4' is neither") as error:
        api.create({"model": "gpt-4", "training_file": "file-1"})
    assert error.value.code == "model_not_found"


def test_every_fault_of_a_file_is_a_line(api: Client, tmp_path: Path) -> None:
    faulty = tmp_path / "faulty.jsonl"
    faulty.write_bytes(jsonl({"messages": []}) + b"oops\n")
    with pytest.raises(ApiError) as error:
        api.upload(faulty)
    assert error.value.code == "invalid_training_file"
    head, first, second = str(error.value).split("\n")
    assert head == "The file has 2 faults:"
    assert first.strip().startswith("line 1, messages: ")
    assert second.strip().startswith("line 2: It is not JSON")


def test_of_many_faults_the_first_are_listed_and_all_are_counted(
    api: Client, tmp_path: Path
) -> None:
    faulty = tmp_path / "faulty.jsonl"
    faulty.write_bytes(b"oops\n" * 1200)
    with pytest.raises(ApiError) as error:
        api.upload(faulty)
    head, *listed = str(error.value).split("\n")
    assert head == "The file has 1,200 faults, of which the first 100 are:"
    assert len(listed) == 100


@contextmanager
def _stranger(status: int, body: bytes, length: int | None = None) -> Iterator[str]:
    """The URL of a server that is none of ours; it says `body` to all, and may promise more."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "body", [b"<h1>I am a teapot</h1>", b'{"error": "no"}', b'{"error": {}}', b"[]"]
)
def test_a_server_that_is_none_of_ours_is_told_by_its_status(body: bytes) -> None:
    with _stranger(418, body) as url, Client(url) as api, pytest.raises(ApiError) as error:
        api.models()
    assert str(error.value) == f"The server answered 418 to {url}/v1/models."
    assert error.value.code is None


@pytest.mark.parametrize("body", [b"<h1>Welcome</h1>", b"[]", b'{"a": 1}', b"\xff"])
def test_an_answer_that_is_not_the_apis_is_told(body: bytes) -> None:
    with _stranger(200, body) as url, Client(url) as api:
        for ask in (api.models, lambda: api.job("ftjob-1"), lambda: api.same_file("00")):
            with pytest.raises(ApiError, match=r"/v1/.* does not answer as Headroom does"):
                ask()


@pytest.mark.parametrize("url", ["http://[::1", "http://host:port"])
def test_a_url_that_no_server_can_have_is_told(url: str) -> None:
    with pytest.raises(ApiError, match="The server's URL is") as error:
        Client(url)
    assert url in str(error.value)


@pytest.mark.parametrize("key", ["sk-schl\u00fcssel", "sk-key\r", "sk-a\nb"])
def test_a_key_that_fits_into_no_header_is_told_and_not_shown(url: str, key: str) -> None:
    with pytest.raises(ApiError, match="The API key") as error:
        Client(url, key)
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize("job_id", ["ftjob-1?limit=1", "ftjob-1#", "a/b", "\u00e4 %2F"])
def test_an_id_is_one_part_of_the_path_whatever_it_is(api: Client, job_id: str) -> None:
    with pytest.raises(ApiError) as error:
        api.job(job_id)
    assert error.value.code is not None


# Outages


def test_a_server_that_restarts_is_waited_for(service_settings: ServiceSettings) -> None:
    with serve(service_settings) as url:
        api = Client(url)
        assert api.models() == [TINY]
    port = int(url.rpartition(":")[2])
    with ThreadPoolExecutor() as pool, api:
        answer = pool.submit(api.models)
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.5)
        with serve(service_settings, port):
            assert answer.result(timeout=30) == [TINY]


def test_a_redis_that_restarts_is_waited_for(
    own_redis: RedisServer, service_settings: ServiceSettings, store: Store
) -> None:
    settings = service_settings.model_copy(update={"redis_url": own_redis.url})
    with serve(settings) as url, Client(url) as api, ThreadPoolExecutor() as pool:
        own_redis.stop()
        answer = pool.submit(api.jobs, 1)
        with pytest.raises(TimeoutError):
            answer.result(timeout=0.5)
        own_redis.start()
        assert answer.result(timeout=30) == []


def test_a_url_without_a_protocol_is_refused_at_once() -> None:
    with Client("localhost:8000") as api, pytest.raises(ApiError) as error:
        api.models()
    told = "The server's URL is localhost:8000/v1/; expected http:// or https://."
    assert str(error.value) == told


@pytest.mark.usefixtures("hasty")
def test_a_server_that_stays_away_is_given_up(service_settings: ServiceSettings) -> None:
    with serve(service_settings) as url:
        api = Client(url)
        assert api.models() == [TINY]
    with api, pytest.raises(ApiError, match=f"No answer from {url}/v1/") as error:
        api.models()
    assert error.value.code is None


def test_a_server_that_never_answered_is_not_waited_for_a_minute(
    service_settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_START_S", 0.3)
    with serve(service_settings) as url:
        pass
    with Client(url) as api, ThreadPoolExecutor() as pool:
        failure = pool.submit(api.models).exception(timeout=20)
    assert isinstance(failure, ApiError)


def test_a_request_that_changes_something_is_not_repeated(
    service_settings: ServiceSettings, chat: Path
) -> None:
    with serve(service_settings) as url:
        pass
    with Client(url) as api:
        for change in (
            lambda: api.upload(chat),
            lambda: api.create({}),
            lambda: api.cancel("ftjob-1"),
        ):
            with ThreadPoolExecutor() as pool, pytest.raises(ApiError, match="No answer"):
                pool.submit(change).result(timeout=20)
