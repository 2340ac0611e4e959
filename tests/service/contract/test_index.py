"""Cursor pages over an index: order, ends, what is left out, and what a cursor outlives."""

from collections.abc import Iterable

import pytest
from redis import Redis

from service.contract import index
from service.contract.commands import typed
from service.contract.errors import InvalidRequest

KEY = "org:test:things"
IDS = [f"thing-{number:02}" for number in range(10)]


@pytest.fixture(autouse=True)
def _indexed(redis: Redis) -> None:
    with typed(redis).pipeline() as pipe:
        for id_ in reversed(IDS):
            index.add(pipe, KEY, id_)
        pipe.execute()


def _even(ids: list[str]) -> Iterable[str]:
    return [id_ for id_ in ids if int(id_[-1]) % 2 == 0]


def _walk(redis: Redis, limit: int, *, ascending: bool = False) -> list[list[str]]:
    """Every page of the even ones."""
    pages: list[list[str]] = []
    while True:
        after = pages[-1][-1] if pages else None
        page = index.page(typed(redis), KEY, _even, after=after, limit=limit, ascending=ascending)
        pages.append(page.items)
        if not page.has_more:
            return pages


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("chunk", [1, 2, 500])
def test_pages_are_complete_in_either_order_whatever_is_left_out(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, limit: int, chunk: int
) -> None:
    monkeypatch.setattr(index, "_CHUNK", chunk)
    wanted = list(_even(IDS))
    for ascending, order in ((True, wanted), (False, wanted[::-1])):
        pages = _walk(redis, limit, ascending=ascending)
        assert [id_ for page in pages for id_ in page] == order
        assert {len(page) for page in pages[:-1]} <= {limit}


def test_a_page_that_ends_exactly_has_no_more(redis: Redis) -> None:
    assert _walk(redis, 5) == [[*_even(IDS)][::-1]]


def test_a_cursor_outlives_what_it_points_to(redis: Redis) -> None:
    redis.zrem(KEY, IDS[4])
    page = index.page(typed(redis), KEY, _even, after=IDS[4], limit=9)
    assert page.items == [IDS[2], IDS[0]]


@pytest.mark.parametrize("cursor", ["", "thing", "job-1", "[", "+"])
def test_a_cursor_of_another_list_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="expected the id of an item of this list, thing-"):
        index.check_cursor(cursor, "thing-")


@pytest.mark.parametrize("cursor", [None, "thing-99"])
def test_a_cursor_of_the_list_is_taken(cursor: str | None) -> None:
    index.check_cursor(cursor, "thing-")


def test_batches_are_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_CHUNK", 4)
    assert list(index.batches(IDS)) == [IDS[:4], IDS[4:8], IDS[8:]]
    assert list(index.batches([])) == []
