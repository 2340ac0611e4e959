"""The use cases of files and models: upload, stream, delete."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from itertools import chain
from typing import IO

from service import datasets
from service.contract.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unavailable
from service.contract.files import PREFIX, FileRecord
from service.contract.job import new_id
from service.contract.models import ModelRecord
from service.contract.storage import Storage
from service.deps import Services

_CHUNK_BYTES = 2**20
_MAX_NAME_CHARS = 255


def upload(
    services: Services, org: str, stream: IO[bytes], filename: str, expires_after_s: int | None
) -> FileRecord:
    """Check a training file, store it, and record it: in this order, so that it is whole.

    Args:
        services: The running app's.
        org: Whose file it is.
        stream: The bytes, seekable.
        filename: What the caller calls it; it is remembered, and never a path here.
        expires_after_s: Seconds after which it is gone, or None.

    Raises:
        InvalidDataset: It has faults.
        TooLarge: It is over the limit.
        Unavailable: The storage or Redis does not answer; nothing is left behind.
    """
    size = _checked_size(stream, services.settings.max_file_bytes)
    dataset = datasets.check(stream)
    stream.seek(0)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type] # reads
    now = int(time.time())
    record = FileRecord(
        id=new_id(PREFIX),
        org=org,
        bytes=size,
        created_at=now,
        filename=filename[-_MAX_NAME_CHARS:],
        purpose="fine-tune",
        format=dataset.format,
        rows=dataset.rows,
        longest_row_bytes=dataset.longest_row_bytes,
        sha256=digest,
        expires_at=None if expires_after_s is None else now + expires_after_s,
    )
    stream.seek(0)
    with services.storage.write(record.path) as target:
        shutil.copyfileobj(stream, target, _CHUNK_BYTES)
    try:
        services.files.add(record)
    except Unavailable:
        services.storage.delete(record.path)
        raise
    return record


def delete_file(services: Services, org: str, file_id: str) -> None:
    """Forget a file, then its bytes.

    Raises:
        NotFound: No such file, or another organization's.
        Conflict: A job that has not ended needs it.
    """
    record = services.files.get(org, file_id)
    services.files.remove(record, lambda: _check_unused(services, "File", record.id, record.id))
    services.storage.delete(record.path)


def delete_model(services: Services, org: str, model_id: str) -> None:
    """Forget a fine-tuned model, then its folder.

    Raises:
        InvalidRequest: It is a base model.
        NotFound: No such model, or another organization's.
        Conflict: A job that has not ended needs it, or an adapter, which is nothing without it.
    """
    _check_no_base(services, model_id, "deleted", code="model_not_deletable")
    record = services.models.get(org, model_id)

    def check() -> None:
        _check_unused(services, "Model", record.id, record.id, record.job_id)
        _check_no_adapter(services, record)

    services.models.remove(record, check)
    services.storage.delete(record.path)


def downloadable_model(services: Services, org: str, model_id: str) -> ModelRecord:
    """A fine-tuned model, whose files are here.

    Raises:
        InvalidRequest: It is a base model.
        NotFound: No such model, or another organization's.
    """
    _check_no_base(services, model_id, "downloaded", code="model_not_downloadable")
    return services.models.get(org, model_id)


def stream_file(services: Services, record: FileRecord) -> Iterator[bytes]:
    """The bytes of a file, a portion at a time."""
    return _stream(services.storage, record.path)


def stream_model_file(
    services: Services, record: ModelRecord, name: str
) -> tuple[int, Iterator[bytes]]:
    """The size and the bytes of one file of a model, which its record must name.

    Raises:
        NotFound: The model has no such file.
    """
    file = next((file for file in record.files if file.name == name), None)
    if file is None:
        raise NotFound(
            f"Model {record.id} has no file {name}.", code="model_file_not_found", param="name"
        )
    return file.bytes, _stream(services.storage, f"{record.path}/{file.name}")


def _stream(storage: Storage, path: str) -> Iterator[bytes]:
    """The bytes of a path, which is open on return: that it is not there is known before."""

    def portions() -> Iterator[bytes]:
        with storage.read(path) as file:
            while portion := file.read(_CHUNK_BYTES):
                yield portion

    opened = portions()
    return chain([next(opened, b"")], opened)


def _checked_size(stream: IO[bytes], limit: int) -> int:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size > limit:
        raise TooLarge(f"The file has {size:,} bytes; the limit is {limit:,}.", param="file")
    return size


def _check_no_base(services: Services, model_id: str, what: str, *, code: str) -> None:
    if services.base_models.source(model_id) is not None:
        raise InvalidRequest(
            f"{model_id} is a base model; only fine-tuned models can be {what}.",
            code=code,
            param="model",
        )


def _check_unused(services: Services, kind: str, name: str, *ids: str) -> None:
    if users := services.store.users(*ids):
        raise Conflict(
            f"{kind} {name} is needed by job {users[0].id}, which is {users[0].status}.",
            code=f"{kind.lower()}_in_use",
        )


def _check_no_adapter(services: Services, record: ModelRecord) -> None:
    if adapters := services.models.adapters(record.id):
        more = f" and {len(adapters) - 1} more" if len(adapters) > 1 else ""
        raise Conflict(
            f"Model {record.id} is the base of adapter {adapters[0]}{more}; delete that first.",
            code="model_in_use",
        )
