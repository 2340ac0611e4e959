"""Tile sizes, warps and pipeline depth per architecture, checked ahead of time for spills.

No search at run time. Hopper and Blackwell: 128 x 256 x 64 tiles on two warpgroups, three stages of
TMA loads. Ampere and Ada: smaller tiles, less shared memory.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton


@dataclass(frozen=True)
class Tiling:
    """One launch configuration: a BLOCK_N x BLOCK_V tile, BLOCK_D deep."""

    block_n: int
    block_v: int
    block_d: int
    group: int
    warps: int
    stages: int
    flatten: bool
    residency: int = 1  # programs that share a multiprocessor

    def constants(self) -> dict[str, int | bool]:
        """The kernel's constexpr arguments and launch options."""
        return {
            "BLOCK_N": self.block_n,
            "BLOCK_V": self.block_v,
            "BLOCK_D": self.block_d,
            "GROUP": self.group,
            "FLATTEN": self.flatten,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


@dataclass(frozen=True)
class Tilings:
    """The configurations of one architecture."""

    logits: Tiling  # products over D, rows by vocabulary
    slices: Tiling  # the same with dz stored
    gradients: Tiling  # products over rows or vocabulary: (block_m, width, depth)
    hot_logits: Tiling  # as slices, for listed blocks: a block wide
    pairs: Tiling  # logits of gathered rows
    scatter: Tiling  # dC from the gathered rows, by the programs of `pairs`
    tail: Tiling  # blocks of columns by sampled rows
    block: int  # columns of a block of the filter
    chunk: int = 1024  # rows that a program takes at once where it goes through all of them


HOPPER = Tilings(
    logits=Tiling(128, 256, 64, 16, 8, 3, flatten=True),
    slices=Tiling(128, 256, 64, 16, 8, 3, flatten=False),
    gradients=Tiling(128, 256, 64, 16, 8, 4, flatten=False),
    hot_logits=Tiling(256, 128, 64, 16, 8, 3, flatten=False),
    pairs=Tiling(64, 128, 64, 1, 4, 4, flatten=False, residency=2),
    scatter=Tiling(128, 128, 64, 1, 4, 3, flatten=False, residency=2),
    tail=Tiling(128, 128, 64, 1, 8, 4, flatten=False),
    block=128,
)
BLACKWELL = replace(  # accumulators come back from tensor memory: more warps share their registers
    HOPPER,
    hot_logits=Tiling(128, 128, 64, 16, 8, 3, flatten=False),
    pairs=Tiling(64, 128, 64, 1, 8, 4, flatten=False),
    scatter=Tiling(128, 128, 64, 1, 8, 3, flatten=False),
)
AMPERE = Tilings(
    logits=Tiling(128, 128, 32, 16, 8, 3, flatten=False),
    slices=Tiling(128, 128, 32, 16, 8, 3, flatten=False),
    gradients=Tiling(128, 64, 32, 16, 8, 3, flatten=False),
    hot_logits=Tiling(128, 128, 32, 16, 8, 3, flatten=False),
    pairs=Tiling(64, 128, 32, 1, 8, 3, flatten=False),
    scatter=Tiling(128, 64, 32, 1, 8, 3, flatten=False),
    tail=Tiling(128, 128, 32, 1, 8, 3, flatten=False),
    block=128,
)
TINY = Tilings(
    logits=Tiling(16, 64, 16, 2, 4, 1, flatten=False),
    slices=Tiling(16, 32, 16, 2, 4, 1, flatten=False),
    gradients=Tiling(16, 32, 16, 2, 4, 1, flatten=False),
    hot_logits=Tiling(16, 32, 16, 2, 4, 1, flatten=False),
    pairs=Tiling(16, 32, 16, 1, 4, 1, flatten=False),
    scatter=Tiling(32, 32, 16, 1, 4, 1, flatten=False),
    tail=Tiling(32, 16, 16, 1, 4, 1, flatten=False),
    block=32,
    chunk=32,
)


def interpreted() -> bool:
    """Whether Triton runs in its interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


@lru_cache
def tilings(device: torch.device) -> Tilings:
    """The configurations for `device`; the interpreter gets the small ones."""
    if interpreted():
        return TINY
    return of_capability(torch.cuda.get_device_capability(device)[0])


def of_capability(major: int) -> Tilings:
    """The configurations for a major compute capability.

    8 is Ampere and Ada, 9 Hopper, 10 Blackwell; its desktop cards, 12, have Ada's shared memory.
    """
    return {9: HOPPER, 10: BLACKWELL}.get(major, AMPERE)


@lru_cache
def host_described(device: torch.device) -> bool:
    """Whether the host describes matrices to kernels: where a copy engine reads descriptors.

    Elsewhere a descriptor of the host's hides that rows are contiguous, so that loads of it are
    neither wide nor pipelined; kernels describe the matrix themselves. The interpreter takes both.
    """
    return interpreted() or torch.cuda.get_device_capability(device)[0] >= 9


@lru_cache
def programs(device: torch.device) -> int:
    """How many programs a persistent grid has: one per multiprocessor."""
    if interpreted():
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
