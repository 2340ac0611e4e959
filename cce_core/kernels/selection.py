"""Launch the choice of pairs: count, choose the hot blocks, list the rest; lay out the rounds."""

from dataclasses import dataclass

import torch
import triton

from cce_core.kernels.dense import HotRoom, keeps_bits
from cce_core.kernels.filtering import Job
from cce_core.kernels.plan import count_kernel, list_kernel, plan_kernel
from cce_core.kernels.slices import BYTES_PER_ROW, Listed
from cce_core.kernels.tiling import interpreted

LAST_ROUND_PAIRS = 32768


@dataclass(frozen=True)
class Plan:
    """The kept pairs; all on the device."""

    count: torch.Tensor  # (B,) int32, negative for the hot ones
    start: torch.Tensor  # (B + 1,) int32
    hot: Listed
    borrows: bool  # whether dC lends the hot blocks their dz
    exact: torch.Tensor  # () int32
    pair_row: torch.Tensor  # (slots,) int32
    owner: torch.Tensor  # (slots / PAIRS,) int32


@dataclass(frozen=True)
class Round:
    """Blocks handled together, and where their dz goes."""

    first: int
    last: int
    pool: torch.Tensor  # (capacity, BLOCK)


def make_rounds(job: Job) -> list[Round]:
    """Half of what is left of the vocabulary at a time, the unwritten half of dC being its pool.

    Less than half where there are many rows for the width: what is not hot keeps at most
    `options.hot` of the pairs, so the pool holds them all. The last rounds' pool is scratch, for
    every pair of their few blocks.
    """
    rows, dc, block = job.rows, job.targets.dc, job.logit.tilings.block
    n, d = rows.e.shape
    blocks, pairs = len(job.mass), job.logit.tilings.pairs.block_n
    if dc is None:
        return [Round(0, blocks, rows.e.new_empty((1, block)))]
    whole = triton.cdiv(n, pairs) * pairs
    own = max(LAST_ROUND_PAIRS, whole)
    rounds, first = [], 0
    while (blocks - first) * whole > own and blocks - first > 1:
        fitting = int((blocks - first) * d / (whole * min(job.options.hot, 1.0) + d))
        last = first + max(min((blocks - first) // 2, fitting), 1)
        space = dc[last * block :].view(-1)
        capacity = space.numel() // block // pairs * pairs
        if capacity < own:
            break
        rounds.append(Round(first, last, space[: capacity * block].view(capacity, block)))
        first = last
    spare = rows.e.new_empty((own, block))
    step = max(own // whole, 1)
    return rounds + [Round(f, min(f + step, blocks), spare) for f in range(first, blocks, step)]


def plan_pairs(job: Job, reach: int) -> Plan:
    """Count, choose and list; no hot block of dC may lie where a pool will: behind `reach`."""
    rows, tiles = job.rows, job.logit.tilings
    device, n = rows.e.device, rows.e.shape[0]
    blocks = job.mass.shape[0]
    pairs = tiles.pairs.block_n
    slots = (int(job.options.density * blocks * n) // pairs + blocks) * pairs

    eligible = _eligible(job, reach)
    hot = _hot_room(job, eligible, slots)

    def integers(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int32, device=device)

    plan = Plan(
        count=integers(blocks),
        start=integers(blocks + 1),
        hot=Listed(integers(hot.blocks), integers()),
        borrows=hot.borrows,
        exact=job.masses.exact,
        pair_row=integers(slots),
        owner=integers(slots // pairs),
    )
    factor = torch.exp(job.masses.ref - job.lse)
    share = (job.mass, factor, job.g_lse, rows.labels, rows.count)
    bar = job.options.pair_bar
    sizes = {"BLOCK": tiles.block, "CHUNK": 64 if interpreted() else 1024}
    count_kernel[(blocks,)](*share, plan.count, bar, n, **sizes)
    plan_kernel[(1,)](
        plan.count,
        plan.start,
        plan.hot.blocks,
        plan.hot.count,
        plan.exact,
        rows.count,
        blocks,
        slots,
        eligible,
        len(plan.hot.blocks),
        HOT=job.options.hot,
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
        bar,
        n,
        PAIRS=pairs,
        **sizes,
    )
    return plan


def _eligible(job: Job, reach: int) -> int:
    """Blocks that can be hot: whole ones, in front of what any round's pool takes of dC."""
    v, block = job.logit.c.shape[0], job.logit.tilings.block
    return v // block if job.targets.dc is None else min(reach, triton.cdiv(v, block) // 2)


def _hot_room(job: Job, eligible: int, slots: int) -> HotRoom:
    """How many can be: in scratch, their dz lives beside the tail's profile and the pairs."""
    rows = job.rows
    n, d = rows.e.shape
    taken = standing_bytes(job) + 4 * slots + len(job.mass) * d * rows.e.element_size()
    spare = BYTES_PER_ROW * n - taken
    return HotRoom.of(rows, job.logit.tilings.block, job.targets.dc, eligible, spare)


def standing_bytes(job: Job) -> int:
    """Scratch that is held from the first step to the last: rows, masses, dE's lower bits."""
    n, d = job.rows.e.shape
    return job.rows.e.nbytes + job.mass.nbytes + n * d * keeps_bits(job.targets, d)
