"""File records: ownership, pages, expiry by the clock of Redis."""

import time

import pytest
from redis import Redis

from service.contract import keys
from service.contract.errors import InvalidRequest, NotFound
from service.contract.files import FileRecord, Files
from service.contract.store import Store
from tests.service.contract.support import ORG, create, file_record


@pytest.fixture
def files(redis: Redis) -> Files:
    return Files(redis)


def add(files: Files, **fields: object) -> FileRecord:
    file = file_record(**fields)
    files.add(file)
    return file


def page(files: Files, after: str | None = None, limit: int = 10, **options: object) -> list[str]:
    found = files.page(ORG, **{"after": after, "limit": limit, "ascending": False} | options)
    return [file.id for file in found.items]


def test_a_file_comes_back_as_it_went_in(files: Files) -> None:
    file = add(files, rows=3, format="chat", filename="ä.jsonl", expires_at=int(time.time()) + 60)
    assert files.get(ORG, file.id) == file
    assert file.path == f"files/{file.id}"


def test_an_organization_sees_its_own(files: Files) -> None:
    theirs = add(files, org="org-2")
    with pytest.raises(NotFound) as caught:
        files.get(ORG, theirs.id)
    assert caught.value.code == "file_not_found"
    assert page(files) == []


def test_pages_in_both_orders(files: Files) -> None:
    ids = sorted(add(files).id for _ in range(5))
    assert page(files, ascending=True) == ids
    assert page(files) == ids[::-1]
    assert page(files, after=ids[1], limit=2, ascending=True) == ids[2:4]
    assert page(files, after=ids[3], limit=2) == [ids[2], ids[1]]
    assert page(files, after=ids[0]) == []
    whole = files.page(ORG, after=None, limit=5, ascending=False)
    short = files.page(ORG, after=None, limit=4, ascending=False)
    assert (whole.has_more, short.has_more) == (False, True)


def test_files_can_be_deleted_while_they_are_listed(files: Files) -> None:
    for _ in range(7):
        add(files)
    seen, after = 0, None
    while True:
        found = files.page(ORG, after=after, limit=2, ascending=False)
        for file in found.items:
            files.remove(file)
            after, seen = file.id, seen + 1
        if not found.has_more:
            break
    assert seen == 7


def test_a_purpose_filters_over_page_borders(files: Files) -> None:
    data = [add(files).id for _ in range(3)]
    result = add(files, purpose="fine-tune-results").id
    for _ in range(3):
        add(files)
    assert page(files, limit=1, purpose="fine-tune-results") == [result]
    assert set(data) < set(page(files, purpose="fine-tune"))


def test_a_hash_filters_too(files: Files) -> None:
    wanted = add(files, sha256="a" * 64).id
    add(files, sha256="a" * 64, purpose="fine-tune-results")
    add(files)
    assert page(files, purpose="fine-tune", sha256="a" * 64) == [wanted]
    assert page(files, sha256="b" * 64) == []


@pytest.mark.parametrize("cursor", ["ftjob-1", "", "+"])
def test_a_cursor_that_is_no_file_is_refused(files: Files, cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        page(files, after=cursor)


def test_a_removed_file_leaves_nothing(files: Files, redis: Redis) -> None:
    files.remove(add(files, expires_at=int(time.time()) + 60))
    assert redis.keys() == []


def test_a_file_is_removed_although_jobs_on_others_keep_coming(files: Files, store: Store) -> None:
    record, looks = file_record(), []
    files.add(record)
    files.remove(record, lambda: looks.append(create(store)))
    assert len(looks) == 1
    with pytest.raises(NotFound):
        files.get(ORG, record.id)


def test_a_file_expires_by_itself_and_then_for_good(files: Files, redis: Redis) -> None:
    stays = add(files, expires_at=int(time.time()) + 60)
    gone = add(files, expires_at=int(redis.time()[0]) + 1)
    deleted: list[str] = []
    files.remove_expired(deleted.append)
    assert deleted == []
    time.sleep(1.2)
    with pytest.raises(NotFound):
        files.get(ORG, gone.id)
    assert page(files) == [stays.id]
    files.remove_expired(deleted.append)
    files.remove_expired(deleted.append)
    assert deleted == [gone.path]
    assert redis.zrange(keys.org_index(ORG, "files"), 0, -1) == [stays.id]
    assert redis.zcard(keys.EXPIRING) == 1


def test_bytes_that_cannot_be_deleted_now_are_deleted_later(files: Files, redis: Redis) -> None:
    gone = add(files, org="an org, with blanks", expires_at=1)

    def fail(_: str) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        files.remove_expired(fail)
    deleted: list[str] = []
    files.remove_expired(deleted.append)
    assert deleted == [gone.path]
    assert redis.keys() == []
