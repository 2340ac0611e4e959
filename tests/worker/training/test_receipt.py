"""The receipt: that it is right where the loss is, and that a wrong loss does not get past it."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch

from cce_core import IGNORE_INDEX, LossConfig, baselines, blocked, registry
from cce_core.head import Head
from cce_core.kernels.filtering import Filter
from cce_core.models import Split, split
from cce_core.observe import Observation, observed
from cce_core.problem import Gradients, Problem, RowGrads, RowStats, State
from service.contract.errors import JobFailure
from service.contract.memory import OutOfMemoryReport
from tests.worker.training.support import FAMILIES, ask, chats, make_model, make_spec, train
from worker.events import Metrics
from worker.training import receipt
from worker.training.batches import Batch
from worker.training.checkpoint import Position
from worker.training.oom import OutOfMemory
from worker.training.receipt import Provenance

CONFIG = LossConfig(implementation="blocked")
ORIGIN = Provenance(seed=3, training_file_sha256="ab" * 32, resumed_from_step=20)


def batch(rows: int = 2, length: int = 12) -> Batch:
    ids = torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = IGNORE_INDEX
    return Batch(ids, labels, torch.arange(length).expand(rows, length), torch.ones_like(ids))


class Broken:
    """The blocked implementation, with what it gives back changed on the way."""

    def __init__(
        self,
        stats: Callable[[RowStats], RowStats] = lambda stats: stats,
        gradients: Callable[[Gradients], Gradients] = lambda gradients: gradients,
    ) -> None:
        self._stats, self._gradients = stats, gradients

    def refuses(self, problem: Problem, config: LossConfig) -> str | None:
        return blocked.refuses(problem, config)

    def forward(self, problem: Problem, config: LossConfig) -> tuple[RowStats, State]:
        stats, state = blocked.forward(problem, config)
        return self._stats(stats), state

    def new_state(self, problem: Problem, config: LossConfig) -> State:
        return blocked.new_state(problem, config)

    def backward(
        self,
        problem: Problem,
        config: LossConfig,
        lse: torch.Tensor,
        state: State,
        upstream: RowGrads,
    ) -> Gradients:
        return self._gradients(blocked.backward(problem, config, lse, state, upstream))


WRONG_HEAD = Broken(gradients=lambda g: g._replace(c=g.c.roll(1, 0)))
BROKEN = [
    ("loss", Broken(stats=lambda stats: stats._replace(lse=stats.lse * 1.01))),
    ("loss", Broken(stats=lambda stats: stats._replace(lse=stats.lse * float("nan")))),
    ("gradient of the hidden states", Broken(gradients=lambda g: g._replace(e=g.e * 1.01))),
    ("gradient of the head", WRONG_HEAD),
]


@pytest.fixture
def model() -> Split:
    return split(make_model("Llama"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_loss_of_every_family_is_within_tolerance(family: str, dtype: torch.dtype) -> None:
    found = receipt.check(split(make_model(family).to(dtype)), batch(), CONFIG, ORIGIN)
    errors = (found.loss_error, found.hidden_grad_error, found.head_grad_error)
    assert max(errors) <= found.tolerance
    assert found.loss == pytest.approx(found.loss_reference, rel=found.tolerance)
    assert (found.implementation, found.preset, found.seed) == ("blocked", "default", 3)
    assert (found.training_file_sha256, found.resumed_from_step) == ("ab" * 32, 20)
    assert found.filtered == []  # the blocked loss is exact
    assert found.versions["torch"] == torch.__version__
    assert {
        "python",
        "transformers",
        "triton",
        "cuda",
        "device",
        "machine",
    } <= found.versions.keys()


@pytest.mark.parametrize(("part", "broken"), BROKEN)
def test_a_wrong_loss_is_named(
    model: Split, monkeypatch: pytest.MonkeyPatch, part: str, broken: Broken
) -> None:
    monkeypatch.setattr(registry, "blocked", broken)
    with pytest.raises(JobFailure, match=f"The {part} is off by") as failure:
        receipt.check(model, batch(), CONFIG, ORIGIN)
    assert failure.value.code == "loss_parity_failed"
    assert "Nothing was trained" in failure.value.message


def test_what_a_model_does_to_its_logits_unknown_to_us_is_found_out(model: Split) -> None:
    class Louder(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Any) -> Any:
            output = self.model(**inputs)
            output.logits = output.logits * 1.05
            return output

    with pytest.raises(JobFailure, match="loss is off by") as failure:
        receipt.check(replace(model, model=Louder(model.model)), batch(), CONFIG, ORIGIN)
    assert failure.value.code == "loss_parity_failed"


def test_a_job_with_a_wrong_loss_trains_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "blocked", WRONG_HEAD)
    with pytest.raises(JobFailure) as failure:
        train(make_spec(tmp_path, tiny, chats(4)))
    assert failure.value.code == "loss_parity_failed"
    said = (tmp_path / "train.events").read_text()
    assert '"measuring"' in said
    assert '"metrics"' not in said
    assert '"receipt"' not in said


def test_a_frozen_head_has_no_gradient_to_compare(model: Split) -> None:
    model.head.weight.requires_grad_(False)
    assert receipt.check(model, batch(), CONFIG, ORIGIN).head_grad_error is None


def test_rows_are_the_predictions_compared(model: Split) -> None:
    """256 of so many sequences as it takes, and of each no more sixteens of tokens than suffice."""
    assert receipt.check(model, batch(), CONFIG, ORIGIN).rows == 2 * (12 - 4)
    assert receipt.check(model, batch(rows=9, length=100), CONFIG, ORIGIN).rows == 3 * (96 - 4)
    assert receipt.check(model, batch(length=400), CONFIG, ORIGIN).rows == 272 - 4


@pytest.mark.gpu
def test_on_a_gpu_the_filter_is_compared_too() -> None:
    """Though the slice is so small that "auto" is exact for it."""
    sizes = {"vocab_size": 32_768, "hidden_size": 1024, "intermediate_size": 1024}
    model = make_model("Llama", **sizes, max_position_embeddings=1024).bfloat16().to("cuda")
    held = batch(rows=8, length=704).to(torch.device("cuda"))
    found = receipt.check(split(model), held, LossConfig(implementation="triton"), ORIGIN)
    assert found.rows == 3 * (688 - 4)
    (first,) = found.filtered  # none where the backward was exact
    assert 0.0 <= first.p50 <= first.p99 <= 1.0


def refuse_more_than(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """An allocator that has no memory for the fp32 logits of more positions than these."""
    real = baselines.chunked

    def chunked(hidden: torch.Tensor, head: Head, labels: torch.Tensor) -> torch.Tensor:
        if labels[:, 1:].numel() > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU ...")
        return real(hidden, head, labels)

    monkeypatch.setattr(baselines, "chunked", chunked)


def test_where_memory_is_short_fewer_rows_are_compared(
    model: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_more_than(monkeypatch, 80 - 1)
    assert receipt.check(model, batch(length=400), CONFIG, ORIGIN).rows == 80 - 4
    monkeypatch.undo()
    refuse_more_than(monkeypatch, 32 - 1)
    assert receipt.check(model, batch(length=400), CONFIG, ORIGIN).rows == 32 - 4


def test_a_job_without_memory_for_its_receipt_is_tried_at_half_the_micro_batch(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_more_than(monkeypatch, 1)
    with pytest.raises(OutOfMemory) as failure:
        train(make_spec(tmp_path, tiny, chats(4)))
    report = OutOfMemoryReport.model_validate(failure.value.data)
    assert (report.micro_batch_size, report.asked_bytes) == (4, 3 << 29)


def test_checking_changes_neither_weights_nor_gradients_nor_mode(model: Split) -> None:
    model.model.train()
    for parameter in model.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    receipt.check(model, batch(), CONFIG, ORIGIN)
    assert model.model.training
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert torch.equal(parameter.grad, torch.full_like(parameter, 0.5))


def filtering(monkeypatch: pytest.MonkeyPatch, **options: float) -> None:
    chosen = Filter(**options)
    monkeypatch.setattr(Filter, "of", lambda _: chosen)


def test_what_the_filter_leaves_out_is_told_over_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fresh model's softmax is flat: all pairs are over the bar, more than there is room for.
    filtering(monkeypatch, density=0.0, hot=2.0)
    spec = make_spec(
        tmp_path,
        tiny,
        [ask("a", "b" * 40)] * 4,
        hyperparameters={"batch_size": 2},
        loss={"implementation": "triton"},
        dtype="bfloat16",
        gradient_accumulation_steps=2,
    )
    outcome = train(spec)
    points = [line for line in outcome.of(Metrics) if line.train_loss is not None]
    series = outcome.result.receipt.filtered
    assert [point.step for point in series] == [0, 1, 2]
    for point, seen in zip(points, series[1:], strict=True):
        assert (point.filtered_mass_p50, point.filtered_mass_p99) == (seen.p50, seen.p99)
        assert 0.0 <= seen.p50 <= seen.p99 <= 1.0
        assert point.filter_fallbacks == seen.fallbacks
    assert {point.filter_fallbacks for point in points} == {2}
    assert {(seen.error_p50, seen.error_max) for seen in series} == {(None, None)}
    report = json.loads(outcome.result.report.read_text(), parse_constant=pytest.fail)
    assert report["receipt"] == outcome.result.receipt.model_dump()


def test_the_error_that_the_filter_estimates_is_told_over_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtering(monkeypatch, pair_bar=1e3, entry_bar=1e3, error_bar=inf)  # only labels are kept
    spec = make_spec(
        tmp_path,
        tiny,
        [ask("a", "b"), ask("a", "b" * 9), ask("a", "c"), ask("a", "d" * 5)],
        hyperparameters={"batch_size": 2},
        loss={"implementation": "triton"},
        dtype="bfloat16",
        gradient_accumulation_steps=2,
    )
    with observed() as seen:
        outcome = train(spec)
    start, *errors = seen.errors()
    steps = [errors[:2], errors[2:]]
    first, *series = outcome.result.receipt.filtered
    assert first.error_p50 == first.error_max == start
    points = [line for line in outcome.of(Metrics) if line.train_loss is not None]
    for of_step, told, point in zip(steps, series, points, strict=True):
        assert told.error_p50 == point.filter_error_p50 == pytest.approx(sum(of_step) / 2)
        assert told.error_max == point.filter_error_max == max(of_step)
        assert 0.0 < told.error_p50 < told.error_max


def test_an_error_that_could_not_be_estimated_is_none() -> None:
    seen = Observation()
    for error in (nan, 1e-3, inf, 5e-3, 2e-3):
        seen.add(torch.zeros(1), torch.tensor(error), torch.tensor(0))
    told = receipt.filtered_fields(seen)
    assert told["filter_error_p50"] == pytest.approx(2e-3)
    assert told["filter_error_max"] == pytest.approx(5e-3)
    assert receipt.filtered_fields(Observation()) == {}


def test_a_long_series_is_thinned_and_keeps_its_end(model: Split) -> None:
    start = receipt.check(model, batch(), CONFIG, ORIGIN)
    rows = [  # as a checkpoint has them that knows no errors yet
        {"step": n, "filtered_mass_p50": 0.1, "filtered_mass_p99": 0.2, "filter_fallbacks": 0}
        for n in range(1, 501)
    ]
    found = receipt.over_time(start, Position(metrics=[*rows, {"step": 501, "valid_loss": 1.0}]))
    assert len(found.filtered) <= 20
    assert found.filtered[-1].step == 500
    assert found.model_copy(update={"filtered": []}) == start
