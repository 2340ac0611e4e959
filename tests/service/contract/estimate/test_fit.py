"""What fits: the search by itself, on made-up devices, and on predictions."""

import pytest

from service.contract.estimate.fit import largest, largest_predicted, usable_bytes
from service.contract.estimate.model import shape_of
from service.contract.estimate.peak import step_bytes
from service.contract.estimate.workload import Workload

GIB = 2**30
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}


class Device:
    """A device on which `room` sequences fit; it remembers what was tried."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def fits(self, size: int) -> bool:
        self.tried.append(size)
        return size <= self.room


@pytest.mark.parametrize("start", [1, 3, 16, 100])
@pytest.mark.parametrize("room", [0, 1, 2, 5, 16, 17, 63, 64, 500])
def test_the_largest_that_fits_is_found_from_any_start(room: int, start: int) -> None:
    device = Device(room)
    assert largest(device.fits, start=start, limit=64) == min(room, 64)
    assert all(1 <= size <= 64 for size in device.tried)
    assert len(device.tried) == len({*device.tried})


def test_a_good_guess_costs_few_tries() -> None:
    device = Device(room=1000)
    assert largest(device.fits, start=16, limit=16) == 16
    assert device.tried == [16]
    device = Device(room=103)
    assert largest(device.fits, start=100, limit=256, resolution=1 / 16) == 100
    assert device.tried == [100, 105]


@pytest.mark.parametrize("start", [1, 7, 16, 17, 33, 100, 1000])
def test_a_prediction_that_is_right_within_the_resolution_costs_two_tries(start: int) -> None:
    within = max(1, start // 17)
    for room in range(max(1, start - within), start + within):
        device = Device(room)
        found = largest(device.fits, start=start, limit=4096, resolution=1 / 16)
        assert room - max(1, room // 16) < found <= room
        assert len(device.tried) == 2, room


def test_without_a_guess_powers_of_two_are_tried_and_refined() -> None:
    device = Device(room=11)
    assert largest(device.fits, start=1, limit=256) == 11
    assert device.tried == [1, 2, 4, 8, 16, 12, 10, 11]


def test_what_need_not_be_known_is_not_tried() -> None:
    exact, rough = Device(room=777), Device(room=777)
    assert largest(exact.fits, start=64, limit=4096) == 777
    found = largest(rough.fits, start=64, limit=4096, resolution=1 / 16)
    assert 777 * 15 / 16 <= found <= 777
    assert len(rough.tried) < len(exact.tried)


def test_the_largest_predicted_fits_and_one_more_does_not() -> None:
    shape = shape_of(LLAMA_1B)
    work = Workload("bfloat16", "cuda", 1, 2048, checkpointing=True, implementation="triton")
    usable = usable_bytes(80 * GIB, "cuda")
    ours = largest_predicted(shape, work, "cce", usable)
    assert step_bytes(shape, work.of_size(ours), "cce") <= usable
    assert step_bytes(shape, work.of_size(ours + 1), "cce") > usable
    assert ours > 2 * largest_predicted(shape, work, "full_logits", usable) > 0


def test_nothing_fits_on_a_device_that_is_too_small() -> None:
    work = Workload("bfloat16", "cuda", 1, 2048, checkpointing=True)
    assert largest_predicted(shape_of(LLAMA_1B), work, "cce", usable_bytes(8 * GIB, "cuda")) == 0
    assert usable_bytes(GIB // 2, "cpu") == 0
