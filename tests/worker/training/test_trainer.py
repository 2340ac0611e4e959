"""Whole jobs of the trainer, and what it tells about them."""

import csv
import json
import platform
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.tiny_llama import essays
from tests.worker.training.support import lines_of, of_kind, run_spec
from worker.events import (
    CheckpointWritten,
    Message,
    Metrics,
    Phases,
    Receipt,
    Result,
    RunSpec,
)
from worker.training import outliers

# No weight moves by it: a row's loss is the same whenever it is trained on.
STILL = 1e-12


def result_of(lines: list) -> Result:
    (result,) = of_kind(Result, lines)
    return result


def outlier_rows(lines: list) -> list[dict[str, float]]:
    with result_of(lines).outliers_csv.open() as table:
        return [{name: float(v) for name, v in row.items()} for row in csv.DictReader(table)]


def own_losses(model: Path, texts: list[str]) -> list[float]:
    """Each text's mean loss, by the model's own code."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    own = AutoModelForCausalLM.from_pretrained(model)
    losses = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            losses.append(float(own(input_ids=ids, labels=ids).loss))
    return losses


@pytest.fixture
def texts() -> list[str]:
    """Rows of several lengths, one of them unlike the others."""
    rows = [text[: 40 + 10 * at] for at, text in enumerate(essays(7, length=120))]
    return [*rows[:4], "zq" * 20, *rows[4:]]


@pytest.mark.parametrize("packing", [False, True])
def test_each_epoch_names_the_rows_with_the_highest_loss(
    tmp_path: Path, tiny_model: Path, texts: list[str], packing: bool, monkeypatch
) -> None:
    monkeypatch.setattr(outliers, "MOST", 3)
    options = {"learning_rate": STILL, "packing": packing}
    lines = lines_of(run_spec(tmp_path, tiny_model, texts, options=options))
    expected = own_losses(tiny_model, texts)
    highest = sorted(range(len(texts)), key=lambda at: -expected[at])[:3]
    rows = outlier_rows(lines)
    for epoch in (1, 2):
        found = [row for row in rows if row["epoch"] == epoch]
        assert [row["line"] for row in found] == [at + 1 for at in highest]
        losses = [expected[at] for at in highest]
        assert [row["loss"] for row in found] == pytest.approx(losses, rel=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    predicted = [len(tokenizer(texts[at])["input_ids"]) for at in highest]
    assert [row["tokens"] for row in rows[:3]] == predicted
    told = [m for m in of_kind(Message, lines) if m.message.startswith("Epoch")]
    assert [m.data["epoch"] for m in told] == [1, 2]
    assert [row["line"] for row in told[0].data["rows"]] == [at + 1 for at in highest]
    assert f"line {highest[0] + 1} " in told[0].message


def test_a_resumed_job_knows_the_rows_before_its_checkpoint(
    tmp_path: Path, tiny_model: Path, texts: list[str]
) -> None:
    options = {"checkpoint_every": 2}  # four steps an epoch
    whole = lines_of(run_spec(tmp_path / "whole", tiny_model, texts, options=options))
    middle = of_kind(CheckpointWritten, whole)[0]
    assert middle.step == 2
    again = run_spec(
        tmp_path / "again", tiny_model, texts, options=options, resume_from=middle.path
    )
    resumed = lines_of(again)
    assert outlier_rows(resumed) == outlier_rows(whole)
    assert len(outlier_rows(resumed)) == 2 * len(texts)
    assert [receipt.receipt.resumed_from_step for receipt in of_kind(Receipt, resumed)] == [2]
    assert [receipt.receipt.resumed_from_step for receipt in of_kind(Receipt, whole)] == [None]
    assert result_of(resumed).receipt.resumed_from_step == 2


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[RunSpec, list]:
    """A job without any option, and its lines."""
    spec = run_spec(tmp_path_factory.mktemp("plain"), tiny_model)
    return spec, lines_of(spec)


def test_the_receipt_says_what_was_trained_on_and_by_what(plain: tuple[RunSpec, list]) -> None:
    spec, lines = plain
    (receipt,) = [line.receipt for line in of_kind(Receipt, lines)]
    assert receipt.training_file_sha256 == spec.training.sha256
    assert receipt.seed == 3
    assert receipt.versions["torch"] == torch.__version__
    assert receipt.versions["python"] == platform.python_version()
    assert {"triton", "transformers", "device"} <= receipt.versions.keys()
    assert receipt.filtered == []  # the blocked loss is exact
    result = result_of(lines)
    assert result.receipt == receipt
    assert json.loads(result.report.read_text())["receipt"] == receipt.model_dump()


def triton_spec(folder: Path, model: Path) -> RunSpec:
    return run_spec(
        folder,
        model,
        essays(4, length=30),
        hyper={"n_epochs": 1},
        loss={"implementation": "triton"},
        options={"dtype": "bfloat16", "gradient_accumulation_steps": 2},
    )


def test_what_the_filter_leaves_out_is_told_over_time(tmp_path: Path, tiny_model: Path) -> None:
    lines = lines_of(triton_spec(tmp_path, tiny_model))
    points = [line for line in of_kind(Metrics, lines) if line.train_loss is not None]
    assert [point.step for point in points] == [1, 2]
    series = result_of(lines).receipt.filtered
    assert [point.step for point in series] == [0, 1, 2]
    for point, seen in zip(points, series[1:], strict=True):
        assert (point.filtered_mass_p50, point.filtered_mass_p99) == (seen.p50, seen.p99)
        assert 0.0 <= seen.p50 <= seen.p99 <= 1.0
        assert point.filter_fallbacks == seen.fallbacks
    # A fresh model's softmax is flat: more pairs are over the bar than there is room for.
    assert {point.filter_fallbacks for point in points} == {2}


def test_a_step_is_timed_by_its_phases(plain: tuple[RunSpec, list]) -> None:
    _, lines = plain
    (phases,) = [line.phases for line in of_kind(Phases, lines)]
    seconds = phases.model_dump(exclude={"steps"})
    assert phases.steps == 3
    assert all(0 < value < 10 for value in seconds.values()), seconds
    assert seconds["backward"] + seconds["forward"] > seconds["data"]
