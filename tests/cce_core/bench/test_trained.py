"""Trained data on a CPU: a tiny model learns this machine's Python sources, and is kept whole."""

import math
from dataclasses import replace

import pytest
import torch

from cce_core.bench import data, text, trained
from cce_core.bench.language_model import LanguageModel, Schedule

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "made when needed"


@pytest.fixture(scope="module")
def case(folder) -> data.Case:
    return trained.case(trained.SMOKE, folder, 512, CPU)


def test_the_case_is_a_head_that_has_learnt_its_text(case) -> None:
    size = trained.SMOKE.size
    assert case.e.shape == (512, size.d)
    assert case.c.shape == (size.v, size.d)
    assert case.e.dtype == case.c.dtype == torch.bfloat16
    assert case.statistics["loss"] < math.log(size.v) - 0.5
    assert (case.shape.name, case.kind) == ("python-smoke", "trained")


def test_labels_are_the_next_tokens_but_for_some_that_are_ignored(case) -> None:
    ignored = case.targets == data.IGNORE_INDEX
    assert 0.01 < ignored.float().mean() < 0.12
    assert case.targets[~ignored].min() >= 0
    assert len(case.targets.unique()) > 50


def test_the_second_time_it_is_read_from_disk(case, folder, monkeypatch) -> None:
    monkeypatch.setattr(trained, "make", None)
    again = trained.case(trained.SMOKE, folder, 512, CPU)
    assert torch.equal(again.e, case.e)
    assert torch.equal(again.targets, case.targets)


def test_a_failure_while_writing_leaves_no_file_to_trust(tmp_path, monkeypatch) -> None:
    def torn(made, file) -> None:
        file.write(b"half")
        raise OSError

    monkeypatch.setattr(trained, "make", lambda training, device: {})
    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError):  # noqa: PT011  it has no message, being ours
        trained.load(trained.SMOKE, tmp_path, CPU)
    assert not (tmp_path / trained.SMOKE.file_name).exists()


def test_another_training_is_another_file() -> None:
    other = replace(trained.SMOKE, text_size=1)
    assert other.file_name != trained.SMOKE.file_name


def test_more_rows_than_are_held_out_is_an_error(folder, case) -> None:
    with pytest.raises(ValueError, match=r"rows held out, got rows=1000000"):
        trained.case(trained.SMOKE, folder, 1_000_000, CPU)


def test_full_size_is_about_a_hundred_million_parameters_in_four_minutes() -> None:
    with torch.device("meta"):
        model = LanguageModel(trained.FULL.size)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 90e6 < count < 110e6
    assert trained.FULL.size.v >= 65536
    assert trained.FULL.schedule.seconds < 240


def test_a_schedule_ends_by_steps_or_by_time_with_a_rate_of_zero() -> None:
    schedule = Schedule(batch=1, steps=100, seconds=10.0, learning_rate=1.0)
    assert schedule.rate(99, 0.0) == pytest.approx(0.01)
    assert schedule.rate(60, 5.0) == pytest.approx(0.4)
    assert schedule.rate(0, 12.0) == 0.0


def test_texts_are_distinct_and_their_order_is_that_of_their_names(tmp_path) -> None:
    for name, content in {"a": "x = 1", "b": "x = 1", "c": "y = 2", "d": ""}.items():
        (tmp_path / f"{name}.py").write_text(content)
    found = list(text.source_texts([tmp_path]))
    assert sorted(found) == ["x = 1", "y = 2"]
    assert found == list(text.source_texts([tmp_path]))


def test_tokens_of_texts_end_each() -> None:
    tokenizer = text.Tokenizer(["def f(x):\n    return x\n"] * 3, 300)
    tokens = tokenizer.tokens(["f", "x"])
    assert tokens.tolist()[1::2] == [0, 0]
    assert len(tokens) == 4
