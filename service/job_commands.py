"""The job commands of `headroom`: all of them through the public HTTP API, on any server."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from service.client import Client, Job
from service.command_options import FOLDER, server_options
from service.contract.job import JobStatus
from service.contract.units import size
from service.display import JobView, ledger_table, outcome
from service.estimate_display import estimate_view
from service.figure_table import FigureTable
from service.interrupt import Interrupted
from service.job_options import job_options, uploaded_body
from service.uploads import Uploads
from service.watch import follow


@click.command()
@server_options
@job_options
@click.option("--watch", is_flag=True, help="Follow the job to its end.")
def submit(*, url: str, api_key: str | None, watch: bool, **given: Any) -> None:
    """Upload files and start a job."""
    console = Console()
    with Client(url, api_key) as client:
        with Uploads(client) as uploads:
            job = client.create(uploaded_body(uploads, given))
        console.print(f"Job {job.id}", highlight=False, soft_wrap=True)
        if watch:
            raise SystemExit(_watch(console, client, job))


@click.command()
@server_options
@job_options
def estimate(*, url: str, api_key: str | None, **given: Any) -> None:
    """Upload files and predict what a job would need; none is created."""
    with Client(url, api_key) as client, Uploads(client) as uploads:
        predicted = client.estimate(uploaded_body(uploads, given))
    Console().print(estimate_view(predicted), soft_wrap=True)


def followed(console: Console, client: Client, job: Job) -> Job:
    """Show a job until it ends; how it ended."""
    try:
        with JobView(console) as view:
            for update in follow(client, job.id):
                job = update.job
                view.show(update)
    except Interrupted:
        hint = f"The job goes on. `headroom cancel {job.id}` cancels it."
        console.print(hint, highlight=False, soft_wrap=True)
        raise
    return job


def _watch(console: Console, client: Client, job: Job) -> int:
    """Show the job until it ends, and what it measured; the exit code."""
    job = followed(console, client, job)
    if job.memory is not None:
        console.print()
        console.print(ledger_table(job.memory, job.phases), soft_wrap=True)
        console.print()
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
    table = FigureTable("id", "status", "kind", "model", "result")
    with Client(url, api_key) as client:
        for job in client.jobs(limit):
            result = job.fine_tuned_model or (job.error.code if job.error else "")
            kind = "job" if job.comparison is None else "comparison"
            table.add_line(job.id, job.status.value, kind, job.model, result)
    Console().print(table, soft_wrap=True)


@click.command()
@server_options
@click.argument("job_id")
def cancel(url: str, api_key: str | None, job_id: str) -> None:
    """Cancel a job."""
    with Client(url, api_key) as client:
        job = client.cancel(job_id)
    asked = "cancellation is requested; the job ends within seconds"
    click.echo(f"{job.id}: {'cancelled' if job.terminal else asked}")


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


COMMANDS = (submit, estimate, watch, jobs, models, cancel, download)
