"""The filter's judgement of itself: its error of dE, estimated on sampled rows, and the verdict.

`tail` leaves each sampled row's error and gradient projected on K random signs; their squares have
the squared norms for their means (Hutchinson). So over the sample, which is evenly spaced,
    error^2 = sum amiss^2 / sum whole^2
estimates |dE - filtered dE|^2 / |dE|^2, bf16's rounding apart. Above the bar, or where it is no
number, the exact backward is asked for, before the filter has begun on the kept pairs.
"""

# ruff: noqa: N803, D103 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl


@triton.jit
def draw_kernel(
    e_ptr,  # (N, D) contiguous
    rows_ptr,
    picked_ptr,  # (SAMPLE,) int32, out: evenly spaced rows
    sampled_ptr,  # (SAMPLE, D), out: their E
    sign_ptr,  # (K, D), out: random signs
    D,
    SAMPLE: tl.constexpr,
    SIZE: tl.constexpr,
):
    """SAMPLE + K programs. Philox's bits: the same on each run, no generator of torch's touched."""
    turn = tl.program_id(0)
    row = (turn * tl.load(rows_ptr).to(tl.int64) // SAMPLE).to(tl.int32)
    for first in range(0, D, SIZE):
        col = first + tl.arange(0, SIZE)
        if turn < SAMPLE:
            e = tl.load(e_ptr + row.to(tl.int64) * D + col, mask=col < D)
            tl.store(sampled_ptr + turn * D + col, e, mask=col < D)
        else:
            i = (turn - SAMPLE) * D + col
            sign = 1.0 - 2.0 * (tl.randint(0, i) & 1).to(tl.float32)
            tl.store(sign_ptr + i, sign.to(sign_ptr.dtype.element_ty), mask=col < D)
    if turn < SAMPLE:
        tl.store(picked_ptr + turn, row)


@triton.jit
def judge_kernel(
    sums_ptr,  # (2, SIZE) fp32: amiss and whole
    error_ptr,  # () fp32, out; NaN where exact was asked for before
    exact_ptr,  # () int32, set to 1 where the error passes the bar
    bar,
    SIZE: tl.constexpr,
):
    place = tl.arange(0, SIZE)
    amiss = tl.load(sums_ptr + place)
    whole = tl.load(sums_ptr + SIZE + place)
    known = tl.load(exact_ptr) == 0
    error = tl.sqrt(tl.sum(amiss * amiss) / tl.maximum(tl.sum(whole * whole), 1e-30))
    tl.store(error_ptr, tl.where(known, error, float("nan")))
    tl.store(exact_ptr, 1, mask=~(known & (error <= bar)))
