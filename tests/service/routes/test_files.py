import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from redis import Redis

from service.contract import keys
from service.contract.files import FileRecord, Files
from service.contract.storage import Storage
from service.contract.store import Store
from service.datasets import Dataset
from service.settings import ServiceSettings
from tests.service.contract.support import file_record
from tests.service.support import CHAT, JOBS, error_of, jsonl, send, start, submit, upload
from tests.support.process import served
from tests.support.stack import TINY

HOUR_S = 3600


def _result_file(files: Files) -> FileRecord:
    record = file_record(org="org-local", purpose="fine-tune-results", filename="metrics.csv")
    files.add(record)
    return record


def test_a_file_comes_back_as_it_went(client: openai.OpenAI) -> None:
    before = int(time.time())
    file = upload(client, CHAT * 2)
    assert (file.object, file.purpose, file.status) == ("file", "fine-tune", "processed")
    assert (file.filename, file.bytes, file.expires_at) == ("chat.jsonl", 2 * len(CHAT), None)
    assert before <= file.created_at <= time.time()
    assert file.model_extra is not None
    assert (file.model_extra["format"], file.model_extra["rows"]) == ("chat", 2)
    assert client.files.retrieve(file.id) == file
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert client.files.content(file.id).content == CHAT * 2


def test_plain_text_is_data_too(client: openai.OpenAI) -> None:
    file = upload(client, jsonl({"text": "One."}, {"text": "Two."}))
    assert file.model_extra is not None
    assert (file.model_extra["format"], file.model_extra["rows"]) == ("text", 2)


def test_a_deleted_file_is_gone(
    client: openai.OpenAI, http: httpx.Client, storage: Storage
) -> None:
    file = upload(client)
    assert client.files.delete(file.id).model_dump() == {
        "id": file.id,
        "object": "file",
        "deleted": True,
    }
    assert not storage.exists(f"files/{file.id}")
    for path in (file.id, f"{file.id}/content"):
        answer = http.get(f"/v1/files/{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")
    with pytest.raises(openai.NotFoundError):
        client.files.delete(file.id)
    assert list(client.files.list()) == []


def test_a_file_that_a_job_needs_stays(
    client: openai.OpenAI, store: Store, training_file: str
) -> None:
    job = submit(client, training_file)
    with pytest.raises(openai.ConflictError) as error:
        client.files.delete(training_file)
    assert error.value.code == "file_in_use"
    assert job.id in error.value.message
    assert error.value.response.headers["x-should-retry"] == "false"
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(training_file).deleted


def test_a_file_is_not_deleted_from_under_a_job_that_is_created_meanwhile(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            file_id = upload(client).id
            body = {"model": TINY, "training_file": file_id}
            created = pool.submit(http.post, JOBS, json=body)
            deleted = pool.submit(http.delete, f"/v1/files/{file_id}")
            statuses = (created.result().status_code, deleted.result().status_code)
            assert statuses in {(201, 409), (400, 200)}


def test_the_client_pages_through_all_files(client: openai.OpenAI) -> None:
    made = [upload(client).id for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    page = client.files.list(limit=5)
    assert (len(page.data), page.has_more) == (5, False)
    assert [file.id for file in client.files.list(after=made[2])] == [made[1], made[0]]


def test_a_page_follows_the_one_before_although_its_last_file_is_gone(
    client: openai.OpenAI,
) -> None:
    made = [upload(client).id for _ in range(3)]
    client.files.delete(made[1])
    assert [file.id for file in client.files.list(after=made[1])] == [made[0]]


def test_files_are_listed_by_purpose(client: openai.OpenAI, redis: Redis) -> None:
    file, result = upload(client).id, _result_file(Files(redis)).id
    assert [each.id for each in client.files.list(purpose="fine-tune")] == [file]
    assert [each.id for each in client.files.list(purpose="fine-tune-results")] == [result]
    assert {each.id for each in client.files.list()} == {file, result}


def test_a_file_is_found_by_its_bytes(client: openai.OpenAI, http: httpx.Client) -> None:
    files = [upload(client), upload(client, CHAT * 2)]
    for file in files:
        assert file.model_extra is not None
        found = http.get(f"/v1/files?sha256={file.model_extra['sha256']}").json()["data"]
        assert [each["id"] for each in found] == [file.id]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=many", "limit"),
        ("order=random", "order"),
        ("purpose=assistants", "purpose"),
        ("sha256=beef", "sha256"),
        ("after=ftjob-1", "after"),
    ],
)
def test_a_list_names_the_parameter_at_fault(http: httpx.Client, query: str, param: str) -> None:
    answer = http.get(f"/v1/files?{query}")
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


def test_a_file_expires(client: openai.OpenAI, redis: Redis) -> None:
    expires = {"anchor": "created_at", "seconds": HOUR_S}
    file = upload(client, expires_after=expires)
    assert file.expires_at == file.created_at + HOUR_S
    redis.expire(keys.file(file.id), 0)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert list(client.files.list()) == []


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"expires_after[seconds]": "7200"}, None),
        ({"expires_after[anchor]": "created_at"}, None),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "10"},
            "expires_after[seconds]",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"},
            "expires_after[seconds]",
        ),
        (
            {"expires_after[anchor]": "now", "expires_after[seconds]": "7200"},
            "expires_after[anchor]",
        ),
        ({"purpose": "assistants"}, "purpose"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_form_names_the_field_at_fault(
    http: httpx.Client, form: dict[str, str], param: str | None
) -> None:
    answer = send(http, CHAT, **form)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert http.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"data": {"purpose": "fine-tune"}}, "file"),
        ({"data": {"purpose": "fine-tune", "file": "not a file"}}, "file"),
        ({"files": {"file": ("a.jsonl", CHAT)}}, "purpose"),
        ({"json": {"purpose": "fine-tune"}}, "file"),
        ({}, "file"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, None),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, None),
    ],
)
def test_what_is_no_form_is_told_so(
    http: httpx.Client, request_: dict[str, object], param: str | None
) -> None:
    answer = http.post("/v1/files", **request_)  # type: ignore[arg-type]
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, param)
    assert "class" not in error["message"]


