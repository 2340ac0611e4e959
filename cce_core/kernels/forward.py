"""The forward: row statistics of z = post(E C^T) in one pass over the tiles, no logit stored.

    z[i, v]  = softcap(scale * (E[i] . C[v] + bias[v]))
    sums[i]  = sum_v exp(z[i, v] - ref[i])         so lse[i] = ref[i] + log(sums[i])
    peak[i]  = max_v z[i, v]
    mass[b, i] = sum over block b of exp(z[i, v] - ref[i])     (bf16, for the filtered backward)

ref[i] is the label's logit. Sums and peaks are combined across tiles by fp32 atomics, without
locks; ORDERED stores each tile's sums instead, which the launcher adds up in a fixed order (a
maximum is the same in any). exp is clamped at exp(CLAMP): a row whose peak is further above ref
than that is wrong in the first pass, is seen by its peak, and the second pass, which returns at
once otherwise, counts it again relative to its peak.
N rows, V vocabulary, D width, T tiles of columns; offsets into (b, i) and (t, i) are 64-bit.
"""

# ruff: noqa: N803, D103, SIM102 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

from cce_core.kernels.primitives import LOG2E, capped, dot, grouped_tile, window

CLAMP = tl.constexpr(80.0)  # exp(80) * 2**12 < the largest fp32; a row with more is counted again


@triton.jit
def add(ptr, tile, row, here, value, N, ORDERED: tl.constexpr):
    """Add a tile's share to its rows' sums (N,), or store it as the tile's own, (T, N)."""
    if ORDERED:
        tl.store(ptr + tile.to(tl.int64) * N + row, value, mask=here)
    else:
        tl.atomic_add(ptr + row, value, mask=here, sem="relaxed")


@triton.jit
def forward_kernel(
    e_desc,  # (N, D)
    c_desc,  # (V, D)
    bias_ptr,  # (V,) fp32, read if HAS_BIAS
    ref_ptr,  # (N,) fp32
    rows_ptr,  # () int32, rows that count
    redo_ptr,  # () int32, read if REDO: zero returns at once
    sum_ptr,  # (N,) fp32, zeroed; (T, N) if ORDERED
    peak_ptr,  # (N,) fp32, -inf
    logit_sum_ptr,  # as sum_ptr; if WITH_MEAN: sum_v z
    product_ptr,  # as sum_ptr; if WITH_ENTROPY: sum_v z exp(z - ref)
    mass_ptr,  # (ceil(V / BLOCK), N) bf16; if WITH_MASS
    N,
    V,
    D,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    WITH_MEAN: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    WITH_MASS: tl.constexpr,
    ORDERED: tl.constexpr,
    REDO: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    FLATTEN: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    e_desc = window(e_desc, N, D, BLOCK_N, BLOCK_D)
    c_desc = window(c_desc, V, D, BLOCK_V, BLOCK_D)
    rows = tl.load(rows_ptr)
    if REDO:
        if tl.load(redo_ptr) == 0:
            rows = 0
    tiles_n = tl.cdiv(rows, BLOCK_N)
    tiles_v = tl.cdiv(V, BLOCK_V)
    steps = tl.cdiv(D, BLOCK_D)
    for tile in tl.range(tl.program_id(0), tiles_n * tiles_v, PROGRAMS, flatten=FLATTEN):
        m, n = grouped_tile(tile, tiles_n, tiles_v, GROUP)
        z = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
        row = m * BLOCK_N + tl.arange(0, BLOCK_N)
        here = row < rows
        for step in range(steps):
            e = e_desc.load([m * BLOCK_N, step * BLOCK_D])
            c = c_desc.load([n * BLOCK_V, step * BLOCK_D])
            z = dot(e, c.T, z, UPCAST, PRECISION)
        col = n * BLOCK_V + tl.arange(0, BLOCK_V)
        inside = (col < V)[None, :]
        if HAS_BIAS:
            z += tl.load(bias_ptr + col, mask=col < V, other=0.0)[None, :]
        z = z * scale
        if HAS_CAP:
            z = capped(z, cap)
        if WITH_MEAN:
            logit_sum = tl.sum(tl.where(inside, z, 0.0), 1)
            add(logit_sum_ptr, n, row, here, logit_sum, N, ORDERED)
        z = tl.where(inside, z, float("-inf"))
        ref = tl.load(ref_ptr + row, mask=here, other=0.0)
        tl.atomic_max(peak_ptr + row, tl.max(z, 1), mask=here, sem="relaxed")
        w = tl.exp2(tl.minimum(z * LOG2E - (ref * LOG2E)[:, None], CLAMP * LOG2E))
        if WITH_ENTROPY:
            product = tl.sum(w * tl.where(w > 0.0, z, 0.0), 1)  # 0 log 0 = 0, masked words' too
            add(product_ptr, n, row, here, product, N, ORDERED)
        if WITH_MASS:
            parts: tl.constexpr = BLOCK_V // BLOCK
            mass = tl.sum(tl.reshape(w, (BLOCK_N, parts, BLOCK)), 2)
            block = n * parts + tl.arange(0, parts)
            offset = block.to(tl.int64)[None, :] * N + row[:, None]
            kept = here[:, None] & (block < tl.cdiv(V, BLOCK))[None, :]
            tl.store(mass_ptr + offset, mass.to(tl.bfloat16), mask=kept)
            total = tl.sum(mass, 1)
        else:
            total = tl.sum(w, 1)
        add(sum_ptr, n, row, here, total, N, ORDERED)
