"""How much status polling costs: many clients ask for one job, and their waiting is measured.

    python -m tests.load.poll_status --clients 200 --seconds 15

starts Redis and the API on free loopback ports, with a running job in them, or asks the server
of `--url` for `--job`. Each client keeps one connection. There are three modes:

    full       each client asks again as soon as it has its answer, and gets all of the job
    unchanged  the same with `If-None-Match`, while nothing changes: 304
    paced      each client asks once a second for news of a job that has some, as a dashboard does

The exit code is 1 where an answer was not the one to expect.
"""

import asyncio
import os
import platform
import resource
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from tests.load.polling import MODES, Mode, Tally, poll
from tests.load.target import Target, own_target

_PACKAGES = ("fastapi", "uvicorn", "pydantic", "redis", "uvloop", "httptools", "hiredis")
_COLUMNS = (
    "requests/s", "p50 ms", "p99 ms", "200", "304", "errors", "server CPU ms", "client CPU ms",
)  # fmt: skip
# Files that this process has open beside its connections.
_OWN_FILES = 256


@click.command()
@click.option("--clients", default=200, show_default=True)
@click.option("--seconds", default=15.0, show_default=True, help="How long each mode runs.")
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True, default=MODES)
@click.option("--url", help="A running server, for example http://127.0.0.1:8000.")
@click.option("--job", help="A job of that server.")
@click.option("--api-key")
def main(
    *,
    clients: int,
    seconds: float,
    modes: tuple[Mode, ...],
    url: str | None,
    job: str | None,
    api_key: str | None,
) -> None:
    """Measure what status polling costs, with many clients that ask for one job."""
    if (url is None) != (job is None):
        raise click.UsageError("--url and --job belong together.")
    _allow_open_files(clients + _OWN_FILES)
    click.echo(f"{clients} clients, {seconds:g} s a mode, {os.cpu_count()} cores")
    click.echo(f"load of the machine before: {os.getloadavg()[0]:.2f}")
    click.echo(", ".join([f"Python {platform.python_version()}", *map(_version, _PACKAGES)]))
    click.echo(_row("mode", _COLUMNS))
    errors = 0
    with _target(url, job) as target:
        for mode in modes:
            with target.working() if mode == "paced" else nullcontext():
                tally = asyncio.run(poll(target, mode, clients, seconds, api_key))
            click.echo(_row(mode, _figures(tally)))
            errors += tally.errors
    raise SystemExit(1 if errors else 0)


@contextmanager
def _target(url: str | None, job: str | None) -> Iterator[Target]:
    if url is not None and job is not None:
        yield Target(url, job)
        return
    with tempfile.TemporaryDirectory() as folder, own_target(Path(folder)) as target:
        yield target


def _figures(tally: Tally) -> list[str]:
    """The columns of a mode; processor times are those of one request."""
    count = len(tally.times_s)
    waits = [f"{tally.percentile_ms(share):.1f}" for share in (0.5, 0.99)]
    counts = [str(number) for number in (tally.statuses[200], tally.statuses[304], tally.errors)]
    costs = [f"{1000 * spent_s / count:.2f}" for spent_s in (tally.server_s, tally.client_s)]
    return [f"{count / tally.took_s:,.0f}", *waits, *counts, *costs]


def _row(name: str, columns: Iterable[str]) -> str:
    return f"{name:<10}" + "".join(f"{column:>14}" for column in columns)


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _allow_open_files(wanted: int) -> None:
    """Raise the limit of open files, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


if __name__ == "__main__":
    main()
