import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.part import Part, PartFailed
from tests.worker.support import alive, until

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
DEAF_PROGRAM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
DEAF = [sys.executable, "-c", DEAF_PROGRAM]


def _part(tmp_path: Path, command: list[str]) -> Part:
    return Part("The part", command, {"MARK": "x"}, tmp_path / "part.log")


def _up(part: Part) -> Part:
    part.start()
    part.wait_until(lambda: "up" in part.log.read_text(), timeout_s=10)
    return part


def test_a_part_ends_when_asked(tmp_path: Path) -> None:
    part = _up(_part(tmp_path, SLEEP))
    assert part.running
    part.terminate()
    part.join(timeout_s=5)
    assert not part.running


def test_a_deaf_part_is_killed(tmp_path: Path) -> None:
    part = _up(_part(tmp_path, DEAF))
    part.terminate()
    start = time.monotonic()
    part.join(timeout_s=0.3)
    assert not part.running
    assert time.monotonic() - start < 3


def test_a_part_that_ends_while_starting_says_why(tmp_path: Path) -> None:
    part = _part(tmp_path, [sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"])
    part.start()
    with pytest.raises(PartFailed, match="no such luck"):
        part.wait_until(lambda: False, timeout_s=10)


def test_a_part_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    part = _up(_part(tmp_path, SLEEP))
    with pytest.raises(PartFailed, match=r"not ready within 0 s"):
        part.wait_until(lambda: False, timeout_s=0.1)
    part.terminate()
    part.join(timeout_s=5)


def test_a_part_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    program = (
        "import os, sys, time; from pathlib import Path; from service.part import Part;"
        f"command = [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True);"
        "time.sleep(600)'];"
        f"Part('The part', command, {{}}, Path({str(log)!r})).start(); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        pid = int(until(lambda: log.exists() and log.read_text().strip()))
        assert alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
    until(lambda: not alive(pid), what="the part to die")
