import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from service.contract.job import Progress
from worker.events import LINE, Line, Message, ProgressLine
from worker.training.reporter import Reporter

Said = Callable[[], list[Line]]


@pytest.fixture
def pipe() -> Iterator[tuple[Reporter, Said]]:
    """A reporter on a real pipe, and what has been said since the last look."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def said() -> list[Line]:
        try:
            data = os.read(reading, 1 << 20)
        except BlockingIOError:
            return []
        return [LINE.validate_json(line) for line in data.splitlines()]

    yield Reporter(writing), said
    os.close(reading)
    os.close(writing)


def test_a_line_is_one_line_whatever_it_says(pipe: tuple[Reporter, Said]) -> None:
    reporter, said = pipe
    lines = [
        Message(message="a\nb\r\u2028 Grüße 🌍", data={"n": [1, None, "x"]}),
        Message(message=""),
    ]
    for line in lines:
        reporter.send(line)
    assert said() == lines


def test_a_line_longer_than_the_pipe_arrives_whole() -> None:
    reading, writing = os.pipe()
    line = Message(message="x" * (1 << 20))
    sender = threading.Thread(target=Reporter(writing).send, args=[line])
    sender.start()
    with os.fdopen(reading, "rb") as stream:
        assert LINE.validate_json(stream.readline()) == line
    sender.join()
    os.close(writing)


def test_progress_is_told_a_few_times_a_second(pipe: tuple[Reporter, Said]) -> None:
    reporter, said = pipe
    reporter.phase("training")
    assert len(said()) == 1
    started = time.monotonic()
    for step in range(1000):
        reporter.progress(step=step)
    assert len(said()) <= 4 * (time.monotonic() - started) + 1
    time.sleep(0.3)
    reporter.progress(step=2000)
    (line,) = said()
    assert line == ProgressLine(progress=Progress(phase="training", step=2000))


def test_a_phase_and_the_last_step_are_told_at_once(pipe: tuple[Reporter, Said]) -> None:
    reporter, said = pipe
    reporter.phase("training")
    reporter.progress(last=True, step=7)
    reporter.phase("saving")
    phases = [(line.progress.phase, line.progress.step) for line in said()]  # type: ignore[union-attr]
    assert phases == [("training", 0), ("training", 7), ("saving", 7)]


def test_what_is_known_stays_known(pipe: tuple[Reporter, Said]) -> None:
    reporter, said = pipe
    reporter.progress(last=True, step=7, train_loss=1.5)
    reporter.progress(last=True, valid_loss=2.5)
    last = said()[-1]
    assert last == ProgressLine(progress=Progress(step=7, train_loss=1.5, valid_loss=2.5))
