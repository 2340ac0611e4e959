import pytest
import torch

from worker.training.allocator import OutOfMemory, Peak, asked_bytes, peak_of

CPU = torch.device("cpu")
MIB = 2**20


def test_the_peak_is_above_what_outlives_the_work() -> None:
    def work() -> list[torch.Tensor]:
        kept = torch.zeros(MIB)
        torch.zeros(3 * MIB).add_(1)
        return [kept]

    peak = peak_of(work, CPU)
    assert isinstance(peak, Peak)
    assert peak.bytes == pytest.approx(12 * MIB, rel=0.01)
    assert peak.seconds > 0


def test_a_refused_allocation_is_an_answer_and_leaves_nothing_behind() -> None:
    refused = peak_of(lambda: [torch.zeros(MIB), torch.zeros(2**50)], CPU)
    assert refused == OutOfMemory(asked_bytes=2**52)
    assert isinstance(peak_of(lambda: [torch.zeros(MIB)], CPU), Peak)


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
