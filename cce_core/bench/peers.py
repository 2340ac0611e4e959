"""The same loss by others: eager and compiled full logits, cut-cross-entropy, Liger.

Peers are an extra of the benchmark: one that is not installed is reported as absent.
"""

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy

from cce_core.bench.data import IGNORE_INDEX, Case
from cce_core.bench.measure import Implementation

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _differentiated(case: Case, name: str, preset: str, call: Loss) -> Implementation:
    e, c = case.e.detach().requires_grad_(), case.c.detach().requires_grad_()

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return call(e, c)

    def both() -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        value = call(e, c)
        de, dc = torch.autograd.grad(value, (e, c))
        return value.detach(), de, dc

    return Implementation(name, preset, forward, both)


def _full_logits(case: Case) -> Loss:
    cap, targets = case.shape.softcap, case.targets

    def call(e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        z = (e @ c.T).float()
        if cap is not None:
            z = cap * torch.tanh(z / cap)
        return cross_entropy(z, targets, ignore_index=IGNORE_INDEX)

    return call


def _cut(case: Case) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    def call(e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = linear_cross_entropy(e, c, case.targets, softcap=case.shape.softcap)
        return value

    return call


def _liger(case: Case) -> Loss:
    from liger_kernel.transformers import (
        LigerFusedLinearCrossEntropyLoss,
    )

    loss = LigerFusedLinearCrossEntropyLoss(softcap=case.shape.softcap)

    def call(e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = loss(c, e, case.targets)
        return value

    return call


def implementations(case: Case, names: Sequence[str]) -> tuple[list[Implementation], list[str]]:
    """The peers asked for, and the names of those that are not installed."""
    found, absent = [], []
    for name in names:
        module = {"cut-cross-entropy": "cut_cross_entropy", "liger-kernel": "liger_kernel"}.get(
            name
        )
        if module is not None and importlib.util.find_spec(module) is None:
            absent.append(name)
        elif name == "eager":
            found.append(_differentiated(case, name, "", _full_logits(case)))
        elif name == "torch.compile":
            compiled = torch.compile(_full_logits(case))
            found.append(_differentiated(case, name, "", compiled))
        elif name == "cut-cross-entropy":
            found.append(_differentiated(case, name, "cce", _cut(case)))
        else:
            found.append(_differentiated(case, name, "fused", _liger(case)))
    return found, absent


NAMES = ("eager", "torch.compile", "cut-cross-entropy", "liger-kernel")
