from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.training.support import Outcome, ask
from worker.training import sample


def test_a_model_answers_what_it_has_learned(
    run: Callable[..., Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ask("Hello?", "Hi, you.")] * 4
    outcome = run(rows, hyperparameters={"n_epochs": 50, "batch_size": 4}, learning_rate=2e-2)
    sample.main([str(outcome.result.model), "Hello?"])
    assert capsys.readouterr().out == "Hi, you.\n"


def test_an_answer_is_no_longer_than_asked_and_the_same_each_time(tiny: Path) -> None:
    short, again, long = (sample.answer(tiny, "Hello?", count) for count in (4, 4, 12))
    assert short == again
    assert long.startswith(short)
    assert len(long) > len(short)
