"""How many jobs there are in each status, and what ended ones measured: kept, not counted.

Every change of a status is counted in its own transaction, so that the numbers are the records',
and to read them costs the same however many jobs there have been. A distribution is a HASH with
these fields, where the labels are those of `Measured`, in order:

    {labels} {bound}    how many values are at most `bound`, and above the bound before it
    {labels} sum        the sum of the values
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

from redis import Redis

from service.contract import keys
from service.contract.commands import Pipe, typed
from service.contract.connection import available
from service.contract.job import JobRecord, JobStatus
from service.contract.memory import LossName, MemoryLedger

Distribution = Literal["estimate_error", "loss_layer_saving", "step_saving"]
# Each ends with infinity. An error may be of either sign; of a saving 1 is none at all.
_RATIOS = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, inf)
BOUNDS: dict[Distribution, tuple[float, ...]] = {
    "estimate_error": (-0.5, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.2, 0.5, inf),
    "loss_layer_saving": _RATIOS,
    "step_saving": _RATIOS,
}
_SUM = "sum"


@dataclass(frozen=True)
class Measured:
    """A value that an ended job has measured.

    Attributes:
        labels: The kind of its device, what it trained, and for a saving the baseline.
    """

    distribution: Distribution
    labels: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Histogram:
    """The values of one distribution that have the same labels.

    Attributes:
        buckets: Each bound, with how many values are at most that.
    """

    labels: tuple[str, ...]
    buckets: tuple[tuple[float, int], ...]
    sum: float


def created(pipe: Pipe, record: JobRecord) -> None:
    """Queue the count of a new job on a pipeline."""
    pipe.hincrby(keys.JOB_TALLY, record.status, 1)


def moved(pipe: Pipe, before: JobStatus, record: JobRecord) -> None:
    """Queue the count of a job's new status, and of what it measured if it has ended."""
    pipe.hincrby(keys.JOB_TALLY, before, -1)
    pipe.hincrby(keys.JOB_TALLY, record.status, 1)
    if not record.terminal:
        return
    for each in measured(record):
        key, bounds = keys.distribution(each.distribution), BOUNDS[each.distribution]
        labels = " ".join(each.labels)
        pipe.hincrby(key, f"{labels} {bounds[bisect_left(bounds, each.value)]}", 1)
        pipe.hincrbyfloat(key, f"{labels} {_SUM}", each.value)


def measured(record: JobRecord) -> Iterator[Measured]:
    """What a job has measured, as far as it came."""
    if record.resolved is None:
        return
    labels = record.resolved.device, record.resolved.trained
    if record.estimate is not None and record.estimate.error is not None:
        yield Measured("estimate_error", labels, record.estimate.error)
    if record.memory is None:
        return
    for saving in record.memory.savings:
        named = (*labels, saving.baseline)
        if _layer_measured(record.memory, saving.baseline):
            yield Measured("loss_layer_saving", named, saving.loss_layer_ratio)
        if saving.step_ratio is not None:  # of measured passes alone
            yield Measured("step_saving", named, saving.step_ratio)


class Tally:
    """The counts, for reading."""

    def __init__(self, redis: Redis) -> None:
        self._redis = typed(redis)

    def jobs(self) -> dict[JobStatus, int]:
        """How many jobs there are in each status."""
        with available():
            counts = self._redis.hgetall(keys.JOB_TALLY)
        return {status: int(counts.get(status, 0)) for status in JobStatus}

    def histograms(self, distribution: Distribution) -> list[Histogram]:
        """The histograms of a distribution, by labels."""
        with available():
            fields = self._redis.hgetall(keys.distribution(distribution))
        series: dict[tuple[str, ...], dict[str, float]] = {}
        for field, value in fields.items():
            *labels, cell = field.split(" ")
            series.setdefault(tuple(labels), {})[cell] = float(value)
        return [
            _histogram(labels, cells, BOUNDS[distribution])
            for labels, cells in sorted(series.items())
        ]


def _histogram(
    labels: tuple[str, ...], cells: dict[str, float], bounds: tuple[float, ...]
) -> Histogram:
    total = cells.pop(_SUM)
    counts = {float(bound): int(count) for bound, count in cells.items()}
    buckets = [
        (bound, sum(count for within, count in counts.items() if within <= bound))
        for bound in bounds
    ]
    return Histogram(labels, tuple(buckets), total)


def _layer_measured(ledger: MemoryLedger, baseline: LossName) -> bool:
    provenances = {entry.loss: entry.loss_layer.provenance for entry in ledger.losses}
    return provenances["cce"] == provenances[baseline] == "measured"
