"""Events: order, cursors that stay where they were, and thinning that loses nothing that counts."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
from redis import Redis

from service.contract import events as event_stream
from service.contract.commands import typed
from service.contract.errors import InvalidRequest
from service.contract.events import Events
from service.contract.job import Event, StoredEvent
from tests.service.contract.support import queued

JOB = "ftjob-1"
CAP = 100


@pytest.fixture
def events(redis: Redis) -> Events:
    return Events(redis, cap=CAP)


def append(redis: Redis, *what: Event, job_id: str = JOB) -> None:
    with typed(redis).pipeline() as pipe:
        for event in what:
            event_stream.append(pipe, job_id, event)
        pipe.execute()


def metric(step: int) -> Event:
    return Event(type="metrics", message=f"Step {step}", data={"step": step, "train_loss": 0.5})


def messages(items: list[StoredEvent]) -> list[str]:
    return [item.message for item in items]


def everything(events: Events) -> list[StoredEvent]:
    return events.since(JOB, after=None, limit=100_000).items


def test_newest_first_page_by_page(redis: Redis, events: Events) -> None:
    append(redis, *map(metric, range(7)))
    pages, after = [], None
    while True:
        page = events.page(JOB, after=after, limit=3)
        pages.append(messages(page.items))
        if not page.has_more:
            break
        after = page.items[-1].id
    assert pages == [
        ["Step 6", "Step 5", "Step 4"],
        ["Step 3", "Step 2", "Step 1"],
        ["Step 0"],
    ]


def test_a_page_that_ends_exactly_has_no_more(redis: Redis, events: Events) -> None:
    append(redis, *map(metric, range(3)))
    assert not events.page(JOB, after=None, limit=3).has_more
    assert not events.since(JOB, after=None, limit=3).has_more


def test_a_follower_gets_each_event_once(redis: Redis, events: Events) -> None:
    append(redis, metric(0), metric(1), metric(2))
    first = events.since(JOB, after=None, limit=2)
    assert (messages(first.items), first.has_more) == (["Step 0", "Step 1"], True)
    append(redis, metric(3))
    rest = events.since(JOB, after=first.items[-1].id, limit=10)
    assert (messages(rest.items), rest.has_more) == (["Step 2", "Step 3"], False)
    assert events.since(JOB, after=rest.items[-1].id, limit=10).items == []


def test_an_event_comes_back_as_it_went_in(redis: Redis, events: Events) -> None:
    before = redis.time()[0]
    append(redis, Event(level="error", message="äöü\n", data={"faults": [{"line": 3}]}))
    (event,) = everything(events)
    assert (event.level, event.message, event.type) == ("error", "äöü\n", "message")
    assert event.data == {"faults": [{"line": 3}]}
    assert event.id.startswith("ftevent-")
    assert before <= event.created_at <= redis.time()[0]


def test_jobs_have_streams_of_their_own(redis: Redis, events: Events, store: object) -> None:
    append(redis, metric(0))
    job_id = queued(store)
    assert messages(everything(events)) == ["Step 0"]
    assert len(events.since(job_id, after=None, limit=10).items) == 2


@pytest.mark.parametrize(
    "cursor", ["", "x", "ftevent-", "ftevent-0-0", "ftevent-1", "ftevent-1-1 ", "ftevent--1-1",
               "ftevent-99999999999999999999-1", "+", "ftjob-1-1", "ftevent-\u0661-\u0661"],
)  # fmt: skip
def test_a_cursor_that_is_no_event_is_refused(events: Events, cursor: str) -> None:
    for read in (events.page, events.since):
        with pytest.raises(InvalidRequest) as caught:
            read(JOB, after=cursor, limit=1)
        assert (caught.value.code, caught.value.param) == ("invalid_cursor", "after")


def test_every_cursor_of_the_form_is_answered(events: Events, redis: Redis) -> None:
    append(redis, metric(0))
    huge = "9" * 18
    for cursor in ("ftevent-1-0", f"ftevent-{huge}-{huge}"):
        events.page(JOB, after=cursor, limit=1)
        events.since(JOB, after=cursor, limit=1)


# Thinning


def measure(redis: Redis, events: Events, steps: int, pause_s: int = 0) -> None:
    """Metrics of one step a second, thinned now and then as a worker does."""
    for start in range(0, steps, 20):
        with redis.pipeline() as pipe:
            for step in range(start, start + 20):
                fields = {"level": "info", "message": "", "type": "metrics"}
                second = step + 1 + (pause_s if step > steps // 2 else 0)
                data = {"data": json.dumps({"step": step})}
                pipe.xadd(f"events:{JOB}", fields | data, id=f"{second}000-0")
            pipe.execute()
        events.thin(JOB)


def steps_of(items: list[StoredEvent]) -> list[int]:
    return [event.data["step"] for event in items if event.type == "metrics"]


@pytest.mark.parametrize("pause_s", [0, 1_000_000])
def test_a_thinned_curve_is_even_and_ends_with_the_newest(
    redis: Redis, events: Events, pause_s: int
) -> None:
    measure(redis, events, 3000, pause_s)
    steps = steps_of(everything(events))
    assert 0.7 * CAP < len(steps) <= CAP + 20
    assert steps[0] == 0
    assert steps[-20:] == list(range(2980, 3000))
    gaps = [after - before for before, after in pairwise(steps[: -CAP // 4])]
    assert max(gaps) <= 4 * 3000 / (0.75 * CAP)


def test_messages_are_never_thinned(redis: Redis, events: Events) -> None:
    said = [f"Checkpoint {number}" for number in range(2 * CAP)]
    for message in said:
        append(redis, metric(0), Event(message=message), metric(1))
        events.thin(JOB)
    left = everything(events)
    assert [event.message for event in left if event.type == "message"] == said
    assert len(steps_of(left)) <= CAP + 2


def test_below_the_cap_nothing_is_thinned(redis: Redis, events: Events) -> None:
    append(redis, *map(metric, range(CAP)), Event(message="over the cap, but no metric"))
    events.thin(JOB)
    assert len(everything(events)) == CAP + 1
    append(redis, metric(CAP))
    events.thin(JOB)
    assert len(everything(events)) == CAP + 2 - CAP // 4


def test_a_cursor_outlives_the_event_it_points_to(redis: Redis, events: Events) -> None:
    append(redis, *map(metric, range(CAP + 1)))
    before = everything(events)
    events.thin(JOB)
    left = everything(events)
    assert [event for event in before if event in left] == left
    gone = next(event for event in before if event not in left)
    place = before.index(gone)
    newer = events.since(JOB, after=gone.id, limit=1000).items
    older = events.page(JOB, after=gone.id, limit=1000).items
    assert newer == [event for event in before[place + 1 :] if event in left]
    assert older == [event for event in before[:place][::-1] if event in left]


def test_metrics_are_thinned_evenly_and_end_with_the_newest(redis: Redis, events: Events) -> None:
    append(redis, *map(metric, range(50)), Event(message="not a metric"))
    points = [point.data["step"] for point in events.metrics(JOB, 10)]
    assert points == [4, 9, 14, 19, 24, 29, 34, 39, 44, 49]
    assert len(events.metrics(JOB, 1000)) == 50
    assert [point.data["step"] for point in events.metrics(JOB, 1)] == [49]
    assert len(events.metrics(JOB, 30)) == 25
    assert events.metrics("ftjob-2", 10) == []


def test_of_a_long_curve_only_the_points_that_are_wanted_are_decoded(
    redis: Redis, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(redis, *map(metric, range(50)))
    decoded = []

    def loads(raw: str) -> object:
        decoded.append(raw)
        return json.loads(raw)

    monkeypatch.setattr("service.contract.events.json", SimpleNamespace(loads=loads))
    assert len(events.metrics(JOB, 10)) == len(decoded) == 10
