"""Launch the filtered backward: few pairs exactly, the rest by their mean field.

The order: count and list the kept pairs; weigh the tail and take its products; then, round by
round, the kept pairs' logits and dC; last dE, by row. If the pairs, or one row's large entries, outgrow
their buffers, the device asks for the exact backward, which the caller queues behind: it overwrites
both gradients, and returns at once otherwise. The host never waits for the decision.
"""

from dataclasses import dataclass

import torch
import triton

from cce_core.kernels.launch import Logit, describe
from cce_core.kernels.pairs import block_gradient_kernel, pair_logits_kernel, row_gradient_kernel
from cce_core.kernels.plan import count_kernel, list_kernel, plan_kernel
from cce_core.kernels.rows import Rows
from cce_core.kernels.statistics import RowStatistics
from cce_core.kernels.tail import tail_kernel
from cce_core.kernels.tiling import interpreted

LAST_ROUND_PAIRS = 32768
BYTES_PER_ROW = 144 * 2**20 // 8192  # of scratch, in all


@dataclass(frozen=True)
class Filter:
    """What is kept, in units of a row's mean upstream gradient, and how much room there is."""

    pair_bar: float = 2.0**-11.5  # a block's share of its row's gradient
    entry_bar: float = 2.0**-13.5  # an entry's
    entries: int | None = None  # length of a row's list; None fills the budget
    big_entries: int = 192  # of these, slots for the large ones alone
    density: float = 0.25  # the kept part of all pairs above which exact takes over
    parts: int = 16  # dE is made in so many parts, which bounds its tail's scratch

    @classmethod
    def of(cls, eps: float) -> "Filter":
        """The bars for a threshold `eps` on an entry's probability; 2**-12 is the default."""
        return cls(pair_bar=eps * 2.0**0.5, entry_bar=eps * 2.0**-1.5)


@dataclass(frozen=True)
class Plan:
    """The kept pairs; all on the device."""

    start: torch.Tensor  # (B + 1,) int32
    exact: torch.Tensor  # () int32
    pair_row: torch.Tensor  # (slots,) int32
    owner: torch.Tensor  # (slots / PAIRS,) int32


@dataclass(frozen=True)
class Round:
    """Blocks handled together, and where their dz goes."""

    first: int
    last: int
    pool: torch.Tensor  # (capacity, BLOCK)


def filtered_gradients(
    rows: Rows,
    logit: Logit,
    statistics: RowStatistics,
    g_lse: torch.Tensor,
    g_label: torch.Tensor,
    *,
    de: torch.Tensor | None,
    dc: torch.Tensor | None,
    options: Filter,
) -> torch.Tensor:
    """Write dE and dC; return the device's decision, () int32: 1 where exact has to overwrite them.

    `statistics.mass` is consumed. Shapes as in `exact_gradients`; bf16 only, no bias.
    """
    live = torch.arange(rows.e.shape[0], device=rows.e.device) < rows.count
    g_lse, g_label = g_lse * live, g_label * live
    unit = (g_lse.abs().sum() / rows.count.clamp(min=1)).clamp(min=1e-30)
    upstream = (g_lse / unit, g_label / unit)
    plan = _plan(rows, logit, statistics, upstream[0], options)
    _filtered(rows, logit, statistics, upstream, unit, plan, de, dc, options)
    return plan.exact


