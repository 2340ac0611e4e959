"""The metrics over HTTP, as Prometheus' own parser reads them."""

from pathlib import Path

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from service.auth import make_key
from service.contract.device import Device
from service.contract.fleet import Fleet, LiveWorker
from service.contract.job import JobStatus
from service.contract.queue import TRAIN, Queue, make_celery
from service.contract.settings import Settings
from service.contract.store import Store
from service.settings import ServiceSettings
from tests.service.contract.support import EVENT, create, job_in, running
from tests.service.support import error_of
from tests.support.measured import LEDGER, RESOLVED, SCORED
from tests.support.redis_server import RedisServer
from tests.support.server import serve

Values = dict[tuple[str, ...], float]


def scrape(http: httpx.Client) -> dict[str, Metric]:
    """The metric families by name."""
    answer = http.get("/metrics").raise_for_status()
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = [*text_string_to_metric_families(answer.text)]
    assert all(family.documentation for family in families)
    return {family.name: family for family in families}


def values(family: Metric, name: str | None = None) -> Values:
    """Label values, sorted by the labels' names, to the value, of the samples called `name`."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in family.samples
        if sample.name == (name or family.name)
    }


def test_jobs_are_counted_by_status(http: httpx.Client, store: Store, redis: Redis) -> None:
    for status in JobStatus:
        job_in(store, redis, status)
    create(store, org="another")
    jobs = values(scrape(http)["headroom_jobs"])
    assert jobs == {**{(status,): 1 for status in JobStatus}, ("validating_files",): 2}


def test_a_queue_is_as_deep_as_it_has_messages(
    http: httpx.Client, settings: Settings, redis: Redis
) -> None:
    assert values(scrape(http)["headroom_queue_depth"]) == {("train",): 0, ("validate",): 0}
    with make_celery(settings) as celery:
        for job_id in ("ftjob-1", "ftjob-2"):
            Queue(celery, redis).send(job_id, TRAIN)
    assert values(scrape(http)["headroom_queue_depth"]) == {("train",): 2, ("validate",): 0}


def test_live_workers_are_counted_by_device(http: httpx.Client, redis: Redis) -> None:
    assert values(scrape(http)["headroom_workers"]) == {}
    gpu = Device(kind="cuda", name='NVIDIA "H200"', total_bytes=1)
    cpu = Device(kind="cpu", name="cpu", total_bytes=1)
    for name, device in [("one", gpu), ("two", gpu), ("three", cpu)]:
        Fleet(redis).announce(LiveWorker(name=name, device=device), ttl_s=30)
    workers = values(scrape(http)["headroom_workers"])
    assert workers == {('NVIDIA "H200"', "cuda"): 2, ("cpu", "cpu"): 1}


def test_ended_jobs_tell_their_errors_and_savings(http: httpx.Client, store: Store) -> None:
    for error in (-0.03, 0.03):
        claim = running(store)
        estimate = SCORED.model_copy(update={"error": error})
        store.update(claim, resolved=RESOLVED, estimate=estimate, memory=LEDGER)
        store.transition(claim.job_id, JobStatus.SUCCEEDED, EVENT, token=claim.token)
    found = scrape(http)
    errors = found["headroom_estimate_error_ratio"]
    assert errors.type == "histogram"
    counts = values(errors, "headroom_estimate_error_ratio_bucket")  # device_kind, le, trained
    assert counts["cpu", "-0.05", "full"] == 0
    assert counts["cpu", "-0.02", "full"] == 1
    assert counts["cpu", "0.05", "full"] == 2
    assert counts["cpu", "+Inf", "full"] == 2

    layer = "headroom_loss_layer_saving_ratio"  # baseline, device_kind, le, trained
    counts = values(found[layer], f"{layer}_bucket")
    assert counts["full_logits", "cpu", "50.0", "full"] == 0
    assert counts["full_logits", "cpu", "100.0", "full"] == 2
    assert values(found[layer], f"{layer}_sum")["full_logits", "cpu", "full"] == 2 * 50.8
    assert values(found[layer], f"{layer}_count")["chunked", "cpu", "full"] == 2
    step = "headroom_step_saving_ratio"
    assert "a forward and backward pass" in found[step].documentation
    assert values(found[step], f"{step}_sum")["chunked", "cpu", "full"] == 2 * 1.23


def test_another_process_tells_the_same(
    http: httpx.Client, service_settings: ServiceSettings, store: Store
) -> None:
    running(store)
    with serve(service_settings) as url:
        assert httpx.get(f"{url}/metrics").text == http.get("/metrics").text


def test_a_scrape_takes_eight_commands_however_many_jobs_there_are(
    http: httpx.Client, store: Store, redis: Redis
) -> None:
    def commands() -> int:
        before = redis.info("stats")["total_commands_processed"]
        http.get("/metrics").raise_for_status()
        after = redis.info("stats")["total_commands_processed"]
        return int(after - before) - 1  # the first look is itself a command

    device = Device(kind="cpu", name="cpu", total_bytes=1)
    Fleet(redis).announce(LiveWorker(name="one", device=device), ttl_s=30)
    commands()  # opens the server's connections
    few = commands()
    for _ in range(30):
        running(store)
    assert (few, commands()) == (8, 8)


def test_where_keys_are_in_use_one_is_needed(
    service_settings: ServiceSettings, store: Store, tmp_path: Path
) -> None:
    key, line = make_key("acme")
    keys = tmp_path / "keys"
    keys.write_text(line)
    with serve(service_settings.model_copy(update={"api_keys_file": keys})) as url:
        answer = httpx.get(f"{url}/metrics")
        assert (answer.status_code, error_of(answer)["code"]) == (401, "invalid_api_key")
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as http:
            assert "headroom_jobs" in scrape(http)


def test_without_redis_a_scrape_fails(
    own_redis: RedisServer, service_settings: ServiceSettings
) -> None:
    """Rather than tell of no jobs."""
    settings = service_settings.model_copy(update={"redis_url": own_redis.url})
    with serve(settings) as url:
        assert httpx.get(f"{url}/metrics", timeout=30).status_code == 200
        own_redis.kill()
        answer = httpx.get(f"{url}/metrics", timeout=30)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "storage_unavailable")
