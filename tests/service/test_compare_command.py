"""What `headroom compare` says of a report: its table, and the gate's verdict."""

import io

import click
import pytest
from rich.console import Console

from service.compare_command import judge, table
from tests.support.comparison import cell, report


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def test_the_table_has_a_line_for_each_cell_and_says_what_did_not_fit() -> None:
    to = console()
    to.print(table(report()))
    head, _, *lines = said(to).splitlines()
    assert len(lines) == 12
    assert head.split()[:4] == ["batch", "loss", "peak", "memory"]
    ours = " ".join(lines[-1].split())
    assert ours == "16 CCE 9.6 GiB 24,000 2.268 0.057 0.005 0.006 2.503 0.497"
    assert "out of memory" in lines[8]
    assert lines[8].split()[0:3] == ["16", "full", "logits"]


def test_what_is_no_worse_passes() -> None:
    to = console()
    assert judge(to, report(), report()) == 0
    assert "No figure got worse beyond its margin." in said(to)


def test_each_worse_figure_is_a_line() -> None:
    to, now = console(), report()
    slow = cell("cce", 1, tokens_per_s=1.0, valid_loss=9.0)
    now = now.model_copy(update={"cells": [*now.cells[:3], slow, *now.cells[4:]]})
    assert judge(to, report(), now) == 1
    assert said(to).splitlines() == [
        "Worse: cce at batch size 1: tokens_per_s 12,750 -> 1 (margin 1,912.5)",
        "Worse: cce at batch size 1: valid_loss 2.503 -> 9 (margin 0.02603)",
    ]


def test_reports_of_different_things_are_an_error_of_the_caller() -> None:
    with pytest.raises(click.ClickException, match="steps was 20 and is 10"):
        judge(console(), report(), report(steps=10))
