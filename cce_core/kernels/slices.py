"""Launch the exact backward over the vocabulary, slice by slice, within a bound of scratch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from cce_core.kernels.exact import exact_kernel
from cce_core.kernels.launch import Logit, describe
from cce_core.kernels.rows import Rows
from cce_core.kernels.tiling import Tiling
from cce_core.kernels.upstream import Upstream

BYTES_PER_ROW = 152 * 2**20 // 8192  # of scratch, in all
LEAST = 512  # columns of dz in scratch of its own, whatever others hold
ENOUGH = 2048  # where the unwritten part of dC holds the wide slices
WIDEST = 16384
STEP = 512  # a slice is whole tiles


@dataclass(frozen=True)
class Targets:
    """Where the gradients go; None where not wanted."""

    de: torch.Tensor | None  # (N, D) zeroed; rows land where `rows.index` says
    dc: torch.Tensor | None  # (V, D)
    dbias: torch.Tensor | None = None  # (V,) fp32


@dataclass(frozen=True)
class Run:
    """Columns of one launch, and the dz of its slices."""

    first: int
    last: int
    dz: torch.Tensor  # (N, W)

    @property
    def slices(self) -> int:
        """How many."""
        return -(-(self.last - self.first) // self.dz.shape[1])


@dataclass(frozen=True)
class Listed:
    """Blocks of columns that the device chose."""

    blocks: torch.Tensor  # (H,) int32
    bounds: torch.Tensor  # (2,) int32: the launch's first among them, and the next one's


@dataclass(frozen=True)
class Launch:
    """One launch of the kernel: its columns, when it serves, and how."""

    run: Run
    aux: torch.Tensor  # dE's lower bits, or its accumulator
    exact: torch.Tensor | None  # () int32: 1 makes listed blocks return at once, 0 all others
    turns: torch.Tensor  # (1 + slices,) int32, zeroed: the kernel's counters
    logits: Tiling
    gradients: Tiling
    listed: Listed | None = None


def lent(dc: torch.Tensor, n: int, width: int) -> torch.Tensor:
    """(N, W) for dz in the last of dC, (V, D): for as long as nothing is written there."""
    return dc.view(-1)[-n * width :].view(n, width)


def runs(scratch: torch.Tensor, dc: torch.Tensor | None, v: int) -> Iterator[Run]:
    """The vocabulary's V columns: half of what is left at a time, its slices' dz in the other half.

    That part of dC is not written yet, so slices are wide without scratch. The rest, or all where
    there is no dC to lend, goes through `scratch`, (N, W).
    """
    n, first = scratch.shape[0], 0
    while dc is not None:
        last = first + (v - first) // 2 // STEP * STEP
        width = min((v - last) * dc.shape[1] // n // STEP * STEP, WIDEST, last - first)
        if width <= scratch.shape[1]:
            break
        width = -(-(last - first) // -(-(last - first) // width) // STEP) * STEP  # all alike
        yield Run(first, last, lent(dc, n, width))
        first = last
    yield Run(first, v, scratch)


def counters(chosen: Sequence[Run], device: torch.device) -> tuple[torch.Tensor, ...]:
    """`Launch.turns` of each run."""
    sizes = [1 + run.slices for run in chosen]
    return torch.split(torch.zeros(sum(sizes), dtype=torch.int32, device=device), sizes)


def scratch_columns(n: int, v: int, item: int, taken: int, *, alone: bool) -> int:
    """The width of dz's own scratch: what `taken` leaves, if that many are of use.

    They are where dz is `alone`, having no dC to lend it room; twice the least is kept for it then.
    """
    width = max(BYTES_PER_ROW * n - taken, 0) // (item * max(n, 1)) // STEP * STEP
    width = max(width, 2 * LEAST) if alone else min(max(width, LEAST), ENOUGH)
    return min(width, -(-v // STEP) * STEP)


def exact_gradients(
    rows: Rows,
    logit: Logit,
    upstream: Upstream,
    targets: Targets,
    wanted: torch.Tensor | None = None,
    held: int = 0,
) -> None:
    """Write dE, dC and dbias exactly; with `wanted`, () int32, only if the device finds it 1.

    `held` is how much of the scratch's bound others hold meanwhile, in bytes.
    """
    n, d = rows.e.shape
    v = logit.c.shape[0]
    device, dtype = rows.e.device, rows.e.dtype
    aux_type = torch.int8 if dtype == torch.bfloat16 else torch.float32
    aux = torch.empty((n, d) if targets.de is not None else (1, 16), dtype=aux_type, device=device)
    summed = targets.dbias is not None
    alone = targets.dc is None or summed
    taken = rows.e.nbytes + aux.nbytes + held
    width = scratch_columns(n, v, dtype.itemsize, taken, alone=alone)
    scratch = (torch.zeros if summed else torch.empty)((n, width), dtype=dtype, device=device)
    if summed:  # by torch, slice by slice: a launch each
        chosen = [Run(first, min(first + width, v), scratch) for first in range(0, v, width)]
    else:
        chosen = list(runs(scratch, None if alone else targets.dc, v))
    slices, gradients = logit.tilings.slices, logit.tilings.gradients
    for run, turns in zip(chosen, counters(chosen, device), strict=True):
        what = Launch(run, aux, wanted, turns, slices, gradients)
        launch(rows, logit, upstream, targets, what)
        if targets.dbias is not None:
            total = run.dz[:, : run.last - run.first].sum(0, dtype=torch.float32)
            targets.dbias[run.first : run.last] = total


def launch(rows: Rows, logit: Logit, upstream: Upstream, targets: Targets, what: Launch) -> None:
    """Write the rows of dC that are the launch's, and add its share to dE."""
    run, t, g = what.run, what.logits, what.gradients
    with_de, with_dc = targets.de is not None, targets.dc is not None
    split = what.aux.dtype == torch.int8
    de = targets.de if targets.de is not None else what.aux
    unused = rows.count
    listed = what.listed if what.listed is not None else Listed(unused, unused)
    programs, cooperation = logit.cooperation()
    exact_kernel[(programs,)](
        describe(rows.e, t.block_n, t.block_d),
        describe(logit.c, t.block_v, t.block_d),
        describe(run.dz, t.block_n, t.block_v // 2),
        describe(run.dz, g.block_n, g.block_d) if with_de else None,
        describe(run.dz, g.block_d, g.block_n) if with_dc else None,
        describe(rows.e, g.block_d, g.block_v) if with_dc else None,
        describe(logit.c, g.block_d, g.block_v) if with_de else None,
        describe(targets.dc, g.block_n, g.block_v // 4) if targets.dc is not None else None,
        de.view(torch.int16) if split else de,
        what.aux,
        logit.bias if logit.bias is not None else upstream.lse,
        rows.labels,
        upstream.lse,
        upstream.g_lse,
        upstream.g_label,
        upstream.g_mean if upstream.g_mean is not None else upstream.lse,
        rows.index,
        rows.count,
        what.exact if what.exact is not None else unused,
        listed.blocks,
        listed.bounds,
        what.turns,
        run.first,
        run.last,
        run.dz.shape[1],
        logit.c.shape[0],
        rows.e.shape[1],
        logit.scale,
        logit.softcap or 1.0,
        HAS_MEAN=upstream.g_mean is not None,
        SPLIT=split,
        WITH_DE=with_de,
        WITH_DC=with_dc,
        ASK=what.exact is not None,
        LISTED=what.listed is not None,
        BLOCK=logit.tilings.block,
        BLOCK_N=t.block_n,
        BLOCK_V=t.block_v,
        BLOCK_L=t.block_d,
        LOGITS_STAGES=t.stages,
        LOGITS_GROUP=t.group,
        BLOCK_M=g.block_n,
        BLOCK_D=g.block_v,
        BLOCK_K=g.block_d,
        STAGES=g.stages,
        GROUP=g.group,
        PROGRAMS=programs,
        num_warps=g.warps,
        **cooperation,
        **logit.post(),
        **logit.common(),
    )
