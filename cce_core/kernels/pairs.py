"""The kept pairs' share of the gradients: their logits again, dC by block, dE by row.

    dz[i, v] of a kept pair goes to the round's pool in bf16, for dC
    entries whose share passes a smaller threshold, and labels, go to the row's list, for dE
    what a kept pair leaves unlisted, or finds no slot, joins the row's tail mass of that block

dC[b] = sum over b's kept rows of dz^T E + weight (x) G[b], written once by its owner.
dE[i] = sum over i's list of dz C[v] + tail, added once by its owner to what the hot blocks gave.
Neither uses atomics on gradients. A hot block's dC is written elsewhere. The order of a row's list,
so the last bits of dE, may vary between runs. N rows, V vocabulary, D width, blocks b of BLOCK
columns, chunks of PAIRS rows.
"""

# ruff: noqa: N803, D103, C901, PLR0912, PLR0915, SIM102 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

from cce_core.kernels.primitives import LOG2E, capped, dot, halves, merged, window

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
def pair_logits_kernel(
    e_ptr,  # (N, D) contiguous
    c_desc,  # (V, D)
    pool_desc,  # (slots of a round, BLOCK)
    pair_row_ptr,
    owner_ptr,
    start_ptr,
    label_ptr,
    lse_ptr,
    g_lse_ptr,  # (N,) fp32, in units of the mean |g_lse|
    g_label_ptr,  # (N,) fp32, likewise
    found_ptr,  # (N, 2) int32, zeroed: a row's small and big entries
    entry_col_ptr,  # (N, K) int32
    entry_dz_ptr,  # (N, K) bf16
    tail_ptr,  # (B, N) bf16
    exact_ptr,
    N,
    V,
    D,
    K,
    BIG,
    first_block,
    last_block,
    capacity,  # slots of the pool
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
    PROGRAMS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    base = tl.load(start_ptr + first_block) // PAIRS
    stop = tl.load(start_ptr + last_block) // PAIRS
    if WITH_POOL:
        if (stop - base) * PAIRS > capacity:
            tl.store(exact_ptr, 1)
            stop = base
    if tl.load(exact_ptr) > 0:
        stop = base
    c_desc = window(c_desc, V, D, BLOCK, BLOCK_D)
    if WITH_POOL:
        pool_desc = window(pool_desc, capacity, BLOCK, PAIRS, BLOCK // 4)
    steps = tl.cdiv(D, BLOCK_D)
    for chunk in range(base + tl.program_id(0), stop, PROGRAMS):
        block = tl.load(owner_ptr + chunk)
        row = tl.load(pair_row_ptr + chunk * PAIRS + tl.arange(0, PAIRS))
        here = row >= 0
        row = tl.maximum(row, 0)
        source = row.to(tl.int64) * D
        z = tl.zeros((PAIRS, BLOCK), dtype=tl.float32)
        for step in range(steps):
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
                pool_desc.store(
                    [(chunk - base) * PAIRS, part * (BLOCK // 4)], dz.to(pool_desc.dtype)
                )
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
def block_gradient_kernel(
    pool_desc,  # (slots of a round, BLOCK), box (BLOCK_K, BLOCK)
    e_ptr,  # (N, D) contiguous
    dc_desc,  # (V, D), box (BLOCK, BLOCK_D)
    pair_row_ptr,
    count_ptr,  # (B,) int32, negative for a hot block
    start_ptr,
    weight_ptr,  # (B * BLOCK,) fp32: a column's share of its block's tail
    pull_ptr,  # (B, D): G[b] = sum_i tail[b, i] E[i]
    unit_ptr,  # () fp32, the mean |g_lse|
    exact_ptr,
    V,
    D,
    first_block,
    last_block,
    EVEN_D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROGRAMS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles_d = tl.cdiv(D, BLOCK_D)
    tiles = (last_block - first_block) * tiles_d
    if tl.load(exact_ptr) > 0:
        tiles = 0
    base = tl.load(start_ptr + first_block)
    pool_desc = window(pool_desc, tl.load(start_ptr + last_block) - base, BLOCK, BLOCK_K, BLOCK)
    dc_desc = window(dc_desc, V, D, BLOCK, BLOCK_D)
    unit = tl.load(unit_ptr)
    for tile in range(tl.program_id(0), tiles, PROGRAMS):
        block = first_block + tile // tiles_d
        n = tile % tiles_d
        if tl.load(count_ptr + block) >= 0:
            start = tl.load(start_ptr + block)
            stop = tl.load(start_ptr + block + 1)
            col = n * BLOCK_D + tl.arange(0, BLOCK_D)
            acc = tl.zeros((BLOCK, BLOCK_D), dtype=tl.float32)
            for slot in range(start, stop, BLOCK_K):
                dz = pool_desc.load([slot - base, 0])
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


@triton.jit
def row_gradient_kernel(
    c_ptr,  # (V, D)
    tail_ptr,  # (rows of this part, D): the tail's share
    found_ptr,
    entry_col_ptr,
    entry_dz_ptr,
    index_ptr,
    rows_ptr,
    exact_ptr,
    unit_ptr,
    heat_ptr,  # () int32: how many blocks are hot
    bits_ptr,  # (N, D) int8, the lower bits of the hot blocks' share where SPLIT
    de_ptr,  # (N, D), the hot blocks' share in; its bits where SPLIT
    first,  # the part's first row
    D,
    K,
    BIG,
    c_stride,
    SPLIT: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = first + tl.program_id(0)
    if (row < tl.load(rows_ptr)) & (tl.load(exact_ptr) == 0):
        col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = col < D
        acc = tl.zeros((BATCH, BLOCK_D), dtype=tl.float32)
        for kind in range(2):
            room = BIG if kind == 1 else K - BIG
            count = tl.minimum(tl.load(found_ptr + row * 2 + kind), room)
            begin = row.to(tl.int64) * K + kind * (K - BIG)
            for start in range(0, count, BATCH):
                entry = start + tl.arange(0, BATCH)
                known = entry < count
                v = tl.load(entry_col_ptr + begin + entry, mask=known, other=0).to(tl.int64)
                dz = tl.load(entry_dz_ptr + begin + entry, mask=known, other=0.0).to(tl.float32)
                live = known[:, None] & inside[None, :]
                c = tl.load(c_ptr + (v * c_stride)[:, None] + col[None, :], mask=live, other=0.0)
                acc += dz[:, None] * c.to(tl.float32)
        here = tl.program_id(0).to(tl.int64) * D + col
        tail = tl.load(tail_ptr + here, mask=inside, other=0.0).to(tl.float32)
        total = (tl.sum(acc, 0) + tail) * tl.load(unit_ptr)
        target = tl.load(index_ptr + row).to(tl.int64) * D + col
        given = inside & (tl.load(heat_ptr) > 0)
        held = tl.load(de_ptr + target, mask=given, other=0)
        if SPLIT:
            lower = tl.load(bits_ptr + row.to(tl.int64) * D + col, mask=given, other=0)
            total = (total + merged(held, lower)).to(tl.bfloat16).to(tl.int16, bitcast=True)
        else:
            total = (total + held.to(tl.float32)).to(de_ptr.dtype.element_ty)
        tl.store(de_ptr + target, total, mask=inside)
