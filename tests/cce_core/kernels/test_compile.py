"""Every shipped configuration compiles ahead of time, and holds its tile in registers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cce_core.kernels.tiling import Tiling, of_capability

ROOT = Path(__file__).parents[3]
STACK = 96
"""Bytes a kernel may keep on the stack: what lives across its phases, touched once a tile."""
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory a program can have; 80's tiles serve Ada too, which has the least."""


def in_flight(tiles: Tiling) -> int:
    """Bytes that are loaded ahead of a product of 16-bit tiles, all stages but the one at work."""
    return (tiles.stages - 1) * (tiles.block_n + tiles.block_v) * tiles.block_d * 2


@pytest.mark.parametrize("architecture", SHARED)
def test_every_configuration_fits_and_loads_ahead_and_spills_nowhere(architecture) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("compile_all.py")
    done = subprocess.run(
        [sys.executable, program, str(architecture)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )
    lines = [line.rsplit(" ", 3) for line in done.stdout.splitlines()]
    assert len(lines) >= 19
    tiles = of_capability(architecture // 10)
    ahead = {
        "forward_kernel": in_flight(tiles.logits),
        "exact_kernel": in_flight(tiles.slices),
        "tail_kernel": in_flight(tiles.tail),
    }
    for name, stack, spills, shared in lines:
        assert int(spills) == 0, name
        assert int(stack) <= STACK, name
        assert ahead.get(name.split()[0], 0) <= int(shared) <= SHARED[architecture], name
