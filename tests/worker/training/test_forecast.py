"""A run's prediction of its own memory: of the right micro-batch, scored against real steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.contract.spec import LoraAdapter
from tests.worker.training.sessions import make_session, told
from tests.worker.training.support import Outcome, chats, make_spec, train
from worker.events import Estimated
from worker.training.checkpoint import trainable
from worker.training.forecast import Forecast
from worker.training.held import Held
from worker.training.prediction import Prediction, predict
from worker.training.session import Session

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
RunJob = Callable[..., Outcome]


def prediction(session: Session, first_step: int = 0) -> Prediction:
    found = predict(session, first_step)
    assert found is not None
    return found


def step(session: Session, number: int) -> None:
    """An optimizer step of the trainer's kind."""
    size = session.resolved.micro_batch_size
    for batch in session.data.batches(session.rows_at(number), size):
        session.loss_of(session.hidden(batch), batch).loss.backward()
    session.run.optimizer.apply_gradients(1.0)


# Of what


def test_the_micro_batch_that_takes_the_most_is_predicted(tmp_path: Path) -> None:
    session = make_session(tmp_path, lengths=[8] * 30 + [64, 60], batch_size=4)
    found = prediction(session)
    assert (found.work.micro_batch, found.work.seq_length, found.work.padded) == (4, 64, True)
    assert not found.work.accumulating
    lengths = [len(row[0].input_ids) for row in session.rows_at(found.step)]
    assert max(lengths) == 64


def test_equal_sequences_need_no_mask_and_later_micro_batches_hold_gradients(
    tmp_path: Path,
) -> None:
    session = make_session(tmp_path, lengths=[32] * 8, batch_size=4, micro_batch_size=2)
    work = prediction(session).work
    assert (work.micro_batch, work.padded, work.accumulating) == (2, False, True)


def test_only_what_is_still_to_come_counts(tmp_path: Path) -> None:
    session = make_session(tmp_path, lengths=[8] * 7 + [64], batch_size=1)
    once = session.resolved.model_copy(update={"total_steps": 8})
    session = replace(session, resolved=once)
    found = prediction(session)
    assert found.work.seq_length == 64
    assert found.step < 7
    assert prediction(session, found.step + 1).work.seq_length == 8
    assert predict(session, 8) is None


@pytest.mark.parametrize("family", ["GPTNeoX", "Mixtral"])
def test_of_another_family_nothing_is_predicted(tmp_path: Path, family: str) -> None:
    session = make_session(tmp_path, lengths=[8] * 4, family=family)
    assert predict(session, 0) is None
    forecast = Forecast(session, 0)
    assert forecast.score() is None
    assert told(tmp_path) == []


# How right


@pytest.mark.parametrize("adapter", [None, LoraAdapter(rank=4)])
@pytest.mark.parametrize(
    ("family", "dtype", "checkpointing"),
    [("Llama", "float32", False), ("Llama", "bfloat16", True), ("Gemma2", "float32", True)],
)
def test_the_prediction_is_near_what_real_steps_take(
    tmp_path: Path, family: str, dtype: str, checkpointing: bool, adapter: LoraAdapter | None
) -> None:
    session = make_session(
        tmp_path,
        lengths=[96, 64] * 12,
        batch_size=12,
        micro_batch_size=6,
        family=family,
        dtype=dtype,
        checkpointing=checkpointing,
        adapter=adapter,
    )
    session.run.model.train()
    forecast = Forecast(session, 0)
    for number in range(session.resolved.total_steps):
        forecast.meter.around(number, lambda number=number: step(session, number))
    estimate = forecast.score()
    assert estimate is not None
    assert estimate.method == "CPU allocator events"
    assert estimate.measured_bytes > Held.by(session.run.model, session.run.optimizer).total
    assert estimate.error == pytest.approx(estimate.predicted_bytes / estimate.measured_bytes - 1)
    assert abs(estimate.error) < 0.1
    before, after = told(tmp_path)
    assert before.estimate.measured_bytes is None
    assert after.estimate == estimate
    assert before.estimate.components.weights == sum(
        weight.nbytes for weight in session.run.model.parameters()
    )


def test_a_finished_job_has_scored_itself(run: RunJob) -> None:
    predicted, scored = run(chats(12), checkpoint_every=100).of(Estimated)
    assert predicted.estimate.measured_bytes is None
    assert scored.estimate.predicted_bytes == predicted.estimate.predicted_bytes
    assert abs(scored.estimate.error) < 0.15


def test_a_job_that_is_resumed_scores_what_is_left(tiny: Path, tmp_path: Path, run: RunJob) -> None:
    whole = run(chats(12), hyperparameters={"batch_size": 2}, checkpoint_every=3)
    checkpoint = whole.spec.workdir / "checkpoint-3"
    spec = make_spec(
        tmp_path / "resumed",
        tiny,
        chats(12),
        hyperparameters={"batch_size": 2},
        checkpoint_every=3,
        resume_from=checkpoint,
    )
    _, scored = train(spec).of(Estimated)
    assert abs(scored.estimate.error) < 0.15


def test_what_a_run_holds_is_counted_by_what_it_is_for(tmp_path: Path) -> None:
    session = make_session(tmp_path, lengths=[8] * 4, dtype="bfloat16")
    numbers = sum(weight.numel() for weight in trainable(session.run.model))
    held = Held.by(session.run.model, session.run.optimizer)
    assert held.weights == pytest.approx(2 * numbers, rel=1e-3)
    assert (held.gradients, held.optimizer) == (0, 2 * numbers)
    for weight in trainable(session.run.model):
        weight.grad = torch.zeros_like(weight)
    assert Held.by(session.run.model, session.run.optimizer).gradients == 2 * numbers
    session.run.optimizer.apply_gradients(1.0)
    held = Held.by(session.run.model, session.run.optimizer)
    assert held.optimizer == pytest.approx(10 * numbers, rel=1e-3)
    assert held.total == held.weights + held.gradients + held.optimizer


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", [None, LoraAdapter(rank=16)])
@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_on_a_gpu_the_prediction_is_within_a_tenth(
    tmp_path: Path, family: str, adapter: LoraAdapter | None
) -> None:
    sizes = {
        "vocab_size": 32_768,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 1024,
    }
    session = make_session(
        tmp_path,
        lengths=[1024] * 16,
        batch_size=8,
        family=family,
        device="cuda",
        dtype="bfloat16",
        loss="triton",
        checkpointing=True,
        adapter=adapter,
        sizes=sizes,
    )
    session.run.model.train()
    torch.cuda.reset_peak_memory_stats()
    forecast = Forecast(session, 0)
    for number in range(session.resolved.total_steps):
        rows = session.data.batch(session.rows_at(number)).to(session.device)
        session.loss_of(session.hidden(rows), rows).loss.backward()
        session.run.optimizer.apply_gradients(1.0)
    estimate = forecast.score()
    assert estimate.method == "CUDA allocator peak"
    assert abs(estimate.error) < 0.1
