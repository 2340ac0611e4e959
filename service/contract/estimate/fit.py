"""The largest micro-batch that fits on a device: by prediction, or by trying."""

from collections.abc import Callable
from dataclasses import replace

from service.contract.device import DeviceKind
from service.contract.estimate.model import ModelShape
from service.contract.estimate.peak import step_bytes
from service.contract.estimate.workload import Workload
from service.contract.memory import LossName

_LIMIT = 2**16
# What fragmentation may cost on CUDA.
SLACK = 0.03
# What a device does not have for a step. CUDA: its context and kernels, and the slack. CPU: the
# process itself, and the rest of the system.
_FIXED_BYTES: dict[DeviceKind, int] = {"cuda": 2**30, "cpu": 2**30}
_SHARE: dict[DeviceKind, float] = {"cuda": SLACK, "cpu": 0.2}


def usable_bytes(total: int, kind: DeviceKind) -> int:
    """What a step may take of a device of `total` bytes."""
    return max(0, int(total * (1 - _SHARE[kind])) - _FIXED_BYTES[kind])


def largest_predicted(shape: ModelShape, work: Workload, loss: LossName, usable: int) -> int:
    """Sequences that fit at once by prediction, no gradients being held; 0 where not one does."""
    alone = replace(work, accumulating=False)
    return largest(
        lambda size: step_bytes(shape, alone.of_size(size), loss) <= usable, start=1, limit=_LIMIT
    )


def micro_batch(
    shape: ModelShape, work: Workload, loss: LossName, usable: int, *, batch: int, limit: int
) -> int:
    """What fits at once of an effective batch by prediction, at most `limit`; 0 if not one does.

    Where it is less than all, the gradients of the other micro-batches are held meanwhile.
    """

    def fits(size: int) -> bool:
        held = replace(work.of_size(size), accumulating=size < batch)
        return step_bytes(shape, held, loss) <= usable

    return largest(fits, start=limit, limit=limit)


def largest(fits: Callable[[int], bool], *, start: int, limit: int, resolution: float = 0.0) -> int:
    """The largest size that fits: from `start` in steps that double, then by bisection.

    The first step is what need not be known: a prediction that is right to that share costs two
    tries. From 1 the sizes tried are powers of two. What is larger than what does not fit, does not
    fit either.

    Args:
        fits: Whether a size fits; asked as seldom as can be, since it may mean to try.
        start: Where to begin, such as what a prediction says.
        limit: The largest size of use.
        resolution: The share of the result that need not be known; 0 for the exact answer.

    Returns:
        A size that fits, or 0 where not even 1 does.
    """
    fit, misfit = 0, limit + 1
    size = min(max(start, 1), limit)
    # So that it is that share of the result on the way down too, where the result is smaller.
    step = max(1, int(size * resolution / (1 + resolution)))
    while misfit - fit > max(1, int(fit * resolution)):
        if fits(size):
            fit = size
        else:
            misfit = size
        if misfit > limit:
            size = min(fit + step, limit)
        elif fit == 0:
            size = max(misfit - step, 1)
        else:
            size = (fit + misfit) // 2
        step *= 2
    return fit
