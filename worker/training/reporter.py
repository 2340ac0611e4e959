"""Write typed lines to the supervisor's pipe."""

import os
import time

from service.contract.job import Phase, Progress
from worker.events import Line, ProgressLine

_PROGRESS_S = 0.25


class Reporter:
    """One JSON line an event; progress no more often than a few times a second."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._progress = Progress()
        self._sent_at = 0.0

    def send(self, line: Line) -> None:
        """Write one line, whole."""
        data = line.model_dump_json().encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]

    def phase(self, phase: Phase) -> None:
        """Enter a phase; always sent."""
        self._sent_at = 0.0
        self.progress(phase=phase)

    def progress(self, *, last: bool = False, **values: object) -> None:
        """Change what is known of the progress; sent if enough time has passed, or it is last."""
        self._progress = self._progress.model_copy(update=values)
        if last or time.monotonic() - self._sent_at >= _PROGRESS_S:
            self._sent_at = time.monotonic()
            self.send(ProgressLine(progress=self._progress))
