"""dE of what was listed, by row.

    dE[i] = sum over i's list of dz C[v] + tail, added once to what the hot blocks gave
without atomics; as the order of a list may vary between runs, so may the last bits. N rows,
D width, lists of K entries, the last BIG of which are large ones.
"""

# ruff: noqa: N803, D103 - Triton's language: constants are upper case,
# pointers come by position. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

from cce_core.kernels.primitives import merged


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
