"""The regression gate: which figures of a comparison got worse than in an earlier report.

A figure is worse where it went in its wrong direction by more than its margin, which is
`relative` x the earlier value + `absolute`:

    figure                       worse    relative    absolute
    peak_bytes                   higher         5 %       1 MiB
    tokens_per_s                 lower         15 %           -
    last_train_loss              higher         1 %        1e-3
    max_curve_difference         higher        50 %        1e-3
    hidden_gradient_error        higher        50 %        1e-6
    head_gradient_error          higher        50 %        1e-6
    valid_loss                   higher         1 %        1e-3
    valid_mean_token_accuracy    lower            -        0.01

Bytes repeat to within the allocator's rounding, times to within what else the machine does, and
losses and errors to within the order in which a GPU adds. An outcome is worse where a cell was
completed and is not any more, and a cell or figure that was there must be there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from service.comparison_request import ComparisonCreate
from service.contract.comparison import Cell, ComparisonReport

_FIELDS = ComparisonCreate.model_fields


@dataclass(frozen=True)
class Margin:
    """How far a figure may go in its wrong direction."""

    worse: Literal["higher", "lower"]
    relative: float = 0.0
    absolute: float = 0.0

    def of(self, before: float) -> float:
        """The margin on a value."""
        return self.relative * abs(before) + self.absolute

    def exceeded(self, before: float, now: float) -> bool:
        """Whether `now` is worse than `before` by more than that; NaN is."""
        loss = now - before if self.worse == "higher" else before - now
        return not loss <= self.of(before)


MARGINS = {
    "peak_bytes": Margin("higher", relative=0.05, absolute=2**20),
    "tokens_per_s": Margin("lower", relative=0.15),
    "last_train_loss": Margin("higher", relative=0.01, absolute=1e-3),
    "max_curve_difference": Margin("higher", relative=0.5, absolute=1e-3),
    "hidden_gradient_error": Margin("higher", relative=0.5, absolute=1e-6),
    "head_gradient_error": Margin("higher", relative=0.5, absolute=1e-6),
    "valid_loss": Margin("higher", relative=0.01, absolute=1e-3),
    "valid_mean_token_accuracy": Margin("lower", absolute=0.01),
}


class NotComparable(Exception):
    """Two reports are of different things."""


@dataclass(frozen=True)
class Regression:
    """A figure that got worse by more than its margin; or an outcome, or a cell that is missing.

    Attributes:
        before: What the earlier report says.
        now: What the new one says.
        margin: What would have been let pass; None for what is no number.
    """

    loss: str
    batch_size: int
    figure: str
    before: float | str
    now: float | str
    margin: float | None = None

    def __str__(self) -> str:
        margin = "" if self.margin is None else f" (margin {self.margin:,.6g})"
        values = f"{_told(self.before)} -> {_told(self.now)}"
        return f"{self.loss} at batch size {self.batch_size}: {self.figure} {values}{margin}"


def regressions(before: ComparisonReport, now: ComparisonReport) -> list[Regression]:
    """What got worse, in the order of the earlier report.

    Raises:
        NotComparable: The two are of different models, data, options or devices; it says which.
    """
    then, conditions = dict(before.conditions), dict(now.conditions)
    _refuse_other({name: (value, conditions[name]) for name, value in then.items()})
    cells = {(cell.loss, cell.batch_size): cell for cell in now.cells}
    return [
        regression
        for cell in before.cells
        for regression in _of_cell(cell, cells.get((cell.loss, cell.batch_size)))
    ]


def check_request(before: ComparisonReport, request: Mapping[str, Any]) -> None:
    """Find in a request, before anything runs, what its report could not be compared in.

    What is left to "auto", only the report tells.

    Args:
        before: The earlier report.
        request: The body that creates the comparison, with the hashes of its files by the names
            that they have in a report.

    Raises:
        NotComparable: Something of the earlier report is asked for otherwise, or not at all.
    """
    asked = {**{name: field.default for name, field in _FIELDS.items()}, **request}
    then = dict(before.conditions) | before.conditions.options
    pairs = {name: (then[name], asked[name]) for name in then.keys() & asked.keys()}
    for name, (value, wanted) in pairs.items():
        if wanted == "auto":
            pairs[name] = (value, value)
        elif isinstance(value, dict) and isinstance(wanted, dict):
            pairs[name] = (value, value | wanted)  # the rest is by default
    compared: dict[str, list[Any]] = {
        "batch_sizes": list(dict.fromkeys(cell.batch_size for cell in before.cells)),
        "losses": list(dict.fromkeys(cell.loss for cell in before.cells)),
    }
    for name, values in compared.items():
        if isinstance(asked[name], list) and any(value not in asked[name] for value in values):
            pairs[name] = (values, asked[name])
    _refuse_other(pairs)


def _refuse_other(pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse what differs, of values then and now by name."""
    differing = [
        f"{name} was {then!r} and is {now!r}" for name, (then, now) in pairs.items() if then != now
    ]
    if differing:
        raise NotComparable(f"The reports can't be compared: {'; '.join(differing)}.")


def _of_cell(before: Cell, now: Cell | None) -> Iterator[Regression]:
    place = before.loss, before.batch_size
    if now is None:
        yield Regression(*place, "outcome", before.outcome, "not compared")
        return
    if before.outcome != "completed":
        return
    if now.outcome != "completed":
        yield Regression(*place, "outcome", before.outcome, now.outcome)
        return
    found = now.figures
    for name, value in before.figures.items():
        if value is None:
            continue
        margin, after = MARGINS[name], found[name]
        if after is None:
            yield Regression(*place, name, value, "not measured", margin.of(value))
        elif margin.exceeded(value, after):
            yield Regression(*place, name, value, after, margin.of(value))


def _told(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}"
