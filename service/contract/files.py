"""Records of uploaded and result files; their bytes are in the storage."""

import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from redis import Redis
from redis.client import Pipeline

from service.contract import keys
from service.contract.connection import available
from service.contract.errors import NotFound
from service.contract.index import Page, newest_first, oldest_first
from service.contract.spec import Purpose

DataFormat = Literal["chat", "text"]


class FileRecord(BaseModel):
    """A file that is whole in the storage.

    Attributes:
        rows: Training examples, for a checked training file.
        sha256: Of the bytes, in hex; the numerics receipt names the data by it.
        expires_at: Unix seconds after which the file is gone, or None.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    org: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    format: DataFormat | None = None
    rows: int | None = None
    sha256: str
    expires_at: int | None = None

    @property
    def path(self) -> str:
        """Where the storage keeps the bytes."""
        return _path(self.id)


class Files:
    """The file records of every organization."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def add(self, record: FileRecord, created_ms: int) -> None:
        """Record a file whose bytes are already whole in the storage."""
        with available(), self._redis.pipeline() as pipe:
            self.write(pipe, record, created_ms)
            pipe.execute()

    @staticmethod
    def write(pipe: "Pipeline[Any]", record: FileRecord, created_ms: int) -> None:
        """Queue the record on a pipeline, so that it appears with the change that names it."""
        pipe.set(keys.file(record.id), record.model_dump_json(), exat=record.expires_at)
        pipe.zadd(keys.org_index(record.org, "files"), {record.id: created_ms})
        if record.expires_at is not None:
            pipe.zadd(keys.EXPIRING, {f"{record.id} {record.org}": record.expires_at})

    def get(self, org: str, file_id: str) -> FileRecord:
        """The record of a file of `org`.

        Raises:
            NotFound: No such file, or another organization's, or expired.
        """
        with available():
            raw = self._redis.get(keys.file(file_id))
        record = FileRecord.model_validate_json(raw) if raw else None
        if record is None or record.org != org:
            raise NotFound(f"No such file: {file_id}.", code="file_not_found", param="file_id")
        return record

    def page(
        self, org: str, *, after: str | None, limit: int, purpose: str | None, ascending: bool
    ) -> Page[FileRecord]:
        """Files of `org` behind the cursor `after`, in order of creation."""
        index = keys.org_index(org, "files")
        with available():
            ids = (oldest_first if ascending else newest_first)(self._redis, index, after)
            raws = self._redis.mget([keys.file(id_) for id_ in ids]) if ids else []
        records = [FileRecord.model_validate_json(raw) for raw in raws if raw]
        kept = [record for record in records if purpose in {None, record.purpose}]
        return Page(kept[:limit], has_more=len(kept) > limit)

    def remove(self, record: FileRecord) -> None:
        """Forget a file; its bytes are the caller's to delete afterwards."""
        with available(), self._redis.pipeline() as pipe:
            pipe.delete(keys.file(record.id))
            pipe.zrem(keys.org_index(record.org, "files"), record.id)
            pipe.execute()

    def remove_expired(self, delete: Callable[[str], None]) -> None:
        """Forget the files past their expiry, each after `delete` has removed its storage path."""
        with available():
            expired: list[str] = self._redis.zrangebyscore(keys.EXPIRING, "-inf", time.time())
        for member in expired:
            file_id, org = member.split(" ", maxsplit=1)
            delete(_path(file_id))
            with available(), self._redis.pipeline() as pipe:
                pipe.zrem(keys.EXPIRING, member)
                pipe.zrem(keys.org_index(org, "files"), file_id)
                pipe.execute()


def _path(file_id: str) -> str:
    return f"files/{file_id}"
