"""The one seam to where artefacts live: a folder by default, object storage by URL.

A path holds a whole file or none. In a folder, bytes are written aside, made durable and renamed;
to object storage a file is sent as one object. A tree is whole in a folder as a file is; in object
storage it arrives file by file, so that a record may name it only after `put_tree` has returned.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.contract.errors import NotFound, Unavailable


class Storage:
    """Whole files and folders under one root, named by relative paths that no client chooses.

    Every method raises `Unavailable` where the storage does not answer, or is full.
    """

    def __init__(self, url: str) -> None:
        self._fs: fsspec.AbstractFileSystem
        self._fs, root = url_to_fs(url)
        self._root: str = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    @contextmanager
    def write(self, path: str) -> Iterator[IO[bytes]]:
        """Write a file; it appears at `path` when the block ends, and not at all if it raises."""
        target = self._full(path)
        with _as_unavailable(), self._aside(target) if self._local else self._sent(target) as file:
            yield file

    @contextmanager
    def read(self, path: str) -> Iterator[IO[bytes]]:
        """Open a whole file for reading.

        Raises:
            NotFound: There is none.
        """
        with _as_unavailable():
            try:
                file = self._fs.open(self._full(path), "rb")
            except FileNotFoundError as error:
                raise self._absent(path) from error
            with file:
                yield file

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        with _as_unavailable():
            return bool(self._fs.exists(self._full(path)))

    def children(self, path: str) -> list[str]:
        """Paths of what is in a folder, half-written parts included; none where it is absent.

        Raises:
            Unavailable: Nor is the folder of the whole storage there.
        """
        self._fs.invalidate_cache()
        with _as_unavailable():
            try:
                found: list[str] = self._fs.ls(self._full(path), detail=False)
            except FileNotFoundError:
                if self._local and not self.exists(""):  # object storage has no empty folders
                    raise self._away() from None
                return []
        return sorted(f"{path}/{name.rstrip('/').rpartition('/')[2]}" for name in found)

    def delete(self, path: str) -> None:
        """Remove a file or a folder; absent is fine."""
        with _as_unavailable(), suppress(FileNotFoundError):
            self._fs.rm(self._full(path), recursive=True)

    def put_tree(self, folder: Path, path: str) -> None:
        """Publish a local folder at `path`, in the place of what a crash may have left there.

        A local storage takes the folder over: it is gone then, also where this fails.
        """
        target = self._full(path)
        with _as_unavailable():
            if self._local:
                _take_over(folder, Path(target))
            else:
                with suppress(FileNotFoundError):
                    self._fs.rm(target, recursive=True)
                self._fs.put(f"{folder}/", f"{target}/", recursive=True)

    def fetch(self, path: str, into: Path) -> Path:
        """A local path with what `path` holds: itself on local storage, else a copy in `into`.

        Raises:
            NotFound: There is nothing.
        """
        if not self.exists(path):
            raise self._absent(path)
        source = self._full(path)
        if self._local:
            return Path(source)
        target = into / path
        with _as_unavailable():
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._fs.isdir(source):
                self._fs.get(f"{source}/", f"{target}/", recursive=True)
            else:
                self._fs.get_file(source, str(target))
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

    def _absent(self, path: str) -> NotFound | Unavailable:
        """What it means that a path is not there: without its root, the storage is away."""
        if self.exists(""):
            return NotFound(f"The storage holds no {path}.", code="content_not_found")
        return self._away()

    @staticmethod
    def _away() -> Unavailable:
        return Unavailable("The storage is not there: is it mounted?")

    @contextmanager
    def _aside(self, target: str) -> Iterator[IO[bytes]]:
        """A file beside `target` that takes its name when it is whole and durable."""
        whole, part = Path(target), _part(Path(target))
        whole.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            part.rename(whole)
            _sync(whole.parent)
        finally:
            with suppress(OSError):  # renamed, or the storage is gone and says so already
                part.unlink()

    @contextmanager
    def _sent(self, target: str) -> Iterator[IO[bytes]]:
        """A local file that is sent to `target` when it is whole."""
        with NamedTemporaryFile() as stream:
            yield stream
            stream.flush()
            self._fs.put_file(stream.name, target)


def _take_over(folder: Path, target: Path) -> None:
    """Move a folder to `target`, durably; what was there is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part, old = _part(target), _part(target)
    try:
        shutil.move(folder, part)
        for path in part.rglob("*"):
            _sync(path)
        _sync(part)
        with suppress(FileNotFoundError):
            target.rename(old)
        part.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _part(path: Path) -> Path:
    """A name beside `path` that nobody else uses."""
    return path.with_name(f"{path.name}.{uuid4().hex}.part")


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """Turn an operating system's error (disk full, mount gone, network) into ours."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"The storage does not answer: {error.strerror or error}.") from error
