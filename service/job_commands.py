"""The job commands of `headroom`: all of them through the public HTTP API, on any server."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.client import Client, Job
from service.command_options import (
    FILE,
    FOLDER,
    further_fields,
    further_options,
    given,
    server_options,
)
from service.contract.job import JobStatus
from service.display import JobView, ledger_table, outcome, size
from service.interrupt import Interrupted
from service.watch import follow

_STATUS_WIDTH = max(map(len, JobStatus))


@click.command()
@server_options
@click.option("--model", required=True, help="A model of `headroom models`, or a hub id.")
@click.option("--training-file", type=FILE, required=True)
@click.option("--validation-file", type=FILE)
@click.option("--suffix", help="A part of the new model's name.")
@click.option("--seed", type=int)
@click.option("--n-epochs", type=int)
@click.option("--batch-size", type=int)
@click.option("--learning-rate-multiplier", type=float)
@further_options
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
    hyperparameters = given(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=learning_rate_multiplier,
    )
    body = given(**fields) | further_fields(options)
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


def followed(console: Console, client: Client, job: Job) -> Job:
    """Show a job until it ends; how it ended."""
    try:
        with JobView(console) as view:
            for update in follow(client, job.id):
                job = update.job
                view.show(update)
    except Interrupted:
        console.print(f"The job goes on. `headroom cancel {job.id}` cancels it.", highlight=False)
        raise
    return job


def _watch(console: Console, client: Client, job: Job) -> int:
    """Show the job until it ends, and what it measured; the exit code."""
    job = followed(console, client, job)
    if job.memory is not None:
        console.print(ledger_table(job.memory))
    console.print(outcome(job), soft_wrap=True)
    return 0 if job.status is JobStatus.SUCCEEDED else 1


@click.command()
@server_options
@click.argument("job_id")
def watch(url: str, api_key: str | None, job_id: str) -> None:
    """Follow a job to its end."""
    with Client(url, api_key) as client:
        raise SystemExit(_watch(Console(), client, client.job(job_id)))


@click.command()
@server_options
@click.option("--limit", default=20, show_default=True)
def jobs(url: str, api_key: str | None, limit: int) -> None:
    """List the newest jobs."""
    with Client(url, api_key) as client:
        for job in client.jobs(limit):
            result = job.fine_tuned_model or (job.error.code if job.error else "")
            click.echo(f"{job.id}  {job.status.value:<{_STATUS_WIDTH}}  {job.model}  {result}")


@click.command()
@server_options
@click.argument("job_id")
def cancel(url: str, api_key: str | None, job_id: str) -> None:
    """Cancel a job."""
    with Client(url, api_key) as client:
        job = client.cancel(job_id)
    click.echo(f"{job.id}: {job.status.value.replace('_', ' ')}")


@click.command()
@server_options
@click.argument("model")
@click.argument("folder", type=FOLDER)
def download(url: str, api_key: str | None, model: str, folder: Path) -> None:
    """Download a fine-tuned MODEL into FOLDER."""
    with Client(url, api_key) as client:
        for file in client.download(model, folder):
            click.echo(f"{folder / file.name}  {size(file.bytes)}")


@click.command()
@server_options
def models(url: str, api_key: str | None) -> None:
    """List the models that can be fine-tuned or downloaded."""
    with Client(url, api_key) as client:
        for name in client.models():
            click.echo(name)


COMMANDS = (submit, watch, jobs, models, cancel, download)
