from collections import Counter

import httpx
import openai
import pytest
from redis import Redis

from service.contract import keys
from service.contract.job import Event, JobStatus
from service.contract.store import Store
from tests.service.contract.support import EVENT, take
from tests.service.support import JOBS, LEDGER, enqueue, start, submit

PARTS = ("", "/events", "/events?order=asc&limit=3", "/metrics", "/memory", "/checkpoints")


@pytest.fixture
def job_id(client: openai.OpenAI, store: Store, training_file: str) -> str:
    """A job that waits for validation; an attempt at it has measured its memory, and was lost."""
    job_id = submit(client, training_file).id
    claim = take(store, job_id)
    store.update(claim, memory=LEDGER)
    store.release(claim, EVENT)
    return job_id


@pytest.mark.parametrize("part", PARTS)
def test_a_status_that_has_not_changed_is_not_sent_again(
    http: httpx.Client, store: Store, job_id: str, part: str
) -> None:
    path = f"{JOBS}/{job_id}{part}"
    tag = http.get(path).headers["ETag"]
    for seen in (tag, f'"other", {tag}', tag.removeprefix("W/")):
        answer = http.get(path, headers={"If-None-Match": seen})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == tag
        assert answer.headers["x-request-id"].startswith("req_")
    claim = start(store, job_id)
    tag = http.get(path, headers={"If-None-Match": tag}).raise_for_status().headers["ETag"]
    metrics = Event(message="Step 1", type="metrics", data={"step": 1, "train_loss": 1.0})
    store.update(claim, metrics)
    answer = http.get(path, headers={"If-None-Match": tag})
    assert answer.status_code == 200
    assert answer.headers["ETag"] != tag


def test_moving_up_in_the_queue_is_a_change(
    client: openai.OpenAI, http: httpx.Client, store: Store, training_file: str, job_id: str
) -> None:
    second = submit(client, training_file, suffix="second").id
    enqueue(store, job_id)
    enqueue(store, second)
    answer = http.get(f"{JOBS}/{second}")
    assert answer.json()["queue_position"] == 2
    take(store, job_id)
    answer = http.get(f"{JOBS}/{second}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (answer.status_code, answer.json()["queue_position"]) == (200, 1)


@pytest.mark.parametrize("seen", [False, True])
def test_an_answer_costs_one_look_at_the_record(
    http: httpx.Client, redis: Redis, job_id: str, seen: bool
) -> None:
    path = f"{JOBS}/{job_id}"
    headers = {"If-None-Match": http.get(path).headers["ETag"]} if seen else {}
    before = _calls(redis)
    assert http.get(path, headers=headers).status_code == (304 if seen else 200)
    assert _calls(redis) - before == Counter(hgetall=1, zrank=1, info=1)


def _calls(redis: Redis) -> Counter[str]:
    """How often Redis was asked for what."""
    told = redis.info("commandstats").items()
    return Counter({name.removeprefix("cmdstat_"): each["calls"] for name, each in told})


def test_an_answer_is_that_of_the_record_whatever_its_version(
    http: httpx.Client, redis: Redis, job_id: str
) -> None:
    """A Redis that lost its last second may give a version out for the second time."""
    assert http.get(f"{JOBS}/{job_id}").json()["trained_tokens"] is None
    redis.hset(keys.job(job_id), "trained_tokens", "7")
    assert http.get(f"{JOBS}/{job_id}").json()["trained_tokens"] == 7


def test_another_tag_gets_the_answer(http: httpx.Client, job_id: str) -> None:
    for seen in ("", '"nothing"', "W/", "*, junk"):
        answer = http.get(f"{JOBS}/{job_id}", headers={"If-None-Match": seen})
        assert answer.status_code == 200


def test_an_unknown_job_is_not_found_whatever_was_seen(http: httpx.Client) -> None:
    answer = http.get(f"{JOBS}/ftjob-1", headers={"If-None-Match": 'W/"0"'})
    assert answer.status_code == 404


def test_a_poller_is_told_when_to_come_back_until_the_job_ends(
    http: httpx.Client, store: Store, job_id: str
) -> None:
    assert int(http.get(f"{JOBS}/{job_id}").headers["Retry-After"]) > 0
    store.transition(job_id, JobStatus.CANCELLED, EVENT)
    assert "Retry-After" not in http.get(f"{JOBS}/{job_id}").headers
