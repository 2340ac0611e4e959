"""The options of a job on the command line, and the request body that they make."""

from typing import Any

import click

from service.command_options import file_options, further_fields, further_options
from service.uploads import Uploads

_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
_FILES = ("training_file", "validation_file")
_OPTIONS = (
    click.option("--model", required=True, help="A model of `headroom models`, or a hub id."),
    file_options,
    click.option("--suffix", help="A part of the new model's name."),
    click.option("--seed", type=int),
    click.option("--n-epochs", type=int),
    click.option("--batch-size", type=int),
    click.option("--learning-rate-multiplier", type=float),
    further_options,
)


def job_options(command: Any) -> Any:
    """What a job is to be; the values come as keyword arguments, for `uploaded_body`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def uploaded_body(uploads: Uploads, given: dict[str, Any]) -> dict[str, Any]:
    """The body of a request for a job, its files on the server."""
    options = further_fields(given.pop("options"))
    given = {name: value for name, value in given.items() if value is not None}
    hyperparameters = {name: given.pop(name) for name in _HYPERPARAMETERS if name in given}
    files = {name: uploads.id_of(given.pop(name)) for name in _FILES if name in given}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return {**given, **options, **files, "method": method}
