"""The `headroom` command: start a server on this machine, and run jobs on any server.

Everything about jobs goes through the public HTTP API; only `up` and `demo` start processes.
"""

import json
import shlex
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.client import ApiError, Client, Job
from service.contract.job import JobStatus
from service.demo.run import DemoFailed, run_demo
from service.display import JobView, ledger_table, outcome, size
from service.interrupt import Interrupted, raise_on_signals
from service.part import PartFailed
from service.stack import Stack, StackError, StackOptions
from service.watch import follow

DATA, PORT = "headroom-data", 8000
_MEND_S = 0.5
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_USER_ERRORS = (ApiError, StackError, PartFailed, DemoFailed)


class _Server(click.Group):
    """A group whose errors are one line, without a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        raise_on_signals()
        try:
            return super().invoke(ctx)
        except _USER_ERRORS as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Server, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headroom")
def main() -> None:
    """Fine-tuning as a service, with a cut cross-entropy loss."""


def _server_options(command: Any) -> Any:
    """Which server a command speaks to."""
    url = click.option(
        "--url",
        envvar=["HEADROOM_URL", "OPENAI_BASE_URL"],
        default=f"http://127.0.0.1:{PORT}",
        show_default=True,
        show_envvar=True,
    )
    key = click.option("--api-key", envvar=["HEADROOM_API_KEY", "OPENAI_API_KEY"], show_envvar=True)
    return url(key(command))


@main.command()
@click.option("--data", type=_FOLDER, default=DATA, show_default=True, help="All that lasts.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=PORT, show_default=True, help="0 takes a free one.")
@click.option("--models", type=_FOLDER, multiple=True, help="Subfolders may be fine-tuned.")
@click.option("--hub-model", multiple=True, help="Pattern of hub ids that may be fine-tuned.")
@click.option("--api-keys", type=_FILE, help="Hashed keys; see `headroom key`.")
def up(
    *,
    data: Path,
    host: str,
    port: int,
    models: tuple[Path, ...],
    hub_model: tuple[str, ...],
    api_keys: Path | None,
) -> None:
    """Start Redis, the API and the workers on this machine, until Ctrl-C."""
    console = Console()
    options = StackOptions(data, host, port, models, hub_model, api_keys)
    try:
        with Stack(options, lambda line: console.print(f"  {line}", highlight=False)) as stack:
            _welcome(console, stack, options)
            while True:
                stack.mend()
                time.sleep(_MEND_S)
    except Interrupted:
        console.print("  Everything has stopped; the data stays.")


def _welcome(console: Console, stack: Stack, options: StackOptions) -> None:
    lines = [
        ("API and status page", stack.url),
        ("API documentation", f"{stack.url}/docs"),
        ("Data", str(options.data.resolve())),
        ("Models to tune", str(stack.models)),
        ("Logs", str(stack.logs)),
        ("openai client", f"OPENAI_BASE_URL={stack.url}/v1"),
        ("Submit a job", submit_line(stack.url)),
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in lines:
        table.add_row(Text(f"  {name}", "bold"), Text(value))
    console.print()
    console.print(table, soft_wrap=True)
    if options.api_keys is None:
        console.print("\n  Without API keys the server answers on this machine only.")
    console.print("  Ctrl-C stops everything.\n")


def submit_line(url: str) -> str:
    """A command that runs a job on the server at `url`."""
    return f"headroom submit --url {url} --model NAME --training-file FILE --watch"


@main.command()
@_server_options
@click.option("--model", required=True, help="A model of `headroom models`, or a hub id.")
@click.option("--training-file", type=_FILE, required=True)
@click.option("--validation-file", type=_FILE)
@click.option("--suffix", help="A part of the new model's name.")
@click.option("--seed", type=int)
@click.option("--n-epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--learning-rate-multiplier", type=float)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=JSON",
    help="A further field of the job, for example packing=true or learning_rate=1e-4.",
)
@click.option("--watch", is_flag=True, help="Follow the job to its end.")
def submit(
    *,
    url: str,
    api_key: str | None,
    training_file: Path,
    validation_file: Path | None,
    n_epochs: int | None,
    batch_size: int | None,
    learning_rate_multiplier: float | None,
    options: tuple[str, ...],
    watch: bool,
    **fields: Any,
) -> None:
    """Upload files and start a job."""
    hyperparameters = _given(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=learning_rate_multiplier,
    )
    body = _given(**fields) | dict(_option(text) for text in options)
    body["method"] = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    console = Console()
    with Client(url, api_key) as client:
        body["training_file"] = client.upload(training_file)
        if validation_file is not None:
            body["validation_file"] = client.upload(validation_file)
        job = client.create(body)
        console.print(f"Job {job.id}", highlight=False)
        if watch:
            raise SystemExit(_watch(console, client, job))


def _watch(console: Console, client: Client, job: Job) -> int:
    """Show the job until it ends; the exit code."""
    try:
        with JobView(console) as view:
            for update in follow(client, job.id):
                job = update.job
                view.show(update)
    except Interrupted:
        console.print(f"The job goes on. `headroom cancel {job.id}` cancels it.", highlight=False)
        raise
    if job.memory is not None:
        console.print(ledger_table(job.memory))
    console.print(outcome(job), soft_wrap=True)
    return 0 if job.status is JobStatus.SUCCEEDED else 1


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _option(text: str) -> tuple[str, Any]:
    """A name and a value; what is no JSON is a word."""
    name, found, value = text.partition("=")
    if not found:
        raise click.BadParameter(f"{text!r} is not of the form NAME=JSON", param_hint="--option")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@main.command()
@_server_options
@click.argument("job_id")
def watch(url: str, api_key: str | None, job_id: str) -> None:
    """Follow a job to its end."""
    with Client(url, api_key) as client:
        raise SystemExit(_watch(Console(), client, client.job(job_id)))


@main.command()
@_server_options
@click.option("--limit", default=20, show_default=True)
def jobs(url: str, api_key: str | None, limit: int) -> None:
    """List the newest jobs."""
    table = Table("job", "status", "model", "result", box=None)
    with Client(url, api_key) as client:
        for job in client.jobs(limit):
            result = job.fine_tuned_model or (job.error.code if job.error else "")
            table.add_row(job.id, job.status.value, job.model, result)
    Console().print(table, soft_wrap=True)


@main.command()
@_server_options
@click.argument("job_id")
def cancel(url: str, api_key: str | None, job_id: str) -> None:
    """Cancel a job."""
    with Client(url, api_key) as client:
        job = client.cancel(job_id)
    click.echo(f"{job.id}: {job.status.value.replace('_', ' ')}")


@main.command()
@_server_options
@click.argument("model")
@click.argument("folder", type=_FOLDER)
def download(url: str, api_key: str | None, model: str, folder: Path) -> None:
    """Download a fine-tuned MODEL into FOLDER."""
    with Client(url, api_key) as client:
        for file in client.download(model, folder):
            click.echo(f"{folder / file.name}  {size(file.bytes)}")


@main.command()
@click.option(
    "--data", type=_FOLDER, help="Where to work.  [default: a new folder in headroom-data]"
)
def demo(data: Path | None) -> None:
    """Train a small model on Python's documentation, through the HTTP API."""
    folder = data or Path(DATA) / time.strftime("demo-%Y%m%d-%H%M%S")
    run_demo(folder, Console(), keep_line=f"headroom up --data {shlex.quote(str(folder))}")
