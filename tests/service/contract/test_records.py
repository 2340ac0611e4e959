"""Reading: pages, the version of a status, the queue, and who uses what."""

import pytest
from redis import Redis

from service.contract import index, records
from service.contract.errors import InvalidRequest, NotFound
from service.contract.job import JobStatus, new_id
from service.contract.spec import ComparisonOptions
from service.contract.store import Store
from tests.service.contract.support import EVENT, ORG, create, lose, queued, running, take


def walk(store: Store, limit: int, **metadata: str) -> list[list[str]]:
    """Ids of every page."""
    pages, after = [], None
    while True:
        page = store.page(ORG, after=after, limit=limit, metadata=metadata)
        pages.append([job.id for job in page.items])
        if not page.has_more:
            return pages
        after = pages[-1][-1]


def commands(redis: Redis) -> int:
    return redis.info("stats")["total_commands_processed"]


def test_an_organization_sees_its_own(store: Store) -> None:
    ours, theirs = create(store), create(store, org="org-2")
    assert store.get(ours, ORG).id == ours
    assert store.get(theirs).org == "org-2"
    for read in (store.get, store.standing, store.version):
        with pytest.raises(NotFound) as caught:
            read(theirs, ORG)
        assert (caught.value.code, caught.value.param) == ("job_not_found", "job_id")
    assert walk(store, 10) == [[ours]]


def test_pages_are_newest_first_and_complete(store: Store) -> None:
    ids = sorted((create(store) for _ in range(7)), reverse=True)
    assert walk(store, 3) == [ids[:3], ids[3:6], ids[6:]]
    assert walk(store, 7) == [ids]
    assert walk(store, 100) == [ids]


def test_a_job_that_comes_in_between_two_pages_shifts_nothing(store: Store) -> None:
    ids = sorted((create(store) for _ in range(4)), reverse=True)
    first = store.page(ORG, after=None, limit=2, metadata={})
    create(store)
    rest = store.page(ORG, after=first.items[-1].id, limit=2, metadata={})
    assert [job.id for job in rest.items] == ids[2:]


def test_metadata_filters(store: Store) -> None:
    # Ids of one millisecond are in no order of creation.
    wanted = sorted((create(store, metadata={"team": "a"}) for _ in range(5)), reverse=True)
    for _ in range(5):
        create(store, metadata={"team": "b"})
    assert walk(store, 2, team="a") == [wanted[:2], wanted[2:4], wanted[4:]]
    both = create(store, metadata={"team": "a", "n": "3"})
    assert walk(store, 2, team="a", n="3") == [[both]]
    assert walk(store, 2, team="c") == [[]]


def test_a_page_does_not_read_the_whole_index(store: Store, redis: Redis) -> None:
    for _ in range(60):
        create(store)
    before = commands(redis)
    store.page(ORG, after=None, limit=2, metadata={})
    assert commands(redis) - before < 10


def test_a_page_of_comparisons_does_not_look_at_other_jobs(store: Store, redis: Redis) -> None:
    wanted = create(store, comparison=ComparisonOptions())
    for _ in range(20):
        create(store)
    before = commands(redis)
    page = store.page(ORG, after=None, limit=2, metadata={}, kind="comparisons")
    assert [job.id for job in page.items] == [wanted]
    assert commands(redis) - before < 5


def test_a_filter_reads_no_record_that_it_leaves_out(store: Store, redis: Redis) -> None:
    def read() -> int:
        return int(redis.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"])

    wanted = create(store, metadata={"a": "b"})
    for _ in range(20):
        create(store)
    before = read()
    assert walk(store, 5, a="b") == [[wanted]]
    assert read() - before == 1


def test_a_filter_reads_on_in_portions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_CHUNK", 3)
    wanted = create(store, metadata={"a": "b"})
    for _ in range(20):
        create(store)
    assert walk(store, 5, a="b") == [[wanted]]


@pytest.mark.parametrize("cursor", ["", "file-1", "+", "["])
def test_a_cursor_that_is_no_job_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        store.page(ORG, after=cursor, limit=1, metadata={})
    assert caught.value.param == "after"


def test_ids_sort_by_when_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for ms in (1, 0xFFFF, 1_800_000_000_000, 1_800_000_000_001, 2**47):
        monkeypatch.setattr("time.time_ns", lambda ms=ms: ms * 1_000_000)
        made.append(new_id("ftjob-"))
    assert made == sorted(made)
    assert len({new_id("x") for _ in range(1000)}) == 1000


# The version


def test_the_version_changes_with_the_record(store: Store) -> None:
    claim = running(store)
    before = store.version(claim.job_id)
    assert store.version(claim.job_id, ORG) == before
    store.heartbeat(claim)
    assert store.version(claim.job_id) == before
    store.update(claim, trained_tokens=1)
    assert store.version(claim.job_id) != before


def test_the_version_changes_with_the_place_in_the_queue(store: Store) -> None:
    first, second = queued(store), queued(store)
    before = store.version(second)
    take(store, first)
    assert store.version(second) != before


def test_the_version_of_a_queued_job_is_never_one_it_has_later(store: Store) -> None:
    job_id = queued(store)
    seen = [store.version(job_id)]
    claim = take(store, job_id)
    seen.append(store.version(job_id))
    store.transition(job_id, JobStatus.SUCCEEDED, EVENT, token=claim.token)
    seen.append(store.version(job_id))
    assert len(set(seen)) == 3


# The queue, and what is unfinished


def test_the_queue_is_in_order_of_arrival(store: Store) -> None:
    ids = [queued(store) for _ in range(3)]
    assert store.queue_positions(ids) == [1, 2, 3]
    assert [store.queue_position(job_id) for job_id in ids] == [1, 2, 3]
    store.request_cancel(ids[0])
    assert store.queue_positions(ids) == [None, 1, 2]


def test_the_reaper_sees_what_nobody_holds(store: Store, redis: Redis) -> None:
    waiting, held, lost = queued(store), running(store), running(store)
    ended = create(store)
    store.request_cancel(ended)
    lose(redis, lost)
    assert store.unheld() == {waiting: JobStatus.QUEUED, lost.job_id: JobStatus.RUNNING}
    assert store.active() == sorted([waiting, lost.job_id, held.job_id])


def test_many_unfinished_jobs_cost_few_round_trips(store: Store, redis: Redis) -> None:
    for _ in range(30):
        queued(store)
    before = redis.info("stats")["total_net_input_bytes"]
    assert len(store.unheld()) == 30
    assert redis.info("stats")["total_net_input_bytes"] - before < 30 * 200


def test_who_uses_a_file_or_a_model(store: Store) -> None:
    one = create(store, training_file="file-a", validation_file="file-b", model="ft:m")
    ended = create(store, training_file="file-a")
    store.request_cancel(ended)
    for used in ("file-a", "file-b", "ft:m", one):
        assert [job.id for job in store.users(used)] == [one]
    assert [job.id for job in store.users("file-x", "file-b")] == [one]
    assert store.users("file-x", "base-2", ended) == []


def test_who_uses_a_file_costs_the_same_however_many_jobs_there_are(
    store: Store, redis: Redis
) -> None:
    def cost() -> int:
        before = redis.info("stats")["total_commands_processed"]
        assert store.users("file-a") == []
        return int(redis.info("stats")["total_commands_processed"]) - before

    alone = cost()
    for _ in range(30):
        queued(store)
    assert cost() == alone


def test_a_missing_hash_is_no_record() -> None:
    assert records.decode({}) is None
