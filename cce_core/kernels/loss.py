"""The Triton implementation of the loss: what it serves, its forward and its backward.

Rule of use: CUDA of compute capability 8.0 or later (or the interpreter), E and C both bf16 or both
fp16, D a multiple of 8, C contiguous and 16-byte aligned for the tensor copy engine, a softcap of
at most 16384, beyond which a difference of large numbers would show in the loss; E and the rest as
they come. fp32 is the blocked implementation's: in full precision, torch's default, these tiles
have no tensor cores to use and spill 12 KiB a thread (compiled for Hopper), while the vendor's
products follow torch's setting for tf32.

The filtered backward serves bf16 without bias and without the mean logit, and not the deterministic
mode, since the order of its lists varies; what it does not serve is computed exactly, which is
always right. Unless a threshold is asked for by number, small problems are exact too: the host
takes about 4 ms for the filter's launches, and on an H200 exact is as fast up to 5 * 2**36 products
(2**38, of 1024 rows: 3.3 ms against 4.1; 3 * 2**37: 5.9 against 4.5).
"""

import torch

from cce_core.config import LossConfig
from cce_core.kernels.filtered import filtered_gradients
from cce_core.kernels.filtering import Filter, Job, Masses
from cce_core.kernels.launch import Logit
from cce_core.kernels.rows import Rows, gather_rows
from cce_core.kernels.slices import Targets, exact_gradients
from cce_core.kernels.statistics import Asked, row_statistics
from cce_core.kernels.tiling import interpreted, tilings
from cce_core.kernels.upstream import gather_shares, gather_upstream
from cce_core.problem import Gradients, Problem, RowGrads, RowStats, State

WORTH = 5 * 2**36
"""Products N V D from which on the filter is faster than the exact backward."""

MOST_SOFTCAP = 2.0**14
"""The largest softcap: the logits' error is a few 1e-7 of it (see `primitives.capped`)."""

ALIGNMENT = 16
"""Bytes: the tensor copy engine's."""


def refuses(problem: Problem, config: LossConfig) -> str | None:  # noqa: ARG001  the seam's shape
    """Why this problem cannot be served; None if it can. The rule is the module's."""
    e, c = problem.e, problem.c
    if (reason := _refuses_device(e.device)) is not None:
        return reason
    if e.dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16, got {e.dtype}"
    if e.shape[1] % 8:
        return f"needs a width that is a multiple of 8, got {e.shape[1]}"
    softcap = problem.head.softcap
    if softcap is not None and softcap > MOST_SOFTCAP:
        return f"needs a softcap up to {MOST_SOFTCAP:g}, got {softcap:g}"
    if not c.is_contiguous() or c.storage_offset() * c.element_size() % ALIGNMENT:
        return (
            f"needs a contiguous c that begins at a multiple of {ALIGNMENT} bytes, got strides "
            f"{c.stride()} and an offset of {c.storage_offset()} numbers"
        )
    return None


def _refuses_device(device: torch.device) -> str | None:
    if interpreted():
        return None
    if device.type != "cuda":
        return f"needs CUDA tensors, got {device}"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return "needs a GPU of compute capability 8.0 or later"
    return None


def _filter(problem: Problem, config: LossConfig) -> Filter | None:
    """The filter of this problem's backward; None where it is exact."""
    wanted = problem.wanted
    served = problem.e.dtype == torch.bfloat16 and problem.bias is None and not wanted.mean
    if config.eps is None or config.deterministic or not served or not wanted.gradients:
        return None
    size = problem.e.numel() * problem.c.shape[0]
    if config.filter_eps == "auto" and size < WORTH and not interpreted():
        return None
    return Filter.of(config.eps)


def _logit(problem: Problem) -> Logit:
    bias = None if problem.bias is None else problem.bias.float().contiguous()
    return Logit(problem.c, bias, problem.head.scale, problem.head.softcap)


def forward(problem: Problem, config: LossConfig) -> tuple[RowStats, State]:
    """Per-row statistics of the logits, none of which is stored."""
    wanted, head = problem.wanted, _logit(problem)
    options = _filter(problem, config)
    rows, label_logit = gather_rows(
        problem.e if problem.e.stride(-1) == 1 else problem.e.contiguous(),
        head.c,
        head.bias,
        problem.targets,
        scale=head.scale,
        softcap=head.softcap,
        compact=wanted.gradients or not _readable(problem.e),
    )
    asked = Asked(wanted.mean, wanted.entropy, options is not None, config.deterministic)
    stats, masses = row_statistics(rows, label_logit, head, asked)
    if not wanted.gradients:
        return stats, ()
    return stats, rows.tensors if masses is None else (*rows.tensors, *masses)


def _readable(e: torch.Tensor) -> bool:
    """Whether the tensor copy engine can read E where it stands."""
    return e.is_contiguous() and e.data_ptr() % ALIGNMENT == 0


def new_state(problem: Problem, config: LossConfig) -> State:
    """The rows that count, and their masses where the backward filters; shapes alone."""
    if not problem.wanted.gradients:
        return ()
    e, n = problem.e, problem.e.shape[0]
    new = e.new_empty
    rows = Rows(
        e=new(e.shape),
        labels=new(n, dtype=torch.int64),
        index=new(n, dtype=torch.int32),
        count=new((), dtype=torch.int32),
    )
    if _filter(problem, config) is None:
        return rows.tensors
    block = tilings(e.device).block
    blocks = (problem.c.shape[0] + block - 1) // block
    masses = Masses(
        ref=new(n, dtype=torch.float32),
        mass=new((blocks, n), dtype=torch.bfloat16),
        exact=new((), dtype=torch.int32),
    )
    return (*rows.tensors, *masses)


def backward(
    problem: Problem,
    config: LossConfig,
    lse: torch.Tensor,
    state: State,
    upstream: RowGrads,
) -> Gradients:
    """The gradients that the problem wanted, from those of its statistics."""
    e, labels, index, count, *left = state
    rows = Rows(e, labels, index, count)
    head, wanted, bias = _logit(problem), problem.wanted, problem.bias
    targets = Targets(
        torch.zeros_like(rows.e) if wanted.e else None,
        torch.empty_like(head.c) if wanted.c else None,
        torch.empty_like(head.bias) if wanted.bias and head.bias is not None else None,
    )
    options = _filter(problem, config)
    if options is None:
        exact_gradients(rows, head, gather_upstream(rows, lse, upstream), targets)
    else:
        masses = Masses(*left)
        given, shares = gather_shares(rows, lse, upstream, masses.ref)
        job = Job(rows, head, masses, given, shares, targets, options)
        exact_gradients(rows, head, given, targets, filtered_gradients(job), masses.mass.nbytes)
    dbias = targets.dbias
    return Gradients(
        targets.de,
        targets.dc,
        None if dbias is None or bias is None else dbias.to(bias.dtype),
    )
