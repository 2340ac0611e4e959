"""Which rows count, brought together: copy of the labelled rows of E, and each label's logit.

Rows whose label is negative are left out of every product by a compact copy of the others; the
order is kept, and the others follow from the end on. The count stays on the device, so nothing
waits for it. One program a row also takes the dot product with the label's row of C: the reference
of the row's exponentials.
N rows, V vocabulary, D width.
"""

# ruff: noqa: N803, D103 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cce_core.kernels.primitives import capped
from cce_core.kernels.tiling import tilings


@dataclass(frozen=True)
class Rows:
    """The rows that count, first; the contents past `count` are zero (e) or unspecified."""

    e: torch.Tensor  # (N, D), contiguous
    labels: torch.Tensor  # (N,) int64
    index: torch.Tensor  # (N,) int32, where each row came from
    count: torch.Tensor  # () int32, on the device

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, in the order of the fields."""
        return self.e, self.labels, self.index, self.count


@triton.jit
def order_kernel(
    label_ptr,  # (N,) int64
    ordered_ptr,  # (N,) int64, out: the labels in the new order
    index_ptr,  # (N,) int32, out: the row that stands there, a permutation
    count_ptr,  # () int32, out
    N,
    CHUNK: tl.constexpr,
):
    """One program, chunk by chunk: a row that counts goes behind those found, others from N on."""
    count = 0
    for first in range(0, N, CHUNK):
        row = first + tl.arange(0, CHUNK)
        inside = row < N
        label = tl.load(label_ptr + row, mask=inside, other=-1)
        counts = label >= 0
        before = count + tl.cumsum(counts.to(tl.int32))  # its own included
        place = tl.where(counts, before - 1, N - 1 - (row - before))
        tl.store(ordered_ptr + place, label, mask=inside)
        tl.store(index_ptr + place, row, mask=inside)
        count += tl.sum(counts.to(tl.int32))
    tl.store(count_ptr, count)


@triton.jit
def rows_kernel(
    e_ptr,
    out_ptr,  # (N, D), written if COPY
    c_ptr,
    bias_ptr,
    label_ptr,
    index_ptr,
    count_ptr,
    logit_ptr,
    D,
    e_stride,
    c_stride,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    COPY: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    here = row < tl.load(count_ptr)
    label = tl.load(label_ptr + row)
    used = here & (label >= 0)
    source = tl.load(index_ptr + row).to(tl.int64) * e_stride
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for first in range(0, D, BLOCK_D):
        k = first + tl.arange(0, BLOCK_D)
        e = tl.load(e_ptr + source + k, mask=(k < D) & here, other=0.0)
        if COPY:
            tl.store(out_ptr + row * D + k, e, mask=k < D)
        c = tl.load(c_ptr + label * c_stride + k, mask=(k < D) & used, other=0.0)
        total += e.to(tl.float32) * c.to(tl.float32)
    z = tl.sum(total)
    if HAS_BIAS:
        z += tl.load(bias_ptr + label, mask=used, other=0.0)
    z = z * scale
    if HAS_CAP:
        z = capped(z, cap)
    tl.store(logit_ptr + row, tl.where(used, z, 0.0))


def gather_rows(
    e: torch.Tensor,
    c: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    scale: float,
    softcap: float | None,
    compact: bool,
) -> tuple[Rows, torch.Tensor]:
    """Bring the labelled rows together (`compact`) or take them as they stand, unlabelled too.

    Returns them and their labels' logits, fp32 (N,), zero where there is none.

    Args:
        e: (N, D) of any strides with a unit last one.
        c: (V, D) likewise.
        bias: (V,) fp32 or None.
        labels: (N,) int64; negative where a row does not count.
        scale: the logit's factor.
        softcap: the logit's cap, or None.
        compact: copy; otherwise `e` must be contiguous and every row counts.
    """
    n, d = e.shape
    if compact:
        index = torch.empty(n, dtype=torch.int32, device=e.device)
        count = torch.empty((), dtype=torch.int32, device=e.device)
        given, labels = labels.contiguous(), torch.empty_like(labels)
        chunk = tilings(e.device).chunk
        order_kernel[(1,)](given, labels, index, count, n, CHUNK=chunk, num_warps=8)
        out = torch.empty((n, d), dtype=e.dtype, device=e.device)
    else:
        index = torch.arange(n, dtype=torch.int32, device=e.device)
        count = torch.full((), n, dtype=torch.int32, device=e.device)
        out = e
    logit = torch.empty(n, dtype=torch.float32, device=e.device)
    rows_kernel[(n,)](
        e,
        out,
        c,
        bias if bias is not None else logit,
        labels,
        index,
        count,
        logit,
        d,
        e.stride(0),
        c.stride(0),
        scale,
        softcap or 1.0,
        HAS_BIAS=bias is not None,
        HAS_CAP=softcap is not None,
        COPY=compact,
        BLOCK_D=min(1024, triton.next_power_of_2(d)),
        num_warps=4,
    )
    return Rows(out, labels, index, count), logit
