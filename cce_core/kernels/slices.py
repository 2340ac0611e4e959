"""Launch the exact backward, slice by slice of the vocabulary, within a bound of scratch."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cce_core.kernels.exact import dlogits_kernel, gradients_kernel
from cce_core.kernels.launch import Logit, describe
from cce_core.kernels.rows import Rows
from cce_core.kernels.tiling import Tiling

BYTES_PER_ROW = 144 * 2**20 // 8192  # of scratch, in all
SCRATCH_COLUMNS = 512  # of dz in scratch of its own, where dC is nearly written
WIDEST = 16384
STEP = 512  # a slice is whole tiles


def vocabulary_slices(
    dz: torch.Tensor, dc: torch.Tensor | None, v: int
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Yield (first column, columns, (N, W) buffer for dz) over the vocabulary.

    The part of dC that is not written yet holds dz, so that slices are wide without scratch; the
    last ones use `dz`, (N, W).
    """
    n = dz.shape[0]
    first = 0
    while first < v:
        width, buffer = min(dz.shape[1], v - first), dz
        if dc is not None:
            d = dc.shape[1]
            wide = min((v - first) * d // (n + d) // STEP * STEP, WIDEST)
            if wide > dz.shape[1]:
                width, buffer = wide, dc.view(-1)[-n * wide :].view(n, wide)
        yield first, width, buffer
        first += width


def scratch_columns(n: int, v: int, item: int, taken: int, *, alone: bool) -> int:
    """The width of dz's own scratch; `alone` where dC cannot lend any: what `taken` leaves.

    Narrow slices would make the launches, of which a filtered backward queues all, the bottleneck:
    so alone it is never less than four times as wide, whatever is taken.
    """
    room = BYTES_PER_ROW * n - taken
    width = room // (item * max(n, 1)) // STEP * STEP if alone else 0
    return min(max(width, (4 if alone else 1) * SCRATCH_COLUMNS), -(-v // STEP) * STEP)


@dataclass(frozen=True)
class Upstream:
    """Compact rows' log-sum-exp and the gradients of their statistics, fp32 (N,)."""

    lse: torch.Tensor
    g_lse: torch.Tensor
    g_label: torch.Tensor
    g_mean: torch.Tensor | None = None


@dataclass(frozen=True)
class Targets:
    """Where the gradients go; None where not wanted."""

    de: torch.Tensor | None  # (N, D) zeroed; rows land where `rows.index` says
    dc: torch.Tensor | None  # (V, D)
    dbias: torch.Tensor | None = None  # (V,) fp32


@dataclass(frozen=True)
class Listed:
    """Blocks of columns that the device chose."""

    blocks: torch.Tensor  # (H,) int32
    count: torch.Tensor  # () int32: how many of them there are


@dataclass(frozen=True)
class Slice:
    """Columns handled together: a run of them, or the listed blocks."""

    dz: torch.Tensor  # (N, W)
    aux: torch.Tensor  # dE's lower bits, or its accumulator
    ticket: torch.Tensor  # () int32, zero
    exact: torch.Tensor | None  # () int32: 1 makes listed blocks return at once, 0 all others
    first: int = 0
    columns: int = 0
    listed: Listed | None = None

    def selection(self, block: int, unused: torch.Tensor) -> dict[str, object]:
        """What tells both kernels which columns are meant, and when."""
        listed = self.listed if self.listed is not None else Listed(unused, unused)
        return {
            "exact_ptr": self.exact if self.exact is not None else unused,
            "blocks_ptr": listed.blocks,
            "listed_ptr": listed.count,
            "first": self.first,
            "width": self.columns,
            "ASK": self.exact is not None,
            "LISTED": self.listed is not None,
            "BLOCK": block,
        }


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
    alone = targets.dc is None or targets.dbias is not None
    taken = rows.e.nbytes + aux.nbytes + held
    width = scratch_columns(n, v, dtype.itemsize, taken, alone=alone)
    make = torch.zeros if targets.dbias is not None else torch.empty
    scratch = make((n, width), dtype=dtype, device=device)
    slices = list(vocabulary_slices(scratch, None if alone else targets.dc, v))
    tickets = torch.zeros(len(slices), dtype=torch.int32, device=device)
    for (first, columns, dz), ticket in zip(slices, tickets, strict=True):
        part = Slice(dz, aux, ticket, wanted, first, columns)
        dlogits(rows, logit, upstream, part, logit.tilings.slices)
        if targets.dbias is not None:
            total = dz[:, :columns].sum(0, dtype=torch.float32)
            targets.dbias[first : first + columns] = total
        gradients(rows, logit, targets, part, logit.tilings.gradients)


def dlogits(rows: Rows, logit: Logit, upstream: Upstream, part: Slice, tiling: Tiling) -> None:
    """Write the slice's dz."""
    programs = logit.programs * tiling.residency
    dlogits_kernel[(programs,)](
        describe(rows.e, tiling.block_n, tiling.block_d),
        describe(logit.c, tiling.block_v, tiling.block_d),
        describe(part.dz, tiling.block_n, tiling.block_v // 2),
        logit.bias if logit.bias is not None else upstream.lse,
        rows.labels,
        upstream.lse,
        upstream.g_lse,
        upstream.g_label,
        upstream.g_mean if upstream.g_mean is not None else upstream.lse,
        rows.count,
        V=logit.c.shape[0],
        D=rows.e.shape[1],
        scale=logit.scale,
        cap=logit.softcap or 1.0,
        HAS_MEAN=upstream.g_mean is not None,
        PROGRAMS=programs,
        **part.selection(logit.tilings.block, rows.count),
        **logit.post(),
        **logit.common(),
        **tiling.constants(),
    )


def gradients(rows: Rows, logit: Logit, targets: Targets, part: Slice, tiling: Tiling) -> None:
    """Add the slice's share to dE and write its rows of dC."""
    m, d, k = tiling.block_n, tiling.block_v, tiling.block_d
    with_de, with_dc = targets.de is not None, targets.dc is not None
    split = part.aux.dtype == torch.int8
    de = targets.de if targets.de is not None else part.aux
    gradients_kernel[(logit.programs,)](
        describe(part.dz, m, k) if with_de else None,
        describe(part.dz, k, m) if with_dc else None,
        describe(rows.e, k, d) if with_dc else None,
        describe(logit.c, k, d) if with_de else None,
        describe(targets.dc, m, d) if targets.dc is not None else None,
        de.view(torch.int16) if split else de,
        part.aux,
        rows.index,
        rows.count,
        ticket_ptr=part.ticket,
        D=rows.e.shape[1],
        IS_FIRST=part.first == 0,
        IS_LAST=part.listed is not None or part.first + part.columns == logit.c.shape[0],
        SPLIT=split,
        WITH_DE=with_de,
        WITH_DC=with_dc,
        BLOCK_M=m,
        BLOCK_D=d,
        BLOCK_K=k,
        GROUP=tiling.group,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **part.selection(logit.tilings.block, rows.count),
        **logit.common(),
    )
