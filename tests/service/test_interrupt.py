"""Signals as one exception, in a process of its own: they would end the tests otherwise."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PROGRAM = """
import signal, sys, time
from service.interrupt import Interrupted, raise_on_signals

raise_on_signals()
try:
    print("ready", flush=True)
    time.sleep(60)
except Interrupted:
    print("ending", flush=True)
    sys.stdin.readline()  # a long end, in which more signals come
    raise
finally:
    print("ended", flush=True)
"""


# Also where the tests themselves are to outlive their terminal.
HEED_HANG_UPS = ("env", "--default-signal=HUP")


@contextmanager
def _program(*prefix: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_every_block_and_the_next_do_not_disturb_it(
    first: signal.Signals,
) -> None:
    with _program(*HEED_HANG_UPS) as process:
        process.send_signal(first)
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        for later in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(later)
        told, errors = process.communicate("go on\n", timeout=30)
    assert (told, errors) == ("ended\n", "")
    assert process.returncode == 128 + first


def test_a_program_that_is_to_outlive_its_terminal_does() -> None:
    with _program("nohup") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"
        process.communicate("go on\n", timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
