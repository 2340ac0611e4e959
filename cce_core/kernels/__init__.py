"""The loss in Triton: one mathematical step a file; kernels to the left, launchers beside.

rows.py        rows that count, and their labels' logits
forward.py     statistics.py     log-sum-exp of every row, in one pass
finish.py                        what the sums say of each row
upstream.py                      what the backward is given
exact.py       slices.py         the exact backward, by slices of the vocabulary
filtered.py                      the filtered backward, of these steps:
  plan.py      selection.py        which pairs of row and block are kept
  tail.py      mean_field.py       what stands for the others
  judge.py                         whether that will do
  dense.py                         the blocks that most rows keep
  pairs.py     rounds.py           the kept pairs: dC, and lists of entries
  entries.py                       dE of these lists
filtering.py                     what the steps have in common
primitives.py  tiling.py         launch.py      what all kernels share
loss.py        the whole: serves, forward, backward
"""

from types import ModuleType


def load() -> ModuleType:
    """Import and return the implementation (`loss`), which needs Triton."""
    from cce_core.kernels import loss

    return loss
