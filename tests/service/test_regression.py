"""The gate: silent on what is the same or better, and by name on each figure that is worse."""

import re
from typing import Any

import pytest

from service import regression
from service.contract.comparison import Cell, ComparisonReport, GradientError
from service.regression import (
    MARGINS,
    NotComparable,
    Regression,
    check_request,
    regressions,
)
from tests.support.comparison import PEAKS, cell, report

FIGURES = list(cell("cce", 1).figures)
# By figure, what it is in the earlier report and how far it may go in its wrong direction.
BEFORE = {name: value for name, value in cell("cce", 4).figures.items() if value is not None}


def changed(figure: str, value: float | None) -> Cell:
    """CCE at batch size 4 with another value of a figure."""
    before = cell("cce", 4)
    error = before.gradient_error
    assert error is not None
    match figure:
        case "last_train_loss":
            return cell("cce", 4, train_losses=(*before.train_losses[:-1], value))
        case "hidden_gradient_error":
            return cell("cce", 4, gradient_error=GradientError(hidden=value, head=error.head))
        case "head_gradient_error":
            return cell("cce", 4, gradient_error=GradientError(hidden=error.hidden, head=value))
        case _:
            return cell("cce", 4, **{figure: value})


def with_cell(new: Cell) -> ComparisonReport:
    """The report with one cell in the place of its own."""
    made = report()
    places = [(each.loss, each.batch_size) for each in made.cells]
    cells = list(made.cells)
    cells[places.index((new.loss, new.batch_size))] = new
    return made.model_copy(update={"cells": cells})


def step(figure: str, share: float) -> float:
    """The earlier value moved by a share of its margin in the wrong direction."""
    margin, before = MARGINS[figure], BEFORE[figure]
    way = 1 if margin.worse == "higher" else -1
    return before + way * share * margin.of(before)


def test_the_same_report_is_no_worse() -> None:
    assert regressions(report(), report()) == []


def test_every_figure_has_a_margin_that_the_documentation_states() -> None:
    assert list(MARGINS) == FIGURES
    assert regression.__doc__ is not None
    units = {"%": 0.01, "MiB": 2.0**20, "-": 0.0}
    for name, margin in MARGINS.items():
        line = next(line for line in regression.__doc__.splitlines() if f" {name} " in line)
        _, worse, *values = line.split()
        numbers: list[float] = []
        for value in values:
            if value in units and value != "-":
                numbers[-1] *= units[value]
            else:
                numbers.append(0.0 if value == "-" else float(value))
        assert (worse, *numbers) == (margin.worse, margin.relative, margin.absolute), name


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_that_got_worse_beyond_its_margin_is_named(figure: str) -> None:
    value = step(figure, 1.1)
    if figure == "peak_bytes":
        value = int(value)
    (found,) = regressions(report(), with_cell(changed(figure, value)))
    place = (found.loss, found.batch_size, found.figure)
    assert place == ("cce", 4, figure)
    assert (found.before, found.now) == (BEFORE[figure], value)
    assert str(found).startswith(f"cce at batch size 4: {figure} ")
    assert "(margin " in str(found)


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("share", [0.9, -50.0])
def test_a_figure_within_its_margin_or_better_passes(figure: str, share: float) -> None:
    value: Any = step(figure, share)
    if figure == "peak_bytes":
        value = int(value)
    assert regressions(report(), with_cell(changed(figure, value))) == []


@pytest.mark.parametrize("figure", ["tokens_per_s", "valid_loss", "hidden_gradient_error"])
def test_what_is_no_number_any_more_is_worse(figure: str) -> None:
    (found,) = regressions(report(), with_cell(changed(figure, float("nan"))))
    assert found.figure == figure


def test_what_is_not_measured_any_more_is_worse() -> None:
    (found,) = regressions(report(), with_cell(changed("valid_loss", None)))
    assert (found.figure, found.now) == ("valid_loss", "not measured")


def test_a_cell_that_does_not_end_any_more_is_worse() -> None:
    gone = Cell(loss="cce", batch_size=4, outcome="out_of_memory", note="It asked for 9.")
    found = regressions(report(), with_cell(gone))
    assert found == [Regression("cce", 4, "outcome", "completed", "out_of_memory")]
    assert str(found[0]) == "cce at batch size 4: outcome completed -> out_of_memory"


def test_a_cell_that_ends_now_is_better() -> None:
    assert regressions(report(), with_cell(cell("full_logits", 16))) == []


def test_a_cell_that_is_missing_is_named_and_a_new_one_is_not() -> None:
    made = report()
    fewer = made.model_copy(update={"cells": made.cells[:-1]})
    (found,) = regressions(made, fewer)
    assert (found.loss, found.batch_size, found.now) == ("cce", 16, "not compared")
    assert regressions(fewer, made) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "NVIDIA H100"),
        ("training_file_sha256", "9" * 64),
        ("seed", 1),
        ("steps", 10),
        ("options", {"learning_rate": 1e-3, "dtype": "bfloat16", "adapter": None}),
    ],
)
def test_reports_of_different_things_are_not_compared(name: str, value: Any) -> None:
    with pytest.raises(NotComparable, match=f"{name} was"):
        regressions(report(), report(**{name: value}))


def request(**fields: Any) -> dict[str, Any]:
    """What would make the report again."""
    then = report().conditions
    return {
        "model": then.model,
        "training_file_sha256": then.training_file_sha256,
        "validation_file_sha256": then.validation_file_sha256,
        "batch_sizes": [1, 4, 16],
        "steps": then.steps,
    } | fields


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"seed": 0, "learning_rate": 2e-5, "dtype": "bfloat16"},
        {"learning_rate": "auto"},
        {"batch_sizes": [1, 2, 4, 16], "losses": ["chunked", *PEAKS]},
    ],
)
def test_a_request_for_the_same_passes(fields: dict[str, Any]) -> None:
    check_request(report(), request(**fields))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "other"),
        ("training_file_sha256", "9" * 64),
        ("validation_file_sha256", None),
        ("seed", 1),
        ("steps", 10),
        ("steps", "many"),
        ("learning_rate", 1e-3),
        ("dtype", "float32"),
        ("adapter", {"type": "lora"}),
        ("batch_sizes", [1, 4]),
        ("losses", ["full_logits", "cce"]),
    ],
)
def test_a_request_for_something_else_is_found_before_it_is_made(name: str, value: Any) -> None:
    with pytest.raises(NotComparable, match=f"{name} was .* and is {re.escape(repr(value))}"):
        check_request(report(), request(**{name: value}))


def test_an_adapter_is_held_against_what_was_asked_of_it() -> None:
    adapter = {"type": "lora", "rank": 16, "alpha": 32}
    before = report(options={"adapter": adapter})
    check_request(before, request(adapter={"type": "lora", "rank": 16}))
    for other in ({"type": "lora", "rank": 8}, None):
        with pytest.raises(NotComparable, match="adapter was"):
            check_request(before, request(adapter=other))
