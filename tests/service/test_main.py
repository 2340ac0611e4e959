"""`python -m service`, as a process."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.redis_server import start_redis
from service.settings import ServiceSettings
from tests.support.process import environment, served


def test_it_serves_until_it_is_told_to_stop(
    service_settings: ServiceSettings, tmp_path: Path
) -> None:
    with served(service_settings, tmp_path) as (url, pid):
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert [each["id"] for each in httpx.get(f"{url}/v1/models").json()["data"]] == ["tiny"]
        os.kill(pid, signal.SIGTERM)
    assert "Traceback" not in (tmp_path / "service.log").read_text()


def test_the_head_of_a_request_has_a_limit(
    service_settings: ServiceSettings, tmp_path: Path
) -> None:
    with served(service_settings, tmp_path) as (url, _):
        port = int(url.rpartition(":")[2])
        head = b"GET /healthz HTTP/1.1\r\n" + b"Name: %s\r\n" % (b"a" * 1000) * 20_000
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
            pytest.raises(ConnectionError),
        ):
            connection.sendall(head)
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_it_does_not_serve_other_machines_without_keys(service_settings: ServiceSettings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "--host", "0.0.0.0", "--port", "0"],  # noqa: S104
        env=os.environ | environment(service_settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Without API keys the server binds to loopback only")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", [["service", "--port", "0"], ["worker"]])
def test_it_does_not_start_with_a_password_that_redis_refuses(
    tmp_path: Path, program: list[str]
) -> None:
    server = start_redis(tmp_path / "redis", tmp_path / "log")
    (tmp_path / "wrong").write_text("s3cret")
    settings = ServiceSettings(redis_url=server.url, redis_password_file=tmp_path / "wrong")
    done = subprocess.run(
        [sys.executable, "-m", *program],
        env=os.environ | environment(settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    server.part.terminate()
    server.part.join(10)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"Redis at {server.url} refuses the password in {tmp_path / 'wrong'}: "
    )
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize("program", [["service", "--port", "0"], ["worker"], ["worker", "--ping"]])
def test_it_does_not_start_with_a_password_that_cannot_be_read(
    tmp_path: Path, program: list[str]
) -> None:
    settings = ServiceSettings(redis_password_file=tmp_path / "missing")
    done = subprocess.run(
        [sys.executable, "-m", *program],
        env=os.environ | environment(settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"The password of Redis at {settings.redis_url} cannot be read")
    assert str(tmp_path / "missing") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", [["service", "--port", "0"], ["worker"], ["worker", "--ping"]])
def test_it_does_not_start_with_a_setting_that_cannot_work(program: list[str]) -> None:
    wrong = {"HEADROOM_LEASE_S": "long", "HEADROOM_HUB_MODELS": "Qwen/*"}
    done = subprocess.run(
        [sys.executable, "-m", *program],
        env=os.environ | wrong,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert {line.partition(":")[0] for line in done.stderr.splitlines()} == wrong.keys()


@pytest.mark.parametrize("content", [b"acme:sk-not-a-hash", b"\xff", None])
def test_it_does_not_start_with_a_file_of_keys_that_is_none(
    service_settings: ServiceSettings, tmp_path: Path, content: bytes | None
) -> None:
    keys = tmp_path / "keys"
    if content is not None:
        keys.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "service", "--port", "0"],
        env=os.environ | environment(service_settings) | {"HEADROOM_API_KEYS_FILE": str(keys)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("The API keys cannot be read: ")
    assert "Traceback" not in done.stderr
    assert "sk-not-a-hash" not in done.stderr
