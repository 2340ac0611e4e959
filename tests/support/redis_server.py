"""A real redis-server for tests: durable, on a free port, to be stopped and started at will."""

import signal
import socket
import subprocess
import time
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.redis_server import executable

_START_S = 20.0
_TRIES = 3


class RedisServer:
    """A redis-server with an append-only file in `folder`; it keeps its port over a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        for _ in range(_TRIES - 1):
            self.port = _free_port()
            try:
                self.start()
            except RuntimeError:  # somebody took the port between our look and the start
                continue
            return
        self.port = _free_port()
        self.start()

    @property
    def url(self) -> str:
        """Where it listens; a test that wants no neighbours has the server to itself anyway."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until the append-only file is loaded."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        log = self._folder / "redis.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [executable(), *arguments], stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server does not start: {log.read_text()[-500:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it as a system shutdown does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang: connections stay open, and nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a hang."""
        self._running().send_signal(signal.SIGCONT)

    def _end(self, sign: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(sign)
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not started"
        return self._process

    def _answers(self) -> bool:
        with Redis(port=self.port) as redis:
            try:
                return bool(redis.ping()) and self._is_ours(redis)
            except RedisConnectionError:
                return False

    def _is_ours(self, redis: Redis) -> bool:
        """Whether it is not somebody else's, who was given the same port."""
        return int(redis.info("server")["process_id"]) == self._running().pid


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
