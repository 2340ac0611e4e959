"""Peak bytes of a piece of work, counted by the allocator itself; CUDA or CPU."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

# What the allocator's message says it was asked for: CUDA in units, the CPU in bytes.
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) ([KMGT]i)?[Bb]")
_CPU_REFUSAL = "DefaultCPUAllocator: can't allocate memory"
_POWERS = {None: 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}

T = TypeVar("T")
# Runs the work; returns what outlives it, which is not counted.
Work = Callable[[], list[torch.Tensor]]


@dataclass(frozen=True)
class Peak:
    """What one run took.

    Attributes:
        bytes: Peak above what was allocated before and above what outlives the run.
    """

    bytes: int


@dataclass(frozen=True)
class OutOfMemory:
    """The device was too small for it.

    Attributes:
        asked_bytes: What the allocation that failed asked for; None where the allocator did not
            say.
    """

    asked_bytes: int | None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error is an allocator's refusal, on CUDA or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or _CPU_REFUSAL in str(error)


def asked_bytes(error: RuntimeError) -> int | None:
    """What the allocation that failed asked for, where the allocator says so."""
    match = _ASKED.search(str(error))
    return None if match is None else int(float(match[1]) * 2 ** _POWERS[match[2]])


def peak_of(work: Work, device: torch.device) -> Peak | OutOfMemory:
    """Run `work` and count; where it does not fit, nothing of it stays allocated.

    It returns when the device is done. On CUDA the first run of a kernel compiles it and may take
    work space: count a later one.
    """
    try:
        return _cuda_peak(work, device) if device.type == "cuda" else cpu_peak(work)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failed = OutOfMemory(asked_bytes(error))
    # Out of the except block: the error's frames hold on to what was allocated.
    torch.cuda.empty_cache()
    return failed


def attempt(work: Callable[[], T]) -> T | OutOfMemory:
    """What `work` returns, or that it did not fit; then nothing that it alone held stays."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failed = OutOfMemory(asked_bytes(error))
    torch.cuda.empty_cache()  # out of the except block: see `peak_of`
    return failed


def _cuda_peak(work: Work, device: torch.device) -> Peak:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = work()
    torch.cuda.synchronize(device)
    after, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    del kept
    return Peak(max(0, peak - max(before, after)))


def cpu_peak(work: Work) -> Peak:
    """Run `work` on the CPU and count the allocator's own events; negative ones free."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    found = profiler.profiler.kineto_results.events()
    events = sorted((e for e in found if e.name() == "[memory]"), key=lambda e: e.start_ns())
    current = peak = 0
    for event in events:
        current += event.nbytes()
        peak = max(peak, current)
    del kept
    return Peak(peak - max(0, current))
