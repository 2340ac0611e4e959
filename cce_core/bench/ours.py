"""This package's implementations in the benchmark: the kernels by preset, and the blocked one."""

import math
from collections.abc import Sequence

import torch

from cce_core import blocked
from cce_core.bench.data import Case
from cce_core.bench.measure import Implementation
from cce_core.config import LossConfig
from cce_core.kernels import loss
from cce_core.problem import Head, Problem, RowGrads, RowStats, Wanted

NAME = "headroom"
FROZEN = "frozen head"
"""The default preset where no gradient of C is wanted, as in LoRA."""


def implementation(case: Case, preset: str, config: LossConfig, *, head: bool) -> Implementation:
    """Ours under `config`; no gradient of C unless `head`. `preset` names the row."""
    kept = (case.targets >= 0).float()
    upstream = kept / kept.sum()
    engine = blocked if config.implementation == "blocked" else loss

    def posed(wanted: Wanted) -> Problem:
        return Problem(case.e, case.c, None, case.targets, Head(case.shape.softcap), wanted)

    def mean(found: RowStats) -> torch.Tensor:
        return torch.dot(found.lse - found.label_logit, upstream)

    def forward() -> torch.Tensor:
        return mean(engine.forward(posed(Wanted()), config)[0])

    def both() -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        problem = posed(Wanted(e=True, c=head))
        found, state = engine.forward(problem, config)
        grads = engine.backward(problem, config, found.lse, state, RowGrads(upstream, -upstream))
        return mean(found), grads.e, grads.c

    return Implementation(NAME, preset, forward, both)


def filter_preset(eps: float) -> str:
    """The name of the default preset at another threshold: "eps=2^-10"."""
    return f"eps=2^{math.log2(eps):g}"


def presets(eps: Sequence[float] = ()) -> dict[str, LossConfig]:
    """The configurations that are measured, by the name of their rows."""
    return {
        "default": LossConfig(),
        "exact": LossConfig(preset="exact"),
        FROZEN: LossConfig(),
        "blocked": LossConfig(implementation="blocked"),
        **{filter_preset(value): LossConfig(filter_eps=value) for value in eps},
    }


def implementations(case: Case, eps: Sequence[float] = ()) -> list[Implementation]:
    """Every preset; the forward column is the loss alone, for which nothing is kept."""
    return [
        implementation(case, name, config, head=name != FROZEN)
        for name, config in presets(eps).items()
    ]
