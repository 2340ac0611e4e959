"""How a run's micro-batch is settled, and what full logits would have allowed."""

from pathlib import Path

import pytest
import torch

from service.contract.estimate.record import MicroBatch
from service.contract.spec import LoraAdapter
from tests.worker.training.sessions import make_session, told
from tests.worker.training.support import chats, make_spec, train
from worker.events import MicroBatchSettled
from worker.training import device
from worker.training.micro_batch import predicted, probed, settle

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
LENGTHS = [40, 16, 48, 24] * 8


def settled(folder: Path) -> MicroBatch:
    (line,) = (line for line in told(folder) if isinstance(line, MicroBatchSettled))
    assert line.options.micro_batch_size == line.micro_batch.size
    return line.micro_batch


def test_on_a_cpu_it_is_all_of_the_batch(tmp_path: Path) -> None:
    session = settle(make_session(tmp_path, lengths=LENGTHS))
    assert session.resolved.micro_batch_size == session.resolved.batch_size == 16
    choice = settled(tmp_path)
    assert (choice.size, choice.chosen_by) == (16, "rule")
    assert (choice.full_logits, choice.multiple) == (None, None)


def test_what_was_asked_for_is_used(tmp_path: Path) -> None:
    session = settle(make_session(tmp_path, lengths=LENGTHS, micro_batch_size=3))
    assert session.resolved.micro_batch_size == 3
    assert session.resolved.gradient_accumulation_steps == 6
    choice = settled(tmp_path)
    assert (choice.chosen_by, choice.full_logits, choice.multiple) == ("request", None, None)


def test_what_ran_out_of_memory_stays_halved(tmp_path: Path) -> None:
    session = make_session(tmp_path, lengths=LENGTHS, max_micro_batch_size=4)
    assert settle(session).resolved.micro_batch_size == 4
    assert settled(tmp_path).chosen_by == "out_of_memory"


EARLIER = MicroBatch(
    size=6,
    chosen_by="probe",
    full_logits=2,
    provenance="measured",
    multiple=3.0,
    device=device.name(torch.device("cpu")),
)


def test_what_an_earlier_attempt_settled_is_not_looked_for_again(tmp_path: Path) -> None:
    session = settle(make_session(tmp_path, lengths=LENGTHS, settled=EARLIER))
    assert session.resolved.micro_batch_size == 6
    assert session.resolved.gradient_accumulation_steps == 3
    assert settled(tmp_path) == EARLIER


def test_on_another_device_it_is_settled_anew(tmp_path: Path) -> None:
    elsewhere = EARLIER.model_copy(update={"device": "NVIDIA H200"})
    settle(make_session(tmp_path, lengths=LENGTHS, settled=elsewhere))
    choice = settled(tmp_path)
    assert (choice.size, choice.chosen_by, choice.device) == (16, "rule", EARLIER.device)


def test_what_ran_out_of_memory_is_not_settled_again(tmp_path: Path) -> None:
    options = {"settled": EARLIER, "max_micro_batch_size": 3}
    assert settle(make_session(tmp_path, lengths=LENGTHS, **options)).resolved.micro_batch_size == 3
    assert settled(tmp_path).chosen_by == "out_of_memory"


def test_of_a_family_that_is_unknown_nothing_is_predicted(tmp_path: Path) -> None:
    session = make_session(tmp_path, lengths=LENGTHS, family="GPTNeoX")
    choice = predicted(session, 16, "rule", 45_000_000)
    assert (choice.size, choice.full_logits, choice.multiple) == (16, None, None)


def test_a_size_that_is_settled_is_put_beside_what_full_logits_would_allow(tmp_path: Path) -> None:
    session = make_session(tmp_path, lengths=LENGTHS)
    choice = predicted(session, 16, "request", 45_000_000)
    assert (choice.size, choice.chosen_by, choice.provenance) == (16, "request", "modelled")
    assert 0 < choice.full_logits < 16
    assert choice.multiple == 16 / choice.full_logits


@pytest.mark.parametrize("adapter", [None, LoraAdapter(rank=4)])
def test_within_a_limit_more_fits_than_with_full_logits(
    tmp_path: Path, adapter: LoraAdapter | None
) -> None:
    session = make_session(tmp_path, lengths=LENGTHS, adapter=adapter)
    choice = probed(session, limit=45_000_000)
    assert (choice.chosen_by, choice.provenance) == ("probe", "measured")
    assert choice.full_logits is not None
    assert 0 < choice.full_logits < choice.size <= 16
    assert choice.multiple == choice.size / choice.full_logits


def test_a_family_that_is_unknown_is_tried_all_the_same(tmp_path: Path) -> None:
    sizes = {"vocab_size": 8192, "hidden_size": 64}
    session = make_session(tmp_path, lengths=LENGTHS, family="GPTNeoX", sizes=sizes)
    choice = probed(session, limit=45_000_000)
    assert 0 < choice.full_logits < choice.size <= 16


def test_where_nothing_fits_one_sequence_is_left_to_try(tmp_path: Path) -> None:
    choice = probed(make_session(tmp_path, lengths=LENGTHS), limit=1000)
    assert (choice.size, choice.full_logits, choice.multiple) == (1, 0, None)


def test_the_curve_is_the_same_however_the_batch_is_cut(tiny: Path, tmp_path: Path) -> None:
    rows = chats(13)
    curves = []
    for micro in (4, 3, 1):
        spec = make_spec(tmp_path / str(micro), tiny, rows, micro_batch_size=micro)
        outcome = train(spec)
        assert outcome.one(MicroBatchSettled).micro_batch.size == micro
        curves.append(outcome.losses)
    for other in curves[1:]:
        assert other == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.gpu
def test_on_a_gpu_the_largest_that_fits_is_chosen(tmp_path: Path) -> None:
    options = {"device": "cuda", "dtype": "bfloat16", "loss": "triton", "batch_size": 8}
    settle(make_session(tmp_path, lengths=[128] * 16, **options))
    choice = settled(tmp_path)
    assert (choice.size, choice.chosen_by) == (8, "probe")
    assert (choice.full_logits, choice.provenance) == (8, "measured")
