"""The loss in Triton: one mathematical step a file, a kernel and its launcher.

rows.py        rows that count, and their labels' logits
forward.py     statistics.py     log-sum-exp of every row, in one pass
exact.py       slices.py         the exact backward, by slices of the vocabulary
plan.py        pairs.py          tail.py        filtered.py     the filtered backward
primitives.py  tiling.py         launch.py      what they share
loss.py        the whole: serves, forward, backward
"""

from types import ModuleType


def load() -> ModuleType:
    """Import and return the implementation (`loss`), which needs Triton."""
    from cce_core.kernels import loss

    return loss
