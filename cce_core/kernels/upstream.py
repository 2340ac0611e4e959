"""What the backward is given, by compact row; for the filter also in units of its mean.

    unit = mean |g_lse|         factor = exp(ref - lse), which makes a mass a probability
One program takes all rows, so that the mean is the same on each run. N rows.
"""

# ruff: noqa: N803, D103 - Triton's language: constants are upper case,
# pointers come by position, branches on constants do not combine. No types: its values have none.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cce_core.kernels.rows import Rows
from cce_core.kernels.tiling import tilings
from cce_core.problem import RowGrads


@dataclass(frozen=True)
class Upstream:
    """Log-sum-exp and the gradients of the statistics, fp32 (N,); zero past the rows' count."""

    lse: torch.Tensor
    g_lse: torch.Tensor
    g_label: torch.Tensor
    g_mean: torch.Tensor | None = None


@dataclass(frozen=True)
class Shares:
    """The same for the filter, fp32 (N,)."""

    unit: torch.Tensor  # ()
    g_lse: torch.Tensor  # over `unit`
    g_label: torch.Tensor  # likewise
    factor: torch.Tensor


@triton.jit
def gathered(source_ptr, place, stride, here):
    """One statistic's values, fp32, zero where a row does not count."""
    return tl.load(source_ptr + place * stride, mask=here, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["lse_stride", "g_lse_stride", "g_label_stride", "g_mean_stride"])
def upstream_kernel(
    lse_ptr,  # (N,) of any float dtype and stride, in the order of E, as the gradients
    g_lse_ptr,
    g_label_ptr,
    g_mean_ptr,  # read if HAS_MEAN
    ref_ptr,  # (N,) fp32, read if SHARES
    index_ptr,  # (N,) int32
    rows_ptr,
    out_ptr,  # (3 to 7, row_size) fp32: lse, gradients; if SHARES g_lse, g_label, factor
    unit_ptr,  # () fp32, out if SHARES
    N,
    row_size,
    lse_stride,
    g_lse_stride,
    g_label_stride,
    g_mean_stride,
    HAS_MEAN: tl.constexpr,
    SHARES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    rows = tl.load(rows_ptr)
    size = tl.zeros((CHUNK,), dtype=tl.float32)
    for first in range(0, N, CHUNK):
        row = first + tl.arange(0, CHUNK)
        here = row < rows
        inside = row < N
        place = tl.load(index_ptr + row, mask=here, other=0).to(tl.int64)
        lse = gathered(lse_ptr, place, lse_stride, here)
        g_lse = gathered(g_lse_ptr, place, g_lse_stride, here)
        g_label = gathered(g_label_ptr, place, g_label_stride, here)
        tl.store(out_ptr + row, lse, mask=inside)
        tl.store(out_ptr + row_size + row, g_lse, mask=inside)
        tl.store(out_ptr + 2 * row_size + row, g_label, mask=inside)
        if HAS_MEAN:
            g_mean = gathered(g_mean_ptr, place, g_mean_stride, here)
            tl.store(out_ptr + 3 * row_size + row, g_mean, mask=inside)
        size += tl.abs(g_lse)
    if SHARES:
        unit = tl.maximum(tl.sum(size) / tl.maximum(rows, 1), 1e-30)
        tl.store(unit_ptr, unit)
        tl.debug_barrier()
        share_ptr = out_ptr + (3 + HAS_MEAN) * row_size
        for first in range(0, N, CHUNK):
            row = first + tl.arange(0, CHUNK)
            here = row < rows
            inside = row < N
            lse = tl.load(out_ptr + row, mask=inside, other=0.0)
            g_lse = tl.load(out_ptr + row_size + row, mask=inside, other=0.0)
            g_label = tl.load(out_ptr + 2 * row_size + row, mask=inside, other=0.0)
            ref = tl.load(ref_ptr + row, mask=here, other=0.0)
            tl.store(share_ptr + row, g_lse / unit, mask=inside)
            tl.store(share_ptr + row_size + row, g_label / unit, mask=inside)
            tl.store(share_ptr + 2 * row_size + row, tl.exp(ref - lse), mask=inside)


def gather_upstream(rows: Rows, lse: torch.Tensor, given: RowGrads) -> Upstream:
    """Bring the rows' upstream together."""
    return Upstream(*_gather(rows, lse, given, None)[0])


def gather_shares(
    rows: Rows, lse: torch.Tensor, given: RowGrads, ref: torch.Tensor
) -> tuple[Upstream, Shares]:
    """The same, and its shares, by what the masses are relative to, (N,) fp32."""
    parts, unit = _gather(rows, lse, given, ref)
    return Upstream(*parts[:-3]), Shares(unit, *parts[-3:])


def _gather(
    rows: Rows, lse: torch.Tensor, given: RowGrads, ref: torch.Tensor | None
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The kernel's rows, and the unit."""
    n, device = len(rows.index), rows.index.device
    sources = tuple(x for x in (lse, *given) if x is not None)
    count = len(sources) + (3 if ref is not None else 0)
    size = triton.cdiv(n, 16) * 16  # each begins as well aligned as the first
    out = torch.empty((count, size), dtype=torch.float32, device=device)
    unit = torch.empty((), dtype=torch.float32, device=device)
    sources = (*sources, lse)[:4]
    upstream_kernel[(1,)](
        *sources,
        ref if ref is not None else lse,
        rows.index,
        rows.count,
        out,
        unit,
        n,
        size,
        *(source.stride(0) for source in sources),
        HAS_MEAN=given.mean_logit is not None,
        SHARES=ref is not None,
        CHUNK=tilings(device).chunk,
        num_warps=8,
    )
    return out[:, :n].unbind(), unit
