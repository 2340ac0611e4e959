"""Launch the filtered backward: few pairs exactly, the rest by their mean field.

The order: count and list the kept pairs; weigh the tail, judge its error and take its products;
the hot blocks; round by round, the kept pairs' logits and dC; last dE, by row. If the error is too
large, or the pairs, or one row's large entries, outgrow their buffers, the device asks for the
exact backward, which the caller queues behind: it overwrites both gradients, and returns at once
otherwise. The host never waits.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

from cce_core import observe
from cce_core.kernels.dense import HotRoom, hot_gradients, keeps_bits
from cce_core.kernels.judge import judge_kernel, signs_kernel
from cce_core.kernels.launch import Logit, describe
from cce_core.kernels.pairs import block_gradient_kernel, pair_logits_kernel, row_gradient_kernel
from cce_core.kernels.plan import count_kernel, list_kernel, plan_kernel
from cce_core.kernels.rows import Rows
from cce_core.kernels.slices import BYTES_PER_ROW, Listed, Targets, Upstream
from cce_core.kernels.tail import tail_kernel
from cce_core.kernels.tiling import interpreted

LAST_ROUND_PAIRS = 32768
SIGNS = 16  # projections of the error: its square is known to sqrt(2 / SIGNS) at the worst


@dataclass(frozen=True)
class Filter:
    """What is kept, in units of a row's mean upstream gradient, and how much room there is."""

    pair_bar: float = 2.0**-11.5  # a block's share of its row's gradient
    entry_bar: float = 2.0**-13  # an entry's
    entries: int | None = None  # length of a row's list; None fills the budget
    big_entries: int = 192  # of these, slots for the large ones alone
    density: float = 0.25  # the listed part of all pairs above which exact takes over
    error_bar: float = 2.0**-7  # the estimated error of dE above which exact takes over, as for NaN
    hot: float = 0.5  # the share of the rows above which a block is taken whole
    parts: int = 8  # dE is made in so many parts, which bounds its tail's scratch

    @classmethod
    def of(cls, eps: float) -> "Filter":
        """The bars for a threshold `eps` on an entry's probability; 2**-12 is the default."""
        return cls(pair_bar=eps * 2.0**0.5, entry_bar=eps / 2)


class Masses(NamedTuple):
    """What the forward leaves for one filtered backward; a later one is exact."""

    ref: torch.Tensor  # (N,) fp32: what the masses are relative to
    mass: torch.Tensor  # (B, N) bf16: the blocks' masses; once the pairs are listed, the tail's
    exact: torch.Tensor  # () int32: negative before; then 1 where exact has to serve, 0 if not

    @classmethod
    def of(cls, ref: torch.Tensor, mass: torch.Tensor) -> "Masses":
        """Unused ones."""
        return cls(ref, mass, torch.full((), -1, dtype=torch.int32, device=mass.device))


@dataclass(frozen=True)
class Plan:
    """The kept pairs; all on the device."""

    count: torch.Tensor  # (B,) int32, negative for the hot ones
    start: torch.Tensor  # (B + 1,) int32
    hot: Listed
    lent: bool  # whether dC lends the hot blocks their dz
    exact: torch.Tensor  # () int32
    pair_row: torch.Tensor  # (slots,) int32
    owner: torch.Tensor  # (slots / PAIRS,) int32


@dataclass(frozen=True)
class Round:
    """Blocks handled together, and where their dz goes."""

    first: int
    last: int
    pool: torch.Tensor  # (capacity, BLOCK)


@dataclass(frozen=True)
class _Job:
    """One filtered backward: what every step of it reads."""

    rows: Rows
    logit: Logit
    masses: Masses
    lse: torch.Tensor  # (N,) fp32
    g_lse: torch.Tensor  # (N,) fp32, over `unit`
    g_label: torch.Tensor  # likewise
    unit: torch.Tensor  # () fp32, the mean |g_lse|
    targets: Targets
    options: Filter

    @property
    def mass(self) -> torch.Tensor:
        """(B, N) bf16: the blocks' masses; once the pairs are listed, what they leave out."""
        return self.masses.mass


@dataclass(frozen=True)
class _Lists:
    """Entries of dz by row, for dE."""

    found: torch.Tensor  # (N, 2) int32
    col: torch.Tensor  # (N, K) int32
    dz: torch.Tensor  # (N, K) bf16


