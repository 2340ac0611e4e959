"""The `headroom` command: a server on this machine, the demo, and the job commands."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from service import compare_command, job_commands
from service.auth import ExposureError, KeysRefused, make_key
from service.client import ApiError
from service.command_options import DEFAULT_PORT, FILE, FOLDER, KEY_VARIABLES
from service.demo.run import DemoFailed, run_demo
from service.interrupt import Interrupted, raise_on_signals
from service.part import PartFailed
from service.regression import NotComparable
from service.stack import Stack, StackError, StackOptions

DATA = "headroom-data"
_MEND_S = 0.5
_USER_ERRORS = (
    ApiError,
    StackError,
    PartFailed,
    DemoFailed,
    ExposureError,
    KeysRefused,
    NotComparable,
)


class _Group(click.Group):
    """A group whose commands end cleanly on a signal, and whose errors are told without a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        raise_on_signals()
        try:
            return super().invoke(ctx)
        except _USER_ERRORS as error:
            raise click.ClickException(_told(error)) from error
        except BrokenPipeError:
            raise  # nobody reads on, and click ends quietly
        except OSError as error:
            raise click.ClickException(_of_a_file(error)) from error


def _told(error: Exception) -> str:
    """An error in the words of who typed the command."""
    if isinstance(error, ApiError) and error.code == "invalid_api_key":
        return f"{error} Give one by --api-key, {' or '.join(KEY_VARIABLES)}."
    return str(error)


def _of_a_file(error: OSError) -> str:
    """What the system says of a file or folder that the command was given."""
    return f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror}."


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headroom")
def main() -> None:
    """Fine-tuning as a service, with a cut cross-entropy loss."""


for _command in (*job_commands.COMMANDS, compare_command.compare):
    main.add_command(_command)


@main.command()
@click.option("--data", type=FOLDER, default=DATA, show_default=True, help="All that lasts.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--models",
    type=FOLDER,
    multiple=True,
    help="A folder whose subfolders may be fine-tuned, beside DATA/models.",
)
@click.option("--hub-model", multiple=True, help="A pattern of hub ids that may be fine-tuned.")
@click.option(
    "--api-keys",
    type=FILE,
    envvar="HEADROOM_API_KEYS_FILE",
    show_envvar=True,
    help="Hashed keys; see `headroom key`.",
)
def up(
    *,
    data: Path,
    host: str,
    port: int,
    models: tuple[Path, ...],
    hub_model: tuple[str, ...],
    api_keys: Path | None,
) -> None:
    """Start Redis, the API and the workers here, until Ctrl-C."""
    console = Console()
    options = StackOptions(data, host, port, models, hub_model, api_keys)

    def say(line: str) -> None:
        console.print(Text(f"  {line}"), soft_wrap=True)

    try:
        with Stack(options, say) as stack:
            _welcome(console, stack, options)
            while True:
                stack.mend()
                time.sleep(_MEND_S)
    except Interrupted:
        say("Everything has stopped; the data stays.")


def _welcome(console: Console, stack: Stack, options: StackOptions) -> None:
    """Where everything is, and what to do next."""
    facts = {
        "Status page": stack.url,
        "API": f"{stack.url}/docs",
        "openai client": f"OPENAI_BASE_URL={stack.url}/v1",
        "Data": str(options.data.resolve()),
        "Models": ", ".join(map(str, stack.model_folders)),
        "Logs": str(stack.logs),
        "Submit a job": f"{_program()} submit --url {stack.url} --model NAME"
        " --training-file FILE --watch",
    }
    console.print()
    for name, value in facts.items():
        console.print(Text(f"  {name:<14}", "bold").append(value, "not bold"), soft_wrap=True)
    if options.api_keys is None:
        console.print("\n  Without API keys it answers on this machine only.", highlight=False)
    console.print("  Ctrl-C stops everything.\n", highlight=False)


@main.command()
@click.option("--data", type=FOLDER, help="Where to work; a new folder by default.")
def demo(data: Path | None) -> None:
    """Train a small model on Python's documentation, over HTTP."""
    folder = data or Path(DATA) / time.strftime("demo-%Y%m%d-%H%M%S")
    keep = f"{_program()} up --data {shlex.quote(str(folder))}"
    run_demo(folder, Console(), keep_line=keep)


@main.command()
@click.argument("organization")
def key(organization: str) -> None:
    """Make an API key for an ORGANIZATION.

    Prints it, and the line for the server's file of keys.
    """
    try:
        secret, line = make_key(organization)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    click.echo(f"API key, shown only now:  {secret}")
    click.echo(f"Line for --api-keys FILE: {line}")


def _program() -> str:
    """This command, the way it was called."""
    return shlex.quote(sys.argv[0])