def _plan(rows, logit, statistics, g, options):
    device, n = rows.e.device, rows.e.shape[0]
    tiles = logit.tilings
    blocks = statistics.mass.shape[0]
    pairs = tiles.pairs.block_n
    slots = (int(options.density * blocks * n) // pairs + blocks) * pairs
    plan = Plan(
        start=torch.empty(blocks + 1, dtype=torch.int32, device=device),
        exact=torch.empty((), dtype=torch.int32, device=device),
        pair_row=torch.empty(slots, dtype=torch.int32, device=device),
        owner=torch.empty(slots // pairs, dtype=torch.int32, device=device),
    )
    counts = torch.empty(blocks, dtype=torch.int32, device=device)
    factor = torch.exp(statistics.ref - statistics.lse)
    chunk = 64 if interpreted() else 1024
    share = (statistics.mass, factor, g, rows.labels, rows.count)
    bar = options.pair_bar
    count_kernel[(blocks,)](*share, counts, bar, n, BLOCK=tiles.block, CHUNK=chunk)
    plan_kernel[(1,)](
        counts,
        plan.start,
        plan.exact,
        blocks,
        slots,
        PAIRS=pairs,
        SIZE=triton.next_power_of_2(blocks + 1),
    )
    list_kernel[(blocks,)](
        *share,
        plan.start,
        plan.exact,
        plan.pair_row,
        plan.owner,
        bar,
        n,
        BLOCK=tiles.block,
        PAIRS=pairs,
        CHUNK=chunk,
    )
    return plan


def _filtered(rows, logit, statistics, upstream, unit, plan, de, dc, options):
    n, d = rows.e.shape
    device = rows.e.device
    tail = statistics.mass
    weight, mean = _weigh_tail(rows, logit, statistics, upstream[0], plan)
    pull = _product(tail, rows.e) if dc is not None else mean
    found = torch.zeros((n, 2), dtype=torch.int32, device=device)
    k = _list_length(rows, logit, statistics, options) if de is not None else options.big_entries
    col = torch.empty((n, k), dtype=torch.int32, device=device)
    dz = torch.empty((n, k), dtype=torch.bfloat16, device=device)
    lists = (found, col, dz)
    for turn in _rounds(rows, logit, dc):
        _pair_logits(rows, logit, statistics, upstream, plan, turn, lists, tail, de, dc, options)
        if dc is not None:
            _block_gradient(rows, logit, plan, turn, weight, pull, unit, dc)
    if de is not None:
        _row_gradient(rows, logit, plan, lists, tail, mean, unit, de, options)


def _list_length(rows, logit, statistics, options) -> int:
    """Entries of a row's list: what the budget of scratch leaves beside everything else."""
    if options.entries is not None:
        return options.entries
    n, d = rows.e.shape
    blocks = statistics.mass.shape[0]
    item = rows.e.element_size()
    taken = rows.e.nbytes + statistics.mass.nbytes + 2 * blocks * d * item
    taken += LAST_ROUND_PAIRS * logit.tilings.block * item + n * d * item // options.parts
    taken += int(options.density * blocks * n) * 4
    room = BYTES_PER_ROW * n - taken
    return min(max(room // (6 * n) // 16 * 16, 2 * options.big_entries), 4096)


def _rounds(rows: Rows, logit: Logit, dc: torch.Tensor | None) -> list[Round]:
    """Halve what is left of the vocabulary, the unwritten half of dC being the round's pool.

    The last round's pool is scratch, for every pair of its few blocks.
    """
    block, pairs = logit.tilings.block, logit.tilings.pairs.block_n
    v, d = logit.c.shape
    blocks = triton.cdiv(v, block)
    spare = torch.empty((1, block), dtype=rows.e.dtype, device=rows.e.device)
    if dc is None:
        return [Round(0, blocks, spare)]
    whole = triton.cdiv(rows.e.shape[0], pairs) * pairs
    own = max(LAST_ROUND_PAIRS, whole)
    rounds, first = [], 0
    while (blocks - first) * whole > own and blocks - first > 1:
        last = first + (blocks - first) // 2
        space = dc[last * block :].view(-1)
        capacity = space.numel() // block // pairs * pairs
        if capacity < own:
            break
        rounds.append(Round(first, last, space[: capacity * block].view(capacity, block)))
        first = last
    spare = torch.empty((own, block), dtype=rows.e.dtype, device=rows.e.device)
    step = max(own // whole, 1)
    rounds += [Round(f, min(f + step, blocks), spare) for f in range(first, blocks, step)]
    return rounds


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a.to(b.dtype), b)


def _weigh_tail(rows, logit, statistics, g, plan):
    tiling = logit.tilings.tail
    block, sample = logit.tilings.block, tiling.block_v
    n, d = rows.e.shape
    blocks = statistics.mass.shape[0]
    picked = torch.arange(sample, device=rows.e.device) * rows.count // sample
    weight = torch.empty(blocks * block, dtype=torch.float32, device=rows.e.device)
    mean = torch.empty((blocks, d), dtype=rows.e.dtype, device=rows.e.device)
    programs = logit.programs * tiling.residency
    tail_kernel[(programs,)](
        describe(logit.c, block, tiling.block_d),
        describe(rows.e[picked], sample, tiling.block_d),
        picked.to(torch.int32),
        statistics.lse,
        g,
        statistics.mass,
        plan.exact,
        weight,
        n,
        logit.c.shape[0],
        d,
        logit.scale,
        logit.softcap or 1.0,
        HAS_CAP=logit.softcap is not None,
        SAMPLE=sample,
        BLOCK=block,
        BLOCK_D=tiling.block_d,
        PROGRAMS=programs,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **logit.common(),
    )
    return weight, _block_means(logit.c, weight.to(logit.c.dtype), block)


def _block_means(c: torch.Tensor, weight: torch.Tensor, block: int) -> torch.Tensor:
    """(B, D): the weighted sum of each block's rows of C."""
    whole = c.shape[0] // block
    full, rest = c[: whole * block], c[whole * block :]
    means = torch.bmm(weight[: len(full)].view(whole, 1, block), full.view(whole, block, -1))
    if len(rest) == 0:
        return means[:, 0]
    return torch.cat([means[:, 0], weight[len(full) : len(c)][None] @ rest])


def _pair_logits(rows, logit, statistics, upstream, plan, turn, lists, tail, de, dc, options):
    tiling = logit.tilings.pairs
    d = rows.e.shape[1]
    programs = logit.programs * tiling.residency
    pair_logits_kernel[(programs,)](
        rows.e,
        describe(logit.c, tiling.block_v, tiling.block_d),
        describe(turn.pool, tiling.block_n, tiling.block_v // 4),
        plan.pair_row,
        plan.owner,
        plan.start,
        rows.labels,
        statistics.lse,
        *upstream,
        *lists,
        tail,
        plan.exact,
        rows.e.shape[0],
        logit.c.shape[0],
        d,
        lists[1].shape[1],
        options.big_entries,
        turn.first,
        turn.last,
        turn.pool.shape[0],
        options.entry_bar,
        logit.scale,
        logit.softcap or 1.0,
        HAS_CAP=logit.softcap is not None,
        WITH_POOL=dc is not None,
        WITH_LIST=de is not None,
        EVEN_D=d % tiling.block_d == 0,
        BLOCK=tiling.block_v,
        PAIRS=tiling.block_n,
        BLOCK_D=tiling.block_d,
        PROGRAMS=programs,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **logit.common(),
    )


def _block_gradient(rows, logit, plan, turn, weight, pull, unit, dc):
    tiling = logit.tilings.scatter
    d = rows.e.shape[1]
    block = logit.tilings.block
    programs = logit.programs * tiling.residency
    block_gradient_kernel[(programs,)](
        describe(turn.pool, tiling.block_d, block),
        rows.e,
        describe(dc, block, tiling.block_v),
        plan.pair_row,
        plan.start,
        weight,
        pull,
        unit,
        plan.exact,
        d,
        turn.first,
        turn.last,
        EVEN_D=d % tiling.block_v == 0,
        BLOCK=block,
        BLOCK_D=tiling.block_v,
        BLOCK_K=tiling.block_d,
        PROGRAMS=programs,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **logit.common(),
    )


def _row_gradient(rows, logit, plan, lists, tail, mean, unit, de, options):
    n, d = rows.e.shape
    step = max(triton.cdiv(n, options.parts), 256)
    block_d = min(512, triton.next_power_of_2(d))
    for first in range(0, n, step):
        part = min(step, n - first)
        share = _product(tail[:, first : first + part].T, mean)
        row_gradient_kernel[(part, triton.cdiv(d, block_d))](
            logit.c,
            share,
            *lists,
            rows.index,
            rows.count,
            plan.exact,
            unit,
            de,
            first,
            d,
            lists[1].shape[1],
            options.big_entries,
            logit.c.stride(0),
            BATCH=16,
            BLOCK_D=block_d,
            num_warps=4,
        )
