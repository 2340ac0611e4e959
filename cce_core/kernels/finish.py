"""What the forward's sums say of each row: which are counted again, and the statistics of all.

The sums are those of `forward`, relative to ref; statistics go back to the order of E, and are zero
where a row does not count:
    lse = ref + log sum         mean = (sum_v z) / V         entropy = lse - (sum_v z exp) / sum
N rows, V vocabulary.
"""

# ruff: noqa: N803, D103 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl

from cce_core.kernels.forward import CLAMP

TIE = tl.constexpr(2.0**-16)
"""Relative distance under which the label's logit counts as the row's maximum: the two are summed
in different orders, and must come out equal where the label is the argmax."""


@triton.jit
def recount_kernel(
    peak_ptr,  # (N,) fp32
    label_logit_ptr,  # (N,) fp32
    rows_ptr,
    ref_ptr,  # (N,) fp32, out: the peak where the label's logit is out of its reach
    again_ptr,  # () int32, zeroed; out: 1 if there is such a row
    N,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    here = row < tl.load(rows_ptr)
    peak = tl.load(peak_ptr + row, mask=here, other=0.0)
    ref = tl.load(label_logit_ptr + row, mask=here, other=0.0)
    far = here & (peak - ref > CLAMP)
    tl.store(ref_ptr + row, tl.where(far, peak, ref), mask=row < N)
    if tl.max(far.to(tl.int32)) > 0:
        tl.store(again_ptr, 1)


@triton.jit
def statistics_kernel(
    sum_ptr,  # (K, N) fp32: of exp; with MEAN, of z; with ENTROPY, of z exp; first pass, second
    again_ptr,  # () int32, read if REDO: whether the second pass counted
    ref_ptr,
    peak_ptr,
    label_logit_ptr,
    label_ptr,  # (N,) int64
    index_ptr,  # (N,) int32, a permutation: where the row stands in E
    rows_ptr,
    lse_ptr,  # (N,) fp32, out, as the rest
    label_logit_out_ptr,
    row_max_ptr,
    mean_ptr,  # written if MEAN
    entropy_ptr,  # if ENTROPY
    N,
    V,
    REDO: tl.constexpr,
    MEAN: tl.constexpr,
    ENTROPY: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    here = row < N
    counted = (row < tl.load(rows_ptr)) & (tl.load(label_ptr + row, mask=here, other=-1) >= 0)
    if REDO:
        sum_ptr += tl.load(again_ptr) * (1 + MEAN + ENTROPY) * N
    total = tl.load(sum_ptr + row, mask=counted, other=1.0)
    lse = tl.load(ref_ptr + row, mask=counted, other=0.0) + tl.log(total)
    peak = tl.load(peak_ptr + row, mask=counted, other=0.0)
    label_logit = tl.load(label_logit_ptr + row, mask=counted, other=0.0)
    tied = label_logit >= peak - TIE * tl.maximum(tl.abs(peak), 1.0)
    place = tl.load(index_ptr + row, mask=here, other=0)
    tl.store(lse_ptr + place, lse, mask=here)
    tl.store(label_logit_out_ptr + place, label_logit, mask=here)
    tl.store(row_max_ptr + place, tl.where(tied, label_logit, peak), mask=here)
    if MEAN:
        mean = tl.load(sum_ptr + N + row, mask=counted, other=0.0) / V
        tl.store(mean_ptr + place, mean, mask=here)
    if ENTROPY:
        product = tl.load(sum_ptr + (1 + MEAN) * N + row, mask=counted, other=0.0)
        tl.store(entropy_ptr + place, lse - product / total, mask=here)
