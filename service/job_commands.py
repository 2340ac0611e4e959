"""The job commands of `headroom`: all of them through the public HTTP API, on any server."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.client import Client, Job
from service.contract.job import JobStatus
from service.display import JobView, ledger_table, outcome, size
from service.interrupt import Interrupted
from service.watch import follow

DEFAULT_PORT = 8000
_STATUS_WIDTH = max(map(len, JobStatus))
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


def _server_options(command: Any) -> Any:
    """Which server a command speaks to."""
    url = click.option(
        "--url",
        envvar=["HEADROOM_URL", "OPENAI_BASE_URL"],
        default=f"http://127.0.0.1:{DEFAULT_PORT}",
        show_default=True,
        show_envvar=True,
    )
    key = click.option("--api-key", envvar=["HEADROOM_API_KEY", "OPENAI_API_KEY"], show_envvar=True)
    return url(key(command))


@click.command()
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
        console.print(ledger_table(job.memory, job.phases))
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


@click.command()
@_server_options
@click.argument("job_id")
def watch(url: str, api_key: str | None, job_id: str) -> None:
    """Follow a job to its end."""
    with Client(url, api_key) as client:
        raise SystemExit(_watch(Console(), client, client.job(job_id)))


@click.command()
@_server_options
@click.option("--limit", default=20, show_default=True)
def jobs(url: str, api_key: str | None, limit: int) -> None:
    """List the newest jobs."""
    with Client(url, api_key) as client:
        for job in client.jobs(limit):
            result = job.fine_tuned_model or (job.error.code if job.error else "")
            click.echo(f"{job.id}  {job.status.value:<{_STATUS_WIDTH}}  {job.model}  {result}")


@click.command()
@_server_options
@click.argument("job_id")
def cancel(url: str, api_key: str | None, job_id: str) -> None:
    """Cancel a job."""
    with Client(url, api_key) as client:
        job = client.cancel(job_id)
    click.echo(f"{job.id}: {job.status.value.replace('_', ' ')}")


@click.command()
@_server_options
@click.argument("model")
@click.argument("folder", type=_FOLDER)
def download(url: str, api_key: str | None, model: str, folder: Path) -> None:
    """Download a fine-tuned MODEL into FOLDER."""
    with Client(url, api_key) as client:
        for file in client.download(model, folder):
            click.echo(f"{folder / file.name}  {size(file.bytes)}")


@click.command()
@_server_options
def models(url: str, api_key: str | None) -> None:
    """List the models that can be fine-tuned or downloaded."""
    with Client(url, api_key) as client:
        for name in client.models():
            click.echo(name)


COMMANDS = (submit, watch, jobs, models, cancel, download)
