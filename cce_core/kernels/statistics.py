"""Launch the forward: per-row log-sum-exp, label logit, peak; block masses for the filter.

A row whose peak stands more than CLAMP above its label's logit is counted again relative to its
peak, by a second launch that returns at once when no row asks for it: the decision is the device's.
"""

from dataclasses import dataclass

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
    rows: Rows, logit: Logit, *, mean: bool, entropy: bool, mass: bool
) -> RowStatistics:
    """Run the forward over every tile once (twice where a row's reference was out of reach)."""
    n = rows.e.shape[0]
    v = logit.c.shape[0]
    device = rows.e.device
    blocks = triton.cdiv(v, logit.tilings.block)
    masses = torch.empty((blocks, n), dtype=torch.bfloat16, device=device) if mass else None
    sums = torch.zeros((6, n), dtype=torch.float32, device=device)
    peak = torch.full((n,), -float("inf"), device=device)
    wanted = torch.zeros((), dtype=torch.int32, device=device)
    live = torch.arange(n, device=device) < rows.count

    tiling = logit.tilings.logits
    programs = logit.programs * tiling.residency

    def launch(ref: torch.Tensor, into: torch.Tensor, *, redo: bool) -> None:
        forward_kernel[(programs,)](
            describe(rows.e, tiling.block_n, tiling.block_d),
            describe(logit.c, tiling.block_v, tiling.block_d),
            logit.bias if logit.bias is not None else sums,
            ref,
            rows.count,
            wanted,
            into[0],
            peak,
            into[1],
            into[2],
            masses if masses is not None else peak,
            n,
            v,
            rows.e.shape[1],
            logit.scale,
            logit.softcap or 1.0,
            WITH_MEAN=mean,
            WITH_ENTROPY=entropy,
            WITH_MASS=mass,
            REDO=redo,
            BLOCK=logit.tilings.block,
            PROGRAMS=programs,
            **logit.post(),
            **logit.common(),
            **tiling.constants(),
        )

    ref = rows.label_logit
    launch(ref, sums[:3], redo=False)
    total = sums[:3]
    if 2 * logit.reach > CLAMP.value:
        far = (peak - ref > CLAMP.value) & live
        wanted.copy_(far.any())
        ref = torch.where(far, peak, ref)
        launch(ref, sums[3:], redo=True)
        total = torch.where(wanted > 0, sums[3:], sums[:3])
    lse = torch.where(live, ref + total[0].log(), 0.0)
    return RowStatistics(
        lse=lse,
        peak=peak,
        ref=ref,
        mean=total[1] / v if mean else None,
        entropy=lse - total[2] / total[0] if entropy else None,
        mass=masses,
    )
