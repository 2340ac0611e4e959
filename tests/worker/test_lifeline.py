import os
import subprocess
import sys

from worker import lifeline

SHIM = [sys.executable, "-IS", lifeline.__file__]


def test_it_becomes_the_command() -> None:
    done = subprocess.run(
        [*SHIM, str(os.getpid()), "sh", "-c", "echo $PPID"], stdout=subprocess.PIPE, check=True
    )
    assert int(done.stdout) == os.getpid()


def test_it_does_not_start_for_a_parent_that_is_gone() -> None:
    done = subprocess.run([*SHIM, "1", "echo", "started"], capture_output=True, check=False)
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"parent 1 is gone" in done.stderr