def filtered_gradients(
    rows: Rows,
    logit: Logit,
    masses: Masses,
    upstream: Upstream,
    targets: Targets,
    options: Filter,
) -> torch.Tensor:
    """Write dE and dC; return the device's decision, () int32: 1 where exact has to overwrite them.

    `masses` are consumed. Shapes as in `exact_gradients`; bf16 only, no bias.
    """
    unit = (upstream.g_lse.abs().sum() / rows.count.clamp(min=1)).clamp(min=1e-30)
    g_lse, g_label = upstream.g_lse / unit, upstream.g_label / unit
    job = _Job(rows, logit, masses, upstream.lse, g_lse, g_label, unit, targets, options)
    rounds = _rounds(job)
    plan = _plan(job, rounds[0].last)
    weight, error = _weigh_tail(job, plan)
    mean = _block_means(logit.c, weight.to(logit.c.dtype), logit.tilings.block)
    bits = hot_gradients(rows, logit, upstream, targets, plan.hot, plan.exact, lent=plan.lent)
    pull = _product(job.mass, rows.e) if targets.dc is not None else mean
    lists = _empty_lists(job)
    for turn in rounds:
        _pair_logits(job, plan, turn, lists)
        if targets.dc is not None:
            _block_gradient(job, plan, turn, (weight, pull), targets.dc)
    if targets.de is not None:
        _row_gradient(job, plan, lists, mean, targets.de, bits)
    if observe.wanted():
        observe.report(_left_out(job), error, plan.exact)
    return plan.exact


def _left_out(job: _Job) -> torch.Tensor:
    """(N,) fp32: each row's probability that the mean field stands for; NaN past the rows."""
    share = job.mass.sum(0, dtype=torch.float32) / job.g_lse
    counted = torch.arange(len(share), device=share.device) < job.rows.count
    return torch.where(counted & (job.rows.labels >= 0), share, float("nan"))


def _plan(job: _Job, reach: int) -> Plan:
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
        lent=hot.lent,
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


def _eligible(job: _Job, reach: int) -> int:
    """Blocks that can be hot: whole ones, in front of what any round's pool takes of dC."""
    v, block = job.logit.c.shape[0], job.logit.tilings.block
    return v // block if job.targets.dc is None else min(reach, triton.cdiv(v, block) // 2)


def _hot_room(job: _Job, eligible: int, slots: int) -> HotRoom:
    """How many can be: in scratch, their dz lives beside the tail's profile and the pairs."""
    rows, targets = job.rows, job.targets
    n, d = rows.e.shape
    taken = rows.e.nbytes + job.mass.nbytes + 4 * slots + len(job.mass) * d * rows.e.element_size()
    taken += n * d * keeps_bits(targets, d)
    spare = BYTES_PER_ROW * n - taken
    return HotRoom.of(rows, job.logit.tilings.block, targets.dc, eligible, spare)


def _weigh_tail(job: _Job, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns' weights, (B * BLOCK,) fp32, and the error of dE that they make, () fp32."""
    rows, logit = job.rows, job.logit
    tiling, device = logit.tilings.tail, rows.e.device
    block, sample = logit.tilings.block, tiling.block_v
    picked = torch.arange(sample, device=device) * rows.count // sample
    weight = torch.empty(len(job.mass) * block, dtype=torch.float32, device=device)
    sums = torch.zeros((2, sample, SIGNS), dtype=torch.float32, device=device)
    programs = logit.programs * tiling.residency
    tail_kernel[(programs,)](
        describe(logit.c, block, tiling.block_d),
        describe(rows.e[picked], sample, tiling.block_d),
        describe(_signs(job), SIGNS, tiling.block_d),
        picked.to(torch.int32),
        rows.labels,
        job.lse,
        job.g_lse,
        job.g_label,
        job.mass,
        plan.count,
        plan.exact,
        weight,
        sums,
        rows.e.shape[0],
        logit.c.shape[0],
        rows.e.shape[1],
        job.options.entry_bar,
        logit.scale,
        logit.softcap or 1.0,
        HAS_CAP=logit.softcap is not None,
        SAMPLE=sample,
        SIGNS=SIGNS,
        BLOCK=block,
        BLOCK_D=tiling.block_d,
        PROGRAMS=programs,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **logit.common(),
    )
    error = torch.empty((), dtype=torch.float32, device=device)
    judge_kernel[(1,)](sums, error, plan.exact, job.options.error_bar, SIZE=sample * SIGNS)
    return weight, error


def _signs(job: _Job) -> torch.Tensor:
    """(SIGNS, D): what the error is projected on."""
    e = job.rows.e
    signs = torch.empty((SIGNS, e.shape[1]), dtype=e.dtype, device=e.device)
    signs_kernel[(triton.cdiv(signs.numel(), 1024),)](signs, signs.numel(), SIZE=1024)
    return signs


def _block_means(c: torch.Tensor, weight: torch.Tensor, block: int) -> torch.Tensor:
    """(B, D): the weighted sum of each block's rows of C."""
    whole = c.shape[0] // block
    full, rest = c[: whole * block], c[whole * block :]
    blocks = full.view(whole, block, c.shape[1])
    means = torch.bmm(weight[: len(full)].view(whole, 1, block), blocks)
    if len(rest) == 0:
        return means[:, 0]
    return torch.cat([means[:, 0], weight[len(full) : len(c)][None] @ rest])


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a.to(b.dtype), b)


