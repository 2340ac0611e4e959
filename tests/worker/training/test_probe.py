"""Real forward and backward passes within a limit of bytes that the test sets."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.worker.training.sessions import make_session
from worker.training.held import Held
from worker.training.losses import losses_of
from worker.training.probe import Probe
from worker.training.session import Session

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
ENDLESS = 2**62


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return make_session(tmp_path, lengths=[48] * 16)


def probe(session: Session, *, limit: int = ENDLESS, loss: str = "full_logits") -> Probe:
    rows = session.data.training
    return Probe(
        model=session.model,
        optimizer=session.run.optimizer,
        loss=losses_of(session.model, session.loss)[loss],
        sequences=lambda count: session.data.batch(rows[:count]),
        limit=limit,
    )


@pytest.fixture
def peak(session: Session) -> Callable[..., int]:
    return lambda size, **options: probe(session).peak(size, **{"accumulating": False} | options)


def test_a_larger_micro_batch_takes_more(peak: Callable[..., int]) -> None:
    peaks = [peak(size) for size in (2, 4, 8)]
    assert peaks == sorted(peaks)
    # Logits three times over, in fp32, of four more sequences.
    logits = 4 * 12 * 47 * 8192
    assert logits < peaks[2] - peaks[1] < 1.2 * logits


def test_gradients_of_other_micro_batches_are_held_meanwhile(
    session: Session, peak: Callable[..., int]
) -> None:
    weights = Held.by(session.run.model, session.run.optimizer).weights
    assert peak(8, accumulating=True) - peak(8) == pytest.approx(weights, rel=0.1)


def test_the_optimizers_step_is_counted_though_it_is_not_taken(session: Session) -> None:
    trained = sum(weight.nbytes for weight in session.run.model.parameters())
    least = trained * 4  # two moments and a gradient beside
    assert probe(session, loss="cce").peak(1, accumulating=False) >= least


def test_a_chunk_in_fp32_is_counted_where_the_pass_takes_less(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    tried = make_session(tmp_path, lengths=[8] * 4, dtype="bfloat16", sizes=sizes)
    numbers = sum(weight.numel() for weight in tried.run.model.parameters())
    peak = probe(tried, loss="cce").peak(1, accumulating=False)
    # Weights, rests and gradients; two moments; the chunk, which is all of the model.
    assert peak == pytest.approx((6 + 8 + 8) * numbers, rel=0.01)


def test_nothing_of_a_try_stays(session: Session, peak: Callable[..., int]) -> None:
    before = {name: weight.clone() for name, weight in session.run.model.named_parameters()}
    session.run.model.eval()
    peak(2, accumulating=True)
    assert not session.run.model.training
    assert not session.run.optimizer.state
    for name, weight in session.run.model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])


def test_layers_are_checkpointed_while_they_are_tried(tmp_path: Path) -> None:
    """A model that was loaded is in evaluation, in which nothing is computed again."""
    peaks = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        folder.mkdir()
        sizes = {"num_hidden_layers": 24, "intermediate_size": 512}
        tried = make_session(folder, lengths=[48] * 8, sizes=sizes, checkpointing=checkpointing)
        tried.run.model.eval()
        peaks.append(probe(tried, loss="cce").peak(8, accumulating=False))
    assert peaks[1] < peaks[0] * 0.8


@pytest.mark.parametrize("start", [1, 5, 16])
def test_the_largest_within_the_limit_is_found(session: Session, start: int) -> None:
    limit = probe(session).peak(5, accumulating=True)
    found = probe(session, limit=limit).largest(start=start, batch=16, limit=16)
    assert found == 5


def test_all_of_the_batch_may_fit_where_a_part_of_it_would_not(session: Session) -> None:
    """At once, no gradients are held."""
    limit = probe(session).peak(4, accumulating=False)
    assert probe(session, limit=limit).largest(start=4, batch=4, limit=4) == 4
    assert not probe(session, limit=limit).fits(4, accumulating=True)


def test_nothing_fits_where_not_one_sequence_does(session: Session) -> None:
    limit = probe(session).peak(1, accumulating=True) - 1
    assert probe(session, limit=limit).largest(start=4, batch=16, limit=16) == 0


@pytest.mark.gpu
def test_on_a_gpu_what_does_not_fit_is_found_by_trying(tmp_path: Path) -> None:
    session = make_session(tmp_path, lengths=[512] * 64, device="cuda", dtype="bfloat16")
    free = probe(session)
    assert free.peak(2, accumulating=False) is not None
    room = free.peak(16, accumulating=True)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        found = free.largest(start=64, batch=64, limit=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 8 <= found <= 20
