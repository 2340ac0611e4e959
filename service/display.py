"""How jobs look in a terminal: a live progress bar, events as lines, the ledger as a table."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from service.client import Job
from service.contract.job import JobStatus, StoredEvent
from service.contract.memory import (
    Figure,
    LossMemory,
    LossName,
    MemoryLedger,
    Saving,
    StepPhases,
)
from service.contract.units import size
from service.datasets import Fault
from service.figure_table import FigureTable
from service.watch import Update

LOSSES: dict[LossName, str] = {
    "full_logits": "full logits",
    "compiled_full_logits": "compiled logits",
    "chunked": "chunked",
    "cce": "CCE",
}
_STYLES = {"info": "", "warn": "yellow", "error": "red"}
# Where nothing can be redrawn, so many lines tell of the steps.
_PLAIN_LINES = 10


def less_or_more(ratio: float) -> str:
    """How much is taken, compared with a baseline that takes `ratio` times as much."""
    if _times(ratio) == _times(1):
        return "as much"
    return f"{_times(ratio)} less" if ratio > 1 else f"{_times(1 / ratio)} more"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 100 else f"{ratio:.0f}x"


def duration(seconds: float) -> str:
    """A time as m:ss, or h:mm:ss; one that would be 0:00 in words."""
    if seconds < 1:
        return "less than a second"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class JobView:
    """A job as it runs: events scroll by, and below them one line shows where it stands."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description:<16}"),
            BarColumn(bar_width=28),
            _Facts(table_column=Column(no_wrap=True)),  # in a narrow terminal the bar gives way
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("waiting", total=None, job=None)
        self._told = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.remove_task(self._task)
        self._bar.stop()

    def show(self, update: Update) -> None:
        """Print what is new, and move the bar."""
        succeeded = update.job.status is JobStatus.SUCCEEDED
        # The last event of a success says what `outcome` says below the figures.
        for event in update.events[:-1] if succeeded else update.events:
            if event.type == "message":
                self._console.print(event_line(event), soft_wrap=True)
        job, progress = update.job, update.job.progress
        running = progress is not None and job.status is JobStatus.RUNNING
        self._bar.update(
            self._task,
            description=progress.phase if progress and running else job.status.replace("_", " "),
            total=progress.total_steps if progress and running else None,
            completed=progress.step if progress and running else 0,
            job=job,
        )
        if not self._console.is_terminal:
            self._tell(job)

    def _tell(self, job: Job) -> None:
        """A plain line of progress, now and then."""
        progress = job.progress
        if progress is None or not progress.total_steps or not progress.step:
            return
        done = progress.step * _PLAIN_LINES // progress.total_steps
        if done > self._told and (told := facts(job)):
            self._told = done
            self._console.print(f"  {progress.phase}: {told}", highlight=False)


class _Facts(ProgressColumn):
    """Step, loss, throughput and time left, beside the bar."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        job: Job | None = task.fields["job"]
        return Text(facts(job) if job else "")


def facts(job: Job) -> str:
    """Where a job stands, in one line; only what is known."""
    progress = job.progress
    if job.status is JobStatus.QUEUED and job.queue_position:
        return f"position {job.queue_position} in the queue"
    if progress is None or job.status is not JobStatus.RUNNING:
        return ""
    parts = []
    if progress.total_steps and progress.step:
        parts.append(f"step {progress.step}/{progress.total_steps}")
    if progress.train_loss is not None:
        parts.append(f"loss {progress.train_loss:.3f}")
    if progress.tokens_per_s:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.eta_s is not None and progress.phase == "training":
        parts.append(f"{duration(progress.eta_s)} left")
    return "  ".join(parts)


def event_line(event: StoredEvent) -> Text:
    """A message of the job's history, with the faults it lists."""
    text = Text("  ").append(event.message, _STYLES[event.level])
    for fault in event.data.get("faults", []):
        text.append(f"\n    {Fault.model_validate(fault)}", "red")
    return text


def ledger_table(ledger: MemoryLedger, phases: StepPhases | None) -> Group:
    """What each loss needs on the job's own shapes, and where the time of a step goes."""
    fits = any(entry.largest_micro_batch for entry in ledger.losses)
    heads = ("loss layer", "pass", "tokens/s", "CCE takes")
    table = FigureTable("loss", figures=(*heads, *["largest micro-batch"] * fits))
    savings = {saving.baseline: saving for saving in ledger.savings}
    for entry in ledger.losses:
        row = _ledger_row(entry, savings.get(entry.loss))
        table.add_line(*row[: len(table.columns)])
    return Group(
        Text(
            f"Memory of the loss on {ledger.device}: {ledger.tokens:,} rows, vocabulary"
            f" {ledger.vocab_size:,}, width {ledger.hidden_size}, {ledger.dtype}",
            "bold",
        ),
        table,
        Text(
            f"Peak bytes above weights and gradients, by {ledger.method}.\n"
            "Pass: forward and backward of the model.\n"
            "CCE takes: its loss layer, compared with that of the line's loss.",
            "dim",
        ),
        *([] if phases is None else [Text(str(phases), "dim")]),
    )


def _ledger_row(entry: LossMemory, saving: Saving | None) -> tuple[str, ...]:
    speed = f"{entry.tokens_per_s:,.0f}" if entry.tokens_per_s else "-"
    compared = less_or_more(saving.loss_layer_ratio) if saving else ""
    largest = entry.largest_micro_batch
    return (
        LOSSES[entry.loss],
        _figure(entry.loss_layer),
        _figure(entry.step),
        speed,
        compared,
        f"{largest.sequences:,} modelled" if largest else "-",
    )


def _figure(figure: Figure | None) -> str:
    """Bytes and where they come from; a figure never stands alone."""
    if figure is None:
        return "-"
    if figure.provenance == "out_of_memory":
        return f"out of memory at {size(figure.bytes)}"
    return f"{size(figure.bytes)} {figure.provenance}"


def outcome(job: Job) -> Text:
    """How a job ended, in a line."""
    if job.status is JobStatus.SUCCEEDED and job.fine_tuned_model is None:
        return Text("Succeeded.", "green")
    if job.status is JobStatus.SUCCEEDED:
        return Text(f"Succeeded. Model: {job.fine_tuned_model}", "green")
    if job.error is not None:
        return Text(f"Failed ({job.error.code}): {job.error.message}", "red")
    return Text(f"The job was {job.status.value}.", "yellow")
