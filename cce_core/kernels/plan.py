"""Which (row, block of columns) pairs the filtered backward visits, decided on the device.

A pair is kept when its share of the row's gradient, |g_lse[i]| mass[b, i] exp(ref[i] - lse[i]),
passes a bar in units of the mean |g_lse|, or when it holds the row's label. Where the shares that
this leaves out are too large, by their squares' sum in the mean over the rows, the bar is finer.
Kept pairs are listed by block, each block's list padded to whole chunks. A block that more than HOT
of the rows keep is hot: it is taken whole, by products of its own, and lists nothing; hot blocks
are found in two ranges, each with a room of its own. Dropped pairs leave their mass behind, in
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
def shares(mass_ptr, factor_ptr, g_ptr, label_ptr, block, row, rows, N, BLOCK: tl.constexpr):
    """The chunk's shares of gradient, in units of the mean |g_lse|, and where its labels are."""
    here = row < rows
    mass = tl.load(mass_ptr + block.to(tl.int64) * N + row, mask=here, other=0.0).to(tl.float32)
    factor = tl.load(factor_ptr + row, mask=here, other=0.0)
    g = tl.load(g_ptr + row, mask=here, other=0.0)
    label = tl.load(label_ptr + row, mask=here, other=-1)
    return mass * factor * g, here & (label // BLOCK == block)


@triton.jit
def count_kernel(
    mass_ptr,  # (B, N) bf16
    factor_ptr,  # (N,) fp32, exp(ref - lse)
    g_ptr,  # (N,) fp32, g_lse over the mean |g_lse|
    label_ptr,  # (N,) int64
    rows_ptr,
    count_ptr,  # (2, B) int32, out: pairs over `bar` and over `finer`
    square_ptr,  # (B,) fp32, out: the squares of the shares that `bar` leaves out
    bar,
    finer,
    N,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    block = tl.program_id(0)
    rows = tl.load(rows_ptr)
    count = tl.zeros((CHUNK,), dtype=tl.int32)
    more = tl.zeros((CHUNK,), dtype=tl.int32)
    square = tl.zeros((CHUNK,), dtype=tl.float32)
    for first in range(0, rows, CHUNK):
        row = first + tl.arange(0, CHUNK)
        share, hit = shares(mass_ptr, factor_ptr, g_ptr, label_ptr, block, row, rows, N, BLOCK)
        keep = hit | (tl.abs(share) > bar)
        count += keep.to(tl.int32)
        more += (hit | (tl.abs(share) > finer)).to(tl.int32)
        square += tl.where(keep, 0.0, share * share)
    tl.store(count_ptr + block, tl.sum(count))
    tl.store(count_ptr + tl.num_programs(0) + block, tl.sum(more))
    tl.store(square_ptr + block, tl.sum(square))


@triton.jit
def plan_kernel(
    count_ptr,  # (2, B) int32; the first row out: the chosen ones, negative for the hot blocks
    square_ptr,  # (B,) fp32
    start_ptr,  # (B + 1,) int32, out: first slot of each block's list
    hot_ptr,  # (first_room + second_room,) int32, out: the hot blocks
    heat_ptr,  # (3,) int32, out: 0, hot blocks of the first range, of both
    bar_ptr,  # () fp32, out: the chosen bar
    exact_ptr,  # () int32: negative before the masses' first use; out: 1 where exact has to serve
    rows_ptr,
    blocks,
    slots,  # what the list of pairs has room for
    first_edge,  # blocks before this one can be hot: as many as first_room
    second_edge,  # and from there to this one: as many as second_room
    first_room,
    second_room,
    bar,
    finer,
    left,  # the squares' sum, in the mean over the rows, from which on the bar is `finer`
    HOT: tl.constexpr,  # share of the rows
    PAIRS: tl.constexpr,  # slots a chunk has
    SIZE: tl.constexpr,  # a power of two, at least B + 1
):
    used = tl.load(exact_ptr) >= 0  # before the barriers of the sum, behind which it is overwritten
    rows = tl.load(rows_ptr)
    block = tl.arange(0, SIZE)
    count = tl.load(count_ptr + block, mask=block < blocks, other=0)
    more = tl.load(count_ptr + blocks + block, mask=block < blocks, other=0)
    square = tl.load(square_ptr + block, mask=block < blocks, other=0.0)
    # Of a block that can be hot nothing is left out, unless its range has more of them than room.
    amiss = tl.sum(tl.where((count > rows * HOT) & (block < second_edge), 0.0, square))
    fine = amiss > left * rows
    count = tl.where(fine, more, count)
    tl.store(bar_ptr, tl.where(fine, finer, bar))
    hot = (count > rows * HOT) & (block < second_edge)
    first = hot & (block < first_edge)
    first = first & (tl.cumsum(first.to(tl.int32)) <= first_room)
    second = hot & (block >= first_edge)
    second = second & (tl.cumsum(second.to(tl.int32)) <= second_room)
    hot = first | second
    tl.store(hot_ptr + tl.cumsum(hot.to(tl.int32)) - 1, block, mask=hot)
    tl.store(heat_ptr, 0)
    tl.store(heat_ptr + 1, tl.sum(first.to(tl.int32)))
    tl.store(heat_ptr + 2, tl.sum(hot.to(tl.int32)))
    tl.store(count_ptr + block, tl.where(hot, -1, count), mask=block < blocks)
    count = tl.where(hot, 0, count)
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
    bar_ptr,
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
    bar = tl.load(bar_ptr)
    if tl.load(exact_ptr) == 0:
        slot = start
        for first in range(0, N, CHUNK):
            row = first + tl.arange(0, CHUNK)
            share, hit = shares(mass_ptr, factor_ptr, g_ptr, label_ptr, block, row, rows, N, BLOCK)
            share = tl.where(hot, 0.0, share)
            keep = (hit | (tl.abs(share) > bar)) & ~hot
            rank = tl.cumsum(keep.to(tl.int32))
            tl.store(pair_row_ptr + slot + rank - 1, row, mask=keep)
            slot += tl.sum(keep.to(tl.int32))
            tail = tl.where(keep, 0.0, share).to(tl.bfloat16)
            tl.store(mass_ptr + block.to(tl.int64) * N + row, tail, mask=row < N)
        padding = slot + tl.arange(0, PAIRS)
        tl.store(pair_row_ptr + padding, -1, mask=padding < stop)
        for chunk in range(start // PAIRS, stop // PAIRS):
            tl.store(owner_ptr + chunk, block)
