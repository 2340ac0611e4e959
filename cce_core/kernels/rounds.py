"""Lay out the rounds of the kept pairs: which blocks share a pool of dz, and where that lies."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import triton

from cce_core.kernels.filtering import Job
from cce_core.kernels.pairs import round_end

LAST_ROUND_PAIRS = 32768


@dataclass(frozen=True)
class Rounds:
    """Blocks that one launch takes, round by round."""

    first: int
    last: int
    pool: torch.Tensor  # (slots, BLOCK): a round's dz
    step: int  # blocks of a round; 0 where the pool is dC: then by the rule of `pairs.round_end`
    span: int  # that rule's


@dataclass(frozen=True)
class Layout:
    """The edges of the rounds that borrow the unwritten part of dC, then what the others need.

    Such a round takes half of what is left of the vocabulary, or less where there are many rows for
    the width, so that its pool holds `Filter.pool` of its pairs. The last rounds' pool is scratch,
    for every pair of their few blocks.
    """

    edges: list[int]  # 0, then where each borrowing round ends
    span: int
    step: int
    own: int  # slots of the scratch

    @classmethod
    def of(cls, job: Job) -> "Layout":
        """By the sizes alone; where no dC is wanted, one round takes all and has no pool."""
        (n, d), dc, blocks = job.rows.e.shape, job.targets.dc, len(job.mass)
        if dc is None:
            return cls([0], 1, blocks, 1)
        pairs = job.logit.tilings.pairs.block_n
        whole = triton.cdiv(n, pairs) * pairs
        own, span = max(LAST_ROUND_PAIRS, whole), d + int(whole * job.options.pool)
        slots, edges = dc.numel() // job.logit.tilings.block, [0]
        while (blocks - edges[-1]) * whole > own and blocks - edges[-1] > 1:
            last = round_end.fn(edges[-1], blocks, d, span)
            if slots - last * d < own:
                break
            edges.append(last)
        return cls(edges, span, max(own // whole, 1), own)

    def launches(self, job: Job, *, apart: bool) -> list[Rounds]:
        """All rounds; where hot blocks go between the first one and the others, it is `apart`."""
        dc, block, blocks = job.targets.dc, job.logit.tilings.block, len(job.mass)
        spare = job.rows.e.new_empty((self.own, block))
        last = Rounds(self.edges[-1], blocks, spare, self.step, 1)
        if dc is None or len(self.edges) == 1:
            return [last]
        pool = dc.view(-1)[: dc.numel() // block * block].view(-1, block)
        parts = [0, self.edges[1], self.edges[-1]] if apart else [0, self.edges[-1]]
        return [*(Rounds(a, b, pool, 0, self.span) for a, b in pairwise(parts)), last]
