"""Counted bytes against work whose allocations are known to the byte."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from worker.settings import WorkerSettings
from worker.training.allocator import OutOfMemory, Peak, asked_bytes, peak_of

CPU = torch.device("cpu")
MIB = 2**20
# The allocator rounds each block up a little.
SLACK = 1024


def numbers(mib: float) -> torch.Tensor:
    """A tensor of that many MiB."""
    return torch.empty(int(mib * MIB), dtype=torch.uint8)


def peak(work: object) -> Peak:
    found = peak_of(work, CPU)  # type: ignore[arg-type]
    assert isinstance(found, Peak)
    return found


def test_one_allocation_is_its_bytes() -> None:
    def work() -> list[torch.Tensor]:
        numbers(8)
        return []

    assert peak(work).bytes == pytest.approx(8 * MIB, abs=SLACK)


def test_what_is_there_at_one_time_adds_up_and_what_follows_does_not() -> None:
    def work() -> list[torch.Tensor]:
        both = numbers(3), numbers(5)
        del both
        numbers(6)
        return []

    assert peak(work).bytes == pytest.approx(8 * MIB, abs=SLACK)


def test_what_was_there_before_does_not_count() -> None:
    before = numbers(32)

    def work() -> list[torch.Tensor]:
        numbers(2)
        return []

    assert peak(work).bytes == pytest.approx(2 * MIB, abs=SLACK)
    del before


def test_what_outlives_the_work_does_not_count() -> None:
    def work() -> list[torch.Tensor]:
        kept = numbers(4)
        numbers(3)
        return [kept]

    assert peak(work).bytes == pytest.approx(3 * MIB, abs=SLACK)


def test_work_without_an_allocation_is_nothing() -> None:
    assert peak(list).bytes == 0


def test_a_backward_is_counted_too() -> None:
    """Logits of 4 MiB: their loss needs the log-probabilities and one gradient beside them."""
    logits = torch.randn(256, 4096, requires_grad=True)
    labels = torch.zeros(256, dtype=torch.int64)

    def work() -> list[torch.Tensor]:
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        return list(torch.autograd.grad(loss, logits))

    # log-probabilities, their gradient, and the logits' gradient, which is what outlives the work
    assert peak(work).bytes == pytest.approx(8 * MIB, rel=0.02)


def test_counting_twice_gives_the_same() -> None:
    weight = torch.randn(256, 256, requires_grad=True)

    def work() -> list[torch.Tensor]:
        return list(torch.autograd.grad((weight @ weight).tanh().sum(), weight))

    assert peak(work).bytes == peak(work).bytes > 0


def test_a_refused_allocation_is_an_answer_and_leaves_nothing_behind() -> None:
    refused = peak_of(lambda: [numbers(1), torch.zeros(2**50)], CPU)
    assert refused == OutOfMemory(asked_bytes=2**52)
    assert isinstance(peak_of(lambda: [numbers(1)], CPU), Peak)


def test_any_other_error_is_none_of_its_business() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        peak_of(lambda: [torch.zeros(2, 3) @ torch.zeros(2, 3)], CPU)


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total", 3 << 29),
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total", 20 << 20),
        ("CUDA out of memory. Tried to allocate 512 bytes. GPU 0 has a total", 512),
        ("you tried to allocate 4096 bytes. Error code 12", 4096),
        ("CUDA out of memory.", None),
    ],
)
def test_what_was_asked_for_is_read_from_the_message(message: str, size: int | None) -> None:
    assert asked_bytes(RuntimeError(message)) == size


@pytest.mark.gpu
def test_cuda_counts_the_same() -> None:
    def work() -> list[torch.Tensor]:
        kept = numbers(4).cuda()
        numbers(8).cuda()
        return [kept]

    found = peak_of(work, torch.device("cuda"))
    assert isinstance(found, Peak)
    assert found.bytes == pytest.approx(8 * MIB, abs=SLACK)


def test_counting_leaves_nothing_in_the_log_of_a_trainer() -> None:
    """Whose last lines are to say why it died."""
    ended = subprocess.run(
        [sys.executable, "-c", "from worker.training.allocator import cpu_peak; cpu_peak(list)"],
        env={**os.environ, **WorkerSettings().trainer_environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
    )
    assert ended.stdout.decode() == ""
