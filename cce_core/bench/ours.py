"""This package's kernels as implementations of the benchmark, by preset."""

from typing import Any

import torch

from cce_core.bench.data import Case
from cce_core.bench.measure import Implementation
from cce_core.config import LossConfig
from cce_core.kernels import loss
from cce_core.problem import Head, Problem, RowGrads, Wanted


def _implementation(case: Case, preset: str, config: LossConfig, *, head: bool) -> Implementation:
    kept = (case.targets >= 0).float()
    upstream = kept / kept.sum()

    def rows(wanted: Wanted) -> tuple[torch.Tensor, Any]:
        logit = Head(case.shape.softcap)
        problem = Problem(case.e, case.c, None, case.targets, logit, wanted)
        found, state = loss.forward(problem, config)
        return torch.dot(found.lse - found.label_logit, upstream), state

    def forward() -> torch.Tensor:
        return rows(Wanted())[0]

    def both() -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        value, state = rows(Wanted(e=True, c=head))
        grads = loss.backward(state, RowGrads(upstream, -upstream))
        return value, grads.e, grads.c

    return Implementation("headroom", preset, forward, both)


def implementations(case: Case) -> list[Implementation]:
    """Default, exact, and default with a frozen head; the forward column is the loss alone."""
    return [
        _implementation(case, "default", LossConfig(), head=True),
        _implementation(case, "exact", LossConfig(preset="exact"), head=True),
        _implementation(case, "frozen head", LossConfig(), head=False),
    ]
