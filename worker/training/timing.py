"""Where the time of an optimizer step goes: a stopwatch on the phases of a few steps."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from service.contract.memory import StepPhases

Phase = Literal["data", "forward", "loss", "backward", "optimizer"]
# The first step of an attempt compiles and takes work space: it tells nothing of the others.
_FIRST, _STEPS = 2, 3


class StepClock:
    """Times the phases of an attempt's second to fourth step; in all others it costs nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._step = 0
        self._seconds: defaultdict[Phase, float] = defaultdict(float)

    def start_step(self) -> None:
        """The next optimizer step begins."""
        self._step += 1

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """A part of a step; the same phase may come several times."""
        if not _FIRST <= self._step < _FIRST + _STEPS:
            yield
            return
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._seconds[name] += time.perf_counter() - start

    def result(self) -> StepPhases | None:
        """The means, at the end of the last timed step; None before and afterwards."""
        if self._step != _FIRST + _STEPS - 1:
            return None
        means = {name: seconds / _STEPS for name, seconds in self._seconds.items()}
        return StepPhases(steps=_STEPS, **means)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
