"""Every shipped configuration compiles ahead of time, and holds its tile in registers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SIX_REGISTERS = 24
"""What the pairs kernel without softcap keeps on the stack on Hopper: once a tile, of 100 us."""

PAIRS = "pair_logits_kernel WITH_POOL,WITH_LIST,EVEN_D"
FEW_REGISTERS = {80: {"tail_kernel -", "tail_kernel HAS_CAP"}, 90: {PAIRS}, 100: {PAIRS}}
"""The kernels that keep some; on Ampere, whose loads pass through registers, the tail's two."""


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_no_configuration_spills(architecture) -> None:
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
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert len(lines) >= 19
    spilled = {name: int(stack) for name, stack in lines if int(stack) > 0}
    assert set(spilled) <= FEW_REGISTERS[architecture]
    assert all(stack <= SIX_REGISTERS for stack in spilled.values())