def test_every_fault_comes_with_its_line(client: openai.OpenAI) -> None:
    rows = [CHAT, b"{no json}\n", b'{"text": "other"}\n', b"\xff\n", CHAT]
    with pytest.raises(openai.BadRequestError) as error:
        upload(client, b"".join(rows))
    assert (error.value.code, error.value.param) == ("invalid_training_file", "file")
    body = error.value.body
    assert isinstance(body, dict)
    assert [fault["line"] for fault in body["faults"]] == [2, 3, 4]
    assert body["fault_count"] == 3
    assert "line 3: Mixed formats" in error.value.message
    assert list(client.files.list()) == []


def test_beyond_a_hundred_faults_the_total_is_told(http: httpx.Client) -> None:
    error = error_of(send(http, b"oops\n" * 250))
    assert (len(error["faults"]), error["fault_count"]) == (100, 250)


def test_an_empty_file_is_refused(http: httpx.Client) -> None:
    error = error_of(send(http, b""))
    assert (error["code"], error["fault_count"]) == ("invalid_training_file", 1)
    assert error["faults"][0]["line"] == 0


def test_a_refused_file_leaves_nothing_in_the_storage(http: httpx.Client, storage: Storage) -> None:
    before = storage.children("files")
    assert send(http, b"oops\n").status_code == 400
    assert storage.children("files") == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "grüße 🌍.jsonl", "a'b;c.jsonl", "x" * 300])
def test_a_filename_is_remembered_and_never_a_path(
    http: httpx.Client, storage: Storage, name: str
) -> None:
    files = {"file": (name, CHAT)}
    file = http.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()
    assert file["filename"] == name[-255:]
    assert storage.exists(f"files/{file['id']}")
    answer = http.get(f"/v1/files/{file['id']}/content")
    assert answer.content == CHAT
    assert answer.headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''")


@pytest.mark.parametrize(
    ("charset", "name"), [("utf-7", "+2AA-.jsonl"), ("unicode_escape", r"\\ud800.jsonl")]
)
def test_half_a_character_in_a_filename_is_refused_and_leaves_no_bytes(
    http: httpx.Client, storage: Storage, charset: str, name: str
) -> None:
    before = storage.children("files")
    file = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    purpose = '\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b--'
    answer = http.post(
        "/v1/files",
        content=file.encode() + CHAT + purpose.encode(),
        headers={"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"},
    )
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (400, "file")
    assert r"got '\ud800.jsonl'" in error["message"]
    assert storage.children("files") == before


def test_names_of_megabytes_do_not_come_back(http: httpx.Client) -> None:
    """They came back by the hundred, once in the list and once in the message."""
    line = jsonl({"text": "a", "k" * 10**6: 1})
    answer = send(http, line * 8)
    assert error_of(answer)["fault_count"] == 8
    assert len(answer.content) < 10_000


def test_content_that_is_gone_is_an_error_before_any_byte(
    client: openai.OpenAI, http: httpx.Client, storage: Storage
) -> None:
    file = upload(client)
    storage.delete(f"files/{file.id}")
    answer = http.get(f"/v1/files/{file.id}/content")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "content_not_found")


def test_a_file_of_a_running_job_can_be_read(
    client: openai.OpenAI, store: Store, training_file: str
) -> None:
    start(store, submit(client, training_file).id)
    assert client.files.content(training_file).content == CHAT


@pytest.fixture
def process(service_settings: ServiceSettings, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server in a process of its own, and the process."""
    with served(service_settings, tmp_path) as found:
        yield found


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(line for line in lines if line.startswith("VmHWM")).split()[1]
    return int(kilobytes) * 1024


def test_a_line_of_200_mb_is_refused_in_bounded_memory(
    process: tuple[str, int], tmp_path: Path
) -> None:
    url, pid = process
    huge = tmp_path / "huge.jsonl"
    with huge.open("wb") as file:
        file.write(b'{"text": "')
        file.truncate(200 * 2**20)
    form = {"purpose": "fine-tune"}
    with httpx.Client(base_url=url, timeout=120) as http:
        assert http.post("/v1/files", files={"file": CHAT}, data=form).status_code == 200
        before = _peak_bytes(pid)
        with huge.open("rb") as file:
            error = error_of(http.post("/v1/files", files={"file": file}, data=form))
        grown = _peak_bytes(pid) - before
        assert http.get("/readyz").status_code == 200
    assert error["fault_count"] == 1
    assert error["faults"][0]["line"] == 1
    assert "over the limit" in error["faults"][0]["message"]
    assert grown < 32 * 2**20


def test_uploads_that_are_checked_leave_threads_for_polls(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = [], threading.Event()

    def check(_: object) -> Dataset:
        begun.append(threading.get_ident())
        assert go_on.wait(60)
        return Dataset("chat", 1, 1)

    monkeypatch.setattr("service.datasets.check", check)
    with ThreadPoolExecutor(60) as senders:
        uploads = [senders.submit(send, http, CHAT) for _ in range(60)]
        try:
            deadline = time.monotonic() + 20
            while len(begun) < 4 and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.5)  # for a fifth, which would be one too many
            assert len(begun) == 4
            assert http.get(JOBS, timeout=10).status_code == 200
        finally:
            go_on.set()
    assert {upload.result().status_code for upload in uploads} == {200}
