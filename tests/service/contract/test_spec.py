"""The options of a job: ranges, and errors that name the field."""

from typing import Any

import pytest
from pydantic import ValidationError

from service.contract.spec import Hyperparameters, JobSpec, LoraAdapter, Options, TrainingOptions

INFINITE = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (Hyperparameters, {"batch_size": (0, 257, "big", 1.5), "n_epochs": (0, 51)}),
        (Hyperparameters, {"learning_rate_multiplier": (0, -1, 9e-4, 1001, *INFINITE)}),
        (TrainingOptions, {"learning_rate": (0, 1, *INFINITE), "max_seq_length": (7, 1 << 21)}),
        (TrainingOptions, {"max_grad_norm": (0, *INFINITE), "weight_decay": (-1, *INFINITE)}),
        (TrainingOptions, {"lr_scheduler": ("none",), "dtype": ("int8",), "unknown": (1,)}),
        (TrainingOptions, {"checkpoint_every": (0,), "gradient_accumulation_steps": (0,)}),
        (LoraAdapter, {"rank": (0, 1025), "alpha": (0, *INFINITE), "dropout": (1, -0.1)}),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    options: type[Options], values: dict[str, tuple[Any, ...]]
) -> None:
    for name, wrong in values.items():
        for value in wrong:
            with pytest.raises(ValidationError) as caught:
                options(**{name: value})
            assert caught.value.errors()[0]["loc"][0] == name


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_is_one_that_every_generator_takes(seed: int) -> None:
    with pytest.raises(ValidationError, match="seed"):
        JobSpec(model="m", training_file="f", seed=seed)


def test_a_spec_survives_json() -> None:
    spec = JobSpec(
        model="m",
        training_file="f",
        seed=1,
        hyperparameters=Hyperparameters(n_epochs=2),
        options=TrainingOptions(adapter=LoraAdapter(targets=["q_proj"])),
    )
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
