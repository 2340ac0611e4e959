"""The benchmark on tiny models, within a limit of bytes on the CPU; nothing ends it early."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.bench import __main__ as bench
from worker.bench.measure import Case, Conditions, OutOfTime, Row
from worker.bench.models import PUBLISHED, SHAPES, build
from worker.training.probe import Probe

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
TINY = ["--seq-length", "64", "--tokens", "256", "--memory-gib", "0.06"]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "pick_device", lambda _: torch.device("cpu"))


def run(path: Path, *arguments: str) -> list[dict[str, Any]]:
    assert bench.main([*TINY, *arguments, "--json", str(path)]) == 0
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-gemma"])
def test_what_fits_is_measured_beside_what_was_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, mode: str
) -> None:
    case = ["--models", model, "--modes", mode, "--checkpointing", "on"]
    rows = run(tmp_path / "rows.json", *case, "--commit", "abc1234")
    full, ours = rows
    assert [row["loss"] for row in rows] == ["full_logits", "cce"]
    assert all(row["status"] == "measured" for row in rows)
    assert ours["largest"] > 3 * full["largest"] > 0
    for row in rows:
        assert row["commit"] == "abc1234"
        assert row["largest"] == pytest.approx(row["largest_predicted"], rel=1 / 8, abs=1)
        assert row["peak_bytes"] == pytest.approx(row["peak_predicted_bytes"], rel=0.05)
        assert row["error"] == pytest.approx(row["peak_predicted_bytes"] / row["peak_bytes"] - 1)
    told = capsys.readouterr().out
    multiple = ours["largest"] / full["largest"]
    assert f"| {model} | {mode} | yes |" in told
    assert f"| {multiple:.1f}x |" in told
    assert "Largest error of a predicted peak" in told


def test_what_does_not_fit_is_told_and_the_next_case_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bench.measure

    def measure(case: Case, conditions: Conditions) -> Iterator[Row]:
        if case.mode == "full":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB.")
        yield from real(case, conditions)

    monkeypatch.setattr(bench, "measure", measure)
    rows = run(tmp_path / "rows.json", "--models", "tiny-llama", "--checkpointing", "on")
    assert [(row["mode"], row["status"]) for row in rows] == [
        ("full", "out of memory"),
        ("full", "out of memory"),
        ("lora", "measured"),
        ("lora", "measured"),
    ]
    assert "| tiny-llama | full | yes | out of memory | out of memory | - | - | - |" in (
        capsys.readouterr().out
    )


def test_a_loss_that_fits_for_no_sequence_has_zero(tmp_path: Path) -> None:
    little = ["--models", "tiny-llama", "--modes", "full", "--checkpointing", "on"]
    rows = run(tmp_path / "rows.json", *little, "--memory-gib", "0.001")
    assert [(row["largest"], row["largest_predicted"]) for row in rows] == [(0, 0), (0, 0)]


def test_when_the_minutes_are_over_what_is_left_says_so(tmp_path: Path) -> None:
    rows = run(tmp_path / "rows.json", "--models", "tiny-llama", "--minutes", "0")
    assert len(rows) == 2 * 2 * 2
    assert {row["status"] for row in rows} == {"out of time"}


def test_a_search_that_runs_out_of_time_keeps_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def largest(*_: object, **__: object) -> int:
        raise OutOfTime

    monkeypatch.setattr(Probe, "largest", largest)
    case = ["--models", "tiny-llama", "--modes", "full", "--checkpointing", "on"]
    for row in run(tmp_path / "rows.json", *case):
        assert (row["status"], row["largest"]) == ("out of time", None)
        assert abs(row["error"]) < 0.1
    assert "| out of time | out of time | - | 0." in capsys.readouterr().out


def test_without_a_gpu_a_limit_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--models", "tiny-llama"]) == 2
    assert "--memory-gib" in capsys.readouterr().err


def test_the_published_shapes_are_those_of_their_models() -> None:
    from service.contract.estimate.model import shape_of

    sizes = {name: shape_of(SHAPES[name]).parameters for name in PUBLISHED}
    assert sizes == {
        "gemma-2-2b": 2_614_341_888,
        "llama-3.2-1b": 1_235_814_400,
        "qwen2.5-0.5b": 494_032_768,
    }


def test_a_model_is_built_as_its_shape_says() -> None:
    subject = build("tiny-gemma", None, torch.device("cpu"), torch.bfloat16, checkpointing=True)
    assert subject.model.model.num_parameters() == subject.shape.parameters
    assert subject.model.head.softcap == 30.0
    assert subject.model.head.weight.dtype == torch.bfloat16
