"""A comparison as a user runs it: the real stack, the real command, and its reports on the disk."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.contract.comparison import ComparisonReport
from service.stack import Stack
from tests.support.stack import TINY, write_chat

pytestmark = pytest.mark.slow
HEADROOM = Path(sys.executable).with_name("headroom")
FILES = {"comparison.json", "comparison.csv", "comparison.html"}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`headroom compare` with two losses at two batch sizes, into a folder."""
    folder = tmp_path_factory.mktemp("chats")
    chat = write_chat(folder / "chat.jsonl")
    validation = write_chat(folder / "validation.jsonl", rows=4)

    def run(output: Path, *more: object) -> subprocess.CompletedProcess[str]:
        files = ["--training-file", chat, "--validation-file", validation, "--output", output]
        plan = ["--loss", "full_logits", "--loss", "cce", "--batch-size", 1, "--batch-size", 2]
        further = ["--steps", 4, "--option", "learning_rate=1e-2", *more]
        command = [HEADROOM, "compare", "--url", stack.url, "--model", TINY]
        arguments = map(str, [*command, *files, *plan, *further])
        return subprocess.run([*arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def first(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports of a comparison."""
    folder = tmp_path_factory.mktemp("reports")
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Files validated: 24 examples" in done.stdout
    assert "cce at batch size 2: peak" in done.stdout
    assert "Succeeded." in done.stdout
    assert f"Report: {folder / 'comparison.html'}" in done.stdout.replace("\n", "")
    return folder


def test_the_reports_are_whole(first: Path) -> None:
    assert {path.name for path in first.iterdir()} == FILES
    report = ComparisonReport.model_validate_json((first / "comparison.json").read_text())
    places = [(cell.batch_size, cell.loss, cell.outcome) for cell in report.cells]
    assert places == [
        (size, loss, "completed") for size in (1, 2) for loss in ("full_logits", "cce")
    ]
    assert all(None not in cell.figures.values() for cell in report.cells)
    with (first / "comparison.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 4
    page = (first / "comparison.html").read_text()
    assert page.count("<polyline") == 4


def test_a_figure_that_got_worse_ends_the_command_with_an_error(
    run: Run, first: Path, tmp_path: Path
) -> None:
    """Against a report that is the first one, but for a validation loss that can't be had again."""
    report = json.loads((first / "comparison.json").read_text())
    for cell in report["cells"]:
        cell["tokens_per_s"] = None  # a busy machine can't repeat it
    report["cells"][-1]["valid_loss"] = 0.5
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(report))
    done = run(tmp_path / "now", "--against", earlier)
    assert done.returncode == 1, done.stdout + done.stderr
    worse = [line for line in done.stdout.splitlines() if line.startswith("Worse: ")]
    assert len(worse) == 1
    assert worse[0].startswith("Worse: cce at batch size 2: valid_loss 0.5 -> ")


def test_a_request_for_something_else_is_refused_before_anything_runs(
    run: Run, first: Path, tmp_path: Path
) -> None:
    done = run(tmp_path, "--against", first / "comparison.json", "--seed", 7)
    assert done.returncode == 1
    assert done.stderr == "Error: The reports can't be compared: seed was 0 and is 7.\n"
    assert done.stdout == ""


def test_what_is_no_report_is_refused_before_anything_runs(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"cells": []}')
    done = run(tmp_path, "--against", other)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {other} is no report of a comparison")
    assert "Comparison ftjob" not in done.stdout
