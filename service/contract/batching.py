"""How an optimizer step's batch is cut into micro-batches: what may be asked for, what follows.

With B `batch_size`, m `micro_batch_size`, a `gradient_accumulation_steps`, each given or "auto":

    m and a    B = m a, which B may repeat
    a          m = B / a, which must be whole; an automatic B is made so
    m          a = B / m, rounded up: the last micro-batch may be smaller; m is at most B
    neither    m is the largest that fits, at most B; a = B / m, rounded up

No batch has more sequences than the data: a larger B is all of them, cut into as many micro-batches
as are asked for, or by the m that is.

The gradient of a step is the same however it is cut: losses are summed over all its micro-batches
and divided by all their predictions.
"""

from dataclasses import dataclass

from service.contract.errors import InvalidRequest
from service.contract.spec import JobSpec

_MAX_AUTO_BATCH = 16


@dataclass(frozen=True)
class Batching:
    """A batch and its micro-batches.

    Attributes:
        batch: Sequences of an optimizer step.
        micro: The most sequences at once.
        open: Nobody has asked for `micro`: it is what is of use, and may be what fits.
    """

    batch: int
    micro: int
    open: bool


@dataclass(frozen=True)
class _Asked:
    """What is given; None for "auto"."""

    batch: int | None
    micro: int | None
    steps: int | None

    @classmethod
    def of(cls, spec: JobSpec) -> "_Asked":
        options = spec.options
        asked = (
            spec.hyperparameters.batch_size,
            options.micro_batch_size,
            options.gradient_accumulation_steps,
        )
        return cls(*(None if value == "auto" else value for value in asked))


def check(spec: JobSpec) -> None:
    """Refuse sizes that contradict each other.

    Raises:
        InvalidRequest: With what was asked for, and what would be right.
    """
    asked = _Asked.of(spec)
    if asked.batch is None:
        return
    if asked.micro is not None and asked.steps is not None:
        if asked.micro * asked.steps != asked.batch:
            raise _contradiction(
                "micro_batch_size",
                f"{asked.micro} times gradient_accumulation_steps, {asked.steps}, is "
                f"{asked.micro * asked.steps}; expected batch_size, {asked.batch}",
            )
    elif asked.micro is not None and asked.micro > asked.batch:
        told = f"{asked.micro}; expected at most batch_size, {asked.batch}"
        raise _contradiction("micro_batch_size", told)
    elif asked.steps is not None and asked.batch % asked.steps:
        told = f"{asked.steps}; expected a divisor of batch_size, {asked.batch}"
        raise _contradiction("gradient_accumulation_steps", told)


def batching(spec: JobSpec, rows: int) -> Batching:
    """The sizes for `rows` sequences of training data; an automatic batch is a 500th of them.

    That has from 1 to 16 sequences, in whole micro-batches as far as those are asked for.
    """
    asked = _Asked.of(spec)
    unit = (asked.micro or 1) * (asked.steps or 1)
    automatic = min(_MAX_AUTO_BATCH, rows // 500) // unit * unit
    if asked.micro is not None and asked.steps is not None:
        automatic = unit
    batch = min(asked.batch or max(unit, automatic), rows)
    micro = min(asked.micro or -(-batch // (asked.steps or 1)), batch)
    return Batching(batch, micro, open=asked.micro is None and asked.steps is None)


def _contradiction(param: str, told: str) -> InvalidRequest:
    return InvalidRequest(f"{param} is {told}.", code="invalid_value", param=param)
