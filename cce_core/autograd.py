"""The derivative of the row statistics, whichever implementation computes them.

It belongs to the operator, so that it is the same in plain use, in torch.compile, whose graph holds
the operator alone, and in torch.func.grad, whose levels each find it in turn. It saves the inputs,
the log-sum-exp, and the state that the forward left; autograd drops them with the backward, so that
a loss that is kept keeps no scratch alive. A second backward through a retained graph works. Higher
derivatives, forward mode and vmap are refused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction

from cce_core import operators
from cce_core.config import LossConfig
from cce_core.operators import Options, Tensors, present, restored
from cce_core.problem import Problem, RowStats

_LSE, _LABEL, _ROW_MAX, _MEAN, _ENTROPY = range(len(RowStats._fields))


class _FirstDerivative(_SingleLevelFunction):
    """A step of autograd inside an operator.

    torch.library's own formulas, and torch.autograd.Function, serve a call above the dispatcher
    alone and refuse to run inside one that torch.func makes. What they derive from serves the one
    level of torch.func that the operator is at, if any; below it the operator is called again.
    """

    @classmethod
    def of(cls, *arguments: Any) -> tuple[torch.Tensor, ...]:
        """Take the step."""
        with enable_single_level_autograd_function():
            outputs: tuple[torch.Tensor, ...] = cls.apply(*arguments)  # type: ignore[attr-defined]
        return outputs

    @staticmethod
    def below(operator: Any, *arguments: Any) -> Any:
        """Call an operator without its derivative at this level."""
        with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Any) -> Any:
        """Refuse forward mode."""
        raise _not_derived()


def _not_derived() -> NotImplementedError:
    return NotImplementedError(
        "cut cross-entropy has first derivatives, in reverse mode, only; "
        "LossConfig(implementation='reference') has the others"
    )


class _Statistics(_FirstDerivative):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor, ...]:
        *tensors, ctx.learning, ctx.options = arguments
        found, state = _FirstDerivative.below(
            operators.row_statistics, *tensors, ctx.learning, *ctx.options
        )
        stats = restored(found, ctx.options.statistics)
        ctx.save_for_backward(*tensors, stats[_LSE], *state)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*present((stats[_ROW_MAX], stats[_ENTROPY])), *state)
        return (*found, *state)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> Any:
        e, c, bias, targets, lse, *state = ctx.saved_tensors
        given = restored(upstream, ctx.options.statistics)
        g_lse, g_label, g_mean = given[_LSE], given[_LABEL], given[_MEAN]
        if g_lse is None and g_label is None and g_mean is None:
            return (None,) * 6
        g_lse, g_label = (torch.zeros_like(lse) if g is None else g for g in (g_lse, g_label))
        found = operators.row_gradients(
            *(e, c, bias, targets, ctx.learning),
            *(lse, state, g_lse, g_label, g_mean),
            *ctx.options,
        )
        return *restored(found, ctx.learning), None, None, None


@operators.kernel("row_statistics", "Autograd")
def _statistics(
    e: torch.Tensor,
    c: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    learning: Sequence[bool],
    *options: Any,
) -> tuple[Tensors, Tensors]:
    """Ask for what this level of autograd needs, beside what the level above asks for."""
    learning = [
        asked or (torch.is_grad_enabled() and x is not None and x.requires_grad)
        for asked, x in zip(learning, (e, c, bias), strict=True)
    ]
    named = Options(*options)
    found = _Statistics.of(e, c, bias, targets, learning, named)
    count = sum(named.statistics)
    return list(found[:count]), list(found[count:])


class _Gradients(_FirstDerivative):
    @staticmethod
    def forward(_ctx: Any, *arguments: Any) -> tuple[torch.Tensor, ...]:
        return tuple(_FirstDerivative.below(operators.row_gradients, *arguments))

    @staticmethod
    def backward(_ctx: Any, *_upstream: torch.Tensor | None) -> Any:
        raise _not_derived()


@operators.kernel("row_gradients", "Autograd")
def _gradients(*arguments: Any) -> Tensors:
    return list(_Gradients.of(*arguments))


def _no_vmap(*_arguments: Any) -> Any:
    raise NotImplementedError(
        "cut cross-entropy takes no vmap: its rows are a batch already; give e as (..., D)"
    )


for _name in ("row_statistics", "row_gradients"):
    torch.library.register_vmap(f"cce_core::{_name}", _no_vmap, lib=operators.library)
    operators.kernel(_name, "Batched")(_no_vmap)  # the older vmap, of torch.autograd itself


def row_statistics(problem: Problem, config: LossConfig) -> RowStats:
    """Return the statistics of `problem`, differentiable in E, C and bias.

    Which gradients are wanted is seen from the tensors; `problem.wanted` need not name them.

    Raises:
        ImplementationUnavailable: `config` names an implementation that cannot serve the problem.
    """
    options = Options.of(problem, config)
    tensors = (problem.e, problem.c, problem.bias, problem.targets)
    found, _state = operators.row_statistics(*tensors, [False, False, False], *options)
    lse, label, row_max, *rest = found
    mean, entropy = restored(rest, options.statistics[_MEAN:])
    return RowStats(lse, label, row_max, mean, entropy)
