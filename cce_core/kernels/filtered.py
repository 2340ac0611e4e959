"""Launch the filtered backward: few pairs exactly, the rest by their mean field.

The order: count and list the kept pairs; weigh the tail, judge its error and take its products;
hot blocks; the kept pairs' logits and dC, round by round within a launch; last dE, by row. If the
error is too large, or the pairs, or one row's large entries, outgrow their buffers, the device asks
for the exact backward, which the caller queues behind: it overwrites both gradients, and returns at
once otherwise. The host never waits.
"""

from dataclasses import dataclass

import torch
import triton

from cce_core import observe
from cce_core.kernels.dense import hot_gradients, lower_bits
from cce_core.kernels.entries import row_gradient_kernel
from cce_core.kernels.filtering import Job
from cce_core.kernels.launch import describe
from cce_core.kernels.mean_field import block_means, thin_product, weigh_tail
from cce_core.kernels.pairs import pairs_kernel
from cce_core.kernels.rounds import Layout, Rounds
from cce_core.kernels.selection import Plan, plan_pairs, standing_bytes
from cce_core.kernels.slices import BYTES_PER_ROW


@dataclass(frozen=True)
class _Lists:
    """Entries of dz by row, for dE."""

    found: torch.Tensor  # (N, 2) int32
    col: torch.Tensor  # (N, K) int32
    dz: torch.Tensor  # (N, K) bf16
    parts: int  # dE is made in so many, one after the other


def filtered_gradients(job: Job) -> torch.Tensor:
    """Write dE and dC; return the device's decision, () int32: 1 where exact has to overwrite them.

    The job's masses are consumed. Shapes as in `exact_gradients`; bf16 only, no bias.
    """
    rows, logit, upstream, targets = job.rows, job.logit, job.upstream, job.targets
    layout = Layout.of(job)
    plan = plan_pairs(job, layout)
    weight, error = weigh_tail(job, plan)
    mean = block_means(logit.c, weight.to(logit.c.dtype), logit.tilings.block)
    bits = lower_bits(targets)
    hot_gradients(rows, logit, upstream, targets, plan.hot, 0, bits, plan.exact)
    pull = thin_product(job.mass, rows.e) if targets.dc is not None else mean
    launches = layout.launches(job, apart=len(plan.hot.ranges) > 1)
    lists = _empty_lists(job, launches[-1].pool.nbytes)
    arrived = torch.zeros(len(launches), dtype=torch.int32, device=rows.e.device).unbind()
    for number, turn in enumerate(launches):
        if 0 < number < len(plan.hot.ranges):
            hot_gradients(rows, logit, upstream, targets, plan.hot, number, bits, plan.exact)
        _pairs(job, plan, turn, lists, (weight, pull), arrived[number])
    del pull, launches, turn  # dE's tail takes their memory
    if targets.de is not None:
        _row_gradient(job, plan, lists, mean, targets.de, bits)
    if observe.wanted():
        observe.report(_left_out(job), error, plan.exact)
    return plan.exact


def _left_out(job: Job) -> torch.Tensor:
    """(N,) fp32: each row's probability that the mean field stands for; NaN past the rows."""
    share = job.mass.sum(0, dtype=torch.float32) / job.shares.g_lse
    counted = torch.arange(len(share), device=share.device) < job.rows.count
    return torch.where(counted & (job.rows.labels >= 0), share, float("nan"))


def _empty_lists(job: Job, pool: int) -> _Lists:
    n, device = job.rows.e.shape[0], job.rows.e.device
    k, parts = _list_length(job, pool)
    return _Lists(
        torch.zeros((n, 2), dtype=torch.int32, device=device),
        torch.empty((n, k), dtype=torch.int32, device=device),
        torch.empty((n, k), dtype=torch.bfloat16, device=device),
        parts,
    )


