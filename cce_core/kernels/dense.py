"""Launch the hot blocks' gradients: where most rows keep a block, whole products beat lists.

They go through the kernel of the exact backward, whatever their number is, which the device alone
knows. Their rows of dC are final; dE begins with their share: in 24 bits where the lower ones are
small beside the scratch's bound, else in its own 16. The narrower a head, the more of its error is
the filter's, and the less do the bits cost.
"""

from dataclasses import dataclass

import torch

from cce_core.kernels.launch import Logit
from cce_core.kernels.rows import Rows
from cce_core.kernels.slices import (
    BYTES_PER_ROW,
    Launch,
    Listed,
    Run,
    Targets,
    Upstream,
    launch,
    lent,
)

MOST = 32  # blocks: beyond these, lists are as fast on the data that was measured
FINE = BYTES_PER_ROW // 8  # the widest head whose dE keeps 24 bits


@dataclass(frozen=True)
class HotRoom:
    """How many blocks can be hot, and whether the unwritten part of dC lends them their dz."""

    blocks: int
    borrows: bool

    @classmethod
    def of(
        cls, rows: Rows, block: int, dc: torch.Tensor | None, eligible: int, spare: int
    ) -> "HotRoom":
        """What the rows of dC behind the `eligible` blocks hold, else `spare` bytes of scratch."""
        n, d = rows.e.shape
        behind = 0 if dc is None else (len(dc) - eligible * block) * d // (n * block)
        held = max(spare // (n * block * rows.e.element_size()), 1)
        return cls(min(behind or held, MOST), behind > 0)


def hot_gradients(
    rows: Rows,
    logit: Logit,
    upstream: Upstream,
    targets: Targets,
    hot: Listed,
    exact: torch.Tensor,
    *,
    borrows: bool,
) -> torch.Tensor | None:
    """Write the hot blocks' share of dE and their rows of dC, unless the device finds `exact` 1.

    Their dz is in the unwritten part of dC where it `borrows`, else in scratch.
    Returns dE's lower bits, int8 (N, D), where they are kept; the upper ones are in dE.
    """
    (n, d), width = rows.e.shape, len(hot.blocks) * logit.tilings.block
    if borrows and targets.dc is not None:
        dz = lent(targets.dc, n, width)
    else:
        dz = rows.e.new_empty((n, width))
    bits = rows.e.new_empty((n, d), dtype=torch.int8) if keeps_bits(targets, d) else None
    aux = next(x for x in (bits, targets.de, dz) if x is not None)
    tiles = logit.tilings
    what = Launch(Run(0, width, dz), aux, exact, tiles.hot_logits, tiles.gradients, listed=hot)
    launch(rows, logit, upstream, targets, what)
    return bits


def keeps_bits(targets: Targets, d: int) -> bool:
    """Whether dE keeps 24 bits for its second owner."""
    return targets.de is not None and d <= FINE