def _empty_lists(job: _Job) -> _Lists:
    n, device = job.rows.e.shape[0], job.rows.e.device
    k = _list_length(job) if job.targets.de is not None else job.options.big_entries
    return _Lists(
        torch.zeros((n, 2), dtype=torch.int32, device=device),
        torch.empty((n, k), dtype=torch.int32, device=device),
        torch.empty((n, k), dtype=torch.bfloat16, device=device),
    )


def _list_length(job: _Job) -> int:
    """Entries of a row's list: what the budget of scratch leaves beside everything else."""
    options = job.options
    if options.entries is not None:
        return options.entries
    n, d = job.rows.e.shape
    blocks = len(job.mass)
    item = job.rows.e.element_size()
    taken = job.rows.e.nbytes + job.mass.nbytes + 2 * blocks * d * item
    taken += LAST_ROUND_PAIRS * job.logit.tilings.block * item + n * d * item // options.parts
    taken += int(options.density * blocks * n) * 4 + n * d * keeps_bits(job.targets, d)
    room = BYTES_PER_ROW * n - taken
    return min(max(room // (6 * n) // 16 * 16, 2 * options.big_entries), 4096)


def _rounds(job: _Job) -> list[Round]:
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


def _pair_logits(job: _Job, plan: Plan, turn: Round, lists: _Lists) -> None:
    rows, logit, options = job.rows, job.logit, job.options
    tiling = logit.tilings.pairs
    n, d = rows.e.shape
    programs = logit.programs * tiling.residency
    pair_logits_kernel[(programs,)](
        rows.e,
        describe(logit.c, tiling.block_v, tiling.block_d),
        describe(turn.pool, tiling.block_n, tiling.block_v // 4),
        plan.pair_row,
        plan.owner,
        plan.start,
        rows.labels,
        job.lse,
        job.g_lse,
        job.g_label,
        lists.found,
        lists.col,
        lists.dz,
        job.mass,
        plan.exact,
        n,
        logit.c.shape[0],
        d,
        lists.col.shape[1],
        options.big_entries,
        turn.first,
        turn.last,
        turn.pool.shape[0],
        options.entry_bar,
        logit.scale,
        logit.softcap or 1.0,
        HAS_CAP=logit.softcap is not None,
        WITH_POOL=job.targets.dc is not None,
        WITH_LIST=job.targets.de is not None,
        EVEN_D=d % tiling.block_d == 0,
        BLOCK=tiling.block_v,
        PAIRS=tiling.block_n,
        BLOCK_D=tiling.block_d,
        PROGRAMS=programs,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **logit.common(),
    )


def _block_gradient(
    job: _Job, plan: Plan, turn: Round, tail: tuple[torch.Tensor, torch.Tensor], dc: torch.Tensor
) -> None:
    logit, d = job.logit, job.rows.e.shape[1]
    tiling, block = logit.tilings.scatter, logit.tilings.block
    programs = logit.programs * tiling.residency
    block_gradient_kernel[(programs,)](
        describe(turn.pool, tiling.block_d, block),
        job.rows.e,
        describe(dc, block, tiling.block_v),
        plan.pair_row,
        plan.count,
        plan.start,
        *tail,
        job.unit,
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


def _row_gradient(
    job: _Job,
    plan: Plan,
    lists: _Lists,
    mean: torch.Tensor,
    de: torch.Tensor,
    bits: torch.Tensor | None,
) -> None:
    n, d = job.rows.e.shape
    step = max(triton.cdiv(n, job.options.parts), 256)
    block_d = min(512, triton.next_power_of_2(d))
    for first in range(0, n, step):
        part = min(step, n - first)
        row_gradient_kernel[(part, triton.cdiv(d, block_d))](
            job.logit.c,
            _product(job.mass[:, first : first + part].T, mean),
            lists.found,
            lists.col,
            lists.dz,
            job.rows.index,
            job.rows.count,
            plan.exact,
            job.unit,
            plan.hot.count,
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
