"""What a terminal shows of a job: text, whatever the terminal can do."""

import io
import re
from typing import Any

import pytest
from rich.console import Console, RenderableType

from service.client import Job
from service.contract.job import JobError, JobStatus, Progress, StoredEvent
from service.contract.memory import Figure, LossMemory, MemoryLedger, Saving, StepPhases
from service.display import (
    JobView,
    duration,
    event_line,
    facts,
    ledger_table,
    outcome,
)
from service.watch import Update
from tests.service.support import LEDGER as WHOLE_LEDGER
from tests.worker.support import until

MIB = 2**20


def _job(**fields: Any) -> Job:
    given = {"id": "ftjob-1", "created_at": 1, "finished_at": None, "model": "tiny"}
    given |= {"status": JobStatus.RUNNING, "fine_tuned_model": None, "trained_tokens": None}
    return Job(**given | fields)


def _event(message: str, **fields: Any) -> StoredEvent:
    return StoredEvent(**{"id": "ftevent-1-0", "created_at": 1, "message": message} | fields)


def _shown(what: RenderableType, width: int = 80) -> str:
    screen = io.StringIO()
    Console(file=screen, width=width).print(what, soft_wrap=True)
    return screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "less than a second"),
        (0.99, "less than a second"),
        (1, "0:01"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3600 * 25 + 62, "25:01:02"),
    ],
)
def test_a_time_reads_as_a_clock_unless_it_is_too_short_for_one(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_only_what_is_known_of_a_running_job_is_told() -> None:
    known = Progress(
        phase="training", step=3, total_steps=9, train_loss=1.25, tokens_per_s=1234.2, eta_s=62
    )
    assert facts(_job(progress=known)) == "step 3/9  loss 1.250  1,234 tokens/s  1:02 left"
    assert facts(_job(progress=Progress())) == ""
    assert facts(_job()) == ""


def test_a_waiting_job_tells_its_place_and_an_ended_one_nothing() -> None:
    assert facts(_job(status=JobStatus.QUEUED, queue_position=2)) == "position 2 in the queue"
    ended = _job(status=JobStatus.FAILED, progress=Progress(step=3, total_steps=9))
    assert facts(ended) == ""


def test_the_time_left_is_that_of_the_training_alone() -> None:
    assert "left" not in facts(_job(progress=Progress(phase="measuring", eta_s=5)))


def test_an_event_lists_its_faults() -> None:
    faults = [{"line": 3, "path": "messages", "message": "too long"}, {"line": 0, "message": "odd"}]
    lines = str(event_line(_event("The file has faults.", data={"faults": faults}))).splitlines()
    assert [line.strip() for line in lines] == [
        "The file has faults.",
        "line 3, messages: too long",
        "file: odd",
    ]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"status": JobStatus.SUCCEEDED, "fine_tuned_model": "ft:tiny:o::1"},
            "Succeeded. Model: ft:tiny:o::1",
        ),
        (
            {"status": JobStatus.FAILED, "error": JobError(code="out_of_memory", message="Full.")},
            "Failed (out_of_memory): Full.",
        ),
        ({"status": JobStatus.CANCELLED}, "The job was cancelled."),
    ],
)
def test_an_end_is_a_line(fields: dict[str, Any], text: str) -> None:
    assert str(outcome(_job(**fields))) == text


LEDGER = MemoryLedger(
    device="cuda",
    method="cuda allocator peak",
    micro_batch_size=4,
    seq_length=2048,
    tokens=8192,
    vocab_size=256_000,
    hidden_size=2304,
    dtype="bfloat16",
    losses=[
        LossMemory(
            loss="full_logits",
            loss_layer=Figure(bytes=24 * 1024 * MIB, provenance="out_of_memory"),
        ),
        LossMemory(
            loss="compiled_full_logits",
            loss_layer=Figure(bytes=16 * 1024 * MIB, provenance="modelled", formula="logits"),
        ),
        LossMemory(
            loss="cce",
            loss_layer=Figure(bytes=4 * MIB, provenance="measured"),
            step=Figure(bytes=900 * MIB, provenance="measured"),
            tokens_per_s=12345.6,
        ),
    ],
    savings=[
        Saving(
            baseline="compiled_full_logits",
            loss_layer_bytes=16 * 1024 * MIB - 4 * MIB,
            loss_layer_ratio=4096.0,
        )
    ],
)


