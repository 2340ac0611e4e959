"""The kept pairs' logits again, and from them dC by block and the lists of entries for dE.

In one cooperative launch, round by round, with a barrier of the whole grid after each step,
    dz[i, v] of a kept pair goes to the round's pool in bf16, for dC
    entries whose share passes a smaller threshold, and labels, go to the row's list, for dE
    what a kept pair leaves unlisted, or finds no slot, joins the row's tail mass of that block
and then
    dC[b] = sum over b's kept rows of dz^T E + weight (x) G[b], written once, without atomics.
A hot block's dC is written elsewhere. The order of a row's list may vary between runs. N rows,
V vocabulary, D width, blocks b of BLOCK columns, chunks of PAIRS rows.
"""

# ruff: noqa: N803, D103, SIM102 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

from cce_core.kernels.primitives import (
    LOG2E,
    capped,
    dot,
    grid_barrier,
    halves,
    window,
)

BIG_ENTRY = tl.constexpr(16.0)  # in units of the entry threshold


@triton.jit
def put(listed, big, dz, row, first, found_ptr, entry_col_ptr, entry_dz_ptr, exact_ptr, K, BIG):
    """Append a tile's listed entries to their rows' lists; return which ones found a slot.

    Big entries have the last BIG slots for themselves: a full list never costs a large gradient.
    Should even these run out, the exact backward is asked for.
    """
    col = first + tl.arange(0, dz.shape[1])
    kind = (listed & big).to(tl.int32)
    slot = tl.atomic_add(
        found_ptr + row[:, None] * 2 + kind, listed.to(tl.int32), mask=listed, sem="relaxed"
    )
    fits = listed & (slot < tl.where(kind > 0, BIG, K - BIG))
    tl.store(exact_ptr + 0 * kind, kind, mask=(kind > 0) & (slot >= BIG))
    offset = row[:, None] * K + kind * (K - BIG) + slot
    tl.store(entry_col_ptr + offset, tl.broadcast_to(col[None, :], dz.shape), mask=fits)
    tl.store(entry_dz_ptr + offset, dz, mask=fits)
    return fits


