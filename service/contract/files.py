"""Records of uploaded and result files; their bytes are in the storage."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict
from redis import Redis

from service.contract import index, keys
from service.contract.commands import Pipe, typed
from service.contract.connection import available
from service.contract.errors import NotFound
from service.contract.index import Page
from service.contract.removal import remove
from service.contract.spec import DataFormat, Purpose

PREFIX = "file-"
_EXPIRED_AT_ONCE = 100


class FileRecord(BaseModel):
    """A file that is whole in the storage.

    Attributes:
        rows: Training examples, for a checked training file.
        longest_row_bytes: Bytes of its longest line.
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
    longest_row_bytes: int | None = None
    sha256: str
    expires_at: int | None = None

    @property
    def path(self) -> str:
        """Where the storage keeps the bytes."""
        return _path(self.id)


class Files:
    """The file records of every organization."""

    def __init__(self, redis: Redis) -> None:
        self._redis = typed(redis)

    def add(self, record: FileRecord) -> None:
        """Record a file whose bytes are already whole in the storage."""
        with available(), self._redis.pipeline() as pipe:
            self.write(pipe, record)
            pipe.execute()

    @staticmethod
    def write(pipe: Pipe, record: FileRecord) -> None:
        """Queue the record on a pipeline, so that it appears with the change that names it."""
        pipe.set(keys.file(record.id), record.model_dump_json(), exat=record.expires_at)
        index.add(pipe, keys.org_index(record.org, "files"), record.id)
        if record.expires_at is not None:
            pipe.zadd(keys.EXPIRING, {_expiring(record.org, record.id): record.expires_at})

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
        self,
        org: str,
        *,
        after: str | None,
        limit: int,
        ascending: bool,
        purpose: str | None = None,
        sha256: str | None = None,
    ) -> Page[FileRecord]:
        """Files of `org` behind the cursor `after`, in order of creation.

        Args:
            org: Whose files.
            after: The id that the page before ended with, or None for the first page.
            limit: The most files of the page.
            ascending: Oldest first.
            purpose: Only files of this purpose.
            sha256: Only files with this hash, in hex.

        Raises:
            InvalidRequest: The cursor is not a file's id.
        """

        def load(ids: list[str]) -> list[FileRecord]:
            with available():
                raws = self._redis.mget([keys.file(id_) for id_ in ids])
            records = [FileRecord.model_validate_json(raw) for raw in raws if raw]
            return [
                record
                for record in records
                if purpose in {None, record.purpose} and sha256 in {None, record.sha256}
            ]

        index.check_cursor(after, PREFIX)
        key = keys.org_index(org, "files")
        return index.page(self._redis, key, load, after=after, limit=limit, ascending=ascending)

    def remove(self, record: FileRecord, check: Callable[[], None] | None = None) -> None:
        """Forget a file; its bytes are the caller's to delete afterwards.

        Args:
            record: The file.
            check: Raises where a job needs it; called again where a job came in between.
        """
        remove(
            self._redis,
            lambda pipe: self._erase(pipe, record.org, record.id),
            keys.users(record.id),
            check=check,
        )

    def remove_expired(self, delete: Callable[[str], None]) -> None:
        """Forget some of the files past their expiry, each after `delete` got its storage path.

        Expiry goes by the clock of Redis, as that of the records does.
        """
        with available():
            now, _ = self._redis.time()
            expired = self._redis.zrangebyscore(
                keys.EXPIRING, "-inf", now, start=0, num=_EXPIRED_AT_ONCE
            )
        for member in expired:
            file_id, org = member.split(" ", maxsplit=1)
            delete(_path(file_id))
            with available(), self._redis.pipeline() as pipe:
                self._erase(pipe, org, file_id)
                pipe.execute()

    @staticmethod
    def _erase(pipe: Pipe, org: str, file_id: str) -> None:
        """Queue the removal of a record on a pipeline."""
        pipe.delete(keys.file(file_id))
        pipe.zrem(keys.org_index(org, "files"), file_id)
        pipe.zrem(keys.EXPIRING, _expiring(org, file_id))


def _path(file_id: str) -> str:
    return f"files/{file_id}"


def _expiring(org: str, file_id: str) -> str:
    """The member of `keys.EXPIRING`: an id holds no space, an organization's name may."""
    return f"{file_id} {org}"
