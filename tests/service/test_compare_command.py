"""What `headroom compare` says of a report: its tables, and the gate's verdict."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from service.compare_command import _read, judge, tables
from service.regression import NotComparable
from tests.support.comparison import cell, report


def console(width: int = 200) -> Console:
    return Console(file=io.StringIO(), width=width)


def said(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def rows(shown: str) -> list[list[str]]:
    """The lines of each table, single-spaced, without the rule below the heads."""
    return [
        [" ".join(line.split()) for line in block.splitlines() if "─" not in line]
        for block in shown.split("\n\n")
    ]


def test_the_tables_have_a_line_for_each_cell_and_say_what_did_not_fit() -> None:
    to = console()
    to.print(tables(report()), soft_wrap=True)
    costs, errors = rows(said(to))
    assert costs[0] == "batch loss peak memory tokens/s last loss off full logits"
    assert errors[0] == "batch loss gradient error of the head valid loss accuracy"
    assert len(costs) == len(errors) == 13
    assert costs[-1] == "16 CCE 9.6 GiB 24,000 2.2677 5.70e-02"
    assert errors[-1] == "16 CCE 5.00e-03 6.00e-03 2.5030 0.4970"
    assert costs[9] == "16 full logits out of memory - - -"
    assert errors[9] == "16 full logits - - - -"


def test_without_a_validation_file_there_are_no_columns_for_it() -> None:
    to = console()
    to.print(tables(report(validation_file_sha256=None)), soft_wrap=True)
    _, errors = rows(said(to))
    assert errors[0] == "batch loss gradient error of the head"
    assert errors[-1] == "16 CCE 5.00e-03 6.00e-03"


def test_losses_have_the_same_digits_whatever_their_size() -> None:
    to, losses = console(), [10.2972, 10.52, 9.0]
    cells = [cell("cce", size, train_losses=(loss,)) for size, loss in enumerate(losses, 1)]
    to.print(tables(report().model_copy(update={"cells": cells})), soft_wrap=True)
    assert [line.split()[5] for line in rows(said(to))[0][1:]] == ["10.2972", "10.5200", "9.0000"]


@pytest.mark.parametrize("width", [20, 80, 200])
def test_no_figure_is_cut_however_narrow_the_place(width: int) -> None:
    """As in CI, where there is no terminal and rich takes it to be 80 wide."""
    narrow, wide = console(width), console()
    for to in (narrow, wide):
        to.print(tables(report()), soft_wrap=True)
    assert said(narrow) == said(wide)
    assert "…" not in said(narrow)
    assert max(map(len, said(narrow).splitlines())) <= 80


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


def test_reports_of_different_things_are_not_judged() -> None:
    with pytest.raises(NotComparable, match="steps was 20 and is 10"):
        judge(console(), report(), report(steps=10))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda body: body["conditions"].pop("seed"), "conditions.seed: Field required"),
        (lambda body: body.update(of_tomorrow=1), "of_tomorrow: Extra inputs"),
        (lambda body: body.update(cells=[]), "cells: List should have at least 1 item"),
    ],
)
def test_a_report_of_another_release_or_of_nothing_is_no_bar(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], told: str
) -> None:
    path = tmp_path / "before.json"
    body = json.loads(report().model_dump_json())
    path.write_text(json.dumps(body))
    assert _read(path) == report()
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(click.ClickException) as error:
        _read(path)
    assert told in error.value.message
