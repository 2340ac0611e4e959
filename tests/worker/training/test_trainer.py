"""The training of a job, from its spec to files that others load."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from openai.types.fine_tuning.jobs.fine_tuning_job_checkpoint import Metrics as CheckpointMetrics
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    get_scheduler,
)

from cce_core import IGNORE_INDEX
from service.contract.errors import JobFailure
from service.contract.spec import LoraAdapter
from tests.worker.training.support import LONG, Outcome, ask, chats, make_spec, train, validate
from worker.events import (
    CheckpointWritten,
    Ledger,
    Message,
    Metrics,
    ProgressLine,
    Receipt,
    Resolved,
    Validated,
)
from worker.training.batches import order
from worker.training.data import InvalidData
from worker.training.examples import chat_example

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
RunJob = Callable[..., Outcome]
LORA = LoraAdapter(rank=4)
# Enough for the rate to have its shape, small enough to take a second.
EPOCHS = {"n_epochs": 3, "batch_size": 4}


def measured(folder: Path, rows: list[dict]) -> tuple[float, float]:
    """Loss and accuracy of a model in a folder, by transformers and plain torch alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    loss, correct, count = 0.0, 0, 0
    for row in rows:
        example = chat_example(row, tokenizer)
        with torch.no_grad():
            logits = model(torch.tensor([example.input_ids])).logits[0, :-1]
        labels = torch.tensor(example.labels[1:])
        loss += float(
            torch.nn.functional.cross_entropy(
                logits, labels, ignore_index=IGNORE_INDEX, reduction="sum"
            )
        )
        correct += int((logits.argmax(-1) == labels).sum())
        count += int((labels != IGNORE_INDEX).sum())
    return loss / count, correct / count


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(outcome.result.model).state_dict()


