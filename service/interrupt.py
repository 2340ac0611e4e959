"""Ctrl-C, SIGTERM and a lost terminal as one exception: every `with` block ends what it started."""

import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SystemExit):
    """The user or the system asked the program to end; its code is the shell's, 128 + signal."""


def raise_on_signals() -> None:
    """Make the first of the signals raise `Interrupted`; later ones find the end under way.

    A SIGHUP that is ignored stays so: the program is to outlive its terminal, as `nohup` has it.
    """
    for number in _SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, _: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(128 + number)
