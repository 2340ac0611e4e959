"""Every rule of "auto" that the README's table of options documents."""

from typing import Any

import pytest

from service.contract.errors import JobFailure
from service.contract.resolve import resolve, sequence_length, with_micro_batch
from service.contract.spec import JobSpec, LoraAdapter, ResolvedOptions, TrainingOptions


def job(hyperparameters: dict[str, Any] | None = None, **options: Any) -> JobSpec:
    return JobSpec(
        model="tiny",
        training_file="file-training",
        seed=1,
        hyperparameters=hyperparameters or {},
        options=TrainingOptions(**options),
    )


def resolved(
    rows: int = 100,
    *,
    cuda: bool = False,
    on_adapter: bool = False,
    hyper: dict[str, Any] | None = None,
    **options: Any,
) -> ResolvedOptions:
    return resolve(job(hyper, **options), rows, 512, cuda=cuda, on_adapter=on_adapter)


@pytest.mark.parametrize(
    ("rows", "batch"),
    [(1, 1), (999, 1), (1000, 2), (4000, 8), (7999, 15), (8000, 16), (1_000_000, 16)],
)
def test_a_batch_is_a_500th_of_the_examples_from_1_to_16(rows: int, batch: int) -> None:
    assert resolved(rows).batch_size == batch


@pytest.mark.parametrize(
    ("rows", "steps", "batch", "micro"),
    [(8000, 4, 16, 4), (8000, 3, 15, 5), (2500, 3, 3, 1), (100, 2, 2, 1), (8000, 32, 32, 1)],
)
def test_an_automatic_batch_can_be_divided_as_asked(
    rows: int, steps: int, batch: int, micro: int
) -> None:
    found = resolved(rows, gradient_accumulation_steps=steps)
    assert (found.batch_size, found.micro_batch_size) == (batch, micro)
    assert found.gradient_accumulation_steps == steps


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(1, 3), (9_999, 3), (10_000, 2), (49_999, 2), (50_000, 1), (1_000_000, 1)],
)
def test_epochs_are_fewer_for_large_files(rows: int, epochs: int) -> None:
    assert resolved(rows).n_epochs == epochs


def test_an_epoch_has_a_step_for_what_is_left_of_a_batch() -> None:
    found = resolved(10, hyper={"batch_size": 4, "n_epochs": 5})
    assert found.total_steps == 5 * 3


@pytest.mark.parametrize(("adapter", "rate"), [(None, 2e-5), (LoraAdapter(), 2e-4)])
def test_the_rate_is_higher_with_lora_and_times_the_multiplier(
    adapter: LoraAdapter | None, rate: float
) -> None:
    assert resolved(adapter=adapter).learning_rate == pytest.approx(rate)
    found = resolved(adapter=adapter, hyper={"learning_rate_multiplier": 3.0})
    assert found.learning_rate == pytest.approx(3 * rate)
    assert found.learning_rate_multiplier == 3.0


@pytest.mark.parametrize("multiplier", [1e-3, 1e3])
@pytest.mark.parametrize("on_adapter", [False, True])
def test_every_automatic_rate_is_one_that_can_be_asked_for(
    multiplier: float, *, on_adapter: bool
) -> None:
    hyper = {"learning_rate_multiplier": multiplier}
    rate = resolved(on_adapter=on_adapter, hyper=hyper).learning_rate
    assert TrainingOptions(learning_rate=rate).learning_rate == rate


def test_a_job_on_an_adapter_trains_it_at_the_rate_of_lora() -> None:
    found = resolved(on_adapter=True)
    assert (found.trained, found.learning_rate) == ("lora", 2e-4)
    assert resolved().trained == "full"


def test_a_rate_that_is_given_is_the_rate() -> None:
    """The multiplier is on the automatic rate alone."""
    found = resolved(learning_rate=1e-3, hyper={"learning_rate_multiplier": 3.0})
    assert found.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("cuda", "dtype", "checkpointing", "loss"),
    [(True, "bfloat16", True, "triton"), (False, "float32", False, "blocked")],
)
def test_the_device_decides_dtype_checkpointing_and_loss(
    cuda: bool, dtype: str, checkpointing: bool, loss: str
) -> None:
    found = resolved(cuda=cuda)
    assert found.dtype == dtype
    assert found.gradient_checkpointing is checkpointing
    assert found.loss_implementation == loss


def test_the_kernels_are_not_chosen_for_another_dtype() -> None:
    assert resolved(cuda=True, dtype="float32").loss_implementation == "blocked"
    assert resolved(cuda=False, dtype="bfloat16").loss_implementation == "blocked"


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (9, 1), (25, 2), (1000, 100)])
def test_checkpoints_come_every_tenth_of_the_job(steps: int, every: int) -> None:
    found = resolved(steps, hyper={"batch_size": 1, "n_epochs": 1})
    assert (found.total_steps, found.checkpoint_every) == (steps, every)


def test_what_is_given_is_used() -> None:
    hyper = {"batch_size": 6, "n_epochs": 2, "learning_rate_multiplier": 1.5}
    options = {
        "gradient_accumulation_steps": 3,
        "gradient_checkpointing": True,
        "dtype": "bfloat16",
        "loss": {"implementation": "reference"},
        "checkpoint_every": 7,
        "learning_rate": 0.5,
    }
    found = resolve(job(hyper, **options), 60_000, 64, cuda=False, on_adapter=False)
    assert found == ResolvedOptions(
        device="cpu",
        trained="full",
        batch_size=6,
        micro_batch_size=2,
        gradient_accumulation_steps=3,
        n_epochs=2,
        learning_rate_multiplier=1.5,
        learning_rate=0.5,
        max_seq_length=64,
        gradient_checkpointing=True,
        dtype="bfloat16",
        loss_implementation="reference",
        checkpoint_every=7,
        total_steps=20_000,
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
    spec = job({"batch_size": batch}, gradient_accumulation_steps=steps)
    free = resolve(spec, 100, 64, cuda=False, on_adapter=False)
    reduced = resolve(spec, 100, 64, cuda=False, on_adapter=False, max_micro_batch_size=limit)
    assert (reduced.micro_batch_size, reduced.gradient_accumulation_steps) == (micro, accumulated)
    same = {"batch_size", "total_steps", "n_epochs", "learning_rate", "checkpoint_every"}
    assert reduced.model_dump(include=same) == free.model_dump(include=same)


def test_another_micro_batch_leaves_the_effective_batch() -> None:
    found = resolved(8000)
    smaller = with_micro_batch(found, 5)
    assert (smaller.micro_batch_size, smaller.gradient_accumulation_steps) == (5, 4)
    same = {"micro_batch_size", "gradient_accumulation_steps"}
    assert smaller.model_dump(exclude=same) == found.model_dump(exclude=same)


# The length of a sequence


@pytest.mark.parametrize(
    ("context", "length"), [(512, 512), (4096, 4096), (131_072, 4096), (None, 4096)]
)
def test_the_length_is_the_models_context_at_most_4096(context: int | None, length: int) -> None:
    assert sequence_length(job(), context) == length


def test_no_more_than_the_models_context_can_be_asked_for() -> None:
    assert sequence_length(job(max_seq_length=8192), 8192) == 8192
    assert sequence_length(job(max_seq_length=100_000), None) == 100_000
    with pytest.raises(
        JobFailure, match="max_seq_length is 8193; the model's context is 8192"
    ) as e:
        sequence_length(job(max_seq_length=8193), 8192)
    assert (e.value.code, e.value.param) == ("unsupported_model", "max_seq_length")
