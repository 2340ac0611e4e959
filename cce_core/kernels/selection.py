"""Launch the choice of pairs: count, choose the hot blocks, list the rest."""

from dataclasses import dataclass
from functools import partial

import torch
import triton

from cce_core.kernels.dense import Hot, HotRange, keeps_bits
from cce_core.kernels.filtering import Job
from cce_core.kernels.plan import count_kernel, list_kernel, plan_kernel
from cce_core.kernels.rounds import Layout
from cce_core.kernels.slices import BYTES_PER_ROW


@dataclass(frozen=True)
class Plan:
    """The kept pairs; all on the device."""

    count: torch.Tensor  # (B,) int32, negative for the hot ones
    start: torch.Tensor  # (B + 1,) int32
    hot: Hot
    exact: torch.Tensor  # () int32
    pair_row: torch.Tensor  # (slots,) int32
    owner: torch.Tensor  # (slots / PAIRS,) int32


def plan_pairs(job: Job, layout: Layout) -> Plan:
    """Count, choose and list; hot blocks are of the first two rounds, in front of their pools."""
    rows, tiles, options = job.rows, job.logit.tilings, job.options
    device, n = rows.e.device, rows.e.shape[0]
    blocks = job.mass.shape[0]
    pairs = tiles.pairs.block_n
    slots = (int(options.density * blocks * n) // pairs + blocks) * pairs
    ranges = _hot_ranges(job, layout, slots)
    first, second = ranges[0], ranges[-1]

    integers = partial(torch.empty, dtype=torch.int32, device=device)
    reals = partial(torch.empty, dtype=torch.float32, device=device)
    counts = integers((2, blocks))
    plan = Plan(
        count=counts[0],
        start=integers(blocks + 1),
        hot=Hot(ranges, integers(sum(part.room for part in ranges)), integers(3)),
        exact=job.masses.exact,
        pair_row=integers(slots),
        owner=integers(slots // pairs),
    )
    share = (job.mass, job.shares.factor, job.shares.g_lse, rows.labels, rows.count)
    bar, finer = options.pair_bar, options.pair_bar * options.finer
    square, chosen = reals(blocks), reals(())
    sizes = {"BLOCK": tiles.block, "CHUNK": tiles.chunk}
    count_kernel[(blocks,)](*share, counts, square, bar, finer, n, **sizes)
    plan_kernel[(1,)](
        counts,
        square,
        plan.start,
        plan.hot.blocks,
        plan.hot.heat,
        chosen,
        plan.exact,
        rows.count,
        blocks,
        slots,
        first.edge,
        second.edge,
        first.room,
        second.room,
        bar,
        finer,
        options.left_bar**2,
        HOT=options.hot,
        PAIRS=pairs,
        SIZE=triton.next_power_of_2(blocks + 1),
    )
    list_kernel[(blocks,)](
        *share,
        plan.count,
        plan.start,
        plan.exact,
        plan.pair_row,
        plan.owner,
        chosen,
        n,
        PAIRS=pairs,
        **sizes,
    )
    return plan


def _hot_ranges(job: Job, layout: Layout, slots: int) -> list[HotRange]:
    """Whole blocks, in front of the pool that is next to write: all before, then the second's.

    In scratch, hot blocks' dz lives beside the tail's profile and the pairs.
    """
    rows, dc, block = job.rows, job.targets.dc, job.logit.tilings.block
    n, d = rows.e.shape
    v, blocks = job.logit.c.shape[0], len(job.mass)
    taken = standing_bytes(job) + 4 * slots + blocks * d * rows.e.element_size()
    spare = BYTES_PER_ROW * n - taken
    if dc is None:
        return [HotRange.of(rows, block, None, v // block, spare)]
    edges = layout.edges[1:3]
    first = HotRange.of(rows, block, dc, min([*edges, blocks // 2]), spare)
    if len(edges) < 2:
        return [first]
    second = HotRange.of(rows, block, dc, edges[1], 0)
    return [first, second] if second.borrows else [first]


def standing_bytes(job: Job) -> int:
    """Scratch that is held from the first step to the last: rows, masses, dE's lower bits."""
    n, d = job.rows.e.shape
    return job.rows.e.nbytes + job.mass.nbytes + n * d * keeps_bits(job.targets, d)
