"""A comparison in this process: the same start for every cell, and an outcome for each."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch

from cce_core import baselines
from cce_core.head import Head
from service.contract.comparison import Cell, ComparisonReport
from tests.worker.training.support import Outcome, chats, compare, make_spec
from worker.events import Compared, Message, ProgressLine, Resolved
from worker.training import device

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LOSSES = ["full_logits", "chunked", "cce"]
ASKED = {"losses": LOSSES, "batch_sizes": [2, 4], "steps": 5}
LORA = {"type": "lora", "rank": 4, "dropout": 0.1}


@pytest.fixture(scope="module")
def outcome(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("comparison")
    return compare(make_spec(folder, tiny, chats(9), validation=chats(3), comparison=ASKED))


@pytest.fixture(scope="module")
def report(outcome: Outcome) -> ComparisonReport:
    return read(outcome)


def read(outcome: Outcome) -> ComparisonReport:
    return ComparisonReport.model_validate_json(outcome.one(Compared).json_report.read_text())


def by_place(report: ComparisonReport) -> dict[tuple[str, int], Cell]:
    return {(cell.loss, cell.batch_size): cell for cell in report.cells}


def test_every_loss_is_measured_at_every_batch_size(report: ComparisonReport) -> None:
    places = [(loss, size) for size in (2, 4) for loss in LOSSES]
    assert list(by_place(report)) == places
    for found in report.cells:
        assert (found.outcome, found.note) == ("completed", None)
        assert len(found.train_losses) == 5
        assert found.train_losses[-1] < found.train_losses[0]
        assert found.tokens_per_s > 0
        assert found.gradient_error.hidden < 1e-4
        assert found.gradient_error.head < 1e-4
        assert 0 <= found.valid_mean_token_accuracy <= 1


def test_cells_share_their_start_and_their_data(report: ComparisonReport) -> None:
    """In fp32 the losses are the same but for rounding, so the whole curves must be."""
    for size in (2, 4):
        full, *others = (by_place(report)[loss, size] for loss in LOSSES)
        assert full.max_curve_difference == 0
        for other in others:
            found = max(
                abs(a - b) for a, b in zip(full.train_losses, other.train_losses, strict=True)
            )
            assert other.max_curve_difference == found < 1e-3
            assert other.valid_loss == pytest.approx(full.valid_loss, abs=1e-3)


def test_memory_grows_with_the_batch_and_full_logits_need_the_most(
    report: ComparisonReport,
) -> None:
    cells = by_place(report)
    for loss in LOSSES:
        assert cells[loss, 2].peak_bytes < cells[loss, 4].peak_bytes
    assert cells["full_logits", 4].peak_bytes > cells["cce", 4].peak_bytes
    weights = 4 * report.conditions.parameters
    # Weights, their gradients, and the two moments of AdamW.
    assert all(found.peak_bytes > 4 * weights for found in report.cells)


def test_the_conditions_say_what_it_was_measured_on(report: ComparisonReport) -> None:
    conditions = report.conditions
    assert (conditions.model, conditions.seed, conditions.steps) == ("tiny", 7, 5)
    assert conditions.vocab_size == 384
    assert conditions.training_file_sha256 == conditions.validation_file_sha256 == "0" * 64
    assert conditions.options["dtype"] == "float32"
    assert conditions.options["cce"] == "blocked, default"
    assert report.versions["torch"] == torch.__version__


def test_the_table_has_the_figures_of_the_report(
    outcome: Outcome, report: ComparisonReport
) -> None:
    with outcome.one(Compared).csv_table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(report.cells)
    for row, found in zip(rows, report.cells, strict=True):
        assert (row["loss"], int(row["batch_size"])) == (found.loss, found.batch_size)
        assert (row["outcome"], row["note"]) == (found.outcome, "")
        assert {name: float(row[name]) for name in found.figures} == found.figures


def test_progress_and_events_tell_how_far_it_is(outcome: Outcome) -> None:
    assert outcome.of(Resolved) == []  # a comparison has no one batch size
    told = [line.message for line in outcome.of(Message)]
    assert len(told) == 6
    assert re.match(r"full_logits at batch size 2: peak [1-9]\d*\.\d MiB, ", told[0])
    progress = [line.progress for line in outcome.of(ProgressLine)]
    assert (progress[-1].step, progress[-1].total_steps) == (30, 30)
    steps = [each.step for each in progress]
    assert steps == sorted(steps)


def test_a_cell_that_does_not_fit_is_an_outcome_and_the_rest_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = baselines.full_logits

    def too_large(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
        if len(hidden) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0")
        return whole(hidden, head, labels)

    monkeypatch.setitem(baselines.BY_NAME, "full_logits", too_large)
    outcome = compare(make_spec(tmp_path, tiny, chats(9), comparison=ASKED))
    cells = by_place(read(outcome))
    refused = cells.pop(("full_logits", 4))
    assert refused.outcome == "out_of_memory"
    assert refused.note == "The allocator was asked for 1,610,612,736 bytes when nothing was left."
    assert set(refused.figures.values()) == {None}
    assert {found.outcome for found in cells.values()} == {"completed"}
    assert cells["cce", 2].max_curve_difference < 1e-3
    assert cells["cce", 4].max_curve_difference is None
    assert "full logits at batch size 4" in outcome.one(Compared).html_report.read_text()
    warned = [line.message for line in outcome.of(Message) if line.level == "warn"]
    assert warned == [f"full_logits at batch size 4: out of memory. {refused.note}"]


def test_memory_that_runs_out_in_the_middle_spoils_no_later_cell(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: ComparisonReport
) -> None:
    whole, calls = baselines.full_logits, []

    def fails_at_last(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
        calls.append(len(hidden))
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0")
        return whole(hidden, head, labels)

    monkeypatch.setitem(baselines.BY_NAME, "full_logits", fails_at_last)
    outcome = compare(make_spec(tmp_path, tiny, chats(9), comparison=ASKED | {"batch_sizes": [4]}))
    found = by_place(read(outcome))
    assert found["full_logits", 4].outcome == "out_of_memory"
    assert found["cce", 4].train_losses == by_place(report)["cce", 4].train_losses


def test_a_loss_that_is_not_to_be_had_here_says_why(tiny: Path, tmp_path: Path) -> None:
    asked = {"losses": ["compiled_full_logits", "cce"], "batch_sizes": [2], "steps": 4}
    spec = make_spec(tmp_path, tiny, chats(4), comparison=asked, loss={"implementation": "triton"})
    compiled, ours = read(compare(spec)).cells
    assert (compiled.outcome, compiled.note) == ("unavailable", "It is compiled on CUDA alone.")
    assert ours.outcome == "unavailable"
    assert "triton" in ours.note.lower()


def test_a_baseline_too_large_for_this_cpu_is_not_tried(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "free_cpu_bytes", lambda: 4096)
    found = by_place(read(compare(make_spec(tmp_path, tiny, chats(9), comparison=ASKED))))
    assert found["full_logits", 2].outcome == "unavailable"
    assert found["chunked", 2].outcome == "completed"


def test_a_cell_that_diverges_says_at_which_step(tiny: Path, tmp_path: Path) -> None:
    asked = {"losses": ["cce"], "batch_sizes": [2], "steps": 8}
    spec = make_spec(tmp_path, tiny, chats(9), comparison=asked, learning_rate=0.99)
    spec = spec.model_copy(
        update={
            "job": spec.job.model_copy(
                update={"options": spec.job.options.model_copy(update={"learning_rate": 1e30})}
            )
        }
    )
    (found,) = read(compare(spec)).cells
    assert found.outcome == "diverged"
    assert "lower learning rate" in found.note


def test_auto_compares_what_a_cpu_has(tiny: Path, tmp_path: Path) -> None:
    asked = {"batch_sizes": [1], "steps": 4}
    found = read(compare(make_spec(tmp_path, tiny, chats(3), comparison=asked)))
    assert [each.loss for each in found.cells] == LOSSES


def test_adapters_with_dropout_and_packing_are_compared_too(tiny: Path, tmp_path: Path) -> None:
    """Dropout draws the same numbers in every cell; a frozen head has no gradient."""
    spec = make_spec(tmp_path, tiny, chats(9), comparison=ASKED, adapter=LORA, packing=True)
    for found in read(compare(spec)).cells:
        assert found.outcome == "completed"
        assert found.max_curve_difference < 1e-3
        assert found.gradient_error.head is None


def test_bf16_weights_start_anew_in_every_cell(tiny: Path, tmp_path: Path) -> None:
    asked = {"losses": ["full_logits", "chunked"], "batch_sizes": [2], "steps": 4}
    full, chunked = read(
        compare(make_spec(tmp_path, tiny, chats(9), comparison=asked, dtype="bfloat16"))
    ).cells
    assert full.train_losses[0] == pytest.approx(chunked.train_losses[0], rel=1e-3)
    assert chunked.max_curve_difference < 0.05
    assert 0 < full.gradient_error.hidden < 0.05
    assert not math.isclose(full.gradient_error.hidden, 0.0, abs_tol=1e-9)


def test_the_json_is_plain(outcome: Outcome) -> None:
    told = json.loads(outcome.one(Compared).json_report.read_text())
    assert told.keys() == {"job_id", "conditions", "versions", "cells"}
    assert told["cells"][0].keys() == set(Cell.model_fields)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch's compiler warns of what it does itself
def test_a_gpu_compares_all_four_and_the_logits_show(tiny: Path, tmp_path: Path) -> None:
    asked = {"batch_sizes": [4, 64], "steps": 6}
    found = read(compare(make_spec(tmp_path, tiny, chats(64), comparison=asked, device="cuda")))
    cells = by_place(found)
    assert found.conditions.method == "CUDA allocator peak"
    assert [each.outcome for each in found.cells] == ["completed"] * 8
    for each in found.cells:
        assert each.max_curve_difference < 0.1
        assert each.gradient_error.hidden < 0.05
    assert cells["full_logits", 64].peak_bytes > cells["cce", 64].peak_bytes
