"""The benchmark of the ledger's bars, on a tiny model; a loss that does not fit is a row."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cce_core import baselines
from worker.bench import ledger as bench
from worker.bench.ledger_report import Bar, Overhead

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
TINY = ["--model", "tiny-gemma", "--sequences", "2", "--seq-length", "256", "--steps", "2"]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "pick_device", lambda _: torch.device("cpu"))


def run(path: Path) -> dict[str, Any]:
    assert bench.main([*TINY, "--commit", "abc1234", "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def by_loss(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["loss"]: row for row in found["rows"]}


def test_without_a_gpu_the_model_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The default is Gemma 2 2B, which took all of a CPU and its memory without a word."""
    assert bench.main([]) == 2
    assert "--model" in capsys.readouterr().err


def test_each_loss_is_a_row_and_each_bar_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path / "ledger.json")
    rows = by_loss(found)
    assert list(rows) == ["full_logits", "compiled_full_logits", "chunked", "cce"]
    full, ours = rows["full_logits"], rows["cce"]
    for row in (full, rows["chunked"], ours):
        assert (row["model"], row["tokens"], row["dtype"]) == ("tiny-gemma", 512, "float32")
        assert row["commit"] == "abc1234"
        assert row["loss_layer"] == row["step"] == "measured"
        assert (row["training"], row["note"]) == ("completed", None)
        assert row["training_peak_bytes"] > row["step_bytes"] > row["loss_layer_bytes"] > 0
        assert row["tokens_per_second"] > 0
    compiled = rows["compiled_full_logits"]
    assert (compiled["training"], compiled["loss_layer"]) == ("unavailable", None)
    logits = 4 * 2 * 255 * 8192
    assert full["loss_layer_bytes"] > 3 * logits > 3 * ours["loss_layer_bytes"]

    layer, passes, training, measuring = found["bars"]
    assert layer["value"] == full["loss_layer_bytes"] / ours["loss_layer_bytes"]
    assert layer["holds"] is False  # at so few tokens
    assert passes["value"] == ours["step_bytes"] / full["step_bytes"]
    assert training["value"] == ours["training_peak_bytes"] / full["training_peak_bytes"]
    spent = found["overhead"]
    assert min(spent[f"{part}_seconds"] for part in ("first_pass", "start", "step")) > 0
    assert measuring["value"] == spent["share"]
    told = capsys.readouterr().out
    assert f"| {layer['value']:.1f}x |" in told
    assert f"| {layer['name']} | {layer['value']:.1f} | at least 150.0 | no |" in told
    assert "compiled_full_logits: It is compiled on CUDA alone." in told


def test_a_loss_that_does_not_fit_is_a_row_and_its_bars_are_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 ...")

    monkeypatch.setattr(baselines, "full_logits", refuse)
    monkeypatch.setitem(baselines.BY_NAME, "full_logits", refuse)
    found = run(tmp_path / "ledger.json")
    full = by_loss(found)["full_logits"]
    assert full["loss_layer"] == full["step"] == full["training"] == "out_of_memory"
    assert full["loss_layer_bytes"] == 2 << 30
    assert by_loss(found)["cce"]["training"] == "completed"
    assert [bar["holds"] for bar in found["bars"][:3]] == [None] * 3
    assert "| full_logits | out of memory | - | out of memory |" in capsys.readouterr().out


def test_overhead_is_a_share_of_the_steps_of_a_job() -> None:
    spent = {"start_seconds": 9.0, "profiled_seconds": 1.0, "step_seconds": 0.5}
    overhead = Overhead(job_steps=500, first_pass_seconds=30.0, **spent)
    assert overhead.share == 10 / 250


def test_a_bar_holds_from_its_limit_on_or_below_it() -> None:
    values = (1.9, 2.0, 2.1, None)
    assert [Bar("saved", at, 2.0, True).holds for at in values] == [False, True, True, None]
    assert [Bar("spent", at, 2.0, False).holds for at in values] == [True, False, False, None]
