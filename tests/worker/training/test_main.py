"""The trainer as the supervisor starts it: a process, a spec in a file, lines on a pipe."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from service.contract.errors import JobFailure
from tests.worker.training.support import LONG, chats, make_spec
from worker.events import LINE, Failed, Line, RunSpec
from worker.training import __main__ as program
from worker.training import trainer


def start(spec: RunSpec) -> tuple[int, list[Line]]:
    """The exit code, and what was said."""
    path = spec.workdir / "spec.json"
    path.write_text(spec.model_dump_json())
    reading, writing = os.pipe()
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "worker.training", str(path), "--events-fd", str(writing)],
            pass_fds=[writing],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=False,
        )
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        return ended.returncode, [LINE.validate_json(line) for line in lines]


def test_faults_end_with_a_failed_line_that_lists_them(tiny: Path, tmp_path: Path) -> None:
    code, lines = start(make_spec(tmp_path, tiny, LONG, mode="validate"))
    assert code == 0
    (failed,) = [line for line in lines if isinstance(line, Failed)]
    assert failed is lines[-1]
    assert (failed.code, failed.param) == ("invalid_training_file", "training_file")
    assert failed.data["fault_count"] == 1
    assert failed.data["faults"][0]["line"] == 2


def told(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[Line]:
    """What is said where the work ends with `error`."""

    def fail(*_: object) -> None:
        raise error

    path = spec.workdir / "spec.json"
    path.write_text(spec.model_dump_json())
    events = os.open(spec.workdir / "events", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(trainer, "train", fail)
    monkeypatch.setattr(sys, "argv", ["trainer", str(path), "--events-fd", str(events)])
    try:
        program.main()
    finally:
        os.close(events)
    return [
        LINE.validate_json(line) for line in (spec.workdir / "events").read_bytes().splitlines()
    ]


def test_what_a_user_can_mend_is_a_failed_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = JobFailure("unsupported_model", "No head.", param="model")
    lines = told(make_spec(tmp_path, tiny, chats(1)), monkeypatch, error)
    assert lines == [Failed(code="unsupported_model", message="No head.", param="model")]


def test_a_full_device_is_a_failed_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
    (line,) = told(make_spec(tmp_path, tiny, chats(1)), monkeypatch, error)
    assert isinstance(line, Failed)
    assert line.code == "out_of_memory"
    assert "2.0 GiB" in line.message


def test_anything_else_crashes_and_says_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError):
        told(make_spec(tmp_path, tiny, chats(1)), monkeypatch, ZeroDivisionError())
    assert (tmp_path / "events").read_bytes() == b""
