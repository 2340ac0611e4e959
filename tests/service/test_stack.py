import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.auth import ExposureError
from service.client import Client
from service.part import PartFailed
from service.stack import Stack, StackError, StackOptions
from tests.support.stack import processes_of, write_chat
from tests.worker.support import until

PARTS = ("redis-server", "-m service", "--queues validate", "--queues train")


def _pid(data: Path, part: str) -> int:
    """The process of a part, once it has become its program."""

    return until(lambda: _find(data, part), what=part)


def _find(data: Path, part: str) -> int | None:
    found = processes_of(data).items()
    return next((pid for pid, line in found if part in line and "lifeline" not in line), None)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with Stack(StackOptions(tmp_path)) as stack:
        yield stack


def test_every_part_runs_and_none_is_left(tmp_path: Path) -> None:
    with Stack(StackOptions(tmp_path)) as stack:
        assert httpx.get(f"{stack.url}/readyz").status_code == 200
        assert len({_pid(tmp_path, part) for part in PARTS}) == len(PARTS)
    assert processes_of(tmp_path) == {}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{stack.url}/readyz")


def test_what_was_recorded_is_there_after_a_restart(tmp_path: Path) -> None:
    with Stack(StackOptions(tmp_path)) as stack, Client(stack.url) as client:
        file_id = client.upload(write_chat(tmp_path / "chat.jsonl"))
    with Stack(StackOptions(tmp_path)) as stack:
        assert httpx.get(f"{stack.url}/v1/files/{file_id}").json()["id"] == file_id


def test_parts_that_die_are_started_again(stack: Stack, tmp_path: Path) -> None:
    for part in PARTS:
        pid = _pid(tmp_path, part)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: pid not in processes_of(tmp_path))

    def mended() -> bool:
        stack.mend()  # again and again, since it lets a part rest before it starts it again
        try:
            ready = httpx.get(f"{stack.url}/readyz", timeout=1).is_success
        except httpx.TransportError:
            return False
        return ready and all(_find(tmp_path, part) for part in PARTS)

    until(mended, timeout_s=60.0, what="the stack to be whole again")


def test_a_part_that_keeps_dying_is_given_up(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.stack._MAX_STARTS", 2)
    monkeypatch.setattr("service.stack._PAUSE_S", 0.0)

    def kill_and_mend() -> None:
        os.kill(_pid(tmp_path, "--queues train"), signal.SIGKILL)
        until(lambda: not all(part.running for part in stack._parts))
        stack.mend()

    kill_and_mend()
    with pytest.raises(PartFailed, match="The train worker keeps dying"):
        kill_and_mend()


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = StackOptions(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(StackError, match="Cannot listen"), Stack(options):
            pytest.fail("it started")
    assert processes_of(tmp_path) == {}


def test_a_folder_of_models_that_is_not_there_is_told(tmp_path: Path) -> None:
    options = StackOptions(tmp_path / "data", model_folders=(tmp_path, tmp_path / "modles"))
    with pytest.raises(StackError, match=r"There is no folder .*modles"), Stack(options):
        pytest.fail("it started")
    assert not (tmp_path / "data").exists()


def test_the_models_of_the_data_may_be_named_before_the_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = StackOptions(tmp_path / "data", model_folders=(Path("data/models"),))
    with Stack(options) as stack:
        assert stack.model_folders == [tmp_path / "data" / "models"]
        assert stack.model_folders[0].is_dir()


def test_one_data_folder_has_one_stack(stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(StackError, match="Another Headroom runs on"), Stack(StackOptions(tmp_path)):
        pytest.fail("it started")
    assert httpx.get(f"{stack.url}/readyz").status_code == 200


@pytest.mark.parametrize("host", ["::", "192.0.2.1", "example.org"])
def test_the_network_is_not_served_without_keys(tmp_path: Path, host: str) -> None:
    with (
        pytest.raises(ExposureError, match="Without API keys"),
        Stack(StackOptions(tmp_path, host)),
    ):
        pytest.fail("it started")
