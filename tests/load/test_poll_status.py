"""The load script, with few clients and for a moment: it must not be wrong when it is needed."""

import subprocess
import sys
from pathlib import Path

from service.settings import ServiceSettings
from tests.load.polling import MODES, Mode
from tests.support.redis_server import RedisServer
from tests.support.server import serve

CLIENTS = 4


def _measure(*arguments: str) -> tuple[int, dict[Mode, list[int]], str]:
    """Exit code; answers with 200, with 304, and errors of each mode; all that was printed."""
    few = ["--clients", str(CLIENTS), "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.load.poll_status", *few, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    counts = {line[0]: [*map(int, line[4:7])] for line in lines if line[0] in MODES}
    return done.returncode, counts, done.stdout + done.stderr


def test_every_mode_ends_without_an_error() -> None:
    code, counts, output = _measure()
    assert code == 0, output
    full, unchanged, paced = (counts[mode] for mode in MODES)
    assert full[0] > CLIENTS
    assert full[1:] == [0, 0]
    assert unchanged[1] > CLIENTS
    assert (unchanged[0], unchanged[2]) == (0, 0)
    assert sum(paced[:2]) == CLIENTS
    assert paced[0] > 0
    assert paced[2] == 0


def test_an_answer_that_was_not_to_be_expected_fails_the_run(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = ServiceSettings(redis_url=redis_server.url, storage_url=str(tmp_path))
    with serve(settings) as url:
        code, counts, output = _measure("--url", url, "--job", "ftjob-nothing", "--mode", "full")
    assert code == 1, output
    assert counts["full"][0] == 0
    assert counts["full"][2] > CLIENTS
