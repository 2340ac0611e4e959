"""Launch the forward: per-row log-sum-exp, label logit, peak; block masses for the filter.

A row whose peak stands more than CLAMP above its label's logit is counted again relative to its
peak, by a second launch that returns at once when no row asks for it: the decision is the device's.
"""

from dataclasses import dataclass, replace

import torch
import triton

from cce_core.kernels.forward import CLAMP, forward_kernel
from cce_core.kernels.launch import Logit, describe
from cce_core.kernels.rows import Rows


@dataclass(frozen=True)
class RowStatistics:
    """Per compact row, fp32 (N,); past the count of rows lse is 0, the rest unspecified."""

    lse: torch.Tensor
    peak: torch.Tensor
    ref: torch.Tensor
    mean: torch.Tensor | None  # mean_v z
    entropy: torch.Tensor | None  # lse - sum_v p z
    mass: torch.Tensor | None  # (ceil(V / block), N) bf16, relative to ref


def row_statistics(
    rows: Rows,
    label_logit: torch.Tensor,
    logit: Logit,
    *,
    mean: bool,
    entropy: bool,
    mass: bool,
    ordered: bool = False,
) -> RowStatistics:
    """Run the forward over every tile once (twice where a row's reference was out of reach).

    Args:
        rows: the rows that count.
        label_logit: their labels' logits, fp32 (N,): the sums' reference.
        logit: the head.
        mean: also sum the logits, for mean_v z.
        entropy: also sum z exp(z), for the entropy.
        mass: also store the blocks' masses.
        ordered: sum in a fixed order, for the same bits on each run; takes 4 N V / BLOCK_V bytes
            a sum.
    """
    n, v, device = rows.e.shape[0], logit.c.shape[0], rows.e.device
    blocks = triton.cdiv(v, logit.tilings.block)
    parts = triton.cdiv(v, logit.tilings.logits.block_v) if ordered else 1
    found = _Sums(
        torch.zeros((1 + mean + entropy, parts, n), dtype=torch.float32, device=device),
        torch.full((n,), -float("inf"), device=device),
        torch.empty((blocks, n), dtype=torch.bfloat16, device=device) if mass else None,
        mean,
        entropy,
        ordered,
    )
    live = torch.arange(n, device=device) < rows.count
    ref = label_logit
    _sweep(rows, logit, ref, found, redo=None)
    if 2 * logit.reach > CLAMP.value:
        far = (found.peak - ref > CLAMP.value) & live
        ref = torch.where(far, found.peak, ref)
        again = far.any()
        found = replace(found, sums=torch.where(again, 0.0, found.sums))
        _sweep(rows, logit, ref, found, redo=again.to(torch.int32))
    total = found.sums.sum(1)
    lse = torch.where(live, ref + total[0].log(), 0.0)
    return RowStatistics(
        lse=lse,
        peak=found.peak,
        ref=ref,
        mean=total[1] / v if mean else None,
        entropy=lse - total[-1] / total[0] if entropy else None,
        mass=found.mass,
    )


@dataclass(frozen=True)
class _Sums:
    """What the forward adds up: exp, then z if WITH_MEAN, then z exp if WITH_ENTROPY."""

    sums: torch.Tensor  # (1 to 3, T or 1, N) fp32
    peak: torch.Tensor
    mass: torch.Tensor | None
    mean: bool
    entropy: bool
    ordered: bool


def _sweep(
    rows: Rows, logit: Logit, ref: torch.Tensor, into: _Sums, redo: torch.Tensor | None
) -> None:
    """One launch over all tiles; with `redo`, () int32, only if the device finds it 1."""
    tiling = logit.tilings.logits
    programs = logit.programs * tiling.residency
    forward_kernel[(programs,)](
        describe(rows.e, tiling.block_n, tiling.block_d),
        describe(logit.c, tiling.block_v, tiling.block_d),
        logit.bias if logit.bias is not None else ref,
        ref,
        rows.count,
        redo if redo is not None else rows.count,
        into.sums[0],
        into.peak,
        into.sums[1 if into.mean else 0],
        into.sums[-1],
        into.mass if into.mass is not None else into.peak,
        rows.e.shape[0],
        logit.c.shape[0],
        rows.e.shape[1],
        logit.scale,
        logit.softcap or 1.0,
        WITH_MEAN=into.mean,
        WITH_ENTROPY=into.entropy,
        WITH_MASS=into.mass is not None,
        ORDERED=into.ordered,
        REDO=redo is not None,
        BLOCK=logit.tilings.block,
        PROGRAMS=programs,
        **logit.post(),
        **logit.common(),
        **tiling.constants(),
    )
