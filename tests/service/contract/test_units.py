"""Numbers of bytes as text."""

import pytest

from service.contract.units import size

MIB = 2**20


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1.5 * MIB, "1.5 MiB"),
        (24 * 1024 * MIB, "24.0 GiB"),
        (2**50, "1024.0 TiB"),
        (-3 * MIB, "-3.0 MiB"),
    ],
)
def test_a_size_has_the_unit_that_keeps_it_short(count: float, text: str) -> None:
    assert size(count) == text
