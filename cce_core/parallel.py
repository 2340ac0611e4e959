"""The loss over a head whose vocabulary is sharded by rows over the ranks of a process group.

Rank r holds V_r rows of C, and computes the statistics of its own logits, by any implementation:

    lse         = log sum_r exp(lse_r)          row_max    = max_r row_max_r
    label_logit = that of the rank with y       mean_logit = sum_r V_r mean_logit_r / V
    entropy     = lse - sum_r exp(lse_r - lse) (lse_r - entropy_r)

E, the targets and everything that follows are the same on every rank, and so is the loss. Forward:
two all-reduces of a few numbers a row. Backward: dC stays where C is, dE is summed, in its dtype,
by one all-reduce. The filter's threshold is relative to a rank's own share of the gradient, so more
is kept than on one device. N rows, V vocabulary, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Function
from torch.distributed import _functional_collectives as collectives

from cce_core.problem import Problem, RowStats


@dataclass(frozen=True)
class VocabularyShard:
    """Which rows of the whole head this rank's `c` is.

    Attributes:
        group: The ranks that hold the whole head together.
        first: Row of the whole head that `c` begins with.
        total: V, the rows of the whole head.

    Raises:
        ValueError: `first` is no row of the head.
    """

    group: dist.ProcessGroup
    first: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.total:
            raise ValueError(
                f"first must be in [0, {self.total}), the head's rows; got {self.first}"
            )

    @classmethod
    def chunked(cls, total: int, group: dist.ProcessGroup | None = None) -> "VocabularyShard":
        """The shard that torch.chunk and DTensor's Shard(0) make of `total` rows.

        `group` is the default one if None.
        """
        group = _group(group)
        ranks = dist.get_world_size(group)
        rows = -(-total // ranks)
        _check_sizes([min(rows, total - rank * rows) for rank in range(ranks)])
        return cls(group, dist.get_rank(group) * rows, total)

    @classmethod
    def stacked(cls, rows: int, group: dist.ProcessGroup | None = None) -> "VocabularyShard":
        """Shards of any sizes in the order of the ranks, of which this one has `rows` rows.

        The ranks tell each other, and the host waits: once for a head, not for each step.
        """
        group = _group(group)
        sizes: list[int] = [0] * dist.get_world_size(group)
        dist.all_gather_object(sizes, rows, group=group)
        _check_sizes(sizes)
        return cls(group, sum(sizes[: dist.get_rank(group)]), sum(sizes))


def _group(given: dist.ProcessGroup | None) -> dist.ProcessGroup:
    group = given or dist.group.WORLD
    if group is None:
        raise ValueError("group must be given where there is no default process group; got None")
    return group


def _check_sizes(sizes: list[int]) -> None:
    """Raise on every rank alike, so that none waits for one that has raised."""
    if min(sizes) < 1:
        raise ValueError(f"Every rank must hold at least one row of the head; got {sizes}")


def _reduced(values: torch.Tensor, how: str, group: dist.ProcessGroup) -> torch.Tensor:
    """All-reduce into new memory: in place, torch.compile of torch 2.11 loses the gradient."""
    sent = collectives.all_reduce(values.contiguous(), how, group)
    reduced: torch.Tensor = collectives.wait_tensor(sent)  # type: ignore[no-untyped-call]
    return reduced


class _Shared(Function):
    """The same tensor on every rank, of whose gradient each rank finds a part."""

    @staticmethod
    def forward(values: torch.Tensor, _group: dist.ProcessGroup) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: torch.Tensor) -> None:
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        return _Summed.apply(*upstream, ctx.group), None  # type: ignore[no-untyped-call]


class _Summed(Function):
    """The sum over the ranks, which all of them use in the same way."""

    @staticmethod
    def forward(values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        return _reduced(values, "sum", group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: torch.Tensor) -> None:
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        return _Shared.apply(*upstream, ctx.group), None  # type: ignore[no-untyped-call]


def row_statistics(
    problem: Problem, shard: VocabularyShard, compute: Callable[[Problem], RowStats]
) -> RowStats:
    """Return the statistics over the whole vocabulary, differentiable in E, C and bias.

    Args:
        problem: C and bias are the shard's, all else the same on every rank; the targets are rows
            of the whole head.
        shard: Which rows C is.
        compute: The statistics of a problem on one device.

    Raises:
        NotImplementedError: torch.func is transforming this inside torch.compile, which would not
            see the gradients' sums over the ranks. Outside of it they are right.
    """
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "a vocabulary over several ranks takes no torch.func transform inside torch.compile"
        )
    rows, targets, group = len(problem.c), problem.targets, shard.group
    here = (targets >= shard.first) & (targets < shard.first + rows)
    # A label that another rank holds is replaced by some column, whose logit then takes no part.
    local = torch.where(here, targets - shard.first, targets.clamp(max=0))
    e = _Shared.apply(problem.e, group)  # type: ignore[no-untyped-call]
    own = compute(replace(problem, e=e, targets=local))
    top, row_max = _reduced(torch.stack((own.lse.detach(), own.row_max)), "max", group)
    weight = torch.exp(own.lse - top)
    parts = [weight, torch.where(here, own.label_logit, 0)]
    if own.mean_logit is not None:
        parts.append(own.mean_logit * (rows / shard.total))
    if own.entropy is not None:
        parts.append(weight.detach() * (own.lse.detach() - own.entropy))
    total, label_logit, *rest = _Summed.apply(torch.stack(parts), group)  # type: ignore[no-untyped-call]
    lse = torch.where(targets >= 0, top + total.log(), 0)
    return RowStats(
        lse=lse,
        label_logit=label_logit,
        row_max=row_max,
        mean_logit=None if own.mean_logit is None else rest[0],
        entropy=None if own.entropy is None else (lse - rest[-1] / total).detach(),
    )


def shard_of(c: Any, given: VocabularyShard | None) -> VocabularyShard | None:
    """Which rows of the whole head `c` is: what a DTensor says itself, `given` for other tensors.

    Raises:
        ValueError: The DTensor is placed in another way, or both say it.
    """
    if not _is_dtensor(c):
        return given
    if given is not None:
        raise ValueError(
            "vocab_shard is for an ordinary c; got it with a DTensor, which says itself what it is"
        )
    split = [dim for dim, placement in enumerate(c.placements) if not placement.is_replicate()]
    if not split:
        return None
    if len(split) > 1 or not c.placements[split[0]].is_shard(0):
        raise ValueError(
            "c must be replicated, or sharded by its rows, Shard(0), over one dimension of its "
            f"mesh; got placements {c.placements}"
        )
    return VocabularyShard.chunked(c.shape[0], c.device_mesh.get_group(split[0]))


def local_parts(c: Any, bias: Any, **others: Any) -> tuple[Any, ...]:
    """Replace DTensors by their local parts, differentiably; others, and None, stay as they are.

    Raises:
        ValueError: One of `others` is not replicated, or `bias` not placed as `c` is.
    """
    for name, tensor in others.items():
        if _is_dtensor(tensor) and not all(p.is_replicate() for p in tensor.placements):
            raise ValueError(
                f"{name} must be replicated over its mesh; got placements {tensor.placements}"
            )
    if _is_dtensor(bias) and not (_is_dtensor(c) and bias.placements == c.placements):
        raise ValueError(
            f"bias must be placed as c is; got placements {bias.placements} "
            f"and {c.placements if _is_dtensor(c) else 'an ordinary c'}"
        )
    tensors = (c, bias, *others.values())
    return tuple(tensor.to_local() if _is_dtensor(tensor) else tensor for tensor in tensors)


def _is_dtensor(tensor: Any) -> bool:
    """Whether it is a torch.distributed.tensor.DTensor, whose module is slow to import."""
    return hasattr(tensor, "device_mesh")
