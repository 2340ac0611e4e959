"""The one seam to where artefacts live: a folder by default, object storage by URL.

Files are written aside, made durable and renamed, so that a path either holds a whole file or none.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.contract.errors import Unavailable


class Storage:
    """Whole files and folders under one root, named by relative paths that no client chooses."""

    def __init__(self, url: str) -> None:
        self._fs: fsspec.AbstractFileSystem
        self._fs, self._root = url_to_fs(url)
        self._local = isinstance(self._fs, LocalFileSystem)

    @contextmanager
    def write(self, path: str) -> Iterator[IO[bytes]]:
        """Write a file; it appears at `path` when the block ends, and not at all if it raises."""
        target = self._full(path)
        aside = f"{target}.{uuid4().hex}.part"
        with _as_unavailable():
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        try:
            with _as_unavailable(), self._fs.open(aside, "wb") as stream:
                yield stream
                if self._local:
                    stream.flush()
                    os.fsync(stream.fileno())
            with _as_unavailable():
                self._rename(aside, target)
        except BaseException:
            if self._fs.exists(aside):
                self._fs.rm_file(aside)
            raise

    @contextmanager
    def read(self, path: str) -> Iterator[IO[bytes]]:
        """Open a whole file for reading."""
        with _as_unavailable(), self._fs.open(self._full(path), "rb") as stream:
            yield stream

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        with _as_unavailable():
            return bool(self._fs.exists(self._full(path)))

    def children(self, path: str) -> list[str]:
        """Paths of what is in a folder, half-written parts included; none where it is absent."""
        with _as_unavailable():
            if not self._fs.exists(self._full(path)):
                return []
            found: list[str] = self._fs.ls(self._full(path), detail=False)
        return [f"{path}/{name.rstrip('/').rsplit('/', 1)[-1]}" for name in found]

    def delete(self, path: str) -> None:
        """Remove a file or a folder; absent is fine."""
        with _as_unavailable():
            if self._fs.exists(self._full(path)):
                self._fs.rm(self._full(path), recursive=True)

    def put_tree(self, folder: Path, path: str) -> None:
        """Publish a local folder at `path` in one rename; a local storage takes it over by moving.

        Raises:
            Unavailable: Where the storage does not answer; the local folder is then kept.
        """
        target = self._full(path)
        with _as_unavailable():
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            aside = f"{target}.{uuid4().hex}.part"
            if self._local:
                shutil.move(folder, aside)
                _sync_tree(Path(aside))
            else:
                self._fs.put(str(folder), aside, recursive=True)
            self._rename(aside, target)

    def fetch(self, path: str, into: Path) -> Path:
        """A local path with the contents of `path`: itself on local storage, else a copy in `into`."""
        source = self._full(path)
        if self._local:
            return Path(source)
        target = into / path
        with _as_unavailable():
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get(source, str(target), recursive=self._fs.isdir(source))
        return target

    def check(self) -> None:
        """Prove that the storage can be written to.

        Raises:
            Unavailable: Where it cannot.
        """
        probe = f".probe-{uuid4().hex}"
        with self.write(probe) as stream:
            stream.write(b"ok")
        self.delete(probe)

    def _full(self, path: str) -> str:
        assert not path.startswith("/"), path
        assert ".." not in path.split("/"), path
        return f"{self._root}/{path}"

    def _rename(self, source: str, target: str) -> None:
        if self._local:
            Path(source).rename(target)
            _sync_folder(Path(target).parent)
        else:
            self._fs.mv(source, target, recursive=True)


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """Turn an operating system's error (disk full, mount gone, network) into ours."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(f"The storage does not answer: {error.strerror or error}.") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Make every file below `folder` durable."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    _sync_folder(folder)
