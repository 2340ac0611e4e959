"""What the commands that speak to a server have in common."""

import json
from pathlib import Path
from typing import Any

import click

from service.contract.files import PREFIX

DEFAULT_PORT = 8000
KEY_VARIABLES = ["HEADROOM_API_KEY", "OPENAI_API_KEY"]
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


class _TrainingFile(click.Path):
    """A file here, as a path; or one on the server, as its id."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The id as it stands, unless there is a file of that name."""
        if isinstance(value, str) and value.startswith(PREFIX) and not Path(value).exists():
            return value
        return super().convert(value, param, ctx)


_TRAINING_FILE = _TrainingFile(exists=True, dir_okay=False, path_type=Path)


def file_options(command: Any) -> Any:
    """The files of a job, each a path or an id, for `Uploads`."""
    training = click.option(
        "--training-file",
        type=_TRAINING_FILE,
        required=True,
        help="JSON lines, or the id of an uploaded file; the same bytes are uploaded only once.",
    )
    validation = click.option("--validation-file", type=_TRAINING_FILE)
    return training(validation(command))


def server_options(command: Any) -> Any:
    """Which server a command speaks to."""
    url = click.option(
        "--url",
        envvar=["HEADROOM_URL", "OPENAI_BASE_URL"],
        default=f"http://127.0.0.1:{DEFAULT_PORT}",
        show_default=True,
        show_envvar=True,
    )
    key = click.option("--api-key", envvar=KEY_VARIABLES, show_envvar=True)
    return url(key(command))


def further_options(command: Any) -> Any:
    """The fields of a body that have no option of their own, as `options`."""
    return click.option(
        "--option",
        "options",
        multiple=True,
        metavar="NAME=JSON",
        help="A further field of the job, for example packing=true or learning_rate=1e-4.",
    )(command)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that the caller gave."""
    return {name: value for name, value in fields.items() if value is not None}


def further_fields(options: tuple[str, ...]) -> dict[str, Any]:
    """The fields that `further_options` took; a value that is no JSON is a word."""
    return dict(map(_field, options))


def _field(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise click.BadParameter(f"{text!r} is not of the form NAME=JSON", param_hint="--option")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
