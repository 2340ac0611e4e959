"""The state of the whole service as Prometheus metrics, read from Redis when it is asked for.

However many API processes run, each tells the same: none keeps a count of its own. A scrape is
eight commands to Redis, none of which takes longer for more jobs.
"""

from collections import Counter
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from service.contract.tally import Distribution, Tally
from service.deps import Services

_LABELS = ("device_kind", "trained")


class _Described(NamedTuple):
    name: str
    documentation: str
    labels: tuple[str, ...]


_DISTRIBUTIONS: dict[Distribution, _Described] = {
    "estimate_error": _Described(
        "headroom_estimate_error_ratio",
        "Peak memory that ended jobs predicted, over what they measured, less 1.",
        _LABELS,
    ),
    "loss_layer_saving": _Described(
        "headroom_loss_layer_saving_ratio",
        "Measured peak memory of a baseline's loss layer over that of the job's, of ended jobs.",
        (*_LABELS, "baseline"),
    ),
    "step_saving": _Described(
        "headroom_step_saving_ratio",
        "Measured peak memory of a forward and backward pass with a baseline over that with the"
        " job's loss, of ended jobs.",
        (*_LABELS, "baseline"),
    ),
}


class ServiceCollector(Collector):
    """Reads every metric anew at each scrape."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tally = Tally(services.redis)

    def collect(self) -> Iterator[Metric]:
        """All metrics.

        Raises:
            Unavailable: Redis does not answer.
        """
        yield self._jobs()
        yield self._queues()
        yield self._workers()
        for distribution, described in _DISTRIBUTIONS.items():
            yield self._histograms(distribution, described)

    def _jobs(self) -> Metric:
        family = GaugeMetricFamily(
            "headroom_jobs", "Jobs on record, comparisons among them.", labels=["status"]
        )
        for status, count in self._tally.jobs().items():
            family.add_metric([status], count)
        return family

    def _queues(self) -> Metric:
        family = GaugeMetricFamily(
            "headroom_queue_depth", "Messages that no worker has taken yet.", labels=["queue"]
        )
        for queue, depth in self._services.queue.depths().items():
            family.add_metric([queue.removeprefix("headroom.")], depth)
        return family

    def _workers(self) -> Metric:
        family = GaugeMetricFamily(
            "headroom_workers",
            "Live workers that train, by device; there is no sample where there is none.",
            labels=["device_kind", "device"],
        )
        devices = Counter(
            (worker.device.kind, worker.device.name) for worker in self._services.fleet.live()
        )
        for labels, count in sorted(devices.items()):
            family.add_metric(labels, count)
        return family

    def _histograms(self, distribution: Distribution, described: _Described) -> Metric:
        family = HistogramMetricFamily(
            described.name, described.documentation, labels=described.labels
        )
        for found in self._tally.histograms(distribution):
            buckets = [("+Inf" if le == inf else str(le), count) for le, count in found.buckets]
            family.add_metric(found.labels, buckets, found.sum)
        return family