def plainly(folder: Path, rows: list[dict], dtype: torch.dtype) -> tuple[list[float], Any]:
    """Losses and model of `EPOCHS`, by transformers and torch's AdamW on fp32 copies alone.

    Each row goes alone through full logits: no padding, no micro-batches, no cut cross-entropy.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = [chat_example(row, tokenizer) for row in rows]
    masters = [weight.detach().float().clone() for weight in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=1e-2, weight_decay=0.1)
    steps = 3 * math.ceil(len(rows) / 4)
    scheduler = get_scheduler("cosine", optimizer, int(0.25 * steps), steps)
    losses = []
    for epoch in range(3):
        shuffled = order(len(rows), 7, epoch)
        for start in range(0, len(rows), 4):
            batch = [examples[at] for at in shuffled[start : start + 4]]
            count, total = sum(example.supervised for example in batch), 0.0
            for example in batch:
                logits = model(torch.tensor([example.input_ids])).logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(
                    logits, torch.tensor(example.labels[1:]), reduction="sum"
                )
                (loss / count).backward()
                total += float(loss.detach())
            losses.append(total / count)
            for master, weight in zip(masters, model.parameters(), strict=True):
                master.grad, weight.grad = weight.grad.float(), None
            torch.nn.utils.clip_grads_with_norm_(
                masters, 2.3, torch.nn.utils.get_total_norm([m.grad for m in masters])
            )
            optimizer.step()
            scheduler.step()
            for master, weight in zip(masters, model.parameters(), strict=True):
                weight.data.copy_(master)
    return losses, model


# Validation


def test_fit_data_is_counted(
    tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = chats(5)
    outcome = validate(make_spec(tmp_path, tiny, rows, mode="validate", validation=chats(2)))
    examples = [chat_example(row, tokenizer) for row in rows]
    assert outcome.lines[-1] == Validated(
        examples=5,
        tokens=sum(len(example.input_ids) for example in examples),
        supervised_tokens=sum(example.supervised for example in examples),
        longest=max(len(example.input_ids) for example in examples),
    )
    assert outcome.of(ProgressLine)[0].progress.phase == "validating"


@pytest.mark.parametrize("which", ["training", "validation"])
def test_unfit_data_is_refused_by_the_file_it_is_in(tiny: Path, tmp_path: Path, which: str) -> None:
    rows, validation = (LONG, chats(2)) if which == "training" else (chats(2), LONG)
    for work in (validate, train):
        with pytest.raises(InvalidData, match="max_seq_length, 128") as failure:
            work(make_spec(tmp_path, tiny, rows, validation=validation))
        assert (failure.value.code, failure.value.param) == (
            f"invalid_{which}_file",
            f"{which}_file",
        )


# What comes out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_full_fine_tuning_is_a_model_that_transformers_loads(run: RunJob, dtype: str) -> None:
    rows, validation = chats(16), chats(5)
    outcome = run(rows, validation=validation, hyperparameters=EPOCHS, dtype=dtype)
    assert list(outcome.losses) == list(range(1, 13))
    assert outcome.losses[12] < 0.8 * outcome.losses[1]
    assert outcome.result.model_kind == "full"
    last = [m for m in outcome.of(Metrics) if m.full_valid_loss is not None]
    assert [m.step for m in last] == [12]
    loss, accuracy = measured(outcome.result.model, validation)
    assert last[0].full_valid_loss == pytest.approx(loss, rel=1e-5 if dtype == "float32" else 0.01)
    if dtype == "float32":
        assert last[0].full_valid_mean_token_accuracy == pytest.approx(accuracy)


def test_the_config_of_the_result_is_that_of_the_base(run: RunJob, tiny: Path) -> None:
    result = run(chats(4)).result.model
    assert json.loads((result / "config.json").read_text()) == json.loads(
        (tiny / "config.json").read_text()
    )
    assert (result / "chat_template.jinja").read_text() == (
        tiny / "chat_template.jinja"
    ).read_text()


def test_evaluation_weights_every_token_alike(run: RunJob, tiny: Path) -> None:
    """Not every batch, nor every row: here one row has nearly all that is to be predicted."""
    validation = [ask("a", "b" * 80), *[ask("a", "c")] * 6]
    outcome = run(chats(4), validation=validation, hyperparameters={"batch_size": 2})
    loss, accuracy = measured(tiny, validation)
    before = next(m for m in outcome.of(Metrics) if m.valid_loss is not None)
    assert before.step == 0
    assert before.valid_loss == pytest.approx(loss, rel=1e-5)
    assert before.valid_mean_token_accuracy == pytest.approx(accuracy)


def test_the_metrics_are_a_table_in_the_wire_formats_columns(run: RunJob) -> None:
    outcome = run(chats(8), validation=chats(2), checkpoint_every=1)
    with outcome.result.metrics_csv.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["train_loss"] == ""
    assert {int(row["step"]): float(row["train_loss"]) for row in rows[1:]} == outcome.losses
    assert {int(row["step"]): float(row["valid_loss"]) for row in rows} == outcome.valid_losses


def test_trained_tokens_are_those_of_the_data_without_padding(
    run: RunJob, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = [*chats(6), ask("a", "b" * 80)]
    outcome = run(rows, hyperparameters=EPOCHS)
    tokens = sum(len(chat_example(row, tokenizer).input_ids) for row in rows)
    assert outcome.result.trained_tokens == 3 * tokens
    assert outcome.of(ProgressLine)[-1].progress.tokens == 3 * tokens


def test_checkpoints_come_as_asked_and_at_the_end(run: RunJob) -> None:
    outcome = run(chats(20), validation=chats(2), checkpoint_every=2)
    written = outcome.of(CheckpointWritten)
    assert [line.step for line in written] == [2, 4, 5]
    for line in written:
        assert line.path.parent == outcome.spec.workdir
        assert {path.name for path in line.path.iterdir()} == {"model", "state"}
        assert line.metrics["train_loss"] == outcome.losses[line.step]
        assert line.metrics["valid_loss"] == outcome.valid_losses[line.step]
    last = AutoModelForCausalLM.from_pretrained(written[-1].path / "model").state_dict()
    assert all(torch.equal(last[name], value) for name, value in weights(outcome).items())


def test_the_client_reads_every_metric_of_the_last_checkpoint_by_its_name(run: RunJob) -> None:
    last = run(chats(8), validation=chats(2)).of(CheckpointWritten)[-1]
    assert last.metrics.keys() == CheckpointMetrics.model_fields.keys() - {"step"}


# What is told on the way


def test_the_phases_and_what_is_told_in_them(run: RunJob) -> None:
    outcome = run(chats(8), validation=chats(2), memory_ledger=True, checkpoint_every=2)
    phases: list[str] = []
    for line in outcome.of(ProgressLine):
        if line.progress.phase not in phases[-1:]:
            phases.append(line.progress.phase)
    assert phases == [
        *("loading", "validating", "loading", "measuring", "evaluating", "training"),
        *("evaluating", "training", "saving"),
    ]
    kinds = [line.kind for line in outcome.lines if line.kind not in {"progress", "metrics"}]
    assert kinds == [
        *("resolved", "micro_batch", "receipt", "ledger", "estimate", "message", "checkpoint"),
        *("estimate", "result"),
    ]
    progress = outcome.of(ProgressLine)[-1].progress
    assert (progress.step, progress.total_steps, progress.epoch) == (2, 2, 1.0)
    assert progress.train_loss == outcome.losses[2]
    assert progress.valid_loss == outcome.valid_losses[2]
    assert progress.eta_s == 0
    assert progress.tokens_per_s > 0
    assert progress.device == "cpu"
    assert 0 < progress.device_memory_bytes <= progress.device_memory_peak_bytes


def test_what_was_resolved_is_told_before_it_is_used(run: RunJob) -> None:
    outcome = run(chats(9), hyperparameters={"batch_size": 2, "n_epochs": 2}, seed=3)
    options = outcome.one(Resolved).options
    assert (options.total_steps, options.batch_size, options.dtype) == (10, 2, "float32")
    assert outcome.one(Receipt).receipt.implementation == options.loss_implementation == "blocked"
    assert outcome.one(Receipt).receipt.seed == 3
    assert outcome.of(Ledger) == []


@pytest.mark.parametrize(
    ("scheduler", "shape"),
    [
        ("cosine", [0, 0.5, 1, *((1 + math.cos(math.pi * n / 8)) / 2 for n in range(1, 8))]),
        ("linear", [0, 0.5, 1, *(1 - n / 8 for n in range(1, 8))]),
        ("constant", [1] * 10),
        ("constant_with_warmup", [0, 0.5, *[1] * 8]),
    ],
)
def test_the_rate_rises_in_the_warmup_and_falls_by_the_scheduler(
    run: RunJob, scheduler: str, shape: list[float]
) -> None:
    outcome = run(
        chats(10), hyperparameters={"batch_size": 1}, warmup_ratio=0.2, lr_scheduler=scheduler
    )
    rates = [m.learning_rate for m in outcome.of(Metrics) if m.learning_rate is not None]
    assert rates == pytest.approx([1e-2 * share for share in shape])


def test_a_job_of_one_step_learns(run: RunJob) -> None:
    """The default warm-up is less than a step then, and no step is spent on it."""
    rows = chats(4)
    outcome = run(rows, validation=rows)
    assert list(outcome.losses) == [1]
    assert outcome.valid_losses[1] < outcome.valid_losses[0]


# That it is the right training


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run: RunJob) -> None:
    first, again, other = (run(chats(12), hyperparameters=EPOCHS, seed=s) for s in (1, 1, 2))
    assert first.losses == again.losses
    same = weights(again)
    assert all(torch.equal(value, same[name]) for name, value in weights(first).items())
    assert first.losses != other.losses


@pytest.mark.parametrize(
    ("dtype", "loss_error", "weight_error"), [("float32", 1e-6, 1e-5), ("bfloat16", 5e-3, 1e-2)]
)
def test_a_job_trains_as_a_plain_loop_over_full_logits_does(
    run: RunJob, tiny: Path, dtype: str, loss_error: float, weight_error: float
) -> None:
    """With epochs and batches that end in a part of a batch, and some steps clipped."""
    rows = [*chats(10), ask("x", "日本 " * 9)]
    outcome = run(
        rows,
        hyperparameters=EPOCHS,
        micro_batch_size=3,
        dtype=dtype,
        lr_scheduler="cosine",
        warmup_ratio=0.25,
        weight_decay=0.1,
        max_grad_norm=2.3,
    )
    losses, model = plainly(tiny, rows, getattr(torch, dtype))
    assert list(outcome.losses.values()) == pytest.approx(losses, rel=loss_error)
    found = weights(outcome)
    for name, weight in model.state_dict().items():
        error = (found[name].float() - weight.float()).norm() / weight.float().norm()
        assert error < weight_error, name


def test_accumulated_micro_batches_are_the_step_of_the_whole_batch(run: RunJob) -> None:
    """However unequal their numbers of predictions."""
    rows = [row for n in range(8) for row in (ask("a", "b" * (1 + 9 * n)), *chats(1))]
    whole, parts = (
        run(rows, hyperparameters=EPOCHS, gradient_accumulation_steps=steps) for steps in (1, 4)
    )
    assert parts.one(Resolved).options.micro_batch_size == 1
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    found = weights(parts)
    for name, value in weights(whole).items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_loss(run: RunJob, adapter: LoraAdapter | None) -> None:
    plain, recomputed = (
        run(chats(8), hyperparameters=EPOCHS, adapter=adapter, gradient_checkpointing=on)
        for on in (False, True)
    )
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-6)
    assert plain.losses[6] < plain.losses[1]


def test_packed_examples_are_learned_as_they_are_alone(run: RunJob) -> None:
    """One step sees all of them either way: then the steps are the same."""
    options: dict[str, Any] = {"hyperparameters": {"batch_size": 16, "n_epochs": 4}}
    alone, packed = (
        run(chats(16), packing=on, validation=chats(3), **options) for on in (False, True)
    )
    assert packed.losses == pytest.approx(alone.losses, rel=1e-4)
    assert packed.valid_losses == pytest.approx(alone.valid_losses, rel=1e-4)
    assert packed.result.trained_tokens == alone.result.trained_tokens


def test_every_loss_implementation_trains_alike(run: RunJob) -> None:
    blocked, reference = (
        run(chats(8), hyperparameters=EPOCHS, loss={"implementation": name})
        for name in ("blocked", "reference")
    )
    assert reference.losses == pytest.approx(blocked.losses, rel=1e-4)


def test_the_measurements_leave_no_trace_in_the_training(run: RunJob) -> None:
    """Not even in what dropout draws."""
    adapter = LoraAdapter(rank=4, dropout=0.2)
    with_ledger, without = (
        run(chats(8), hyperparameters=EPOCHS, adapter=adapter, memory_ledger=on)
        for on in (True, False)
    )
    assert len(with_ledger.of(Ledger)) == 1
    assert with_ledger.losses == without.losses


def test_the_ledger_of_an_earlier_attempt_stands_for_the_same_batch_and_device(
    run: RunJob,
) -> None:
    options: dict[str, Any] = {"memory_ledger": True, "checkpoint_every": 2}
    first = run(chats(12), **options)
    ledger = first.one(Ledger).ledger
    checkpoint = first.of(CheckpointWritten)[0].path
    resumed = run(chats(12), **options, resume_from=checkpoint, ledger=ledger)
    assert resumed.of(Ledger) == []
    assert [m.message for m in resumed.of(Message)][1].startswith("The memory ledger of an earlier")
    report = json.loads(resumed.result.report.read_text())
    assert report["memory"] == ledger.model_dump(mode="json")
    assert resumed.losses[3] == first.losses[3]


@pytest.mark.parametrize(
    "changed", [{"device": "NVIDIA H200"}, {"micro_batch_size": 8}, {"seq_length": 4096}]
)
def test_another_ledger_is_measured_for_another_batch_or_device(
    run: RunJob, changed: dict[str, Any]
) -> None:
    ledger = run(chats(8), memory_ledger=True).one(Ledger).ledger
    other = ledger.model_copy(update=changed)
    again = run(chats(8), memory_ledger=True, ledger=other).one(Ledger).ledger
    assert (again.device, again.micro_batch_size, again.seq_length) == (
        ledger.device,
        ledger.micro_batch_size,
        ledger.seq_length,
    )


def test_the_ledger_measures_the_step_that_the_job_takes(run: RunJob) -> None:
    """Recomputed activations are not held in it either."""
    plain, recomputed = (
        run(
            [ask("a", "b" * 80)] * 4,
            memory_ledger=True,
            gradient_checkpointing=on,
            loss={"implementation": "blocked"},
        ).one(Ledger)
        for on in (False, True)
    )
    (before, after) = (
        next(entry.step.bytes for entry in told.ledger.losses if entry.loss == "cce")
        for told in (plain, recomputed)
    )
    assert after < 0.8 * before


@pytest.mark.parametrize(
    ("dtype", "adapter"),
    [("bfloat16", None), ("float32", LoraAdapter(rank=4, dropout=0.2))],
    ids=["full", "lora"],
)
def test_a_resumed_job_ends_as_the_undisturbed_one(
    run: RunJob, dtype: str, adapter: LoraAdapter | None
) -> None:
    options: dict[str, Any] = {
        "hyperparameters": EPOCHS,
        "validation": chats(3),
        "checkpoint_every": 2,
        "dtype": dtype,
        "adapter": adapter,
    }
    undisturbed = run(chats(12), **options)
    fourth = next(line for line in undisturbed.of(CheckpointWritten) if line.step == 4)
    resumed = run(chats(12), **options, resume_from=fourth.path)
    assert "Resumed from the checkpoint at step 4." in [m.message for m in resumed.of(Message)]
    assert resumed.losses == {step: undisturbed.losses[step] for step in range(5, 10)}
    assert resumed.result.trained_tokens == undisturbed.result.trained_tokens
    table, expected = (o.result.metrics_csv.read_text() for o in (resumed, undisturbed))
    assert table == expected
    for path in undisturbed.result.model.glob("*.safetensors"):
        assert path.read_bytes() == (resumed.result.model / path.name).read_bytes()


def test_a_job_that_was_done_but_for_its_result_trains_no_further(run: RunJob) -> None:
    undisturbed = run(chats(8), validation=chats(2))
    last = undisturbed.of(CheckpointWritten)[-1]
    resumed = run(chats(8), validation=chats(2), resume_from=last.path)
    assert resumed.losses == {}
    assert resumed.result.metrics_csv.read_text() == undisturbed.result.metrics_csv.read_text()


# What must not come out


def test_a_loss_that_is_not_finite_ends_the_job(run: RunJob) -> None:
    with pytest.raises(JobFailure, match="loss is nan at step 2; try a lower") as failure:
        run(chats(8), weight_decay=1e40)
    assert failure.value.code == "training_diverged"


def test_a_last_step_that_destroys_the_model_ends_the_job(run: RunJob) -> None:
    with pytest.raises(JobFailure, match="validation loss is nan at step 1") as failure:
        run(chats(4), validation=chats(2), weight_decay=1e40)
    assert failure.value.code == "training_diverged"


def test_a_loss_that_is_not_there_is_named(run: RunJob) -> None:
    with pytest.raises(JobFailure) as failure:
        run(chats(4), loss={"implementation": "triton"}, dtype="float32")
    assert (failure.value.code, failure.value.param) == (
        "unsupported_model",
        "loss.implementation",
    )
