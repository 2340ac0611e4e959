"""Which (row, block of columns) pairs the filtered backward visits, decided on the device.

A pair is kept when its share of the row's gradient, |g_lse[i]| mass[b, i] exp(ref[i] - lse[i]),
passes eps times the mean |g_lse|, or when it holds the row's label. Kept pairs are listed by block,
each block's list padded to whole chunks. A block that more than HOT of the rows keep is hot: it is
taken whole, by products of its own, and lists nothing. Dropped pairs leave their mass behind, in
place, for the mean-field tail. If the pairs outgrow the list, or the masses were used before, it
stays empty and `exact` is set.
N rows, blocks b of BLOCK columns.
"""

# ruff: noqa: N803, D103 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl


@triton.jit
def kept_rows(
    mass_ptr, factor_ptr, g_ptr, label_ptr, bar, block, row, rows, N, BLOCK: tl.constexpr
):
    """The chunk's share of gradient, in units of the mean |g_lse|, and which rows stay."""
    here = row < rows
    mass = tl.load(mass_ptr + block.to(tl.int64) * N + row, mask=here, other=0.0).to(tl.float32)
    factor = tl.load(factor_ptr + row, mask=here, other=0.0)
    g = tl.load(g_ptr + row, mask=here, other=0.0)
    share = mass * factor * g
    label = tl.load(label_ptr + row, mask=here, other=-1)
    return share, here & ((tl.abs(share) > bar) | (label // BLOCK == block))


@triton.jit
def count_kernel(
    mass_ptr,  # (B, N) bf16
    factor_ptr,  # (N,) fp32, exp(ref - lse)
    g_ptr,  # (N,) fp32, g_lse over the mean |g_lse|
    label_ptr,  # (N,) int64
    rows_ptr,
    count_ptr,  # (B,) int32, out
    bar,
    N,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    block = tl.program_id(0)
    rows = tl.load(rows_ptr)
    count = tl.zeros((CHUNK,), dtype=tl.int32)
    for first in range(0, rows, CHUNK):
        row = first + tl.arange(0, CHUNK)
        _, keep = kept_rows(mass_ptr, factor_ptr, g_ptr, label_ptr, bar, block, row, rows, N, BLOCK)
        count += keep.to(tl.int32)
    tl.store(count_ptr + block, tl.sum(count))


@triton.jit
def plan_kernel(
    count_ptr,  # (B,) int32; out: negative for the hot ones
    start_ptr,  # (B + 1,) int32, out: first slot of each block's list
    hot_ptr,  # (room,) int32, out: the hot blocks
    heat_ptr,  # () int32, out: how many they are
    exact_ptr,  # () int32: negative before the masses' first use; out: 1 where exact has to serve
    rows_ptr,
    blocks,
    slots,  # what the list of pairs has room for
    eligible,  # blocks before this one can be hot
    room,  # how many can be
    HOT: tl.constexpr,  # share of the rows
    PAIRS: tl.constexpr,  # slots a chunk has
    SIZE: tl.constexpr,  # a power of two, at least B + 1
):
    used = tl.load(exact_ptr) >= 0  # before the barriers of the sum, behind which it is overwritten
    block = tl.arange(0, SIZE)
    count = tl.load(count_ptr + block, mask=block < blocks, other=0)
    hot = (count > tl.load(rows_ptr) * HOT) & (block < eligible)
    rank = tl.cumsum(hot.to(tl.int32))
    hot = hot & (rank <= room)
    tl.store(hot_ptr + rank - 1, block, mask=hot)
    tl.store(heat_ptr, tl.sum(hot.to(tl.int32)))
    count = tl.where(hot, -1, count)
    tl.store(count_ptr + block, count, mask=hot)
    count = tl.maximum(count, 0)
    padded = (count + PAIRS - 1) // PAIRS * PAIRS
    end = tl.cumsum(padded)
    exact = (used | (tl.max(end) > slots)).to(tl.int32)
    tl.store(exact_ptr, exact)
    tl.store(start_ptr + block, tl.where(exact > 0, 0, end - padded), mask=block <= blocks)


@triton.jit
def list_kernel(
    mass_ptr,  # (B, N) bf16: the masses in, the tail's share out (zero where kept)
    factor_ptr,
    g_ptr,
    label_ptr,
    rows_ptr,
    count_ptr,
    start_ptr,
    exact_ptr,
    pair_row_ptr,  # (slots,) int32, -1 in the padding
    owner_ptr,  # (slots / PAIRS,) int32: a chunk's block
    bar,
    N,
    BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    block = tl.program_id(0)
    rows = tl.load(rows_ptr)
    start = tl.load(start_ptr + block)
    stop = tl.load(start_ptr + block + 1)
    hot = tl.load(count_ptr + block) < 0
    if tl.load(exact_ptr) == 0:
        slot = start
        for first in range(0, N, CHUNK):
            row = first + tl.arange(0, CHUNK)
            share, keep = kept_rows(
                mass_ptr, factor_ptr, g_ptr, label_ptr, bar, block, row, rows, N, BLOCK
            )
            share = tl.where(hot, 0.0, share)
            keep = keep & ~hot
            rank = tl.cumsum(keep.to(tl.int32))
            tl.store(pair_row_ptr + slot + rank - 1, row, mask=keep)
            slot += tl.sum(keep.to(tl.int32))
            tail = tl.where(keep, 0.0, share).to(tl.bfloat16)
            tl.store(mass_ptr + block.to(tl.int64) * N + row, tail, mask=row < N)
        padding = slot + tl.arange(0, PAIRS)
        tl.store(pair_row_ptr + padding, -1, mask=padding < stop)
        for chunk in range(start // PAIRS, stop // PAIRS):
            tl.store(owner_ptr + chunk, block)
