"""The implementations as two torch operators, which compilers call and do not look into.

    cce_core::row_statistics    a Problem in, RowStats and a state out
    cce_core::row_gradients     the same, state and upstream gradients in, Gradients out

An operator takes tensors and plain numbers and returns tensors. So a problem and its config travel
as their tensors and `Options`, and of what is returned, that which is not None. Shapes and dtypes
are known without running anything, so a traced program goes on behind them. Which implementation
runs is the registry's rule, in the trace as in the run. Derivatives are in `autograd`.

row_gradients uses its state up, which its schema does not say: `Implementation.backward` keeps a
second use right, and nobody else reads it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch._compile import _disable_dynamo

from cce_core import registry
from cce_core.config import ImplementationName, LossConfig, Preset
from cce_core.problem import Head, Implementation, Problem, RowGrads, Wanted

Tensors = list[torch.Tensor]
Fields = Sequence[torch.Tensor | None]


class Options(NamedTuple):
    """What of a problem and its config is no tensor, as the operators' schemas spell it."""

    implementation: ImplementationName
    preset: Preset
    eps: float | None  # LossConfig.filter_eps, None where it is "auto"
    auto: bool
    deterministic: bool
    scratch_bytes: int | None
    softcap: float | None
    scale: float
    mean: bool
    entropy: bool

    @classmethod
    def of(cls, problem: Problem, config: LossConfig) -> "Options":
        """Those of a call."""
        head, wanted = problem.head, problem.wanted
        eps = config.filter_eps
        return cls(
            config.implementation,
            config.preset,
            None if eps == "auto" else eps,
            eps == "auto",
            config.deterministic,
            config.scratch_bytes,
            head.softcap,
            head.scale,
            wanted.mean,
            wanted.entropy,
        )

    @property
    def config(self) -> LossConfig:
        """The config of the call, as it was given."""
        return LossConfig(
            self.implementation,
            self.preset,
            "auto" if self.auto else self.eps,
            self.deterministic,
            self.scratch_bytes,
        )

    @property
    def statistics(self) -> tuple[bool, ...]:
        """Which fields of `RowStats` are not None."""
        return (True, True, True, self.mean, self.entropy)


def present(fields: Fields) -> Tensors:
    """Those that are not None."""
    return [field for field in fields if field is not None]


def restored(tensors: Fields, there: Sequence[bool]) -> list[torch.Tensor | None]:
    """All fields, of which `tensors` are those not None."""
    left = list(tensors)
    return [left.pop(0) if here else None for here in there]


library = torch.library.Library("cce_core", "DEF")  # type: ignore[no-untyped-call]  # torch's own
# `learning`: which gradients a backward will be asked for, of e, c and bias.
_INPUTS = "Tensor e, Tensor c, Tensor? bias, Tensor targets, bool[] learning"
_OPTIONS = (
    "str implementation, str preset, float? eps, bool auto, bool deterministic, "
    "SymInt? scratch_bytes, "
    "float? softcap, float scale, bool mean, bool entropy"
)
_UPSTREAM = "Tensor lse, Tensor[] state, Tensor g_lse, Tensor g_label, Tensor? g_mean"
for _schema in (
    f"row_statistics({_INPUTS}, {_OPTIONS}) -> (Tensor[], Tensor[])",
    f"row_gradients({_INPUTS}, {_UPSTREAM}, {_OPTIONS}) -> Tensor[]",
):
    library.define(_schema, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]  # likewise
row_statistics = torch.ops.cce_core.row_statistics.default
row_gradients = torch.ops.cce_core.row_gradients.default
Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def kernel(operator: str, key: str) -> Callable[[Kernel], Kernel]:
    """Register a function as what an operator does at a dispatch key, hidden from torch.compile.

    Where the caller of the operator could not be compiled, the compiler would try its body.
    """

    def register(function: Kernel) -> Kernel:
        library.impl(operator, _disable_dynamo(function), key)  # type: ignore[no-untyped-call]
        return function

    return register


class _Call:
    """A call as the implementations see it."""

    def __init__(
        self,
        e: torch.Tensor,
        c: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        learning: Sequence[bool],
        options: Sequence[Any],
    ) -> None:
        self.options = Options(*options)
        head = Head(self.options.softcap, self.options.scale)
        of_e, of_c, of_bias = learning
        wanted = Wanted(of_e, of_c, of_bias, self.options.mean, self.options.entropy)
        self.problem = Problem(e, c, bias, targets, head, wanted)
        self.config = self.options.config

    @property
    def implementation(self) -> Implementation:
        return registry.choose(self.problem, self.config)


@kernel("row_statistics", "CompositeExplicitAutograd")
def _statistics(
    e: torch.Tensor,
    c: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    learning: Sequence[bool],
    *options: Any,
) -> tuple[Tensors, Tensors]:
    call = _Call(e, c, bias, targets, learning, options)
    with torch.autocast(e.device.type, enabled=False):
        stats, state = call.implementation.forward(call.problem, call.config)
    return present(stats), list(state)


def _statistics_shapes(
    e: torch.Tensor,
    c: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    learning: Sequence[bool],
    *options: Any,
) -> tuple[Tensors, Tensors]:
    call = _Call(e, c, bias, targets, learning, options)
    kind, n = call.problem.accumulator, e.shape[0]
    stats = [e.new_empty(n, dtype=kind) for here in call.options.statistics if here]
    return stats, list(call.implementation.new_state(call.problem, call.config))


torch.library.register_fake("cce_core::row_statistics", _statistics_shapes, lib=library)


@kernel("row_gradients", "CompositeExplicitAutograd")
def _gradients(
    e: torch.Tensor,
    c: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    learning: Sequence[bool],
    lse: torch.Tensor,
    state: Tensors,
    g_lse: torch.Tensor,
    g_label: torch.Tensor,
    g_mean: torch.Tensor | None,
    *options: Any,
) -> Tensors:
    call = _Call(e, c, bias, targets, learning, options)
    upstream = RowGrads(g_lse, g_label, g_mean)
    with torch.autocast(e.device.type, enabled=False):
        found = call.implementation.backward(call.problem, call.config, lse, state, upstream)
    return present(found)


def _gradients_shapes(
    e: torch.Tensor,
    c: torch.Tensor,
    bias: torch.Tensor | None,
    _targets: torch.Tensor,
    learning: Sequence[bool],
    *_rest: Any,
) -> Tensors:
    inputs = zip((e, c, bias), learning, strict=True)
    return [x.new_empty(x.shape) for x, here in inputs if here and x is not None]


torch.library.register_fake("cce_core::row_gradients", _gradients_shapes, lib=library)
