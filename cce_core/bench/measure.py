"""Time, peak memory and error of one implementation on one case."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from cce_core.bench.data import Case
from cce_core.bench.report import Row

MIB = 2**20


@dataclass(frozen=True)
class Gradients:
    """fp32 references of dE and dC and the loss, mean reduction."""

    e: torch.Tensor
    c: torch.Tensor
    loss: float


@dataclass(frozen=True)
class Implementation:
    """Two closures over one case's tensors; each returns what it computed."""

    name: str
    preset: str
    forward: Callable[[], torch.Tensor]
    both: Callable[[], tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]


def median_ms(call: Callable[[], object], repeats: int, warmup: int = 2) -> float:
    """The median time of a call by device events, in ms, calls queued as in a training loop."""
    spans = []
    for _ in range(warmup + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's own
        begin.record()
        call()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    return float(statistics.median(begin.elapsed_time(end) for begin, end in spans[warmup:]))


def peak_mib(call: Callable[[], object]) -> float:
    """The device memory that a call takes at its highest, above what is held before, in MiB."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / MIB


def one_matmul(case: Case) -> Callable[[], None]:
    """The unit of the ratios: one N x V x D product in bf16 by the vendor's library."""
    out = torch.empty(len(case.e), case.shape.v, dtype=case.e.dtype, device=case.e.device)

    def call() -> None:
        torch.mm(case.e, case.c.T, out=out)

    return call


def reference(case: Case) -> Gradients:
    """Loss and gradients in fp32, without tf32, by chunks of rows."""
    kept = case.targets >= 0
    count = int(kept.sum())
    c = case.c.float()
    de = torch.zeros(case.e.shape, device=c.device)
    dc = torch.zeros_like(c)
    total = 0.0
    for rows in torch.arange(len(case.e), device=c.device)[kept].split(512):  # type: ignore[no-untyped-call]  # torch's own
        e = case.e[rows].float()
        z, slope = _logits(e, c, case.shape.softcap)
        total += cross_entropy(z, case.targets[rows], reduction="sum").item()
        dz = torch.softmax(z, 1)
        dz[torch.arange(len(rows), device=c.device), case.targets[rows]] -= 1
        dz *= slope / count
        de[rows] = dz @ c
        dc.addmm_(dz.T, e)
    return Gradients(de, dc, total / count)


def _logits(
    e: torch.Tensor, c: torch.Tensor, cap: float | None
) -> tuple[torch.Tensor, torch.Tensor | float]:
    z = e @ c.T
    if cap is None:
        return z, 1.0
    z = cap * torch.tanh(z / cap)
    return z, 1 - (z / cap) ** 2


def relative_error(got: torch.Tensor | None, expected: torch.Tensor) -> float | None:
    """||got - expected|| / ||expected||, by parts, in fp32 sums of each part."""
    if got is None:
        return None
    difference, norm = 0.0, 0.0
    for first in range(0, len(expected), 16384):
        part, truth = got[first : first + 16384], expected[first : first + 16384]
        difference += ((part.float() - truth) ** 2).sum().item()
        norm += (truth**2).sum().item()
    return float((difference / norm) ** 0.5)


def measure(case: Case, implementation: Implementation, truth: Gradients, repeats: int) -> Row:
    """A row of results; times in ms, memory in MiB above the inputs."""
    loss, de, dc = implementation.both()
    row: Row = {
        "shape": case.shape.name,
        "data": case.kind,
        "impl": implementation.name,
        "preset": implementation.preset,
        "n": len(case.e),
        "v": case.shape.v,
        "d": case.shape.d,
        "err_de": relative_error(de, truth.e),
        "err_dc": relative_error(dc, truth.c),
        "dloss": abs(loss.item() - truth.loss),
    }
    gradients = sum(g.nbytes for g in (de, dc) if g is not None) / MIB
    del loss, de, dc
    row["fw_peak_mib"] = peak_mib(implementation.forward)
    row["fwbw_peak_mib"] = peak_mib(implementation.both)
    row["scratch_mib"] = row["fwbw_peak_mib"] - gradients
    row["fw_ms"] = median_ms(implementation.forward, repeats)
    row["fwbw_ms"] = median_ms(implementation.both, repeats)
    return row
