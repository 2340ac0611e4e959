"""The training files of a command: named by an id, found on the server by their bytes, or uploaded.

A file that is there already is taken again. That leaves one copy of it however many commands are
given it, and an estimate is exact once a job has tokenized that copy.
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from service.client import ApiError, Away, Client


class Uploads:
    """The files of one request; where it is refused, its own uploads are deleted again.

    with Uploads(client) as uploads:
        client.create({"training_file": uploads.id_of(path), ...})
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._made: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Where the server has gone away, the request may have got through.
        if not isinstance(error, ApiError) or isinstance(error, Away):
            return
        for file_id in self._made:
            # Somebody's job may have found the file here meanwhile: then it stays.
            with suppress(ApiError):
                self._client.delete_file(file_id)

    def sha256_of(self, file: Path | str) -> str:
        """The hash of a file's bytes, in hex, here or on the server."""
        if isinstance(file, str):
            return self._client.sha256(file)
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def id_of(self, file: Path | str) -> str:
        """The id of a file that is given as a path, or as an id."""
        if isinstance(file, str):
            return file
        found = self._client.same_file(self.sha256_of(file))
        if found is not None:
            return found
        self._made.append(self._client.upload(file))
        return self._made[-1]
