"""Launch the mean field of what is left out: the columns' weights, their products, their error."""

import torch
import triton

from cce_core.kernels.filtering import Job
from cce_core.kernels.judge import draw_kernel, judge_kernel
from cce_core.kernels.launch import describe
from cce_core.kernels.selection import Plan
from cce_core.kernels.tail import tail_kernel

SIGNS = 16  # projections of the error: its square is known to sqrt(2 / SIGNS) at the worst


def weigh_tail(job: Job, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns' weights, (B * BLOCK,) fp32, and the error of dE that they make, () fp32."""
    rows, logit = job.rows, job.logit
    tiling, device = logit.tilings.tail, rows.e.device
    block, sample = logit.tilings.block, tiling.block_v
    picked, sampled, signs = _draw(job, sample)
    weight = torch.empty(len(job.mass) * block, dtype=torch.float32, device=device)
    sums = torch.zeros((2, sample, SIGNS), dtype=torch.float32, device=device)
    programs = logit.programs * tiling.residency
    tail_kernel[(programs,)](
        describe(logit.c, block, tiling.block_d),
        describe(sampled, sample, tiling.block_d),
        describe(signs, SIGNS, tiling.block_d),
        picked,
        rows.labels,
        job.upstream.lse,
        job.shares.g_lse,
        job.shares.g_label,
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


def _draw(job: Job, sample: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Evenly spaced rows, (S,) int32, their E, (S, D), and what is projected on, (SIGNS, D)."""
    rows, d = job.rows, job.rows.e.shape[1]
    picked = torch.empty(sample, dtype=torch.int32, device=rows.e.device)
    sampled, signs = rows.e.new_empty((sample, d)), rows.e.new_empty((SIGNS, d))
    size = min(1024, triton.next_power_of_2(d))
    draw_kernel[(sample + SIGNS,)](
        rows.e, rows.count, picked, sampled, signs, d, SAMPLE=sample, SIZE=size
    )
    return picked, sampled, signs


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