def test_no_figure_of_the_ledger_stands_without_its_provenance() -> None:
    text = _shown(ledger_table(LEDGER, None))
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines() if line.strip()}
    assert "out of memory at 24.0 GiB" in rows["full logits"]
    assert "16.0 GiB modelled" in rows["compiled logits"]
    assert "4.0 MiB measured" in rows["CCE"]
    assert "900.0 MiB measured" in rows["CCE"]
    assert "12,346" in rows["CCE"]
    assert "cuda allocator peak" in text
    heads = next(line for line in text.splitlines() if "tokens/s" in line)
    assert re.split(r"\s{2,}", heads.strip())[:3] == ["loss", "loss layer", "pass"]
    assert "8,192 rows, vocabulary 256,000, width 2304, bfloat16" in text


def test_a_saving_stands_beside_the_baseline_that_it_names() -> None:
    lines = _shown(ledger_table(LEDGER, None)).splitlines()
    assert [line.split("  ")[0] for line in lines if "4096x less" in line] == ["compiled logits"]


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (50.84, "50.8x less"),
        (0.2, "5.0x more"),
        (0.004, "250x more"),
        (1.04, "as much"),
        (0.97, "as much"),
        (0.94, "1.1x more"),
    ],
)
def test_a_loss_that_takes_more_than_a_baseline_saved_nothing(ratio: float, text: str) -> None:
    saving = LEDGER.savings[0].model_copy(update={"loss_layer_ratio": ratio})
    shown = _shown(ledger_table(LEDGER.model_copy(update={"savings": [saving]}), None))
    assert row(shown, "compiled logits").rstrip().endswith(f"  {text}")
    assert "saved" not in shown.lower()


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_a_figure_of_the_ledger_never_stands_alone() -> None:
    text = _shown(ledger_table(WHOLE_LEDGER, None))
    assert "out of memory at 9.0 GiB" in row(text, "full logits")
    assert "7 modelled" in row(text, "full logits")
    assert "60.0 MiB measured" in row(text, "CCE")
    assert "99 modelled" in row(text, "CCE")


def test_where_no_micro_batch_is_modelled_there_is_no_column_for_it() -> None:
    losses = [e.model_copy(update={"largest_micro_batch": None}) for e in WHOLE_LEDGER.losses]
    assert "largest" not in _shown(
        ledger_table(WHOLE_LEDGER.model_copy(update={"losses": losses}), None)
    )


def test_the_phases_of_a_step_are_shares_of_its_time() -> None:
    phases = StepPhases(steps=3, data=0.1, forward=0.4, loss=0.1, backward=1.2, optimizer=0.2)
    expected = "A step takes 2 s: data 5%, forward 20%, loss 5%, backward 60%, optimizer 10%."
    assert expected in _shown(ledger_table(WHOLE_LEDGER, phases))


def test_where_nothing_can_be_redrawn_progress_is_a_line_now_and_then() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=120)
    with JobView(console) as view:
        view.show(Update(_job(), [_event("Job started."), _event("Step 1", type="metrics")]))
        for step in range(1, 101):
            progress = Progress(phase="training", step=step, total_steps=100)
            view.show(Update(_job(progress=progress), []))
        # The last poll finds the job ended, of which there is nothing to say here.
        ended = Progress(phase="saving", step=100, total_steps=50)
        view.show(Update(_job(status=JobStatus.SUCCEEDED, progress=ended), []))
    lines = [line.strip() for line in screen.getvalue().splitlines()]
    assert lines[0] == "Job started."
    assert lines[1:] == [f"training: step {step}/100" for step in range(10, 101, 10)]


def test_a_terminal_gets_a_bar_below_the_events_and_none_is_left() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True, color_system=None)
    with JobView(console) as view:
        progress = Progress(phase="training", step=50, total_steps=100, train_loss=2.5)
        view.show(Update(_job(progress=progress), [_event("Job started.")]))
        until(lambda: "step 50/100  loss 2.500" in screen.getvalue(), what="the bar to be drawn")
        assert "Job started." in screen.getvalue()
        assert "━" in screen.getvalue()
    _, _, left = screen.getvalue().rpartition("\x1b[2K")  # what follows the last cleared line
    assert "training" not in left


@pytest.mark.parametrize("width", [80, 100])
def test_where_a_job_stands_is_one_line(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    progress = Progress(
        phase="training", step=28, total_steps=197, train_loss=6.8, tokens_per_s=2801, eta_s=446
    )
    with JobView(console) as view:
        view.show(Update(_job(progress=progress), []))
        until(lambda: "step 28/197" in screen.getvalue(), what="the bar to be drawn")
    drawn = re.split(r"[\r\n]|\x1b\[2K", screen.getvalue())
    (line, *_) = [part for part in drawn if "step 28/197" in part]
    assert line.rstrip().endswith("loss 6.800  2,801 tokens/s  7:26 left")
    assert "━" in line
