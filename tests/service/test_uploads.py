"""The files of a command on a real server: what is uploaded, taken again, and deleted."""

from pathlib import Path

import pytest
from redis import Redis

from service.client import ApiError, Away, Client
from service.contract.files import FileRecord, Files
from service.uploads import Uploads
from tests.service.support import CHAT, jsonl
from tests.support.stack import TINY

ORG = "org-local"


@pytest.fixture
def files(redis: Redis) -> Files:
    return Files(redis)


def on_server(files: Files) -> list[FileRecord]:
    return files.page(ORG, after=None, limit=100, ascending=True).items


def test_a_file_is_uploaded_once_whatever_it_is_called(
    api: Client, files: Files, chat: Path, tmp_path: Path
) -> None:
    with Uploads(api) as uploads:
        first = uploads.id_of(chat)
    copy, other = tmp_path / "copy.jsonl", tmp_path / "other.jsonl"
    copy.write_bytes(CHAT)
    other.write_bytes(CHAT * 2)
    with Uploads(api) as uploads:
        assert uploads.id_of(copy) == first
        assert uploads.id_of(other) != first
    assert [record.filename for record in on_server(files)] == ["chat.jsonl", "other.jsonl"]


def test_an_id_is_taken_as_it_stands(api: Client, files: Files) -> None:
    with Uploads(api) as uploads:
        assert uploads.id_of("file-1") == "file-1"
    assert on_server(files) == []


def test_a_file_that_expires_is_not_taken_for_a_job(api: Client, files: Files, chat: Path) -> None:
    passing = api.upload(chat)
    record = files.get(ORG, passing)
    files.add(record.model_copy(update={"expires_at": record.created_at + 3600}))
    with Uploads(api) as uploads:
        assert uploads.id_of(chat) != passing


def create(api: Client, model: str, **given: Path) -> None:
    """What a command does."""
    with Uploads(api) as uploads:
        files = {name: uploads.id_of(path) for name, path in given.items()}
        api.create({"model": model, **files})


def test_an_accepted_request_keeps_its_files(api: Client, files: Files, chat: Path) -> None:
    create(api, TINY, training_file=chat)
    assert len(on_server(files)) == 1


def test_a_refused_request_leaves_none_of_its_uploads(
    api: Client, files: Files, chat: Path, tmp_path: Path
) -> None:
    there, new = api.upload(chat), tmp_path / "new.jsonl"
    new.write_bytes(CHAT * 2)
    with pytest.raises(ApiError, match="gpt-4"):
        create(api, "gpt-4", training_file=new, validation_file=chat)
    assert [record.id for record in on_server(files)] == [there]


def test_a_faulty_second_file_takes_the_first_with_it(
    api: Client, files: Files, chat: Path, tmp_path: Path
) -> None:
    faulty = tmp_path / "faulty.jsonl"
    faulty.write_bytes(jsonl({"messages": []}))
    with pytest.raises(ApiError, match="line 1"):
        create(api, TINY, training_file=chat, validation_file=faulty)
    assert on_server(files) == []


def test_an_upload_that_a_job_needs_by_now_stays(api: Client, files: Files, chat: Path) -> None:
    uploads = Uploads(api)
    made = uploads.id_of(chat)
    create(api, TINY, training_file=chat)  # somebody else, who finds it there
    uploads.__exit__(ApiError, ApiError("Refused."), None)
    assert [record.id for record in on_server(files)] == [made]


def test_where_the_server_went_away_the_job_may_be_there_and_its_file_stays(
    api: Client, files: Files, chat: Path
) -> None:
    uploads = Uploads(api)
    made = uploads.id_of(chat)
    uploads.__exit__(Away, Away("No answer."), None)
    assert [record.id for record in on_server(files)] == [made]
