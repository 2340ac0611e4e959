"""Launch the forward: per-row log-sum-exp, label logit, peak; block masses for the filter.

A row whose peak stands more than CLAMP above its label's logit is counted again relative to its
peak, by a second launch that returns at once when no row asks for it: the decision is the device's.
"""

from dataclasses import dataclass, replace

import torch
import triton

from cce_core.kernels.filtering import Masses
from cce_core.kernels.finish import recount_kernel, statistics_kernel
from cce_core.kernels.forward import CLAMP, forward_kernel
from cce_core.kernels.launch import Logit, describe
from cce_core.kernels.rows import Rows
from cce_core.problem import RowStats

SIZE = 128  # rows of a program where a program has rows alone


@dataclass(frozen=True)
class Asked:
    """What the forward is to find beside log-sum-exp, label logit and peak."""

    mean: bool  # mean_v z
    entropy: bool  # lse - sum_v p z
    mass: bool  # the blocks' masses
    ordered: bool  # sums in a fixed order, for the same bits; takes 4 N V / BLOCK_V bytes a sum


def row_statistics(
    rows: Rows, label_logit: torch.Tensor, logit: Logit, asked: Asked
) -> tuple[RowStats, Masses | None]:
    """Run the forward over every tile once (twice where a row's reference was out of reach).

    Args:
        rows: the rows that count.
        label_logit: their labels' logits, fp32 (N,): the sums' reference.
        logit: the head.
        asked: what else to find.
    """
    n, v, device = rows.e.shape[0], logit.c.shape[0], rows.e.device
    blocks = triton.cdiv(v, logit.tilings.block)
    parts = triton.cdiv(v, logit.tilings.logits.block_v) if asked.ordered else 1
    redo = 2 * logit.reach > CLAMP.value
    passes = 2 if redo and not asked.ordered else 1  # a second one in order overwrites the first
    kinds = 1 + asked.mean + asked.entropy
    sums = torch.zeros((passes, kinds, parts, n), dtype=torch.float32, device=device)
    first = _Sums(
        sums[0],
        torch.full((n,), -float("inf"), device=device),
        torch.empty((blocks, n), dtype=torch.bfloat16, device=device) if asked.mass else None,
        asked,
    )
    ref, again = label_logit, rows.count
    _sweep(rows, logit, ref, first, redo=None)
    if redo:
        ref = torch.empty_like(label_logit)
        again = torch.zeros((), dtype=torch.int32, device=device)
        grid = (triton.cdiv(n, SIZE),)
        recount_kernel[grid](first.peak, label_logit, rows.count, ref, again, n, SIZE=SIZE)
        _sweep(rows, logit, ref, replace(first, sums=sums[-1]), redo=again)
    if asked.ordered:
        sums = sums.sum(2)
    stats = _settle(rows, label_logit, ref, replace(first, sums=sums), v, again)
    return stats, None if first.mass is None else Masses.of(ref, first.mass)


@dataclass(frozen=True)
class _Sums:
    """What the forward adds up: exp, then z for the mean, then z exp for the entropy."""

    sums: torch.Tensor  # (1 to 3, T or 1, N) fp32
    peak: torch.Tensor
    mass: torch.Tensor | None
    asked: Asked


def _sweep(
    rows: Rows, logit: Logit, ref: torch.Tensor, into: _Sums, redo: torch.Tensor | None
) -> None:
    """One launch over all tiles; with `redo`, () int32, only if the device finds it 1."""
    tiling = logit.tilings.logits
    programs = logit.programs * tiling.residency
    sums = into.sums.unbind()
    forward_kernel[(programs,)](
        describe(rows.e, tiling.block_n, tiling.block_d),
        describe(logit.c, tiling.block_v, tiling.block_d),
        logit.bias if logit.bias is not None else ref,
        ref,
        rows.count,
        redo if redo is not None else rows.count,
        sums[0],
        into.peak,
        sums[1 if into.asked.mean else 0],
        sums[-1],
        into.mass if into.mass is not None else into.peak,
        rows.e.shape[0],
        logit.c.shape[0],
        rows.e.shape[1],
        logit.scale,
        logit.softcap or 1.0,
        WITH_MEAN=into.asked.mean,
        WITH_ENTROPY=into.asked.entropy,
        WITH_MASS=into.mass is not None,
        ORDERED=into.asked.ordered,
        REDO=redo is not None,
        BLOCK=logit.tilings.block,
        PROGRAMS=programs,
        **logit.post(),
        **logit.common(),
        **tiling.constants(),
    )


def _settle(
    rows: Rows,
    label_logit: torch.Tensor,
    ref: torch.Tensor,
    found: _Sums,
    v: int,
    again: torch.Tensor,
) -> RowStats:
    """The statistics, in the order of E."""
    new, mean, entropy = torch.empty_like, found.asked.mean, found.asked.entropy
    stats = RowStats(
        new(label_logit),
        new(label_logit),
        new(label_logit),
        new(label_logit) if mean else None,
        new(label_logit) if entropy else None,
    )
    n = len(label_logit)
    statistics_kernel[(triton.cdiv(n, SIZE),)](
        found.sums,
        again,
        ref,
        found.peak,
        label_logit,
        rows.labels,
        rows.index,
        rows.count,
        stats.lse,
        stats.label_logit,
        stats.row_max,
        stats.mean_logit if mean else ref,
        stats.entropy if entropy else ref,
        n,
        v,
        REDO=len(found.sums) > 1,
        MEAN=mean,
        ENTROPY=entropy,
        SIZE=SIZE,
    )
    return stats
