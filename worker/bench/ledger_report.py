"""The figures of the ledger's benchmark, and its bars: as JSON, and as tables."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from service.contract.memory import LossName, Provenance

_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True)
class Row:
    """One loss; None for what was not found out.

    Attributes:
        loss_layer: Where the ledger's figure of the loss layer comes from.
        loss_layer_bytes: Peak of forward and backward of the loss layer, above its inputs and its
            gradients; what could not be allocated where it is `out_of_memory`.
        step: Likewise of a forward and backward pass of the model.
        step_bytes: Peak above weights, gradients and optimizer.
        training: What became of the training steps.
        training_peak_bytes: The most that was allocated in one of them, AdamW's included: weights,
            gradients, optimizer, activations, loss.
        tokens_per_second: Of the training steps.
        note: What kept the training steps from their end.
    """

    model: str
    loss: LossName
    tokens: int
    dtype: str
    loss_layer: Provenance | None
    loss_layer_bytes: int | None
    step: Provenance | None
    step_bytes: int | None
    training: str
    training_peak_bytes: int | None
    tokens_per_second: float | None
    note: str | None
    device: str
    torch: str
    triton: str | None
    transformers: str
    commit: str | None

    @property
    def layer_peak(self) -> int | None:
        """The loss layer's bytes, where they are not those of a refusal."""
        return None if self.loss_layer == "out_of_memory" else self.loss_layer_bytes

    @property
    def pass_peak(self) -> int | None:
        """The pass's bytes, likewise."""
        return None if self.step == "out_of_memory" else self.step_bytes


@dataclass(frozen=True)
class Overhead:
    """What measuring costs a job, in seconds.

    Attributes:
        job_steps: Optimizer steps of the job.
        first_pass_seconds: A first forward and backward pass, which compiles the loss's kernels if
            no job before has: what every job has, so no part of measuring.
        start_seconds: Receipt and ledger, after that; what they alone compile included.
        profiled_seconds: By which the steps whose phases are timed take longer.
        step_seconds: Median of a plain optimizer step.
    """

    job_steps: int
    first_pass_seconds: float
    start_seconds: float
    profiled_seconds: float
    step_seconds: float

    @property
    def share(self) -> float:
        """Of the job's steps."""
        spent = self.start_seconds + self.profiled_seconds
        return spent / (self.job_steps * self.step_seconds)


@dataclass(frozen=True)
class Bar:
    """A figure that is to be at least, or else below, some limit; None where it is not known."""

    name: str
    value: float | None
    limit: float
    at_least: bool

    @property
    def holds(self) -> bool | None:
        """Whether it is; None where that is not known."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value < self.limit


def bars(rows: Sequence[Row], overhead: Overhead) -> list[Bar]:
    """What a Gemma-2-2B-sized model on an H200 is held to; of any other, the same figures."""
    found = {row.loss: row for row in rows}
    full, ours = found["full_logits"], found["cce"]
    return [
        Bar(
            "loss layer, full logits over cce", _ratio(full.layer_peak, ours.layer_peak), 150, True
        ),
        Bar("pass, cce over full logits", _ratio(ours.pass_peak, full.pass_peak), 0.6, False),
        Bar(
            "training step, cce over full logits",
            _ratio(ours.training_peak_bytes, full.training_peak_bytes),
            0.6,
            False,
        ),
        Bar(f"measuring, of a job of {overhead.job_steps} steps", overhead.share, 0.02, False),
    ]


def write(
    conditions: Mapping[str, object], rows: Sequence[Row], overhead: Overhead, path: Path
) -> None:
    """All figures as JSON, the bars among them."""
    found = {
        "conditions": conditions,
        "rows": [asdict(row) for row in rows],
        "overhead": asdict(overhead) | {"share": overhead.share},
        "bars": [asdict(bar) | {"holds": bar.holds} for bar in bars(rows, overhead)],
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def read(path: Path) -> tuple[list[Row], Overhead]:
    """What `write` wrote, but for what follows from it."""
    found = json.loads(path.read_text())
    spent = {name: value for name, value in found["overhead"].items() if name != "share"}
    return [Row(**row) for row in found["rows"]], Overhead(**spent)


def tables(rows: Sequence[Row], overhead: Overhead) -> str:
    """Markdown: a line for each loss, what measuring took, and the bars."""
    ours = next(row for row in rows if row.loss == "cce")
    head = ["loss", "loss layer (MiB)", "over cce", "pass (GiB)", "cce over it"]
    head += ["training step (GiB)", "cce over it", "tokens/s"]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line(_cells(row, ours)) for row in rows]
    lines += ["", *_conditions(rows[0], overhead), ""]
    lines += [_line(["bar", "measured", "limit", "holds"]), _line(["---"] * 4)]
    lines += [_line(_bar_cells(bar)) for bar in bars(rows, overhead)]
    notes = [f"{row.loss}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _conditions(row: Row, overhead: Overhead) -> Iterable[str]:
    yield (
        f"{row.model}, full fine-tuning with activation checkpointing, {row.tokens:,} tokens, "
        f"{row.dtype}; {row.device}, torch {row.torch}, triton {row.triton}, "
        f"transformers {row.transformers}{f', commit {row.commit}' if row.commit else ''}."
    )
    yield (
        "Loss layer: above its inputs and gradients. Pass: forward and backward, above weights, "
        "gradients and optimizer. Training step: all that is allocated, AdamW's step included."
    )
    yield (
        f"A first pass, which every job has, took {overhead.first_pass_seconds:.2f} s, receipt and "
        f"ledger after it {overhead.start_seconds:.2f} s, timing the phases "
        f"{overhead.profiled_seconds:.2f} s, a training step {overhead.step_seconds:.3f} s."
    )


def _cells(row: Row, ours: Row) -> Iterable[str]:
    yield row.loss
    yield _bytes(row.layer_peak, row.loss_layer, _MIB)
    yield _number(_ratio(row.layer_peak, ours.layer_peak), ".1f", "x")
    yield _bytes(row.pass_peak, row.step, _GIB)
    yield _number(_ratio(ours.pass_peak, row.pass_peak), ".1%")
    yield _bytes(row.training_peak_bytes, row.training, _GIB)
    yield _number(_ratio(ours.training_peak_bytes, row.training_peak_bytes), ".1%")
    yield _number(row.tokens_per_second, ",.0f")


def _bar_cells(bar: Bar) -> Iterable[str]:
    form = ".1f" if bar.at_least else ".2%"
    yield bar.name
    yield _number(bar.value, form)
    yield f"{'at least' if bar.at_least else 'below'} {bar.limit:{form}}"
    yield {True: "yes", False: "no", None: "not known"}[bar.holds]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _bytes(count: int | None, status: str | None, unit: int) -> str:
    if count is None:
        return "-" if status is None else status.replace("_", " ")
    return f"{count / unit:,.2f}{' (modelled)' if status == 'modelled' else ''}"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
