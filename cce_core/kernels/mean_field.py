"""Launch the mean field of what is left out: the columns' weights, their products, their error."""

import torch
import triton

from cce_core.kernels.filtering import Job
from cce_core.kernels.judge import judge_kernel, signs_kernel
from cce_core.kernels.launch import describe
from cce_core.kernels.selection import Plan
from cce_core.kernels.tail import tail_kernel

SIGNS = 16  # projections of the error: its square is known to sqrt(2 / SIGNS) at the worst


def weigh_tail(job: Job, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns' weights, (B * BLOCK,) fp32, and the error of dE that they make, () fp32."""
    rows, logit = job.rows, job.logit
    tiling, device = logit.tilings.tail, rows.e.device
    block, sample = logit.tilings.block, tiling.block_v
    picked = torch.arange(sample, device=device) * rows.count // sample
    weight = torch.empty(len(job.mass) * block, dtype=torch.float32, device=device)
    sums = torch.zeros((2, sample, SIGNS), dtype=torch.float32, device=device)
    programs = logit.programs * tiling.residency
    tail_kernel[(programs,)](
        describe(logit.c, block, tiling.block_d),
        describe(rows.e[picked], sample, tiling.block_d),
        describe(_signs(job), SIGNS, tiling.block_d),
        picked.to(torch.int32),
        rows.labels,
        job.lse,
        job.g_lse,
        job.g_label,
        job.mass,
        plan.count,
        plan.exact,
        weight,
        sums,
        rows.e.shape[0],
        logit.c.shape[0],
        rows.e.shape[1],
        job.options.entry_bar,
        logit.scale,
        logit.softcap or 1.0,
        HAS_CAP=logit.softcap is not None,
        SAMPLE=sample,
        SIGNS=SIGNS,
        BLOCK=block,
        BLOCK_D=tiling.block_d,
        PROGRAMS=programs,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **logit.common(),
    )
    error = torch.empty((), dtype=torch.float32, device=device)
    judge_kernel[(1,)](sums, error, plan.exact, job.options.error_bar, SIZE=sample * SIGNS)
    return weight, error


def _signs(job: Job) -> torch.Tensor:
    """(SIGNS, D): what the error is projected on."""
    e = job.rows.e
    signs = torch.empty((SIGNS, e.shape[1]), dtype=e.dtype, device=e.device)
    signs_kernel[(triton.cdiv(signs.numel(), 1024),)](signs, signs.numel(), SIZE=1024)
    return signs


def block_means(c: torch.Tensor, weight: torch.Tensor, block: int) -> torch.Tensor:
    """(B, D): the weighted sum of each block's rows of C."""
    whole = c.shape[0] // block
    full, rest = c[: whole * block], c[whole * block :]
    blocks = full.view(whole, block, c.shape[1])
    means = torch.bmm(weight[: len(full)].view(whole, 1, block), blocks)
    if len(rest) == 0:
        return means[:, 0]
    return torch.cat([means[:, 0], weight[len(full) : len(c)][None] @ rest])


def thin_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A b in b's dtype."""
    return torch.mm(a.to(b.dtype), b)
