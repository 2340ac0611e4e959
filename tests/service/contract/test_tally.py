"""The counts are those of the records, whatever happened to the jobs."""

import itertools
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf

import pytest
from redis import Redis

from service.contract import keys
from service.contract.errors import Conflict, LostClaim
from service.contract.job import JobRecord, JobStatus
from service.contract.memory import Figure
from service.contract.store import Claim, Store
from service.contract.tally import BOUNDS, Histogram, Tally, measured
from tests.service.contract.support import EVENT, TERMINAL, create, job_in, record, running
from tests.support.measured import LEDGER, RESOLVED, SCORED


@pytest.fixture
def tally(redis: Redis) -> Tally:
    return Tally(redis)


def _on_record(redis: Redis, store: Store) -> dict[JobStatus, int]:
    """The jobs in each status, by looking at each."""
    names = redis.scan_iter(keys.job("*"))
    found = Counter(store.get(name.removeprefix(keys.job(""))).status for name in names)
    return {status: found[status] for status in JobStatus}


def _end(store: Store, error: float, to: JobStatus = JobStatus.SUCCEEDED) -> None:
    claim = running(store)
    store.update(claim, resolved=RESOLVED, estimate=SCORED.model_copy(update={"error": error}))
    store.transition(claim.job_id, to, EVENT, token=claim.token)


def _only(histograms: list[Histogram]) -> Histogram:
    (histogram,) = histograms
    return histogram


def test_a_job_counts_in_its_status(store: Store, redis: Redis, tally: Tally) -> None:
    assert tally.jobs() == dict.fromkeys(JobStatus, 0)
    for status in JobStatus:
        job_in(store, redis, status)
    assert tally.jobs() == dict.fromkeys(JobStatus, 1)


def test_a_job_that_is_repeated_counts_once(store: Store, tally: Tally) -> None:
    for _ in range(2):
        store.create(record(), dedupe_key="same", dedupe_s=60, event=EVENT)
    assert sum(tally.jobs().values()) == 1


def test_a_job_that_is_queued_again_counts_once(store: Store, tally: Tally) -> None:
    claim = running(store)
    store.transition(claim.job_id, JobStatus.QUEUED, EVENT, token=claim.token)
    assert tally.jobs() == {**dict.fromkeys(JobStatus, 0), JobStatus.QUEUED: 1}


def test_whoever_wins_a_race_is_counted_and_nobody_else(
    store: Store, redis: Redis, tally: Tally
) -> None:
    claims = [running(store) for _ in range(10)]
    waiting = [create(store) for _ in range(10)]
    for claim in claims:
        store.update(claim, resolved=RESOLVED, estimate=SCORED)

    def end(race: tuple[Claim, JobStatus]) -> None:
        claim, to = race
        with suppress(Conflict, LostClaim):
            store.transition(claim.job_id, to, EVENT, token=claim.token)

    def cancel(job_id: str) -> None:
        with suppress(Conflict):
            store.request_cancel(job_id)

    with ThreadPoolExecutor(8) as pool:
        ends = pool.map(end, itertools.product(claims, TERMINAL))
        cancels = pool.map(cancel, waiting * 3)
        assert len([*ends]) + len([*cancels]) == 60
    assert tally.jobs() == _on_record(redis, store)
    assert _only(tally.histograms("estimate_error")).buckets[-1] == (inf, 10)


def test_an_error_is_counted_up_from_the_first_bound_that_it_is_within(
    store: Store, tally: Tally
) -> None:
    for error in (-0.6, -0.02, 0.0, 0.03, 0.04, 7.0):
        _end(store, error)
    found = _only(tally.histograms("estimate_error"))
    assert found.labels == ("cpu", "full")
    assert [bound for bound, _ in found.buckets] == list(BOUNDS["estimate_error"])
    counts = dict(found.buckets)
    assert (counts[-0.5], counts[-0.05], counts[-0.02], counts[0.0]) == (1, 1, 2, 3)
    assert (counts[0.02], counts[0.05], counts[0.5], counts[inf]) == (3, 5, 5, 6)
    assert found.sum == pytest.approx(-0.6 - 0.02 + 0.03 + 0.04 + 7.0)


def test_devices_and_what_is_trained_are_told_apart(store: Store, tally: Tally) -> None:
    labels = [("cpu", "full"), ("cpu", "lora"), ("cuda", "full"), ("cuda", "lora")]
    for device, trained in labels:
        resolved = RESOLVED.model_copy(update={"device": device, "trained": trained})
        claim = running(store)
        store.update(claim, resolved=resolved, estimate=SCORED)
        store.transition(claim.job_id, JobStatus.SUCCEEDED, EVENT, token=claim.token)
    assert [found.labels for found in tally.histograms("estimate_error")] == labels


@pytest.mark.parametrize("end", TERMINAL)
def test_a_job_that_ended_in_any_way_tells_what_it_measured(
    store: Store, tally: Tally, end: JobStatus
) -> None:
    _end(store, 0.1, end)
    assert _only(tally.histograms("estimate_error")).buckets[-1] == (inf, 1)


def test_a_job_that_goes_on_has_told_nothing_yet(store: Store, tally: Tally) -> None:
    store.update(running(store), resolved=RESOLVED, estimate=SCORED, memory=LEDGER)
    assert [tally.histograms(distribution) for distribution in BOUNDS] == [[], [], []]


def test_a_saving_counts_where_both_sides_were_measured() -> None:
    job = record().model_copy(update={"resolved": RESOLVED, "memory": LEDGER})
    assert _savings(job) == {
        ("loss_layer_saving", "full_logits"): 50.8,
        ("loss_layer_saving", "chunked"): 12.8,
        ("step_saving", "full_logits"): 1.98,
        ("step_saving", "chunked"): 1.23,
    }
    full, *others = LEDGER.losses
    modelled = Figure(bytes=full.loss_layer.bytes, provenance="modelled", formula="logits")
    losses = [full.model_copy(update={"loss_layer": modelled}), *others]
    ledger = LEDGER.model_copy(update={"losses": losses})
    assert ("loss_layer_saving", "full_logits") not in _savings(
        job.model_copy(update={"memory": ledger})
    )


def _savings(job: JobRecord) -> dict[tuple[str, str], float]:
    return {(each.distribution, each.labels[-1]): each.value for each in measured(job)}


def test_a_job_that_came_to_nothing_tells_nothing() -> None:
    assert [*measured(record())] == []
    assert [*measured(record().model_copy(update={"resolved": RESOLVED}))] == []
