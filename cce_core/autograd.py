"""Row statistics as one differentiable step, whichever implementation computes them.

The step saves its inputs, and a state that the implementation made in the forward. The state serves
one backward and is dropped there, so that a loss that is kept keeps no scratch alive; a second
backward through a retained graph runs the forward again. torch.func.grad works; higher derivatives
and vmap do not: the reference has them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function

from cce_core.config import LossConfig
from cce_core.problem import Gradients, Head, Implementation, Problem, RowGrads, RowStats, Wanted

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]


@dataclass
class _Call:
    """One call of an implementation, without its tensors; holds the state until it is used."""

    implementation: Implementation
    config: LossConfig
    head: Head
    wanted: Wanted
    state: Any = None

    def forward(self, inputs: Inputs) -> RowStats:
        e, c, bias, targets = inputs
        problem = Problem(e, c, bias, targets, self.head, self.wanted)
        with torch.no_grad(), torch.autocast(e.device.type, enabled=False):
            stats, self.state = self.implementation.forward(problem, self.config)
        return stats

    def backward(self, inputs: Inputs, upstream: RowGrads) -> Gradients:
        if self.state is None:
            self.forward(inputs)
        state, self.state = self.state, None
        with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
            return self.implementation.backward(state, upstream)


class _Statistics(Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[torch.Tensor | None, ...]:
        call: _Call = arguments[4]
        stats = call.forward(arguments[:4])
        # An output refers to its graph; the state, which the graph holds, must not be one.
        return tuple(None if values is None else values.detach() for values in stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call = inputs[4]
        ctx.save_for_backward(*inputs[:4])
        ctx.set_materialize_grads(False)
        fixed = (output[2], output[4])  # row_max, entropy
        ctx.mark_non_differentiable(*(values for values in fixed if values is not None))

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
        g_lse, g_label, _, g_mean, _ = upstream
        if g_lse is None and g_label is None and g_mean is None:
            return None, None, None, None, None
        rows = ctx.saved_tensors[3]
        kind = next(g for g in (g_lse, g_label, g_mean) if g is not None)
        zeros = torch.zeros_like(rows, dtype=kind.dtype)
        g_lse, g_label = (zeros if g is None else g for g in (g_lse, g_label))
        gradients = _Gradients.apply(*ctx.saved_tensors, g_lse, g_label, g_mean, ctx.call)  # type: ignore[no-untyped-call]
        return (*gradients, None, None)


class _Gradients(Function):
    """The backward as a step of its own, which hands function transforms plain tensors."""

    @staticmethod
    def forward(*arguments: Any) -> Gradients:
        call: _Call = arguments[7]
        return call.backward(arguments[:4], RowGrads(*arguments[4:7]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
        raise NotImplementedError(
            "cut cross-entropy has first derivatives only; "
            "LossConfig(implementation='reference') has higher ones"
        )


def row_statistics(
    problem: Problem, implementation: Implementation, config: LossConfig
) -> RowStats:
    """Return the statistics of `problem`, differentiable in E, C and bias."""
    call = _Call(implementation, config, problem.head, problem.wanted)
    apply = _Statistics.apply
    if torch.compiler.is_compiling():  # its loops would be unrolled
        apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]
    stats = apply(problem.e, problem.c, problem.bias, problem.targets, call)  # type: ignore[no-untyped-call]
    return RowStats(*stats)
