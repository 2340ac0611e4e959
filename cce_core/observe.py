"""What the filtered backward approximates, for who asks; the host waits where it reads, not before.

    with observed() as seen:
        loss.backward()
    seen.quantiles(0.5, 0.99), seen.fallbacks()   # here the host waits

Autograd runs a backward in a thread of the device's: who observes is known to the process, not to a
thread. Implementations that are exact have nothing to report.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Observation:
    """The filtered backward passes of a block, on their device."""

    _masses: list[torch.Tensor] = field(default_factory=list)  # (N,) fp32 each
    _errors: list[torch.Tensor] = field(default_factory=list)  # () fp32 each
    _exact: list[torch.Tensor] = field(default_factory=list)  # () int32 each

    @property
    def passes(self) -> int:
        """How many there were."""
        return len(self._exact)

    def add(self, masses: torch.Tensor, error: torch.Tensor, exact: torch.Tensor) -> None:
        """Take in a pass: see `report`."""
        self._masses.append(masses)
        self._errors.append(error)
        self._exact.append(exact)

    def fallbacks(self) -> int:
        """In how many of them the device computed both gradients exactly instead."""
        return sum(int(exact) for exact in self._exact)

    def errors(self) -> list[float]:
        """The estimate of each pass's error of dE, also of those that it turned exact."""
        return [float(error) for error in self._errors]

    def quantiles(self, *shares: float) -> list[float]:
        """Quantiles of the filtered mass over the rows of all passes that did not fall back."""
        kept = [m for m, exact in zip(self._masses, self._exact, strict=True) if not int(exact)]
        masses = torch.cat(kept) if kept else torch.zeros(0)
        masses = masses[masses.isfinite()].sort().values.cpu()
        if len(masses) == 0:
            return [0.0] * len(shares)
        return [float(masses[round(share * (len(masses) - 1))]) for share in shares]


_observers: list[Observation] = []


@contextmanager
def observed() -> Iterator[Observation]:
    """Collect what the filtered backward passes of the block report."""
    observation = Observation()
    _observers.append(observation)
    try:
        yield observation
    finally:
        _observers.remove(observation)


def wanted() -> bool:
    """Whether somebody observes: only then is there anything to compute."""
    return bool(_observers)


def report(masses: torch.Tensor, error: torch.Tensor, exact: torch.Tensor) -> None:
    """Tell the observers of one filtered backward.

    Args:
        masses: (N,) fp32, the probability of each row that its gradient takes from the mean field;
            not finite where a row does not count.
        error: () fp32, the estimate of |dE - filtered dE| / |dE|, rounding apart; NaN where the
            filter had no room, so that none was made.
        exact: () int32, 1 where the device asked for the exact backward instead; read later, since
            it may still ask.
    """
    for observation in _observers:
        observation.add(masses, error, exact)
