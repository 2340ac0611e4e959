"""The mean-field tail: how the mass that a block leaves out spreads over the block's columns.

What is left out of p[i, v] is replaced by mass[i, b] weight[v]: weight[v] is the column's share of
the mass that its block leaves out over a sample of S rows, whose p is computed here exactly
(softcap's slope included). Left out are dropped pairs, and of kept ones the entries under the bar,
which are not listed for dE. Row and block sums stay exact. With the block's mean row of C,
    mean[b] = sum_v weight[v] C[v],
dE's tail is mass^T mean, a product V / BLOCK wide. B blocks of BLOCK columns, D width.

What that gets wrong of the sampled rows is seen on the way, through K random signs s[k] in R^D:
    seen[v, k]   = C[v] . s[k]
    amiss[i, k]  = (dE[i] - filtered dE[i]) . s[k] = sum_v residual[v, i] seen[v, k]
    whole[i, k]  = dE[i] . s[k]
whose squares are, in the mean over k, the squared norms of row i's error and gradient (`judge`).
The sample has fitted its own profile, so row i is held against the profile of the others: leaving
it out multiplies its residual in the block by mass / (mass - mass[i]), the residual's linearity.
"""

# ruff: noqa: N803, D103, PLR0915 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

from cce_core.kernels.primitives import LOG2E, capped, dot, halves, window


@triton.jit
def quarters(x):
    """A tile's columns in four; no data moves."""
    left, right = halves(x)
    first, second = halves(left)
    third, fourth = halves(right)
    return first, second, third, fourth


@triton.jit
def tail_kernel(
    c_desc,  # (V, D), box (BLOCK, BLOCK_D)
    sample_desc,  # (S, D), box (SAMPLE, BLOCK_D)
    sign_desc,  # (K, D), box (SIGNS, BLOCK_D)
    sample_row_ptr,  # (S,) int32
    label_ptr,
    lse_ptr,
    g_lse_ptr,
    g_label_ptr,
    tail_ptr,  # (B, N) bf16, the dropped masses
    count_ptr,  # (B,) int32, negative for a block that is taken whole
    exact_ptr,
    weight_ptr,  # (B * BLOCK,) fp32, out
    sums_ptr,  # (2, S, K) fp32, zeroed: amiss and whole, over `scale`
    N,
    V,
    D,
    bar,  # of an entry, in units of the mean |g_lse|
    scale,
    cap,
    HAS_CAP: tl.constexpr,
    SAMPLE: tl.constexpr,
    SIGNS: tl.constexpr,
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
    c_desc = window(c_desc, V, D, BLOCK, BLOCK_D)
    sample_desc = window(sample_desc, SAMPLE, D, SAMPLE, BLOCK_D)
    sign_desc = window(sign_desc, SIGNS, D, SIGNS, BLOCK_D)
    sample = tl.arange(0, SAMPLE)
    amiss = tl.zeros((SAMPLE, SIGNS), dtype=tl.float32)
    whole = tl.zeros((SAMPLE, SIGNS), dtype=tl.float32)
    for tile in range(tl.program_id(0), blocks, PROGRAMS):
        block = tile + tl.zeros((), dtype=tl.int64)
        hot = tl.load(count_ptr + tile) < 0
        z = tl.zeros((SAMPLE, BLOCK), dtype=tl.float32)
        seen = tl.zeros((BLOCK, SIGNS), dtype=tl.float32)
        for step in range(steps):
            c = c_desc.load([tile * BLOCK, step * BLOCK_D])
            e = sample_desc.load([0, step * BLOCK_D])
            sign = sign_desc.load([0, step * BLOCK_D])
            z = dot(e, c.T, z, UPCAST, PRECISION)
            seen = dot(c, sign.T, seen, UPCAST, PRECISION)
        row = tl.load(sample_row_ptr + sample)
        lse = tl.load(lse_ptr + row)
        g_lse = tl.load(g_lse_ptr + row)
        g_label = tl.load(g_label_ptr + row)
        label = (tl.load(label_ptr + row) - block * BLOCK).to(tl.int32)
        dropped = tl.load(tail_ptr + block * N + row).to(tl.float32) != 0.0
        width = V - tile * BLOCK  # the last block may have fewer columns
        missing = tl.zeros((SAMPLE,), dtype=tl.float32)
        found = tl.zeros((SAMPLE, SIGNS), dtype=tl.float32)
        if not UPCAST:
            seen = seen.to(tl.bfloat16)
        z0, z1, z2, z3 = quarters(z)
        seen0, seen1, seen2, seen3 = quarters(seen.T)
        for turn in tl.static_range(4):
            z = (z0 if turn == 0 else z1 if turn == 1 else z2 if turn == 2 else z3) * scale
            view = seen0 if turn == 0 else seen1 if turn == 1 else seen2 if turn == 2 else seen3
            inner = turn * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
            if HAS_CAP:
                z = capped(z, cap)
            share = tl.exp2(z * LOG2E - (lse * LOG2E)[:, None]) * g_lse[:, None]
            share = tl.where((inner < width)[None, :], share, 0.0)
            hit = label[:, None] == inner[None, :]
            slope = 1.0
            if HAS_CAP:
                ratio = z * (1.0 / cap)
                slope = 1.0 - ratio * ratio
            dz = (share + tl.where(hit, g_label[:, None], 0.0)) * slope
            if not UPCAST:
                dz = dz.to(tl.bfloat16)
            whole = dot(dz, view.T, whole, UPCAST, PRECISION)
            size = tl.abs(share)
            left_out = (dropped[:, None] | (size <= bar)) & ~(hit | hot)
            left = tl.where(left_out, size, 0.0)
            missing += tl.sum(left, 1)
            left = left * slope
            tl.store(weight_ptr + block * BLOCK + inner, tl.sum(left, 0))
            if not UPCAST:
                left = left.to(tl.bfloat16)
            found = dot(left, view.T, found, UPCAST, PRECISION)
        mass = tl.sum(missing)
        part = 1.0 / tl.where(mass > 0, mass, 1.0)
        here = weight_ptr + block * BLOCK + tl.arange(0, BLOCK)
        even = tl.where(tl.arange(0, BLOCK) < width, 1.0 / tl.minimum(BLOCK, width), 0.0)
        tl.debug_barrier()  # all parts' sums are there for other threads
        pulled = tl.load(here)
        tl.debug_barrier()  # and read by all that hold a copy
        tl.store(here, tl.where(mass > 0, pulled * part, even) * scale)
        own = missing * part
        rest = tl.maximum(1.0 - own, 1.0 / SAMPLE)
        amiss += (found - own[:, None] * tl.sum(found, 0)[None, :]) / rest[:, None]
    place = sample[:, None] * SIGNS + tl.arange(0, SIGNS)[None, :]
    tl.atomic_add(sums_ptr + place, amiss, sem="relaxed")
    tl.atomic_add(sums_ptr + SAMPLE * SIGNS + place, whole, sem="relaxed")
