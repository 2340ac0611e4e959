"""The embedded stack: Redis, the API and two workers as children of one process.

    with Stack(StackOptions(data=Path("headroom-data"))) as stack:
        ...  # stack.url answers, and workers take jobs
        stack.mend()

Everything that lasts is in the data folder: the append-only file of Redis, uploads, checkpoints,
models and logs. Leaving the block, or losing this process, ends every part.
"""

import fcntl
import json
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from service.auth import check_exposure, check_keys
from service.contract.queue import make_celery
from service.part import Part, PartFailed
from service.redis_server import RedisServer, start_redis

_READY_S = 60.0
_STOP_S = 20.0
_PING_S = 1.0
# A part that dies this often within the window has a cause that no restart mends.
_MAX_STARTS, _WINDOW_S = 5, 60.0
_PAUSE_S = 1.0

Notice = Callable[[str], None]


class StackError(Exception):
    """The stack cannot start or go on, for a reason that the user can see to."""


@dataclass(frozen=True)
class StackOptions:
    """What to start, and where.

    Attributes:
        data: The folder for all that lasts; made where it is absent.
        host: The address that the API binds.
        port: Its port; 0 takes a free one.
        model_folders: Folders whose subfolders may be fine-tuned, beside `data/models`.
        hub_models: Patterns of hub ids that may be fine-tuned.
        api_keys: File with hashed API keys; without one the API binds to loopback only.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 0
    model_folders: tuple[Path, ...] = ()
    hub_models: tuple[str, ...] = ()
    api_keys: Path | None = None


class Stack:
    """The running parts of one data folder."""

    def __init__(self, options: StackOptions, notice: Notice = lambda _: None) -> None:
        """Prepare to start; `notice` is told, in a line, what becomes of the parts."""
        self._options = options
        self._notice = notice
        self._data = options.data.resolve()
        self._parts: list[Part] = []
        self._resources = ExitStack()
        self.url = ""

    @property
    def model_folders(self) -> list[Path]:
        """The folders whose subfolders may be fine-tuned: that of the data, then those given."""
        folders = (self._data / "models", *self._options.model_folders)
        return list(dict.fromkeys(each.resolve() for each in folders))

    @property
    def logs(self) -> Path:
        """Where every part writes its log."""
        return self._data / "logs"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:  # a signal, too: no part may outlive a start that failed
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def mend(self) -> None:
        """Start again what has ended; to be called now and then.

        Raises:
            PartFailed: A part keeps dying.
        """
        now = time.monotonic()
        for part in self._parts:
            if part.running or now - part.starts[-1] < _PAUSE_S:
                continue
            if len([start for start in part.starts if now - start < _WINDOW_S]) >= _MAX_STARTS:
                raise PartFailed(f"{part.name} keeps dying. {part.last_words()}")
            self._notice(f"{part.name} ended unexpectedly and is started again; see {part.log}.")
            part.start()

    def _start(self) -> None:
        check_exposure(self._options.host, self._options.api_keys)
        check_keys(self._options.api_keys)
        own, *given = self.model_folders
        _check_folders(given)
        for folder in (own, self.logs, self._data / "work"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        listener = self._listen()
        redis = start_redis(self._data / "redis", self.logs / "redis.log")
        self._parts.append(redis.part)
        self._notice("Redis is ready.")
        environment = self._environment(redis)
        api = Part(
            "The API",
            [sys.executable, "-m", "service", "--fd", str(listener.fileno())],
            environment,
            self.logs / "api.log",
            inherited=[listener.fileno()],
        )
        workers = [
            Part(
                f"The {queue} worker",
                [sys.executable, "-m", "worker", "--queues", queue],
                environment,
                self.logs / f"worker-{queue}.log",
            )
            for queue in ("validate", "train")
        ]
        for part in (api, *workers):
            self._parts.append(part)
            part.start()
        api.wait_until(self._api_is_ready, _READY_S)
        self._notice("The API is ready.")
        self._wait_for(workers, redis)
        self._notice("The workers are ready.")

    def _stop(self) -> None:
        """End the workers first, so that they can give their jobs back; Redis last."""
        for worker in self._parts[2:]:
            worker.terminate()
        for part in reversed(self._parts):
            part.terminate()
            part.join(_STOP_S)
        self._parts.clear()
        self._resources.close()

    def _lock(self) -> None:
        """Keep a second stack off this data folder, for as long as this process lives."""
        lock = self._resources.enter_context((self._data / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(f"Another Headroom runs on {self._data}.") from error

    def _listen(self) -> socket.socket:
        """The API's socket: held here, it keeps its port and its callers over a restart."""
        host, port = self._options.host, self._options.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            raise StackError(f"Cannot listen on {host}:{port}: {error.strerror}.") from error
        self._resources.enter_context(listener)
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
        self.url = f"http://{shown}:{listener.getsockname()[1]}"
        return listener

    def _environment(self, redis: RedisServer) -> dict[str, str]:
        """The settings of the parts, as `HEADROOM_*` variables."""
        values = {
            "REDIS_URL": redis.url,
            "REDIS_PASSWORD_FILE": str(redis.password_file),
            "STORAGE_URL": str(self._data / "storage"),
            "WORK_DIR": str(self._data / "work"),
            "MODEL_FOLDERS": json.dumps([str(folder) for folder in self.model_folders]),
            "HUB_MODELS": json.dumps(self._options.hub_models),
        }
        if self._options.api_keys is not None:
            values["API_KEYS_FILE"] = str(self._options.api_keys.resolve())
        return {f"HEADROOM_{name}": value for name, value in values.items()}

    def _api_is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=_PING_S).is_success
        except httpx.TransportError:
            return False

    def _wait_for(self, workers: list[Part], redis: RedisServer) -> None:
        with make_celery(redis.settings) as app:

            def all_answer() -> bool:
                replies = app.control.ping(timeout=_PING_S, limit=len(workers))
                return len(replies) == len(workers)

            for worker in workers:
                worker.wait_until(all_answer, _READY_S)


def _check_folders(folders: list[Path]) -> None:
    for folder in folders:
        if not folder.is_dir():
            raise StackError(f"There is no folder {folder}, which was given for models.")
