import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.contract.errors import LostClaim
from tests.worker.support import alive, until
from worker.child import Child
from worker.events import Message

PRELUDE = """
import os, signal, subprocess, sys, time
fd = int(sys.argv[sys.argv.index("--events-fd") + 1])
def say(text):
    os.write(fd, b'{"kind": "message", "message": "%s"}\\n' % str(text).encode())
"""
Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start(code: str, grace_s: float = 5.0) -> Child:
        command = [sys.executable, "-c", PRELUDE + code]
        log = tmp_path / "log"
        return Child(command, log=log, cwd=tmp_path, grace_s=grace_s, environment={"SAID": "so"})

    return start


def read_all(child: Child) -> list[str]:
    messages = []
    while not child.exited:
        messages += [line.message for line in child.read(5.0)]
    return messages


def read_one(child: Child) -> str:
    lines: list[Message] = []
    until(lambda: lines.extend(child.read(0.1)) or lines)
    return lines[0].message


def test_every_line_is_read_also_those_that_are_still_there_at_the_end(start: Start) -> None:
    with start("for number in range(5000): say(number)") as child:
        assert read_all(child) == [str(number) for number in range(5000)]


def test_it_gets_our_environment_and_what_is_added(start: Start) -> None:
    with start("say(os.environ['SAID'] + os.environ['PATH'])") as child:
        assert read_all(child) == ["so" + os.environ["PATH"]]


def test_a_line_that_arrives_in_pieces_is_one_line(start: Start) -> None:
    code = """
os.write(fd, b'{"kind": "message", "mess')
time.sleep(0.3)
os.write(fd, b'age": "whole"}\\n')
"""
    with start(code) as child:
        assert read_all(child) == ["whole"]


def test_a_line_that_is_not_of_the_protocol_is_an_error(start: Start) -> None:
    with (
        start('os.write(fd, b\'{"kind": "gossip"}\\n\')') as child,
        pytest.raises(ValidationError),
    ):
        read_all(child)


def test_a_trainer_that_closes_its_events_early_costs_no_busy_loop(start: Start) -> None:
    with start("os.close(fd); time.sleep(0.5)") as child:
        child.read(5.0)
        began = time.process_time()
        assert read_all(child) == []
        assert time.process_time() - began < 0.2


def test_the_obituary_tells_the_exit_code_and_the_last_words(start: Start) -> None:
    with start("print('a' * 5000); print('no such layer', file=sys.stderr); sys.exit(3)") as child:
        read_all(child)
        text = child.obituary()
    assert "exited with code 3" in text
    assert text.endswith("no such layer")
    assert len(text) < 2200


def test_the_obituary_names_the_signal(start: Start) -> None:
    with start("os.kill(os.getpid(), signal.SIGKILL)") as child:
        read_all(child)
        assert "was killed by SIGKILL" in child.obituary()


def test_leaving_ends_the_trainer_and_its_own_children(start: Start) -> None:
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited: the sleeper is a stubborn one
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
say(sleeper.pid)
time.sleep(60)
"""
    with start(code) as child:
        sleeper = int(read_one(child))
        assert alive(child.pid)
        assert alive(sleeper)
    assert not alive(child.pid)
    until(lambda: not alive(sleeper), 1.0)


def test_children_of_a_trainer_that_has_already_ended_end_too(start: Start) -> None:
    code = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited: the sleeper is a stubborn one
sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
say(sleeper.pid)
"""
    with start(code) as child:
        (sleeper,) = map(int, read_all(child))
        assert alive(sleeper)
    until(lambda: not alive(sleeper), 1.0)


def test_a_trainer_may_end_by_itself_within_the_grace(start: Start, tmp_path: Path) -> None:
    code = """
def leave(*_):
    time.sleep(0.2); open("left", "w"); sys.exit()
signal.signal(signal.SIGTERM, leave)
say("up")
time.sleep(60)
"""
    with start(code) as child:
        read_one(child)
    assert (tmp_path / "left").exists()


STUBBORN = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); say("up"); time.sleep(60)'


def test_a_trainer_that_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    with start(STUBBORN, grace_s=0.3) as child:
        read_one(child)
        began = time.monotonic()
    assert 0.3 <= time.monotonic() - began < 1.5
    assert not alive(child.pid)


def test_a_lost_claim_grants_no_grace(start: Start) -> None:
    child = start(STUBBORN, grace_s=30.0)
    read_one(child)
    began = time.monotonic()
    with pytest.raises(LostClaim), child:
        raise LostClaim("lost")
    assert time.monotonic() - began < 1.5
    assert not alive(child.pid)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_open(start: Start) -> None:
    before = descriptors()
    with start("say(1)") as child:
        read_all(child)
    assert descriptors() == before


SUPERVISOR = """
import sys, time
from pathlib import Path
from worker.child import Child
code = "import time; time.sleep(60)"
here = {"log": Path("log"), "cwd": Path("."), "grace_s": 1, "environment": {}}
child = Child([sys.executable, "-c", code], **here)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_trainer_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    with supervisor:
        trainer = int(supervisor.stdout.readline())
        time.sleep(0.3)  # let it get past the shim
        assert alive(trainer)
        supervisor.send_signal(signal.SIGKILL)
    until(lambda: not alive(trainer), 2.0)
