"""`headroom compare`: what each loss costs on your data, and whether that got worse."""

from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from rich.console import Console, Group
from rich.text import Text

from service.client import Client
from service.command_options import (
    FILE,
    FOLDER,
    file_options,
    further_fields,
    further_options,
    given,
    server_options,
)
from service.contract.comparison import HTML_NAME, JSON_NAME, ComparisonReport
from service.contract.job import JobStatus
from service.contract.units import size
from service.display import LOSSES, outcome
from service.figure_table import FigureTable
from service.job_commands import followed
from service.regression import check_request, regressions
from service.uploads import Uploads

_OUTPUT = "headroom-comparison"
# Two tables, each of which fits into 80 columns: what a loss costs, and whether anything is lost.
_COSTS = {
    "peak_bytes": "peak memory",
    "tokens_per_s": "tokens/s",
    "last_train_loss": "last loss",
    "max_curve_difference": "off full logits",
}
_ERRORS = {
    "hidden_gradient_error": "gradient error",
    "head_gradient_error": "of the head",
}
_VALIDATION = {
    "valid_loss": "valid loss",
    "valid_mean_token_accuracy": "accuracy",
}
# The same digits in every line; what may be tiny in powers of ten, else it would be 0.0000.
_FORMATS = {
    "tokens_per_s": ",.0f",
    "last_train_loss": ".4f",
    "max_curve_difference": ".2e",
    "hidden_gradient_error": ".2e",
    "head_gradient_error": ".2e",
    "valid_loss": ".4f",
    "valid_mean_token_accuracy": ".4f",
}


@click.command()
@server_options
@click.option("--model", required=True, help="A model of `headroom models`, or a hub id.")
@file_options
@click.option("--loss", "losses", type=click.Choice(list(LOSSES)), multiple=True)
@click.option("--batch-size", "batch_sizes", type=int, multiple=True)
@click.option("--steps", type=int)
@click.option("--seed", type=int, help="0 by default: the same comparison each time.")
@further_options
@click.option(
    "--output", type=FOLDER, default=_OUTPUT, show_default=True, help="Where the reports go."
)
@click.option(
    "--against",
    type=FILE,
    help=f"An earlier {JSON_NAME}: exit with 1 and name each figure that got worse.",
)
def compare(
    *,
    url: str,
    api_key: str | None,
    training_file: Path | str,
    validation_file: Path | str | None,
    losses: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    options: tuple[str, ...],
    output: Path,
    against: Path | None,
    **fields: Any,
) -> None:
    """Train with every loss at every batch size; report the costs."""
    # Read first: a run takes long, and may write to the same place.
    before = None if against is None else _read(against)
    body = given(losses=[*losses] or None, batch_sizes=[*batch_sizes] or None, **fields)
    body |= further_fields(options)
    files = given(training_file=training_file, validation_file=validation_file)
    console = Console()
    with Client(url, api_key) as client:
        with Uploads(client) as uploads:
            if before is not None:
                check_request(
                    before,
                    body
                    | {
                        "training_file_sha256": uploads.sha256_of(training_file),
                        "validation_file_sha256": validation_file
                        and uploads.sha256_of(validation_file),
                    },
                )
            body |= {name: uploads.id_of(file) for name, file in files.items()}
            job = client.compare(body)
        console.print(f"Comparison {job.id}", highlight=False, soft_wrap=True)
        job = followed(console, client, job)
        console.print(outcome(job), soft_wrap=True)
        if job.status is not JobStatus.SUCCEEDED:
            raise SystemExit(1)
        output.mkdir(parents=True, exist_ok=True)
        for file_id in job.result_files:
            client.save_file(file_id, output)
    now = _read(output / JSON_NAME)
    console.print()
    console.print(tables(now), soft_wrap=True)
    console.print()
    console.print(Text(f"Report: {output / HTML_NAME}"), soft_wrap=True)
    if before is not None:
        raise SystemExit(judge(console, before, now))


def tables(report: ComparisonReport) -> Group:
    """Every figure of a report; those of a validation file only where there was one."""
    validated = report.conditions.validation_file_sha256 is not None
    quality = _ERRORS | _VALIDATION if validated else _ERRORS
    return Group(_table(report, _COSTS), "", _table(report, quality))


def _table(report: ComparisonReport, heads: dict[str, str]) -> FigureTable:
    """A line for each cell; where it was not completed, the place of its memory says why."""
    made = FigureTable("batch", "loss", figures=tuple(heads.values()))
    for cell in report.cells:
        texts = {name: _text(name, value) for name, value in cell.figures.items()}
        if cell.outcome != "completed":
            texts["peak_bytes"] = cell.outcome.replace("_", " ")
        made.add_line(str(cell.batch_size), LOSSES[cell.loss], *(texts[name] for name in heads))
    return made


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return size(value) if name == "peak_bytes" else format(value, _FORMATS[name])


def _read(path: Path) -> ComparisonReport:
    try:
        return ComparisonReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        told = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        message = f"{path} is no report of a comparison by this release: {told}."
        raise click.ClickException(message) from error


def judge(console: Console, before: ComparisonReport, now: ComparisonReport) -> int:
    """Say what got worse; the exit code.

    Raises:
        NotComparable: The two are of different things.
    """
    worse = regressions(before, now)
    for each in worse:
        console.print(Text(f"Worse: {each}", "red"), soft_wrap=True)
    if not worse:
        console.print(Text("No figure got worse beyond its margin.", "green"))
    return 1 if worse else 0
