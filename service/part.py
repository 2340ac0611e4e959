"""One part of the embedded stack: a program of its own, with a log, that can be started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_POLL_S = 0.05
_TAIL_BYTES, _TAIL_LINES = 8192, 12


def guarded(command: Sequence[str]) -> list[str]:
    """The command that runs `command` in such a way that it dies with this process."""
    # Not imported: the service knows of the workers' programs by name alone.
    return [sys.executable, "-m", "worker.lifeline", str(os.getpid()), *command]


class PartFailed(Exception):
    """A part of the stack does not start, or keeps dying; its log's last lines say why."""


@dataclass
class Part:
    """A program that dies with this process, whatever kills it.

    It leads a process group of its own, so that a Ctrl-C in the terminal reaches this process
    alone, which then ends the parts in order.

    Attributes:
        name: What to call it.
        command: The program and its arguments.
        environment: Variables it gets beside this process's own.
        log: Where its output goes; every start appends.
        inherited: File descriptors it gets.
        starts: When it was started, in seconds of the monotonic clock.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    inherited: Sequence[int] = ()
    starts: list[float] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, from a thread that outlives it: the death signal follows the thread."""
        self.starts.append(time.monotonic())
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 -- the stack's own programs
                guarded(self.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                pass_fds=self.inherited,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until the running program is `ready`.

        Raises:
            PartFailed: It ended, or it is not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise PartFailed(f"{self.name} ended while starting. {self.last_words()}")
            if time.monotonic() > deadline:
                raise PartFailed(
                    f"{self.name} was not ready within {timeout_s:.0f} s. {self.last_words()}"
                )
            time.sleep(_POLL_S)

    def terminate(self) -> None:
        """Ask the program to end."""
        if self.running:
            assert self._process is not None
            self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Wait until the program has ended; kill its process group where it is late."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def last_words(self) -> str:
        """The last lines of the log, and where the rest is."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"Its log, {self.log}, ends:", *lines])
