"""The peak of memory over a run's steps, as the allocator has it.

On CUDA the allocator keeps it. On CPU it keeps nothing: its events are counted in one step, that
which is predicted to take the most, above what the run holds before and after it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from worker.training.allocator import cpu_peak
from worker.training.checkpoint import Run
from worker.training.held import Held

T = TypeVar("T")


class PeakMeter:
    """Measures a run, of which it is shown every step."""

    def __init__(self, run: Run, device: torch.device, watched: int | None) -> None:
        """`watched` is the step that is measured on CPU; None for none."""
        self._run = run
        self._device = device
        self._watched = watched if device.type == "cpu" else None
        self._peak: int | None = None

    def around(self, step: int, work: Callable[[], T]) -> T:
        """Do the work of a step."""
        if step != self._watched:
            return work()
        done: list[T] = []

        def counted() -> list[torch.Tensor]:
            done.append(work())
            return []

        above = cpu_peak(counted).bytes
        self._peak = Held.by(self._run.model, self._run.optimizer).total + above
        return done[0]

    def result(self) -> tuple[int, str] | None:
        """The peak in bytes, and how it was found; None where the watched step was not shown."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device), "CUDA allocator peak"
        return None if self._peak is None else (self._peak, "CPU allocator events")