@triton.jit
def round_end(first, blocks, D, span):
    """Where a round ends that begins at block `first`; its pool is dC from that end on.

    Half of the `blocks` that are left, or less where the room is short: a block of dC holds D
    slots, and one of the round lists up to `span` - D. The host walks the rounds by the same rule.
    """
    left = blocks - first
    return first + max(min(left // 2, left * D // span), 1)


@triton.jit
def pair_logits(
    e_ptr,
    c_desc,
    pool_desc,
    pair_row_ptr,
    owner_ptr,
    label_ptr,
    lse_ptr,
    g_lse_ptr,
    g_label_ptr,
    found_ptr,
    entry_col_ptr,
    entry_dz_ptr,
    tail_ptr,
    exact_ptr,
    base,
    stop,
    origin,
    N,
    V,
    D,
    K,
    BIG,
    bar,
    scale,
    cap,
    HAS_CAP: tl.constexpr,
    WITH_POOL: tl.constexpr,
    WITH_LIST: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take chunks `base` to `stop` to the pool, from its slot `origin` on, and to the lists."""
    steps = tl.cdiv(D, BLOCK_D)
    for chunk in range(base + tl.program_id(0), stop, PROGRAMS):
        block = tl.load(owner_ptr + chunk)
        row = tl.load(pair_row_ptr + chunk * PAIRS + tl.arange(0, PAIRS))
        here = row >= 0
        row = tl.maximum(row, 0)
        source = row.to(tl.int64) * D
        z = tl.zeros((PAIRS, BLOCK), dtype=tl.float32)
        for step in tl.range(steps, num_stages=STAGES):
            k = step * BLOCK_D + tl.arange(0, BLOCK_D)
            if EVEN_D:
                e = tl.load(e_ptr + source[:, None] + k[None, :])
            else:
                e = tl.load(e_ptr + source[:, None] + k[None, :], mask=(k < D)[None, :], other=0.0)
            c = c_desc.load([block * BLOCK, step * BLOCK_D])
            z = dot(e, c.T, z, UPCAST, PRECISION)
        lse = tl.load(lse_ptr + row)
        g_lse = tl.load(g_lse_ptr + row)
        g_label = tl.load(g_label_ptr + row)
        label = tl.where(here, tl.load(label_ptr + row) - block * BLOCK, -1).to(tl.int32)
        rest = tl.zeros((PAIRS,), dtype=tl.float32)
        left, right = halves(z)
        z0, z1 = halves(left)
        z2, z3 = halves(right)
        for part in tl.static_range(4):
            z = (z0 if part == 0 else z1 if part == 1 else z2 if part == 2 else z3) * scale
            if HAS_CAP:
                z = capped(z, cap)
            inner = part * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
            valid = here[:, None] & (block * BLOCK + inner < V)[None, :]
            hit = label[:, None] == inner[None, :]
            share = tl.exp2(z * LOG2E - (lse * LOG2E)[:, None]) * g_lse[:, None]
            share = tl.where(valid, share, 0.0)
            dz = share + tl.where(hit, g_label[:, None], 0.0)
            if HAS_CAP:
                ratio = z * (1.0 / cap)
                dz = dz * (1.0 - ratio * ratio)
            dz = (dz * scale).to(tl.bfloat16)
            if WITH_POOL:
                slot = origin + (chunk - base) * PAIRS
                pool_desc.store([slot, part * (BLOCK // 4)], dz.to(pool_desc.dtype))
            if WITH_LIST:
                size = tl.abs(share)
                fits = put(
                    (size > bar) | hit,
                    hit | (size > BIG_ENTRY * bar),
                    dz,
                    row,
                    block * BLOCK + part * (BLOCK // 4),
                    found_ptr,
                    entry_col_ptr,
                    entry_dz_ptr,
                    exact_ptr,
                    K,
                    BIG,
                )
                rest += tl.sum(tl.where(fits, 0.0, share), 1)
        if WITH_LIST:
            tl.store(tail_ptr + block.to(tl.int64) * N + row, rest.to(tl.bfloat16), mask=here)


@triton.jit
def block_gradient(
    pool_desc,
    e_ptr,
    dc_desc,
    pair_row_ptr,
    count_ptr,
    start_ptr,
    weight_ptr,
    pull_ptr,
    unit,
    first,
    last,
    origin,
    D,
    EVEN_D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write dC of blocks `first` to `last`, but for the hot ones, from the pool and the tail."""
    tiles_d = tl.cdiv(D, BLOCK_D)
    shift = origin - tl.load(start_ptr + first)
    for tile in range(tl.program_id(0), (last - first) * tiles_d, PROGRAMS):
        block = first + tile // tiles_d
        n = tile % tiles_d
        if tl.load(count_ptr + block) >= 0:
            start = tl.load(start_ptr + block)
            stop = tl.load(start_ptr + block + 1)
            col = n * BLOCK_D + tl.arange(0, BLOCK_D)
            acc = tl.zeros((BLOCK, BLOCK_D), dtype=tl.float32)
            for slot in tl.range(start, stop, BLOCK_K, num_stages=STAGES):
                dz = pool_desc.load([shift + slot, 0])
                row = tl.maximum(tl.load(pair_row_ptr + slot + tl.arange(0, BLOCK_K)), 0)
                source = row.to(tl.int64) * D
                if EVEN_D:
                    e = tl.load(e_ptr + source[:, None] + col[None, :])
                else:
                    e = tl.load(
                        e_ptr + source[:, None] + col[None, :], mask=(col < D)[None, :], other=0.0
                    )
                acc = dot(dz.T, e, acc, UPCAST, PRECISION)
            weight = tl.load(weight_ptr + block * BLOCK + tl.arange(0, BLOCK))
            pull = tl.load(pull_ptr + block.to(tl.int64) * D + col, mask=col < D, other=0.0)
            acc += weight[:, None] * pull.to(tl.float32)[None, :]
            dc_desc.store([block * BLOCK, n * BLOCK_D], (acc * unit).to(dc_desc.dtype))


@triton.jit(do_not_specialize=["first_block", "last_block", "slots", "step", "span"])
def pairs_kernel(
    e_ptr,  # (N, D) contiguous
    c_desc,  # (V, D), box (BLOCK, BLOCK_L)
    out_desc,  # the pool, (slots, BLOCK), box (PAIRS, BLOCK / 4)
    pool_desc,  # the pool, box (BLOCK_K, BLOCK)
    dc_desc,  # (V, D), box (BLOCK, BLOCK_D)
    pair_row_ptr,
    owner_ptr,
    count_ptr,  # (B,) int32, negative for a hot block
    start_ptr,
    label_ptr,
    lse_ptr,
    g_lse_ptr,  # (N,) fp32, in units of the mean |g_lse|
    g_label_ptr,  # (N,) fp32, likewise
    unit_ptr,  # () fp32, the mean |g_lse|
    found_ptr,  # (N, 2) int32, zeroed: a row's small and big entries
    entry_col_ptr,  # (N, K) int32
    entry_dz_ptr,  # (N, K) bf16
    tail_ptr,  # (B, N) bf16
    weight_ptr,  # (B * BLOCK,) fp32: a column's share of its block's tail
    pull_ptr,  # (B, D): G[b] = sum_i tail[b, i] E[i]
    exact_ptr,
    arrived_ptr,  # () int32, zeroed: arrivals at the barrier
    N,
    V,
    D,
    K,
    BIG,
    first_block,
    last_block,
    slots,  # of the pool
    step,  # blocks of a round, whose pool begins at slot 0; 0: the pool is dC, by `round_end`
    span,
    bar,
    scale,
    cap,
    HAS_CAP: tl.constexpr,
    WITH_POOL: tl.constexpr,  # whether dC is wanted
    WITH_LIST: tl.constexpr,  # whether dE is
    EVEN_L: tl.constexpr,
    EVEN_D: tl.constexpr,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    LOGITS_STAGES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    ASYNC: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    c_desc = window(c_desc, V, D, BLOCK, BLOCK_L)
    if WITH_POOL:
        out_desc = window(out_desc, slots, BLOCK, PAIRS, BLOCK // 4)
        pool_desc = window(pool_desc, slots, BLOCK, BLOCK_K, BLOCK)
        dc_desc = window(dc_desc, V, D, BLOCK, BLOCK_D)
    blocks = tl.cdiv(V, BLOCK)
    unit = tl.load(unit_ptr)
    arrivals = 0
    first = first_block
    while first < last_block:
        last = min(first + step, last_block)
        origin = 0
        if step == 0:
            last = round_end(first, blocks, D, span)
            origin = last * D
        base = tl.load(start_ptr + first) // PAIRS
        stop = tl.load(start_ptr + last) // PAIRS
        if WITH_POOL:
            if origin + (stop - base) * PAIRS > slots:
                tl.store(exact_ptr, 1)
                stop = base
        if tl.load(exact_ptr) > 0:
            stop = base
        pair_logits(
            e_ptr,
            c_desc,
            out_desc,
            pair_row_ptr,
            owner_ptr,
            label_ptr,
            lse_ptr,
            g_lse_ptr,
            g_label_ptr,
            found_ptr,
            entry_col_ptr,
            entry_dz_ptr,
            tail_ptr,
            exact_ptr,
            base,
            stop,
            origin,
            N,
            V,
            D,
            K,
            BIG,
            bar,
            scale,
            cap,
            HAS_CAP,
            WITH_POOL,
            WITH_LIST,
            EVEN_L,
            BLOCK,
            PAIRS,
            BLOCK_L,
            LOGITS_STAGES,
            PROGRAMS,
            UPCAST,
            PRECISION,
        )
        if WITH_POOL:
            arrivals += PROGRAMS
            grid_barrier(arrived_ptr, arrivals, ASYNC)
            if tl.load(exact_ptr) == 0:
                block_gradient(
                    pool_desc,
                    e_ptr,
                    dc_desc,
                    pair_row_ptr,
                    count_ptr,
                    start_ptr,
                    weight_ptr,
                    pull_ptr,
                    unit,
                    first,
                    last,
                    origin,
                    D,
                    EVEN_D,
                    BLOCK,
                    BLOCK_D,
                    BLOCK_K,
                    STAGES,
                    PROGRAMS,
                    UPCAST,
                    PRECISION,
                )
            arrivals += PROGRAMS
            grid_barrier(arrived_ptr, arrivals, ASYNC)
        first = last
