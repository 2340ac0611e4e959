"""Batch, micro-batch and accumulation: every way to ask for them, and what contradicts itself."""

from typing import Any

import pytest

from service.contract.batching import Batching, batching, check
from service.contract.errors import InvalidRequest
from service.contract.spec import Hyperparameters, JobSpec, TrainingOptions

AUTO = "auto"


def spec(batch: Any = AUTO, micro: Any = AUTO, steps: Any = AUTO) -> JobSpec:
    options = TrainingOptions(micro_batch_size=micro, gradient_accumulation_steps=steps)
    return JobSpec(
        model="tiny",
        training_file="file-1",
        seed=1,
        hyperparameters=Hyperparameters(batch_size=batch),
        options=options,
    )


@pytest.mark.parametrize(
    ("batch", "micro", "steps", "rows", "expected"),
    [
        (AUTO, AUTO, AUTO, 100, Batching(1, 1, open=True)),
        (AUTO, AUTO, AUTO, 4_000, Batching(8, 8, open=True)),
        (32, AUTO, AUTO, 100, Batching(32, 32, open=True)),
        (32, AUTO, 4, 100, Batching(32, 8, open=False)),
        (AUTO, AUTO, 3, 8_000, Batching(15, 5, open=False)),
        (AUTO, AUTO, 32, 8_000, Batching(32, 1, open=False)),
        (32, 5, AUTO, 100, Batching(32, 5, open=False)),
        (AUTO, 5, AUTO, 8_000, Batching(15, 5, open=False)),
        (AUTO, 64, AUTO, 8_000, Batching(64, 64, open=False)),
        (AUTO, 6, 2, 8_000, Batching(12, 6, open=False)),
        (12, 6, 2, 100, Batching(12, 6, open=False)),
        (32, AUTO, AUTO, 8, Batching(8, 8, open=True)),
        (32, AUTO, 4, 7, Batching(7, 2, open=False)),
        (32, 16, AUTO, 8, Batching(8, 8, open=False)),
        (AUTO, 4, 4, 8, Batching(8, 4, open=False)),
    ],
)
def test_what_is_given_decides_the_rest(
    batch: Any, micro: Any, steps: Any, rows: int, expected: Batching
) -> None:
    asked = spec(batch, micro, steps)
    check(asked)
    assert batching(asked, rows) == expected


@pytest.mark.parametrize(
    ("batch", "micro", "steps", "param", "told"),
    [
        (16, 4, 2, "micro_batch_size", "4 times .* 2, is 8; expected batch_size, 16"),
        (16, 17, AUTO, "micro_batch_size", "17; expected at most batch_size, 16"),
        (16, AUTO, 5, "gradient_accumulation_steps", "5; expected a divisor of batch_size, 16"),
    ],
)
def test_what_contradicts_itself_is_refused(
    batch: int, micro: Any, steps: Any, param: str, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told) as refusal:
        check(spec(batch, micro, steps))
    assert (refusal.value.code, refusal.value.param) == ("invalid_value", param)
