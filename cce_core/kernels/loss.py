"""The Triton implementation of the loss: what it serves, its forward and its backward.

Rule of use: CUDA of compute capability 8.0 or later (or the interpreter), E and C both bf16 or both
fp16, D a multiple of 8 and 16-byte aligned rows for the tensor copy engine, C contiguous. The
filtered backward serves bf16 without bias and without a gradient of the mean logit, and not the
deterministic mode, since the order of its lists varies; what it does not serve is computed exactly,
which is always right.
"""

from dataclasses import dataclass, replace

import torch

from cce_core.config import LossConfig
from cce_core.kernels.filtered import Filter, filtered_gradients
from cce_core.kernels.launch import Logit
from cce_core.kernels.rows import Rows, gather_rows
from cce_core.kernels.slices import Targets, Upstream, exact_gradients
from cce_core.kernels.statistics import RowStatistics, row_statistics
from cce_core.kernels.tiling import interpreted
from cce_core.problem import Gradients, Problem, RowGrads, RowStats, Wanted

TIE = 2.0**-16
"""Relative distance under which the label's logit counts as the row's maximum: the two are summed
in different orders, and must come out equal where the label is the argmax."""


@dataclass
class State:
    """What the backward needs. The block masses serve one backward; a later one is exact."""

    rows: Rows
    logit: Logit
    statistics: RowStatistics
    filter: Filter | None
    wanted: Wanted
    bias_dtype: torch.dtype | None
    exact: torch.Tensor | None = None  # () int32 after a filtered backward: 1 where it fell back


def refuses(problem: Problem, config: LossConfig) -> str | None:  # noqa: ARG001  the seam's shape
    """Why this problem cannot be served; None if it can. The rule is the module's."""
    e, c = problem.e, problem.c
    if not interpreted():
        if not e.is_cuda:
            return f"needs CUDA tensors, got {e.device}"
        if torch.cuda.get_device_capability(e.device)[0] < 8:
            return "needs a GPU of compute capability 8.0 or later"
    if e.dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16, got {e.dtype}"
    if e.shape[1] % 8 or not c.is_contiguous() or e.data_ptr() % 16 or c.data_ptr() % 16:
        return f"needs a width that is a multiple of 8 and aligned rows, got width {e.shape[1]}"
    return None


def forward(problem: Problem, config: LossConfig) -> tuple[RowStats, State]:
    """Per-row statistics of the logits, none of which is stored."""
    wanted, bias = problem.wanted, problem.bias
    e = problem.e if problem.e.stride(-1) == 1 else problem.e.contiguous()
    head = Logit(
        problem.c,
        None if bias is None else bias.float().contiguous(),
        problem.head.scale,
        problem.head.softcap,
    )
    served = e.dtype == torch.bfloat16 and bias is None and not config.deterministic
    eps = config.eps if wanted.gradients and served else None
    rows = gather_rows(
        e,
        head.c,
        head.bias,
        problem.targets,
        scale=head.scale,
        softcap=head.softcap,
        compact=wanted.gradients or not e.is_contiguous(),
    )
    found = row_statistics(
        rows,
        head,
        mean=wanted.mean,
        entropy=wanted.entropy,
        mass=eps is not None,
        ordered=config.deterministic,
    )
    options = None if eps is None else Filter.of(eps)
    kind = None if bias is None else bias.dtype
    return _spread(rows, found), State(rows, head, found, options, wanted, kind)


def _spread(rows: Rows, found: RowStatistics) -> RowStats:
    """Back to the order of E; zero where a row does not count."""
    place = rows.index.long()
    counted = (torch.arange(len(place), device=place.device) < rows.count) & (rows.labels >= 0)
    label = rows.label_logit
    tied = label >= found.peak - TIE * found.peak.abs().clamp(min=1.0)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(values).scatter_(0, place, values.masked_fill(~counted, 0.0))

    return RowStats(
        lse=spread(found.lse),
        label_logit=spread(label),
        row_max=spread(torch.where(tied, label, found.peak)),
        mean_logit=None if found.mean is None else spread(found.mean),
        entropy=None if found.entropy is None else spread(found.entropy),
    )


def backward(state: State, upstream: RowGrads) -> Gradients:
    """The gradients that the problem wanted, from those of its statistics."""
    rows, head, wanted = state.rows, state.logit, state.wanted
    place = rows.index.long()
    counted = torch.arange(len(place), device=place.device) < rows.count

    def compact(values: torch.Tensor) -> torch.Tensor:
        return torch.where(counted, values[place].float(), 0.0)

    given = Upstream(
        state.statistics.lse,
        compact(upstream.lse),
        compact(upstream.label_logit),
        None if upstream.mean_logit is None else compact(upstream.mean_logit),
    )
    shape = (len(place), head.c.shape[1])
    targets = Targets(
        torch.zeros(shape, dtype=rows.e.dtype, device=place.device) if wanted.e else None,
        torch.empty_like(head.c) if wanted.c else None,
        torch.empty_like(head.bias) if wanted.bias and head.bias is not None else None,
    )
    state.exact = _filtered(state, given, targets)
    exact_gradients(rows, head, given, targets, state.exact)
    dbias = targets.dbias
    return Gradients(targets.de, targets.dc, None if dbias is None else dbias.to(state.bias_dtype))


def _filtered(state: State, upstream: Upstream, targets: Targets) -> torch.Tensor | None:
    """The filtered gradients, once; the masses it consumes are freed. None where not served."""
    options, statistics = state.filter, state.statistics
    if options is None or upstream.g_mean is not None:
        return None
    state.filter, state.statistics = None, replace(statistics, mass=None)
    return filtered_gradients(state.rows, state.logit, statistics, upstream, targets, options)
