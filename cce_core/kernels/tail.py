"""The mean-field tail: how a block's dropped mass spreads over the block's columns.

A dropped pair's p[i, v] is replaced by mass[i, b] weight[v], with weight[v] the column's share of
its block's dropped mass over a sample of S rows whose p is computed here exactly (softcap's slope
included). Row and block sums stay exact. Beside it, the block's mean row of C under these weights,
    mean[b] = sum_v weight[v] C[v],
so that dE's tail is mass^T mean, a product V / BLOCK wide. B blocks of BLOCK columns, D width.
"""

import triton
import triton.language as tl

from cce_core.kernels.primitives import LOG2E, capped, dot


@triton.jit
def tail_kernel(
    c_desc,  # (V, D), box (BLOCK, BLOCK_D)
    sample_desc,  # (S, D), box (SAMPLE, BLOCK_D)
    sample_row_ptr,  # (S,) int32
    lse_ptr,
    g_ptr,
    tail_ptr,  # (B, N) bf16, the dropped masses
    exact_ptr,
    weight_ptr,  # (B * BLOCK,) fp32, out
    mean_ptr,  # (B, D), out
    N,
    V,
    D,
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
    row = tl.load(sample_row_ptr + tl.arange(0, SAMPLE))
    lse = tl.load(lse_ptr + row)
    g = tl.abs(tl.load(g_ptr + row))
    for tile in range(tl.program_id(0), blocks, PROGRAMS):
        block = tile + tl.zeros((), dtype=tl.int64)
        z = tl.zeros((BLOCK, SAMPLE), dtype=tl.float32)
        for step in range(steps):
            c = c_desc.load([tile * BLOCK, step * BLOCK_D])
            e = sample_desc.load([0, step * BLOCK_D])
            z = dot(c, e.T, z, UPCAST, PRECISION)
        z = z * scale
        if HAS_CAP:
            z = capped(z, cap)
        col = block * BLOCK + tl.arange(0, BLOCK)
        dropped = tl.load(tail_ptr + block * N + row).to(tl.float32) != 0.0
        live = (col < V)[:, None] & dropped[None, :]
        p = tl.where(live, tl.exp2(z * LOG2E - (lse * LOG2E)[None, :]) * g[None, :], 0.0)
        total = tl.sum(tl.sum(p, 1), 0)
        if HAS_CAP:
            ratio = z / cap
            p = p * (1.0 - ratio * ratio)
        even = tl.where(col < V, 1.0 / tl.minimum(BLOCK, V - block * BLOCK), 0.0)
        weight = tl.where(total > 0, tl.sum(p, 1) / tl.where(total > 0, total, 1.0), even) * scale
        tl.store(weight_ptr + col, weight)
        for step in range(steps):
            c = c_desc.load([tile * BLOCK, step * BLOCK_D]).to(tl.float32)
            k = step * BLOCK_D + tl.arange(0, BLOCK_D)
            mean = tl.sum(c * weight[:, None], 0)
            place = mean_ptr + block * D + k
            tl.store(place, mean.to(mean_ptr.dtype.element_ty), mask=k < D)
