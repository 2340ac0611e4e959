"""The exact backward: slices of the vocabulary through a bounded scratch of dz, in one launch.

A slice is W columns in a row, or where LISTED the blocks that a list on the device names.
For each slice, in turn,
    dz[i, v] = (g_lse[i] p[i, v] + g_label[i] [v = y_i] + g_mean[i] / V) * cap' * scale
    dC[v]    = sum_i dz[i, v] E[i]      written once
    dE[i]   += sum_v dz[i, v] C[v]      kept in fp32 across the slices
with a barrier of the whole grid after each of the two steps, so that the host queues one launch,
which returns at once where the device finds that it is not wanted. The launch is cooperative: all
programs run at once, or none.
The accumulator of a bf16 dE has 24 bits: the upper 16 live in the gradient itself, the lower 8 in
scratch, so that it costs N D bytes instead of 4 N D. Each slice but the last rounds it to 2**-16 of
its size, the last one to bf16's 2**-9.
N rows, V vocabulary, D width. Offsets are 64-bit where they can pass 2**31.
"""

# ruff: noqa: N803, D103, SIM102, PLR5501 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

from cce_core.kernels.primitives import (
    LOG2E,
    capped,
    dot,
    grid_barrier,
    grouped_tile,
    halves,
    merged,
    window,
)


