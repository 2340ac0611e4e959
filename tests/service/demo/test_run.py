"""The demo's parts that need no training; `tests/e2e` runs it as a whole."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.client import Job
from service.contract.job import JobStatus
from service.demo import run
from service.demo.dataset import Pair
from service.demo.run import REQUIRED_FALL, DemoFailed, Trained
from tests.support.measured import LEDGER


def _trained(before: float, after: float) -> Trained:
    fields: dict[str, Any] = {"id": "ftjob-1", "created_at": 1, "finished_at": 2, "model": "base"}
    fields |= {"fine_tuned_model": "ft:base:o::1", "trained_tokens": 9, "memory": LEDGER}
    return Trained(Job(status=JobStatus.SUCCEEDED, **fields), before, after, Path("fine-tuned"))


def test_a_loss_that_did_not_clearly_fall_fails_the_demo() -> None:
    run._judge(_trained(10.0, 10.0 * (1 - REQUIRED_FALL) - 0.01))
    for after in (10.0 * (1 - REQUIRED_FALL) + 0.01, 10.0, 12.0):
        with pytest.raises(DemoFailed, match="is expected"):
            run._judge(_trained(10.0, after))


def test_a_loss_that_is_no_number_fails_the_demo() -> None:
    with pytest.raises(DemoFailed):
        run._judge(_trained(10.0, float("nan")))


def test_a_program_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(DemoFailed) as error:
        run._program("no_such_program", "an argument")
    command, _, words = str(error.value).partition("failed:")
    assert "-m worker.training.no_such_program an argument" in command
    assert "No module named worker.training.no_such_program" in words


def test_the_comparison_shows_the_ledger_the_losses_and_the_answers() -> None:
    screen = io.StringIO()
    pair = Pair("str.upper()", "Return a copy of [the] string in upper case.")
    console = Console(file=screen, width=120)
    run._compare(console, _trained(10.0, 5.0), pair, "[red]noise", "Return a string.")
    lines = [line.strip() for line in screen.getvalue().splitlines()]
    rows = {line.split("  ")[0]: line for line in lines}
    assert "305.0 MiB measured" in rows["full logits"]
    assert rows["before"].split(maxsplit=2) == ["before", "10.000", "[red]noise"]
    assert rows["after"].split(maxsplit=2) == ["after", "5.000", "Return a string."]
    assert "Return a copy of [the] string" in rows["the documentation"]
