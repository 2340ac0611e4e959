"""The same loss by others: full logits, torch's own, cut-cross-entropy, Liger, Quack.

Peers are an extra of the benchmark: one that is not installed, or does not serve a case, is
reported with the reason.
"""

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
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


def _chunked(case: Case) -> Loss:
    """By chunks of rows: torch's own, as of 2.13."""
    options = torch.nn.LinearCrossEntropyOptions()

    def call(e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return functional.linear_cross_entropy(
            e, c, case.targets, ignore_index=IGNORE_INDEX, options=options
        )

    return call


def _quack(case: Case) -> Loss:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    # Its own default, 4096, except where that is D: 0.6.5 tells rows from columns by their number.
    chunk = 2048 if case.shape.d == 4096 else 4096

    def call(e: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = chunked_linear_cross_entropy(
            e, c, case.targets, chunk, ignore_index=IGNORE_INDEX
        )
        return value

    return call


def refuses(case: Case, name: str) -> str | None:
    """Why a peer cannot be measured on a case; None if it can."""
    module = MODULES.get(name)
    if module is not None and importlib.util.find_spec(module) is None:
        return f"{name} is not installed"
    if name == TORCH and not hasattr(functional, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no linear_cross_entropy"
    if name in (TORCH, QUACK) and case.shape.softcap is not None:
        return f"{name} has no softcap"
    return None


def implementations(case: Case, names: Sequence[str]) -> tuple[list[Implementation], list[str]]:
    """The peers asked for, and why the others among them are not measured."""
    reasons = {name: refuses(case, name) for name in names}
    found = []
    for name in (name for name in names if reasons[name] is None):
        preset, make = MAKERS[name]
        found.append(_differentiated(case, name, preset, make(case)))
    return found, [reason for reason in reasons.values() if reason is not None]


TORCH = "torch.linear_cross_entropy"
QUACK = "quack-kernels"
MODULES = {
    "cut-cross-entropy": "cut_cross_entropy",
    "liger-kernel": "liger_kernel",
    QUACK: "quack",
}
MAKERS: dict[str, tuple[str, Callable[[Case], Loss]]] = {
    "eager": ("", _full_logits),
    "torch.compile": ("", lambda case: torch.compile(_full_logits(case))),
    TORCH: ("chunked", _chunked),
    "cut-cross-entropy": ("cce", _cut),
    "liger-kernel": ("fused", _liger),
    QUACK: ("chunked", _quack),
}
NAMES = tuple(MAKERS)