@triton.jit
def place(column, start, blocks_ptr, LISTED: tl.constexpr, BLOCK: tl.constexpr):
    """Where a column of the slice stands in the vocabulary."""
    if LISTED:
        return tl.load(blocks_ptr + column // BLOCK) * BLOCK + column % BLOCK
    else:
        return start + column


@triton.jit
def dlogits(
    e_desc,
    c_desc,
    out_desc,
    bias_ptr,
    label_ptr,
    lse_ptr,
    g_lse_ptr,
    g_label_ptr,
    g_mean_ptr,
    blocks_ptr,
    rows,
    start,
    width,
    V,
    D,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    LISTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write dz of the slice's `width` columns from `start` on."""
    tiles_n = tl.cdiv(rows, BLOCK_N)
    tiles_v = tl.cdiv(width, BLOCK_V)
    steps = tl.cdiv(D, BLOCK_D)
    for tile in tl.range(tl.program_id(0), tiles_n * tiles_v, PROGRAMS):
        m, n = grouped_tile(tile, tiles_n, tiles_v, GROUP)
        z = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
        row = m * BLOCK_N + tl.arange(0, BLOCK_N)
        here = row < rows
        shift = start  # from the slice's columns to the vocabulary's
        if LISTED:
            shift = tl.load(blocks_ptr + n * BLOCK_V // BLOCK) * BLOCK - n * BLOCK_V
        for step in tl.range(steps, num_stages=STAGES):
            e = e_desc.load([m * BLOCK_N, step * BLOCK_D])
            c = c_desc.load([shift + n * BLOCK_V, step * BLOCK_D])
            z = dot(e, c.T, z, UPCAST, PRECISION)
        lse = tl.load(lse_ptr + row, mask=here, other=0.0)
        g_lse = tl.load(g_lse_ptr + row, mask=here, other=0.0) * scale
        g_label = tl.load(g_label_ptr + row, mask=here, other=0.0) * scale
        g_mean = g_lse
        if HAS_MEAN:
            g_mean = tl.load(g_mean_ptr + row, mask=here, other=0.0) * scale / V
        label = (tl.load(label_ptr + row, mask=here, other=-1) - shift).to(tl.int32)
        left, right = halves(z)
        for half in tl.static_range(2):
            z = left if half == 0 else right
            inner = n * BLOCK_V + half * (BLOCK_V // 2) + tl.arange(0, BLOCK_V // 2)
            inside = inner < width
            if HAS_BIAS:
                z += tl.load(bias_ptr + shift + inner, mask=inside, other=0.0)[None, :]
            z = z * scale
            if HAS_CAP:
                z = capped(z, cap)
            g = g_lse[:, None] * tl.exp2(z * LOG2E - (lse * LOG2E)[:, None])
            g += tl.where(label[:, None] == inner[None, :], g_label[:, None], 0.0)
            if HAS_MEAN:
                g += g_mean[:, None]
            if HAS_CAP:
                ratio = z * (1.0 / cap)
                g = g * (1.0 - ratio * ratio)
            g = tl.where(here[:, None] & inside[None, :], g, 0.0).to(out_desc.dtype)
            out_desc.store([m * BLOCK_N, n * BLOCK_V + half * (BLOCK_V // 2)], g)


@triton.jit
def fold(
    acc, upper, lower, here, first_col, de_ptr, aux_ptr, D, is_first, is_last, SPLIT: tl.constexpr
):
    """Add a part of a tile to the accumulator of dE, in registers a quarter of the tile needs."""
    col = first_col + tl.arange(0, acc.shape[1])
    mask = here[:, None] & (col < D)[None, :]
    upper = upper[:, None] + col[None, :]
    lower = lower[:, None] + col[None, :]
    if not is_first:
        held = tl.load(aux_ptr + lower, mask=mask, other=0)
        if SPLIT:
            acc += merged(tl.load(de_ptr + upper, mask=mask, other=0), held)
        else:
            acc += held.to(tl.float32)
    if is_last:
        if SPLIT:
            tl.store(de_ptr + upper, acc.to(tl.bfloat16).to(tl.int16, bitcast=True), mask=mask)
        else:
            tl.store(de_ptr + upper, acc.to(de_ptr.dtype.element_ty), mask=mask)
    else:
        if SPLIT:
            bits = acc.to(tl.int32, bitcast=True)
            number = (bits & 0x7FFFFFFF) <= 0x7F800000
            bits = tl.where(number, bits + 0x80, bits)  # to the nearest; a NaN would wrap around
            tl.store(de_ptr + upper, (bits >> 16).to(tl.int16), mask=mask)
            tl.store(aux_ptr + lower, (bits >> 8).to(tl.int8), mask=mask)
        else:
            tl.store(aux_ptr + lower, acc, mask=mask)


@triton.jit
def gradients(
    dz_rows_desc,
    dz_cols_desc,
    e_desc,
    c_desc,
    dc_desc,
    de_ptr,
    aux_ptr,
    index_ptr,
    blocks_ptr,
    ticket_ptr,
    rows,
    start,
    width,
    D,
    is_first,
    is_last,
    SPLIT: tl.constexpr,
    WITH_DE: tl.constexpr,
    WITH_DC: tl.constexpr,
    LISTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take the slice's dz to its rows of dC, and add its share to dE."""
    tiles_d = tl.cdiv(D, BLOCK_D)
    tiles_m = tl.cdiv(width, BLOCK_M)
    tiles_n = tl.cdiv(rows, BLOCK_M)
    tiles_c = tiles_m * tiles_d if WITH_DC else 0
    tiles_e = tiles_n * tiles_d if WITH_DE else 0
    # A tile of dE sums over the slice, one of dC over the rows. They are handed out as programs
    # become free, the longer ones first, so that no program ends long after the others.
    long_e = width > rows
    tile = tl.atomic_add(ticket_ptr, 1)
    while tile < tiles_c + tiles_e:
        acc = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
        turn = tile - tiles_e if long_e else tile - tiles_c
        is_c = (turn >= 0) == long_e
        inside = turn if turn >= 0 else tile
        if is_c:
            if WITH_DC:
                m, n = grouped_tile(inside, tiles_m, tiles_d, GROUP)
                for k in tl.range(0, rows, BLOCK_K, num_stages=STAGES):
                    a = dz_cols_desc.load([k, m * BLOCK_M])
                    b = e_desc.load([k, n * BLOCK_D])
                    acc = dot(a.T, b, acc, UPCAST, PRECISION)
                column = place(m * BLOCK_M, start, blocks_ptr, LISTED, BLOCK)
                left, right = halves(acc)
                a0, a1 = halves(left)
                a2, a3 = halves(right)
                for part in tl.static_range(4):
                    a = a0 if part == 0 else a1 if part == 1 else a2 if part == 2 else a3
                    dc_desc.store(
                        [column, n * BLOCK_D + part * (BLOCK_D // 4)], a.to(dc_desc.dtype)
                    )
        else:
            if WITH_DE:
                m, n = grouped_tile(inside, tiles_n, tiles_d, GROUP)
                for k in tl.range(0, width, BLOCK_K, num_stages=STAGES):
                    a = dz_rows_desc.load([m * BLOCK_M, k])
                    column = place(k, start, blocks_ptr, LISTED, BLOCK)
                    b = c_desc.load([column, n * BLOCK_D])
                    acc = dot(a, b, acc, UPCAST, PRECISION)
                row = m * BLOCK_M + tl.arange(0, BLOCK_M)
                here = row < rows
                lower = row.to(tl.int64) * D
                upper = tl.load(index_ptr + row, mask=here, other=0).to(tl.int64) * D
                if LISTED and not SPLIT:
                    lower = upper  # dE itself is the accumulator
                left, right = halves(acc)
                a0, a1 = halves(left)
                a2, a3 = halves(right)
                for part in tl.static_range(4):
                    fold(
                        a0 if part == 0 else a1 if part == 1 else a2 if part == 2 else a3,
                        upper,
                        lower,
                        here,
                        n * BLOCK_D + part * (BLOCK_D // 4),
                        de_ptr,
                        aux_ptr,
                        D,
                        is_first,
                        is_last,
                        SPLIT,
                    )
        tile = tl.atomic_add(ticket_ptr, 1)


@triton.jit
def exact_kernel(
    e_desc,  # (N, D), compact rows, box (BLOCK_N, BLOCK_L)
    c_desc,  # (V, D), box (BLOCK_V, BLOCK_L)
    out_desc,  # dz, (N, W), box (BLOCK_N, BLOCK_V / 2)
    dz_rows_desc,  # dz, box (BLOCK_M, BLOCK_K): dE's left operand; None without WITH_DE
    dz_cols_desc,  # dz, box (BLOCK_K, BLOCK_M): dC's, transposed; None without WITH_DC
    ek_desc,  # (N, D), box (BLOCK_K, BLOCK_D); None without WITH_DC
    ck_desc,  # (V, D), box (BLOCK_K, BLOCK_D); None without WITH_DE
    dc_desc,  # (V, D), box (BLOCK_M, BLOCK_D / 4); None without WITH_DC
    de_ptr,  # (N, D), the gradient; its bits where SPLIT
    aux_ptr,  # (N, D), the lower bits where SPLIT, else the accumulator
    bias_ptr,
    label_ptr,  # (N,) int64
    lse_ptr,
    g_lse_ptr,
    g_label_ptr,
    g_mean_ptr,
    index_ptr,  # (N,) int32, the compact row's place in dE
    rows_ptr,
    exact_ptr,  # () int32, read if ASK: one is for the slices, zero for the listed blocks
    blocks_ptr,  # (H,) int32: the listed blocks
    listed_ptr,  # (2,) int32: where this launch's begin and end among them
    turn_ptr,  # (1 + slices,) int32, zeroed: arrivals at the barrier, then each slice's next tile
    first,  # the launch's columns: from `first`
    last,  # up to `last`, where not LISTED
    width,  # of a slice
    V,
    D,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    SPLIT: tl.constexpr,
    WITH_DE: tl.constexpr,
    WITH_DC: tl.constexpr,
    ASK: tl.constexpr,
    LISTED: tl.constexpr,
    BLOCK: tl.constexpr,  # columns of a listed block
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_L: tl.constexpr,
    LOGITS_STAGES: tl.constexpr,
    LOGITS_GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    ASYNC: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    rows = tl.load(rows_ptr)
    stop = last
    begun = 0
    if LISTED:
        begun = tl.load(listed_ptr)
        stop = (tl.load(listed_ptr + 1) - begun) * BLOCK
        blocks_ptr += begun
    if ASK:
        if (tl.load(exact_ptr) == 0) != LISTED:
            stop = first
    e_desc = window(e_desc, rows, D, BLOCK_N, BLOCK_L)
    c_desc = window(c_desc, V, D, BLOCK_V, BLOCK_L)
    out_desc = window(out_desc, rows, width, BLOCK_N, BLOCK_V // 2)
    if WITH_DE:
        dz_rows_desc = window(dz_rows_desc, rows, width, BLOCK_M, BLOCK_K)
        ck_desc = window(ck_desc, V, D, BLOCK_K, BLOCK_D)
    if WITH_DC:
        dz_cols_desc = window(dz_cols_desc, rows, width, BLOCK_K, BLOCK_M)
        ek_desc = window(ek_desc, rows, D, BLOCK_K, BLOCK_D)
        dc_desc = window(dc_desc, V, D, BLOCK_M, BLOCK_D // 4)
    arrivals = 0
    ticket_ptr = turn_ptr + 1
    for start in range(first, stop, width):
        columns = min(width, stop - start)
        dlogits(
            e_desc,
            c_desc,
            out_desc,
            bias_ptr,
            label_ptr,
            lse_ptr,
            g_lse_ptr,
            g_label_ptr,
            g_mean_ptr,
            blocks_ptr,
            rows,
            start,
            columns,
            V,
            D,
            scale,
            cap,
            HAS_BIAS,
            HAS_CAP,
            HAS_MEAN,
            LISTED,
            BLOCK,
            BLOCK_N,
            BLOCK_V,
            BLOCK_L,
            LOGITS_STAGES,
            LOGITS_GROUP,
            PROGRAMS,
            UPCAST,
            PRECISION,
        )
        arrivals += PROGRAMS
        grid_barrier(turn_ptr, arrivals, ASYNC)
        gradients(
            dz_rows_desc,
            dz_cols_desc,
            ek_desc,
            ck_desc,
            dc_desc,
            de_ptr,
            aux_ptr,
            index_ptr,
            blocks_ptr,
            ticket_ptr,
            rows,
            start,
            columns,
            D,
            (begun == 0) & (start == 0),
            not SPLIT if LISTED else (start + columns == V),
            SPLIT,
            WITH_DE,
            WITH_DC,
            LISTED,
            BLOCK,
            BLOCK_M,
            BLOCK_D,
            BLOCK_K,
            STAGES,
            GROUP,
            UPCAST,
            PRECISION,
        )
        arrivals += PROGRAMS
        grid_barrier(turn_ptr, arrivals, ASYNC)
        ticket_ptr += 1
