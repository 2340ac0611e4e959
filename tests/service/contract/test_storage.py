"""The storage: whole files or none, in a folder and on object storage."""

import signal
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest

from service.contract.errors import NotFound, Unavailable
from service.contract.storage import Storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture(params=["folder", "objects"])
def storage(request: pytest.FixtureRequest, folder: Path) -> Storage:
    url = str(folder) if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
    return Storage(url)


def put(storage: Storage, path: str, content: bytes) -> None:
    with storage.write(path) as stream:
        stream.write(content)


def put_half(storage: Storage, path: str) -> None:
    with storage.write(path) as stream:
        stream.write(b"half")
        raise KeyError


def content(storage: Storage, path: str) -> bytes:
    with storage.read(path) as stream:
        return stream.read()


def tree(folder: Path, **files: str) -> Path:
    """A folder with the files, one in a folder of its own."""
    (folder / "nested").mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "nested" / "deep").write_text("deep")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_there_when_its_block_ends(storage: Storage) -> None:
    with storage.write("files/a") as stream:
        stream.write(b"one")
        assert not storage.exists("files/a")
    assert content(storage, "files/a") == b"one"
    put(storage, "files/a", b"two")
    assert content(storage, "files/a") == b"two"
    assert storage.children("files") == ["files/a"]


def test_a_block_that_raises_leaves_nothing(storage: Storage) -> None:
    put(storage, "files/old", b"old")
    for path in ("files/a", "files/old"):
        with pytest.raises(KeyError):
            put_half(storage, path)
    assert not storage.exists("files/a")
    assert content(storage, "files/old") == b"old"
    assert storage.children("files") == ["files/old"]


@pytest.mark.parametrize("path", ["files/none", "none/none"])
def test_what_is_not_there_is_not_found(storage: Storage, tmp_path: Path, path: str) -> None:
    put(storage, "files/a", b"one")
    with pytest.raises(NotFound) as caught:
        content(storage, path)
    assert caught.value.code == "content_not_found"
    with pytest.raises(NotFound):
        storage.fetch(path, tmp_path)
    assert storage.children(path) == []
    assert not storage.exists(path)
    storage.delete(path)


def test_a_tree_appears_as_a_whole(storage: Storage, tmp_path: Path) -> None:
    storage.put_tree(tree(tmp_path / "made", a="1", b="2"), "models/job/1")
    assert storage.children("models/job") == ["models/job/1"]
    assert storage.children("models/job/1") == [f"models/job/1/{n}" for n in ("a", "b", "nested")]
    assert content(storage, "models/job/1/nested/deep") == b"deep"


def test_a_tree_replaces_what_a_crash_left(storage: Storage, tmp_path: Path) -> None:
    storage.put_tree(tree(tmp_path / "one", a="1", left="x"), "models/job/1")
    storage.put_tree(tree(tmp_path / "two", a="2"), "models/job/1")
    fetched = storage.fetch("models/job/1", tmp_path / "fetched")
    assert names(fetched) == ["a", "nested/deep"]
    assert (fetched / "a").read_text() == "2"
    assert storage.children("models/job") == ["models/job/1"]


def test_what_is_fetched_is_a_local_copy_or_itself(storage: Storage, tmp_path: Path) -> None:
    put(storage, "files/a", b"one")
    storage.put_tree(tree(tmp_path / "made", a="1"), "models/m")
    assert storage.fetch("files/a", tmp_path / "into").read_bytes() == b"one"
    for _ in range(2):  # a second time over the first
        assert names(storage.fetch("models/m", tmp_path / "into")) == ["a", "nested/deep"]


def test_a_file_and_a_tree_can_be_deleted(storage: Storage, tmp_path: Path) -> None:
    put(storage, "files/a", b"one")
    storage.put_tree(tree(tmp_path / "made", a="1"), "models/m")
    for path in ("files/a", "models/m", "models/m"):
        storage.delete(path)
        assert not storage.exists(path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "files/../../x"])
def test_no_path_leads_out(storage: Storage, path: str) -> None:
    with pytest.raises(AssertionError):
        storage.exists(path)


def test_the_check_leaves_nothing_behind(storage: Storage, folder: Path) -> None:
    storage.check()
    assert not folder.exists() or names(folder) == []


# What only a folder can suffer

WRITE_HALF = """
import sys, time
from service.contract.storage import Storage
with Storage(sys.argv[1]).write("files/a") as stream:
    stream.write(b"half" * 100_000)
    stream.flush()
    print("half", flush=True)
    time.sleep(60)
"""
FILL_THE_DISK = """
import resource, signal, sys
from pathlib import Path
from service.contract.errors import Unavailable
from service.contract.storage import Storage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with Storage(sys.argv[1]).write("files/a") as stream:
        stream.write(b"x" * 200_000)
except Unavailable as error:
    print(error)
"""


def test_a_process_that_is_killed_in_the_middle_leaves_nothing_at_the_path(folder: Path) -> None:
    command = [sys.executable, "-c", WRITE_HALF, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    storage = Storage(str(folder))
    assert not storage.exists("files/a")
    (part,) = storage.children("files")  # for a sweep to see, under a name that no record has
    assert part.endswith(".part")
    put(storage, "files/a", b"whole")
    assert content(storage, "files/a") == b"whole"


def test_a_full_disk_is_unavailable_and_leaves_nothing(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("The storage does not answer: File too large")
    assert names(folder) == []


def test_a_storage_that_is_not_a_folder_is_unavailable(folder: Path, tmp_path: Path) -> None:
    folder.write_text("in the way")
    storage = Storage(str(folder))
    for use in (
        storage.check,
        lambda: put(storage, "files/a", b""),
        lambda: storage.put_tree(tree(tmp_path / "made"), "models/m"),
    ):
        with pytest.raises(Unavailable):
            use()


def test_a_storage_that_is_not_mounted_is_unavailable(folder: Path, tmp_path: Path) -> None:
    storage = Storage(str(folder))
    with pytest.raises(Unavailable, match="mounted"):
        content(storage, "files/a")
    with pytest.raises(Unavailable, match="mounted"):
        storage.fetch("files/a", tmp_path)
    with pytest.raises(Unavailable, match="mounted"):
        storage.children("files")


def test_a_tree_from_another_disk_arrives_whole(folder: Path, tmp_path: Path) -> None:
    shm = Path("/dev/shm") / f"headroom-test-{uuid.uuid4().hex}"  # noqa: S108 -- another disk
    try:
        made = tree(shm, a="1")
        assert shm.stat().st_dev != tmp_path.stat().st_dev
        Storage(str(folder)).put_tree(made, "models/m")
    finally:
        subprocess.run(["rm", "-rf", str(shm)], check=True)
    assert names(folder) == ["models/m/a", "models/m/nested/deep"]


def test_a_relative_folder_is_that_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("data/storage")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    put(storage, "files/a", b"one")
    assert names(tmp_path) == ["data/storage/files/a"]


# What only object storage can do


def test_two_processes_may_see_each_others_objects(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    writer, reader = Storage(f"memory://{name}"), Storage(f"memory://{name}/")
    assert reader.children("files") == []
    put(writer, "files/a", b"one")
    assert content(reader, "files/a") == b"one"
    assert fsspec.filesystem("memory").exists(f"/{name}/files/a")


def test_an_upload_needs_no_second_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    memory = fsspec.filesystem("memory")
    for method in ("copy", "cp_file", "mv"):
        monkeypatch.setattr(type(memory), method, lambda *_, **__: pytest.fail("copied"))
    put(storage, "files/a", b"one")
    storage.put_tree(tree(tmp_path / "made", a="1"), "models/m")
