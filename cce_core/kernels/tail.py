"""The mean-field tail: how the mass that a block leaves out spreads over the block's columns.

What is left out of p[i, v] is replaced by mass[i, b] weight[v]: weight[v] is the column's share of
the mass that its block leaves out over a sample of S rows, whose p is computed here exactly
(softcap's slope included). Left out are dropped pairs, and of kept ones the entries under the bar,
which are not listed for dE. Row and block sums stay exact. With the block's mean row of C,
    mean[b] = sum_v weight[v] C[v],
dE's tail is mass^T mean, a product V / BLOCK wide. B blocks of BLOCK columns, D width.
"""

# ruff: noqa: N803, D103 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

from cce_core.kernels.primitives import LOG2E, capped, dot, halves


@triton.jit
def tail_kernel(
    c_desc,  # (V, D), box (BLOCK, BLOCK_D)
    sample_desc,  # (S, D), box (SAMPLE, BLOCK_D)
    sample_row_ptr,  # (S,) int32
    lse_ptr,
    g_ptr,
    tail_ptr,  # (B, N) bf16, the dropped masses
    count_ptr,  # (B,) int32, negative for a block that is taken whole
    exact_ptr,
    weight_ptr,  # (B * BLOCK,) fp32, out
    N,
    V,
    D,
    bar,  # of an entry, in units of the mean |g_lse|
    scale,
    cap,
    HAS_CAP: tl.constexpr,
    SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PROGRAMS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    blocks = tl.cdiv(V, BLOCK)
    steps = tl.cdiv(D, BLOCK_D)
    if tl.load(exact_ptr) > 0:
        blocks = 0
    for tile in range(tl.program_id(0), blocks, PROGRAMS):
        block = tile + tl.zeros((), dtype=tl.int64)
        whole = tl.load(count_ptr + tile) < 0
        z = tl.zeros((BLOCK, SAMPLE), dtype=tl.float32)
        for step in range(steps):
            c = c_desc.load([tile * BLOCK, step * BLOCK_D])
            e = sample_desc.load([0, step * BLOCK_D])
            z = dot(c, e.T, z, UPCAST, PRECISION)
        col = block * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        pulled = tl.zeros((BLOCK,), dtype=tl.float32)
        left, right = halves(z)
        for half in tl.static_range(2):
            z = (left if half == 0 else right) * scale
            row = tl.load(sample_row_ptr + half * (SAMPLE // 2) + tl.arange(0, SAMPLE // 2))
            lse = tl.load(lse_ptr + row)
            g = tl.abs(tl.load(g_ptr + row))
            if HAS_CAP:
                z = capped(z, cap)
            dropped = tl.load(tail_ptr + block * N + row).to(tl.float32) != 0.0
            p = tl.exp2(z * LOG2E - (lse * LOG2E)[None, :]) * g[None, :]
            left_out = (dropped[None, :] | (p <= bar)) & ~whole
            p = tl.where((col < V)[:, None] & left_out, p, 0.0)
            total += tl.sum(p, 1)
            if HAS_CAP:
                ratio = z * (1.0 / cap)
                p = p * (1.0 - ratio * ratio)
            pulled += tl.sum(p, 1)
        mass = tl.sum(total)
        even = tl.where(col < V, 1.0 / tl.minimum(BLOCK, V - block * BLOCK), 0.0)
        weight = tl.where(mass > 0, pulled / tl.where(mass > 0, mass, 1.0), even) * scale
        tl.store(weight_ptr + col, weight)
