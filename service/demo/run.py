"""The demo from end to end: data, base model, stack, job, comparison.

The base model is made, and models are asked, by programs of the worker, since the service has no
torch. Everything in between goes through the public HTTP API.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from service.client import Client, Job
from service.contract.job import JobStatus
from service.demo.dataset import Dataset, Pair, write_dataset
from service.display import JobView, duration, ledger_table, outcome
from service.part import guarded
from service.stack import Stack, StackOptions
from service.watch import follow

BASE = "python-docs-base"
# Of the loss before: a random model guesses among the whole vocabulary, and one that learned
# nothing but which words are frequent is well above this.
REQUIRED_FALL = 0.25
OPTIONS: dict[str, Any] = {
    "method": {
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 8}},
    },
    "learning_rate": 4e-3,
    "max_seq_length": 256,
    "packing": True,
    "warmup_ratio": 0.1,
    "checkpoint_every": 80,
    "seed": 1,
    "suffix": "demo",
}


class DemoFailed(Exception):
    """The demo did not show what it is there to show."""


@dataclass(frozen=True)
class Trained:
    """The finished job, its validation losses before and after, and its downloaded model."""

    job: Job
    before: float
    after: float
    folder: Path

    @property
    def fall(self) -> float:
        """By what share of the loss before the loss fell."""
        return 1 - self.after / self.before


def run_demo(folder: Path, console: Console, keep_line: str) -> None:
    """Run the demo in `folder`; `keep_line` is the command that serves the folder later.

    Raises:
        DemoFailed: The job failed, or the loss did not fall clearly.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    say, point = partial(_say, console), partial(_point, console)
    console.print(Text("Headroom demo\n", "bold"))
    with console.status("Reading Python's documentation"):
        dataset = write_dataset(folder)
    say(
        f"Dataset: Python's own documentation, {dataset.training_pairs:,} questions and answers"
        f" to train on, {dataset.validation_pairs:,} held out."
    )
    base = folder / "models" / BASE
    with console.status("Making a tokenizer and a random model"):
        say(_make_base(dataset, base))
    with Stack(StackOptions(data=folder), say) as stack, Client(stack.url) as client:
        point("Status page", stack.url)
        job = _run_job(stack, client, dataset, console)
        trained = _trained(client, job, folder / "fine-tuned")
    pair = dataset.sample
    with console.status("Asking the model before and after"):
        answers = [_program("sample", path, pair.question) for path in (base, trained.folder)]
    _compare(console, trained, pair, *answers)
    point("Model folder", str(trained.folder))
    point("Serve it all again", keep_line)
    console.print()
    _judge(trained)
    took = duration(time.monotonic() - started)
    say(f"Done in {took}: the validation loss fell by {trained.fall:.0%}.", "green")


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Padding(Text(line, style), (0, 0, 0, 2)))


def _point(console: Console, name: str, target: str) -> None:
    """A line to copy from: never broken."""
    console.print(Text(f"  {name}: ").append(target, "bold"), soft_wrap=True)


def _make_base(dataset: Dataset, folder: Path) -> str:
    """Make the base model; what it is, in a line."""
    facts = json.loads(_program("starter", dataset.training, folder))
    learned = facts["vocab_size"] - facts["reserved_tokens"]
    return (
        f"Base model: a Llama of {facts['parameters'] / 1e6:.1f} M random parameters; vocabulary"
        f" {facts['vocab_size']:,}, of which {learned:,} tokens were learned from this text and the"
        " rest are reserved."
    )


def _run_job(stack: Stack, client: Client, dataset: Dataset, console: Console) -> Job:
    """Upload, submit and follow.

    Raises:
        DemoFailed: The job did not succeed.
    """
    files = {
        "training_file": client.upload(dataset.training),
        "validation_file": client.upload(dataset.validation),
    }
    job = client.create({"model": BASE, **files, **OPTIONS})
    with JobView(console) as view:
        for update in follow(client, job.id, meanwhile=stack.mend):
            job = update.job
            view.show(update)
    if job.status is not JobStatus.SUCCEEDED:
        raise DemoFailed(str(outcome(job)))
    return job


def _trained(client: Client, job: Job, folder: Path) -> Trained:
    """The finished job with its losses and its downloaded model."""
    assert job.fine_tuned_model is not None, job
    losses = [
        event.data["valid_loss"]
        for event in client.events_since(job.id, None)
        if "valid_loss" in event.data
    ]
    client.download(job.fine_tuned_model, folder)
    return Trained(job, losses[0], losses[-1], folder)


def _compare(console: Console, trained: Trained, pair: Pair, before: str, after: str) -> None:
    """Print the ledger, and the model before and after."""
    console.print()
    if trained.job.memory is not None:
        console.print(ledger_table(trained.job.memory, trained.job.phases), soft_wrap=True)
        console.print()
    answers = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    answers.add_column("")
    answers.add_column("validation loss", justify="right")
    answers.add_column(Text(pair.question), overflow="fold")
    answers.add_row("before", f"{trained.before:.3f}", Text(before))
    answers.add_row("after", f"{trained.after:.3f}", Text(after))
    answers.add_row("the documentation", "", Text(pair.answer, "dim"))
    console.print(Padding(answers, (0, 0, 1, 2)))


def _judge(trained: Trained) -> None:
    if not trained.fall >= REQUIRED_FALL:  # NaN fails too
        raise DemoFailed(
            f"The validation loss fell by {trained.fall:.0%}; {REQUIRED_FALL:.0%} is expected."
        )


def _program(name: str, *arguments: object) -> str:
    """What a program of the trainer's package prints.

    Raises:
        DemoFailed: It failed; with the end of what it said about it.
    """
    command = [sys.executable, "-m", f"worker.training.{name}", *map(str, arguments)]
    done = subprocess.run(guarded(command), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise DemoFailed(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip()
