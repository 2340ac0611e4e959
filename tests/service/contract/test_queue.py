"""Messages: a real Celery application publishes to the real Redis, and a real consumer takes."""

import json
import time
from pathlib import Path

import pytest
from celery import Celery
from redis import Redis

from service.contract import queue as queue_module
from service.contract.connection import connect
from service.contract.errors import Unavailable
from service.contract.queue import TASK, TRAIN, VALIDATE, Queue, make_celery
from service.contract.settings import Settings
from tests.support.redis_server import RedisServer


@pytest.fixture
def celery(settings: Settings) -> Celery:
    with make_celery(settings) as app:
        yield app


@pytest.fixture
def queue(celery: Celery, redis: Redis) -> Queue:
    return Queue(celery, redis)


def take(app: Celery, name: str) -> dict[str, object]:
    """The oldest message, as a worker gets it: its headers and its arguments."""
    with app.connection_for_read() as connection, connection.SimpleQueue(name) as simple:
        message = simple.get(timeout=5)
        message.ack()
        args, kwargs, _ = message.decode()
        return message.headers | {"args": args, "kwargs": kwargs}


def test_a_message_waits_in_its_queue_until_it_is_taken(celery: Celery, queue: Queue) -> None:
    queue.send("ftjob-1", VALIDATE)
    queue.send("ftjob-2", TRAIN)
    queue.send("ftjob-3", TRAIN)
    assert queue.waiting(VALIDATE) == {"ftjob-1"}
    assert queue.waiting(TRAIN) == {"ftjob-2", "ftjob-3"}
    message = take(celery, TRAIN)
    assert (message["task"], message["args"], message["kwargs"]) == (TASK, ["ftjob-2"], {})
    assert queue.waiting(TRAIN) == {"ftjob-3"}
    take(celery, TRAIN)
    assert queue.waiting(TRAIN) == set()


def test_messages_of_one_job_are_one_job_that_waits(celery: Celery, queue: Queue) -> None:
    for _ in range(3):
        queue.send("ftjob-1", TRAIN)
    take(celery, TRAIN)
    assert queue.waiting(TRAIN) == {"ftjob-1"}


@pytest.mark.parametrize("job_id", ["ftjob-'\"]", "ftjob-" + "x" * 5000, "ftjob-ä"])
def test_an_id_is_read_as_it_was_sent(queue: Queue, job_id: str) -> None:
    queue.send(job_id, TRAIN)
    assert queue.waiting(TRAIN) == {job_id}


def test_a_message_of_somebody_else_is_no_job(celery: Celery, queue: Queue) -> None:
    celery.send_task("other.task", args=["ftjob-1"], queue=TRAIN)
    assert queue.waiting(TRAIN) == set()


def test_a_long_queue_is_read_in_portions(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.send("ftjob-0", TRAIN)
    message = json.loads(redis.lindex(TRAIN, 0))
    for number in range(1, 23):
        message["headers"]["headroom_job_id"] = f"ftjob-{number}"
        redis.lpush(TRAIN, json.dumps(message))
    for size in (1, 5, 23, 100):
        monkeypatch.setattr(queue_module, "_CHUNK", size)
        assert queue.waiting(TRAIN) == {f"ftjob-{number}" for number in range(23)}


def test_a_queue_that_was_never_used_is_empty(queue: Queue) -> None:
    assert queue.waiting(VALIDATE) == set()


def test_no_result_is_kept_for_anybody(queue: Queue, redis: Redis) -> None:
    queue.send("ftjob-1", TRAIN)
    assert not [key for key in redis.scan_iter() if key.startswith("celery-task-meta")]


@pytest.mark.parametrize("user", ["", "default"])
def test_a_password_with_every_awkward_character(
    tmp_path: Path, own_redis: RedisServer, user: str
) -> None:
    password = "p@ss/w:rd?#%41 ä"
    with Redis(port=own_redis.port) as redis:
        redis.config_set("requirepass", password)
    (tmp_path / "password").write_text(password)
    url = own_redis.url.replace("//", f"//{user}@") if user else own_redis.url
    settings = Settings(redis_url=url, redis_password_file=tmp_path / "password")
    with connect(settings) as redis, make_celery(settings) as app:
        Queue(app, redis).send("ftjob-1", TRAIN)
        assert Queue(app, redis).waiting(TRAIN) == {"ftjob-1"}


def test_a_broker_that_is_away_is_unavailable_at_once_and_found_again(
    own_redis: RedisServer,
) -> None:
    settings = Settings(redis_url=own_redis.url)
    with connect(settings) as redis, make_celery(settings) as app:
        queue = Queue(app, redis)
        queue.send("ftjob-1", TRAIN)
        own_redis.stop()
        start = time.monotonic()
        with pytest.raises(Unavailable):
            queue.send("ftjob-2", TRAIN)
        with pytest.raises(Unavailable):
            queue.waiting(TRAIN)
        assert time.monotonic() - start < 2
        own_redis.start()
        queue.send("ftjob-3", TRAIN)
        assert queue.waiting(TRAIN) == {"ftjob-1", "ftjob-3"}


def test_a_connection_from_before_a_restart_is_replaced_unnoticed(own_redis: RedisServer) -> None:
    settings = Settings(redis_url=own_redis.url)
    with connect(settings) as redis, make_celery(settings) as app:
        queue = Queue(app, redis)
        queue.send("ftjob-1", TRAIN)
        own_redis.stop()
        own_redis.start()
        queue.send("ftjob-2", TRAIN)
        assert queue.waiting(TRAIN) == {"ftjob-1", "ftjob-2"}


def test_a_broker_that_hangs_is_unavailable_after_its_timeout(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "SOCKET_TIMEOUT_S", 0.3)
    settings = Settings(redis_url=own_redis.url)
    with connect(settings) as redis, make_celery(settings) as app:
        queue = Queue(app, redis)
        queue.send("ftjob-1", TRAIN)
        own_redis.pause()
        start = time.monotonic()
        try:
            with pytest.raises(Unavailable):
                queue.send("ftjob-2", TRAIN)
        finally:
            own_redis.resume()
        assert time.monotonic() - start < 1.5


def test_a_broker_that_is_full_is_unavailable(own_redis: RedisServer) -> None:
    settings = Settings(redis_url=own_redis.url)
    with connect(settings) as redis, make_celery(settings) as app:
        queue = Queue(app, redis)
        queue.send("ftjob-1", TRAIN)
        redis.config_set("maxmemory", 1)
        with pytest.raises(Unavailable):
            queue.send("ftjob-2", TRAIN)
        redis.config_set("maxmemory", 0)
        queue.send("ftjob-2", TRAIN)
