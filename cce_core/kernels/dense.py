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
    counters,
    launch,
    lent,
)
from cce_core.kernels.upstream import Upstream

MOST = 32  # blocks of a range: beyond these, lists are as fast on the data that was measured
FINE = BYTES_PER_ROW // 8  # the widest head whose dE keeps 24 bits


@dataclass(frozen=True)
class HotRange:
    """Where blocks can be hot: before `edge`, and from the range before on."""

    edge: int
    room: int  # how many can be
    borrows: bool  # whether dC, unwritten from `edge` on, lends them their dz

    @classmethod
    def of(
        cls, rows: Rows, block: int, dc: torch.Tensor | None, edge: int, spare: int
    ) -> "HotRange":
        """As many as dC's rows from `edge` on hold, else `spare` bytes of scratch."""
        n, d = rows.e.shape
        behind = 0 if dc is None else (len(dc) - edge * block) * d // (n * block)
        held = max(spare // (n * block * rows.e.element_size()), 1)
        return cls(edge, min(behind or held, MOST), behind > 0)


@dataclass(frozen=True)
class Hot:
    """The hot blocks, which the device alone knows, in the order of the vocabulary."""

    ranges: list[HotRange]
    blocks: torch.Tensor  # (sum of the rooms,) int32
    heat: torch.Tensor  # (3,) int32: 0, how many the first range has, how many both have


def lower_bits(targets: Targets) -> torch.Tensor | None:
    """Room for dE's lower bits, int8 (N, D), where they are kept; the upper ones are in dE."""
    de = targets.de
    if de is None or not keeps_bits(targets, de.shape[1]):
        return None
    return torch.empty_like(de, dtype=torch.int8)


def hot_gradients(
    rows: Rows,
    logit: Logit,
    upstream: Upstream,
    targets: Targets,
    hot: Hot,
    turn: int,
    bits: torch.Tensor | None,
    exact: torch.Tensor,
) -> None:
    """Add one range's share to dE and write its rows of dC, unless the device finds `exact` 1.

    Their dz is in the unwritten part of dC where the range borrows, else in scratch.
    """
    where, block, n = hot.ranges[turn], logit.tilings.block, len(rows.e)
    width = where.room * block
    if where.borrows and targets.dc is not None:
        dz = lent(targets.dc, n, width)
    else:
        dz = rows.e.new_empty((n, width))
    aux = next(x for x in (bits, targets.de, dz) if x is not None)
    tiles, listed = logit.tilings, Listed(hot.blocks, hot.heat[turn : turn + 2])
    run = Run(0, width, dz)
    (turns,) = counters([run], dz.device)
    what = Launch(run, aux, exact, turns, tiles.hot_logits, tiles.gradients, listed)
    launch(rows, logit, upstream, targets, what)


def keeps_bits(targets: Targets, d: int) -> bool:
    """Whether dE keeps 24 bits for its second owner."""
    return targets.de is not None and d <= FINE