def _list_length(job: Job, pool: int) -> tuple[int, int]:
    """Entries of a row's list, and the parts that dE is made in.

    That is what the budget of scratch leaves beside the pool and all else.
    """
    options = job.options
    if job.targets.de is None or options.entries is not None:
        return options.entries or options.big_entries, options.parts
    n, d = job.rows.e.shape
    blocks = len(job.mass)
    item = job.rows.e.element_size()
    taken = standing_bytes(job) + 2 * blocks * d * item + pool
    taken += int(options.density * blocks * n) * 4

    def length(parts: int) -> int:
        room = BYTES_PER_ROW * n - taken - n * d * item // parts
        return min(max(room // (6 * n) // 16 * 16, 2 * options.big_entries), 4096)

    parts = next((p for p in (1, 2) if length(p) >= options.ample), options.parts)
    return length(parts), parts


def _pairs(
    job: Job,
    plan: Plan,
    turn: Rounds,
    lists: _Lists,
    tail: tuple[torch.Tensor, torch.Tensor],
    arrived: torch.Tensor,
) -> None:
    rows, logit, options, dc = job.rows, job.logit, job.options, job.targets.dc
    tiles, scatter = logit.tilings.pairs, logit.tilings.scatter
    block, (n, d) = logit.tilings.block, rows.e.shape
    programs, cooperation = logit.cooperation()
    programs *= tiles.residency
    pairs_kernel[(programs,)](
        rows.e,
        describe(logit.c, block, tiles.block_d),
        describe(turn.pool, tiles.block_n, block // 4) if dc is not None else None,
        describe(turn.pool, scatter.block_d, block) if dc is not None else None,
        describe(dc, block, scatter.block_v) if dc is not None else None,
        plan.pair_row,
        plan.owner,
        plan.count,
        plan.start,
        rows.labels,
        job.upstream.lse,
        job.shares.g_lse,
        job.shares.g_label,
        job.shares.unit,
        lists.found,
        lists.col,
        lists.dz,
        job.mass,
        *tail,
        plan.exact,
        arrived,
        n,
        logit.c.shape[0],
        d,
        lists.col.shape[1],
        options.big_entries,
        turn.first,
        turn.last,
        turn.pool.shape[0],
        turn.step,
        turn.span,
        options.entry_bar,
        logit.scale,
        logit.softcap or 1.0,
        HAS_CAP=logit.softcap is not None,
        WITH_POOL=dc is not None,
        WITH_LIST=job.targets.de is not None,
        EVEN_L=d % tiles.block_d == 0,
        EVEN_D=d % scatter.block_v == 0,
        BLOCK=block,
        PAIRS=tiles.block_n,
        BLOCK_L=tiles.block_d,
        LOGITS_STAGES=tiles.stages,
        BLOCK_D=scatter.block_v,
        BLOCK_K=scatter.block_d,
        STAGES=scatter.stages,
        PROGRAMS=programs,
        num_warps=tiles.warps,
        **cooperation,
        **logit.common(),
    )


def _row_gradient(
    job: Job,
    plan: Plan,
    lists: _Lists,
    mean: torch.Tensor,
    de: torch.Tensor,
    bits: torch.Tensor | None,
) -> None:
    n, d = job.rows.e.shape
    step = max(triton.cdiv(n, lists.parts), 256)
    block_d = min(512, triton.next_power_of_2(d))
    for first in range(0, n, step):
        part = min(step, n - first)
        row_gradient_kernel[(part, triton.cdiv(d, block_d))](
            job.logit.c,
            thin_product(job.mass[:, first : first + part].T, mean),
            lists.found,
            lists.col,
            lists.dz,
            job.rows.index,
            job.rows.count,
            plan.exact,
            job.shares.unit,
            plan.hot.heat[-1],
            bits if bits is not None else de,
            de.view(torch.int16) if bits is not None else de,
            first,
            d,
            lists.col.shape[1],
            job.options.big_entries,
            job.logit.c.stride(0),
            SPLIT=bits is not None,
            BATCH=16,
            BLOCK_D=block_d,
            num_warps=4,
        )
