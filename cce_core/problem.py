"""The seam: what an implementation of the loss is given, and what it gives back.

    z[i, v] = cap(scale * (E[i] . C[v] + bias[v]))        cap(x) = softcap * tanh(x / softcap)

An implementation turns a Problem into a few numbers per row, and gradients of those numbers into
gradients of E, C and bias. Everything else (reductions, label smoothing, z-loss, row weights) is
ordinary differentiable torch on vectors of length N, outside of it. The gradient it computes is

    dz[i, v] = g_lse[i] p[i, v] + g_label[i] [v = y[i]] + g_mean[i] / V        p = softmax(z)

through cap and scale. N rows, V vocabulary, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from cce_core.config import LossConfig


@dataclass(frozen=True)
class Head:
    """How a dot product becomes a logit."""

    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Wanted:
    """What the caller will use: gradients of which input, and which statistics."""

    e: bool = False
    c: bool = False
    bias: bool = False
    mean: bool = False
    entropy: bool = False

    @property
    def gradients(self) -> bool:
        """Whether a backward may follow."""
        return self.e or self.c or self.bias


@dataclass(frozen=True)
class Problem:
    """One call, validated: shapes, dtypes and devices fit; V and D are positive.

    Strides are the caller's own, whatever they are. N = 0 goes to the blocked implementation.
    """

    e: torch.Tensor  # (N, D), floating
    c: torch.Tensor  # (V, D), the same dtype and device
    bias: torch.Tensor | None  # (V,), floating, perhaps of another dtype
    targets: torch.Tensor  # (N,) int64; negative: the row does not count
    head: Head
    wanted: Wanted

    @property
    def accumulator(self) -> torch.dtype:
        """The dtype of statistics and sums: fp64 for fp64 inputs, else fp32."""
        return torch.float64 if self.e.dtype == torch.float64 else torch.float32


class RowStats(NamedTuple):
    """Per row of E, (N,), in the accumulator's dtype; zero where a row does not count.

    `label_logit == row_max` if and only if the label is an argmax: both come from the same
    rounding of the same logit. `row_max` and `entropy` carry no gradient.
    """

    lse: torch.Tensor  # log sum_v exp z
    label_logit: torch.Tensor  # z at the label
    row_max: torch.Tensor  # max_v z
    mean_logit: torch.Tensor | None = None  # mean_v z, where wanted
    entropy: torch.Tensor | None = None  # lse - sum_v p z, where wanted


class RowGrads(NamedTuple):
    """Upstream gradients of the statistics, (N,), of any stride; rows that don't count have any."""

    lse: torch.Tensor
    label_logit: torch.Tensor
    mean_logit: torch.Tensor | None = None


class Gradients(NamedTuple):
    """Gradients in their inputs' shapes and dtypes; None where not wanted."""

    e: torch.Tensor | None
    c: torch.Tensor | None
    bias: torch.Tensor | None


State = Sequence[torch.Tensor]
"""What a forward leaves for its backward, beside the inputs and the log-sum-exp."""


class Implementation(Protocol):
    """Computes a Problem. A module with these four functions is one.

    They run below autograd and outside of autocast, as the bodies of torch operators: what they
    return is new memory, and its shapes follow from those of the problem.
    """

    def refuses(self, problem: Problem, config: LossConfig) -> str | None:
        """Why this problem cannot be served ("needs ..., got ..."); None if it can.

        Looks at shapes, dtypes, strides and devices alone, which a traced tensor has too.
        """
        ...

    def forward(self, problem: Problem, config: LossConfig) -> tuple[RowStats, State]:
        """Return the statistics, and a state for `backward`.

        Rows whose target is negative take no part, whatever E holds there.
        """
        ...

    def new_state(self, problem: Problem, config: LossConfig) -> State:
        """A state as `forward` returns it, in shapes and dtypes; what it holds is unspecified."""
        ...

    def backward(
        self,
        problem: Problem,
        config: LossConfig,
        lse: torch.Tensor,
        state: State,
        upstream: RowGrads,
    ) -> Gradients:
        """Return the gradients that `problem.wanted` named, from those of the statistics.

        `lse` is the forward's. The state may be used up, yet it serves again: more slowly, but
        with gradients no less exact.
        """
        ...
