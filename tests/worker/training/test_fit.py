import pytest

from worker.training.allocator import OutOfMemory, Peak
from worker.training.fit import largest_batch

MIB = 2**20
NONE_LEFT = OutOfMemory(asked_bytes=MIB)


def peak(mib: float) -> Peak:
    return Peak(int(mib * MIB))


@pytest.mark.parametrize(
    ("steps", "room_mib", "sequences", "formula"),
    [
        # 10 MiB and 5 a sequence
        ({4: peak(30), 2: peak(20)}, 100, 18, "linear_step"),
        ({4: peak(30), 2: peak(20)}, 99, 17, "linear_step"),
        # one point: nothing is known to be fixed
        ({1: peak(20)}, 100, 5, "proportional_step"),
        # what was measured stands against what is modelled
        ({4: peak(30), 2: peak(20)}, 10, 4, "linear_step"),
        ({8: NONE_LEFT, 4: peak(30)}, 100, 7, "proportional_step"),
        ({8: NONE_LEFT, 4: NONE_LEFT, 2: peak(20)}, 25, 2, "proportional_step"),
        # sequences that cost less the more there are leave nothing fixed
        ({4: peak(30), 2: peak(10)}, 100, 10, "linear_step"),
    ],
)
def test_the_largest_micro_batch(steps: dict, room_mib: int, sequences: int, formula: str) -> None:
    found = largest_batch(steps, room_mib * MIB)
    assert found is not None
    assert (found.sequences, found.formula) == (sequences, formula)


def test_the_figures_behind_it_are_told() -> None:
    found = largest_batch({4: peak(30), 2: peak(20)}, 100 * MIB)
    assert found is not None
    assert (found.fixed_bytes, found.bytes_per_sequence) == (10 * MIB, 5 * MIB)


def test_nothing_is_known_where_nothing_fits() -> None:
    assert largest_batch({2: NONE_LEFT, 1: NONE_LEFT}, 100 * MIB) is None
