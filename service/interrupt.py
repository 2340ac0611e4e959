"""Ctrl-C and SIGTERM as one exception, so that every `with` block ends what it started."""

import signal
from types import FrameType


class Interrupted(SystemExit):
    """The user or the system asked the program to end; its code is the shell's, 128 + signal."""


def raise_on_signals() -> None:
    """Make the first SIGINT or SIGTERM raise `Interrupted`; later ones find the end under way."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise)


def _raise(number: int, _: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(128 + number)
