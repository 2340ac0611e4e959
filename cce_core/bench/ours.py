"""This package's kernels as implementations of the benchmark, by preset."""

import torch

from cce_core.bench.data import Case
from cce_core.bench.measure import Implementation
from cce_core.kernels import loss

EPS = 2.0**-12


def _implementation(case: Case, preset: str, eps: float | None, *, head: bool) -> Implementation:
    kept = (case.targets >= 0).float()
    upstream = kept / kept.sum()

    def rows(*, gradients: bool) -> tuple[torch.Tensor, loss.Saved]:
        outputs, saved = loss.forward(
            case.e,
            case.c,
            None,
            case.targets,
            softcap=case.shape.softcap,
            gradients=gradients,
            eps=eps,
        )
        return torch.dot(outputs.lse - outputs.label_logit, upstream), saved

    def forward() -> torch.Tensor:
        return rows(gradients=False)[0]

    def both() -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        value, saved = rows(gradients=True)
        grads = loss.backward(saved, upstream, -upstream, with_c=head)
        return value, grads.e, grads.c

    return Implementation("headroom", preset, forward, both)


def implementations(case: Case) -> list[Implementation]:
    """Default, exact, and default with a frozen head; the forward column is the loss alone."""
    return [
        _implementation(case, "default", EPS, head=True),
        _implementation(case, "exact", None, head=True),
        _implementation(case, "frozen head", EPS, head=False),
    ]
