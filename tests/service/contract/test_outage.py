"""Redis goes away, hangs, comes back, or cannot write: every call says so, and nothing is lost."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from service.contract.connection import available, connect
from service.contract.errors import Unavailable
from service.contract.events import Events
from service.contract.files import Files
from service.contract.job import JobStatus
from service.contract.models import Models
from service.contract.settings import Settings
from service.contract.store import Store
from tests.service.contract.support import (
    EVENT,
    ORG,
    checkpoint,
    file_record,
    model_record,
    queued,
    raw,
    record,
    running,
)
from tests.support.redis_server import RedisServer


@pytest.fixture
def client(own_redis: RedisServer) -> Iterator[Redis]:
    with connect(Settings(redis_url=own_redis.url), timeout_s=0.5) as redis:
        yield redis


@pytest.fixture
def store(client: Redis) -> Store:
    return Store(client, lease_s=60)


def calls(client: Redis) -> dict[str, Callable[[], Any]]:
    """Every public operation of the contract, by name."""
    store, events = Store(client, lease_s=60), Events(client, cap=100)
    files, models, claim = Files(client), Models(client), running(store)
    job_id, waiting = claim.job_id, queued(store)
    cursor = {"after": None, "limit": 10}
    return {
        "get": lambda: store.get(job_id),
        "standing": lambda: store.standing(job_id),
        "version": lambda: store.version(job_id),
        "page": lambda: store.page(ORG, **cursor, metadata={}),
        "active": store.active,
        "unheld": store.unheld,
        "users": lambda: store.users("base"),
        "queue_position": lambda: store.queue_position(waiting),
        "queue_positions": lambda: store.queue_positions([waiting]),
        "has_lease": lambda: store.has_lease(job_id),
        "checkpoints": lambda: store.checkpoints(job_id),
        "create": lambda: store.create(record(), dedupe_key="k", dedupe_s=9, event=EVENT),
        "claim": lambda: store.claim(waiting, "worker", JobStatus.QUEUED),
        "heartbeat": lambda: store.heartbeat(claim),
        "update": lambda: store.update(claim, EVENT),
        "release": lambda: store.release(claim, EVENT),
        "add_checkpoint": lambda: store.add_checkpoint(claim, *checkpoint(claim, 1), keep=1),
        "transition": lambda: store.transition(job_id, JobStatus.FAILED, EVENT, token=claim.token),
        "untidy": store.untidy,
        "tidied": lambda: store.tidied(job_id),
        "request_cancel": lambda: store.request_cancel(waiting),
        "events.page": lambda: events.page(job_id, **cursor),
        "events.since": lambda: events.since(job_id, **cursor),
        "events.metrics": lambda: events.metrics(job_id, 10),
        "events.thin": lambda: events.thin(job_id),
        "files.add": lambda: files.add(file_record()),
        "files.get": lambda: files.get(ORG, "file-1"),
        "files.page": lambda: files.page(ORG, **cursor, purpose=None, ascending=False),
        "files.remove": lambda: files.remove(file_record()),
        "files.remove_expired": lambda: files.remove_expired(print),
        "models.add": lambda: models.add(model_record("ft:1")),
        "models.get": lambda: models.get(ORG, "ft:1"),
        "models.all": lambda: models.all(ORG),
        "models.adapters": lambda: models.adapters(ORG),
        "models.remove": lambda: models.remove(model_record("ft:1")),
    }


def public(*things: type) -> int:
    return sum(not name.startswith("_") for thing in things for name in dir(thing))


def test_every_call_tells_that_redis_is_away(own_redis: RedisServer, client: Redis) -> None:
    every = calls(client)
    # `write` of files and models, and `erase`, queue on a pipeline and ask nothing.
    assert len(every) == public(Store, Events, Files, Models) - 3
    own_redis.stop()
    start = time.monotonic()
    for name, call in every.items():
        with pytest.raises(Unavailable) as caught:
            call()
        assert caught.value.code == "storage_unavailable", name
    assert time.monotonic() - start < 3


def test_a_redis_that_hangs_is_away_after_one_timeout(
    own_redis: RedisServer, client: Redis, store: Store
) -> None:
    claim = running(store)
    own_redis.pause()
    try:
        for call in (
            lambda: store.get(claim.job_id),
            lambda: store.update(claim, EVENT),
            store.active,
        ):
            start = time.monotonic()
            with pytest.raises(Unavailable):
                call()
            assert 0.4 < time.monotonic() - start < 1.2
    finally:
        own_redis.resume()
    assert store.get(claim.job_id).status is JobStatus.RUNNING
    store.update(claim, EVENT)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_is_lost_over_a_restart(
    own_redis: RedisServer, client: Redis, store: Store, how: str
) -> None:
    claim, waiting = running(store), queued(store)
    store.add_checkpoint(claim, *checkpoint(claim, 3), keep=1)
    file, models = file_record(), Models(client)
    Files(client).add(file)
    before = [raw(client, job_id) for job_id in (claim.job_id, waiting)]

    getattr(own_redis, how)()
    with pytest.raises(Unavailable):
        store.get(claim.job_id)
    own_redis.start()

    assert [raw(client, job_id) for job_id in (claim.job_id, waiting)] == before
    assert store.has_lease(claim.job_id)
    assert store.queue_position(waiting) == 1
    assert [each.step for each in store.checkpoints(claim.job_id)] == [3]
    assert Files(client).get(ORG, file.id) == file
    assert len(models.all(ORG)) == 1
    store.heartbeat(claim)
    store.transition(claim.job_id, JobStatus.SUCCEEDED, EVENT, token=claim.token)


def test_connections_from_before_a_restart_are_replaced_unnoticed(
    own_redis: RedisServer, client: Redis, store: Store
) -> None:
    claim = running(store)
    own_redis.stop()
    own_redis.start()
    store.update(claim, EVENT)  # the pool's only connection is dead
    assert store.get(claim.job_id).version == 3


def test_a_full_redis_takes_no_write_and_answers_what_it_knows(client: Redis, store: Store) -> None:
    claim = running(store)
    before = raw(client, claim.job_id)
    client.config_set("maxmemory", 1)
    for write in (
        lambda: store.update(claim, EVENT),
        lambda: store.create(record(), dedupe_key=None, dedupe_s=0, event=EVENT),
        lambda: Files(client).add(file_record()),
    ):
        with pytest.raises(Unavailable, match="cannot take writes"):
            write()
    assert raw(client, claim.job_id) == before
    client.config_set("maxmemory", 0)
    store.update(claim, EVENT)


def test_a_redis_that_cannot_keep_its_file_takes_no_write(client: Redis, store: Store) -> None:
    claim = running(store)
    client.config_set(
        "min-replicas-to-write", 1
    )  # refused in the same way, and easier to bring about
    with pytest.raises(Unavailable, match="cannot take writes"):
        store.update(claim, EVENT)


def test_a_mistake_of_ours_is_not_blamed_on_redis(client: Redis) -> None:
    client.set("text", "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"), available():
        client.hgetall("text")
