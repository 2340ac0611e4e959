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
def signs_kernel(
    sign_ptr,  # (count,) bf16, out
    count,
    SIZE: tl.constexpr,
):
    """Philox's bits: the same on each run, and no generator of torch's is touched."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    sign = 1.0 - 2.0 * (tl.randint(0, i) & 1).to(tl.float32)
    tl.store(sign_ptr + i, sign.to(sign_ptr.dtype.element_ty), mask=i < count)


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
