"""Launch the exact backward, slice by slice of the vocabulary, within a bound of scratch."""

import torch

from cce_core.kernels.exact import dlogits_kernel, gradients_kernel
from cce_core.kernels.launch import Logit, describe
from cce_core.kernels.rows import Rows

BYTES_PER_ROW = 144 * 2**20 // 8192  # of scratch, in all
SCRATCH_COLUMNS = 512  # of dz in scratch of its own, where dC is nearly written
WIDEST = 16384
STEP = 512  # a slice is whole tiles


def vocabulary_slices(dz: torch.Tensor, dc: torch.Tensor | None, v: int):
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
    """The width of dz's own scratch; `alone` where dC cannot lend any: what `taken` leaves."""
    room = BYTES_PER_ROW * n - taken
    width = room // (item * max(n, 1)) // STEP * STEP if alone else SCRATCH_COLUMNS
    return min(max(width, SCRATCH_COLUMNS), -(-v // STEP) * STEP)


def exact_gradients(rows, logit, lse, g_lse, g_label, g_mean, *, de, dc, dbias, wanted=None):
    """Write dE, dC and dbias exactly; with `wanted`, only if it is nonzero on the device.

    Args:
        rows: the compact rows.
        logit: the head.
        lse: (N,) fp32, compact, as are the three upstream gradients.
        g_lse: upstream of lse.
        g_label: upstream of the label's logit.
        g_mean: upstream of the mean logit, or None.
        de: (N, D) zeroed, or None; rows land where `rows.index` says.
        dc: (V, D), or None.
        dbias: (V,) fp32, or None; not with `wanted`.
        wanted: () int32 or None.
    """
    n, d = rows.e.shape
    v = logit.c.shape[0]
    split = rows.e.dtype == torch.bfloat16
    aux_type = torch.int16 if split else torch.float32
    aux = torch.empty((n, d) if de is not None else (1, 16), dtype=aux_type, device=rows.e.device)
    alone = dc is None or dbias is not None
    taken = rows.e.nbytes + aux.nbytes
    width = scratch_columns(n, v, rows.e.element_size(), taken, alone=alone)
    make = torch.zeros if dbias is not None else torch.empty
    scratch = make((n, width), dtype=rows.e.dtype, device=rows.e.device)
    ask = wanted is not None
    flag = wanted if ask else rows.count
    lender = None if alone else dc
    for first, columns, dz in vocabulary_slices(scratch, lender, v):
        _dlogits(rows, logit, lse, g_lse, g_label, g_mean, dz, first, columns, flag, ask)
        if dbias is not None:
            dbias[first : first + columns] = dz[:, :columns].sum(0, dtype=torch.float32)
        ends = (first == 0, first + columns == v)
        _gradients(rows, logit, dz, de, dc, aux, first, columns, flag, ask, ends)


def _dlogits(rows, logit, lse, g_lse, g_label, g_mean, dz, first, columns, flag, ask):
    tiling = logit.tilings.slices
    programs = logit.programs * tiling.residency
    dlogits_kernel[(programs,)](
        describe(rows.e, tiling.block_n, tiling.block_d),
        describe(logit.c, tiling.block_v, tiling.block_d),
        describe(dz, tiling.block_n, tiling.block_v // 2),
        logit.bias if logit.bias is not None else lse,
        rows.labels,
        lse,
        g_lse,
        g_label,
        g_mean if g_mean is not None else lse,
        rows.count,
        flag,
        first,
        columns,
        logit.c.shape[0],
        rows.e.shape[1],
        logit.scale,
        logit.softcap or 1.0,
        HAS_MEAN=g_mean is not None,
        ASK=ask,
        PROGRAMS=programs,
        **logit.post(),
        **logit.common(),
        **tiling.constants(),
    )


def _gradients(rows, logit, dz, de, dc, aux, first, columns, flag, ask, ends):
    tiling = logit.tilings.gradients
    m, d, k = tiling.block_n, tiling.block_v, tiling.block_d
    split = aux.dtype == torch.int16
    target = de if de is not None else aux
    gradients_kernel[(logit.programs,)](
        describe(dz, m, k),
        describe(dz, k, m),
        describe(rows.e, k, d),
        describe(logit.c, k, d),
        describe(dc if dc is not None else logit.c, m, d),
        target.view(torch.int16) if split else target,
        aux,
        rows.index,
        rows.count,
        flag,
        first,
        columns,
        rows.e.shape[1],
        IS_FIRST=ends[0],
        IS_LAST=ends[1],
        SPLIT=split,
        WITH_DE=de is not None,
        WITH_DC=dc is not None,
        ASK=ask,
        BLOCK_M=m,
        BLOCK_D=d,
        BLOCK_K=k,
        GROUP=tiling.group,
        PROGRAMS=logit.programs,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **logit.common(),
    )
