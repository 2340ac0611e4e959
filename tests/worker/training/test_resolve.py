import pytest

from service.contract.spec import Hyperparameters, JobSpec, TrainingOptions
from worker.training.resolve import resolve


def spec(batch: int, steps: int) -> JobSpec:
    return JobSpec(
        model="base",
        training_file="file-1",
        seed=1,
        hyperparameters=Hyperparameters(batch_size=batch),
        options=TrainingOptions(gradient_accumulation_steps=steps),
    )


@pytest.mark.parametrize(
    ("batch", "steps", "limit", "micro", "accumulated"),
    [
        (8, 1, None, 8, 1),
        (8, 1, 4, 4, 2),
        (8, 4, 4, 2, 4),  # less than the limit was asked for
        (5, 1, 2, 2, 3),  # 2 + 2 + 1
        (1, 1, 1, 1, 1),
    ],
)
def test_a_reduced_micro_batch_keeps_the_effective_batch_and_the_steps(
    batch: int, steps: int, limit: int | None, micro: int, accumulated: int
) -> None:
    free = resolve(spec(batch, steps), 100, 64, cuda=False)
    reduced = resolve(spec(batch, steps), 100, 64, cuda=False, max_micro_batch_size=limit)
    assert (reduced.micro_batch_size, reduced.gradient_accumulation_steps) == (micro, accumulated)
    same = {"batch_size", "total_steps", "n_epochs", "learning_rate", "checkpoint_every"}
    assert reduced.model_dump(include=same) == free.model_dump(include=same)
