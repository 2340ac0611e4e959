"""The trainer as a process group of its own: start it, read its events, end all of it."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from service.contract.errors import LostClaim
from worker import lifeline
from worker.events import LINE, Line

_CHUNK_BYTES = 1 << 16
_LOG_TAIL_BYTES = 2000


class Child:
    """A running trainer; leaving the `with` block ends its whole process group.

    The trainer is a session leader, so that its own children can be signalled with it, and it dies
    with this process (see `lifeline`).

    Attributes:
        exited: The trainer has ended, and `read` has returned all that it wrote.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cwd: Path,
        grace_s: float,
        environment: Mapping[str, str],
    ) -> None:
        """Start `command`; it gets the variables of `environment` beside this process's own."""
        self._log = log
        self._grace_s = grace_s
        self._events, inherited = os.pipe()
        os.set_blocking(self._events, False)
        supervised = [sys.executable, "-IS", lifeline.__file__, str(os.getpid()), *command]
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603 -- the configured trainer
                    [*supervised, "--events-fd", str(inherited)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env={**os.environ, **environment},
                    pass_fds=[inherited],
                    start_new_session=True,
                )
        finally:
            os.close(inherited)
        # A descriptor that becomes readable at the end, without reaping: until it is reaped, the
        # process id, and with it the group's, cannot be another process's.
        self._ended = os.pidfd_open(self._process.pid)
        self._poll = select.poll()
        self._poll.register(self._events, select.POLLIN)
        self._poll.register(self._ended, select.POLLIN)
        self._rest = b""
        self._open = True
        self.exited = False

    @property
    def pid(self) -> int:
        """Process id of the trainer, and id of its group."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Another attempt may be running already: there is no time for a grace.
        self._end(grace_s=0 if isinstance(error, LostClaim) else self._grace_s)

    def read(self, timeout_s: float) -> list[Line]:
        """The lines that are there, or that arrive within the timeout.

        Raises:
            ValidationError: A line is none of the protocol's.
        """
        ready = {descriptor for descriptor, _ in self._poll.poll(timeout_s * 1000)}
        self.exited = self._ended in ready
        *whole, self._rest = (self._rest + self._arrived()).split(b"\n")
        return [LINE.validate_json(line) for line in whole]

    def obituary(self) -> str:
        """How an exited trainer ended, and the last lines of its log."""
        status = os.waitid(os.P_PIDFD, self._ended, os.WEXITED | os.WNOWAIT)
        assert status is not None
        if status.si_code == os.CLD_EXITED:
            end = f"exited with code {status.si_status}"
        else:
            end = f"was killed by {signal.Signals(status.si_status).name}"
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _LOG_TAIL_BYTES))
            tail = log.read().decode(errors="replace").strip()
        return f"The trainer {end} before it was done. Its last words: {tail or '(none)'}"

    def _arrived(self) -> bytes:
        """What the pipe holds now."""
        chunks = []
        while self._open:
            try:
                chunk = os.read(self._events, _CHUNK_BYTES)
            except BlockingIOError:
                break
            if not chunk:  # closed by the trainer: stay quiet until it exits
                self._poll.unregister(self._events)
                self._open = False
                break
            chunks.append(chunk)
        return b"".join(chunks)

    def _end(self, grace_s: float) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it when the trainer ends or is late."""
        self._signal(signal.SIGTERM)
        waiting = select.poll()
        waiting.register(self._ended, select.POLLIN)
        waiting.poll(grace_s * 1000)
        self._signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._ended)
        os.close(self._events)

    def _signal(self, number: signal.Signals) -> None:
        # The unreaped leader keeps the group's id ours, even where nobody is left to hear it.
        os.killpg(self._process.pid, number)
