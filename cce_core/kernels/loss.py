"""The Triton implementation of the loss: what it serves, its forward and its backward.

Rule of use: CUDA (or the interpreter), one 16-bit dtype for E and C, unit last strides, D a
multiple of 8 for the tensor copy engine, fewer than 2**31 vocabulary entries. Everything else is
for the blocked implementation. The filtered backward serves bf16 without bias and without a
gradient of the mean logit (label smoothing); what it does not serve is computed exactly.
"""

from dataclasses import dataclass, replace

import torch

from cce_core.kernels.filtered import Filter, filtered_gradients
from cce_core.kernels.launch import Logit
from cce_core.kernels.rows import Rows, gather_rows
from cce_core.kernels.slices import exact_gradients
from cce_core.kernels.statistics import RowStatistics, row_statistics
from cce_core.kernels.tiling import interpreted


@dataclass(frozen=True)
class Outputs:
    """Per row of E, fp32 (N,); zero where a row has no label."""

    lse: torch.Tensor
    label_logit: torch.Tensor
    row_max: torch.Tensor
    mean_logit: torch.Tensor | None
    entropy: torch.Tensor | None


@dataclass
class Saved:
    """What the backward needs. The block masses serve one backward; a second one is exact."""

    rows: Rows
    logit: Logit
    statistics: RowStatistics
    filter: Filter | None
    shape: torch.Size


@dataclass(frozen=True)
class Gradients:
    """What was asked for; `exact` is the device's decision, () int32, or None without a filter."""

    e: torch.Tensor | None
    c: torch.Tensor | None
    bias: torch.Tensor | None
    exact: torch.Tensor | None


def serves(e: torch.Tensor, c: torch.Tensor) -> bool:
    """Whether these tensors are for this implementation (see the module's rule)."""
    kind = e.dtype == c.dtype and e.dtype in (torch.bfloat16, torch.float16)
    place = interpreted() or (e.is_cuda and torch.cuda.get_device_capability(e.device)[0] >= 8)
    layout = e.stride(-1) == 1 and c.is_contiguous() and e.shape[1] % 8 == 0
    return kind and place and layout and e.shape[0] > 0


def forward(
    e: torch.Tensor,
    c: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    mean: bool = False,
    entropy: bool = False,
    gradients: bool = True,
    eps: float | None = 2.0**-12,
) -> tuple[Outputs, Saved]:
    """Per-row statistics of z = softcap(scale * (E C^T + bias)); no logit is stored.

    Args:
        e: (N, D) bf16 or fp16.
        c: (V, D), the same dtype, contiguous.
        bias: (V,) or None.
        targets: (N,) int64; negative where a row does not count.
        scale: the logits' factor.
        softcap: their cap, or None.
        mean: also return the mean logit.
        entropy: also return the entropy of the softmax.
        gradients: a backward will follow; without, nothing is copied and scratch is O(N).
        eps: the backward's filter threshold; None for exact gradients.
    """
    head = Logit(c, None if bias is None else bias.float(), scale, softcap)
    compact = gradients or not e.is_contiguous()
    filtered = gradients and eps is not None and e.dtype == torch.bfloat16 and bias is None
    rows = gather_rows(e, c, head.bias, targets, scale=scale, softcap=softcap, compact=compact)
    found = row_statistics(rows, head, mean=mean, entropy=entropy, mass=filtered)
    place = rows.index.long()
    counted = (torch.arange(len(place), device=e.device) < rows.count) & (rows.labels >= 0)

    def spread(values: torch.Tensor | None) -> torch.Tensor | None:
        if values is None:
            return None
        return torch.zeros_like(values).scatter_(0, place, values.masked_fill(~counted, 0.0))

    outputs = Outputs(
        spread(found.lse),
        spread(rows.label_logit),
        spread(found.peak),
        spread(found.mean),
        spread(found.entropy),
    )
    options = Filter.of(eps) if filtered else None
    return outputs, Saved(rows, head, found, options, e.shape)


def backward(
    saved: Saved,
    g_lse: torch.Tensor,
    g_label: torch.Tensor,
    g_mean: torch.Tensor | None = None,
    *,
    with_e: bool = True,
    with_c: bool = True,
    with_bias: bool = False,
) -> Gradients:
    """Gradients of E, C and bias from those of lse, label_logit and mean_logit, each (N,)."""
    rows, head = saved.rows, saved.logit
    place = rows.index.long()
    counted = torch.arange(len(place), device=place.device) < rows.count
    g_lse, g_label = (g.float()[place] * counted for g in (g_lse, g_label))
    if g_mean is not None:
        g_mean = g_mean.float()[place] * counted
    de = torch.zeros(saved.shape, dtype=rows.e.dtype, device=place.device) if with_e else None
    dc = torch.empty_like(head.c) if with_c else None
    dbias = torch.empty_like(head.bias) if with_bias and head.bias is not None else None
    exact = None
    if g_mean is None:
        exact = _filtered(saved, g_lse, g_label, de, dc)
    lse = saved.statistics.lse
    exact_gradients(
        rows, head, lse, g_lse, g_label, g_mean, de=de, dc=dc, dbias=dbias, wanted=exact
    )
    return Gradients(de, dc, dbias, exact)


def _filtered(
    saved: Saved,
    g_lse: torch.Tensor,
    g_label: torch.Tensor,
    de: torch.Tensor | None,
    dc: torch.Tensor | None,
) -> torch.Tensor | None:
    """The filtered gradients, once; the masses it consumes are freed. None where not served."""
    options, statistics = saved.filter, saved.statistics
    if options is None:
        return None
    saved.filter, saved.statistics = None, replace(statistics, mass=None)
    return filtered_gradients(
        saved.rows, saved.logit, statistics, g_lse, g_label, de=de, dc=dc, options=options
    )
