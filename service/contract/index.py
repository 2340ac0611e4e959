"""Cursor pages over an index of ids: what every list endpoint does.

An index is a ZSET of one score, so that Redis keeps its ids in order of their text; ids begin with
the time of their making (`job.new_id`). A cursor is therefore a place in the order, which outlives
the object that it was the id of: who deletes what a page lists still gets the next page.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.contract.commands import Client, Pipe
from service.contract.connection import available
from service.contract.errors import InvalidRequest

Item = TypeVar("Item")
_CHUNK = 500


@dataclass(frozen=True)
class Page(Generic[Item]):
    """One page of a list, and whether more follows."""

    items: list[Item]
    has_more: bool


def add(pipe: Pipe, index: str, id_: str) -> None:
    """Queue the addition of an id on a pipeline."""
    pipe.zadd(index, {id_: 0})


def page(
    redis: Client,
    index: str,
    load: Callable[[list[str]], Iterable[Item]],
    *,
    after: str | None,
    limit: int,
    ascending: bool = False,
) -> Page[Item]:
    """The items behind the id `after`, newest first unless `ascending`.

    Work and memory are bounded by the page, and by how many items in a row `load` leaves out.

    Args:
        redis: The client.
        index: Key of the ZSET.
        load: Turns ids into items, and leaves out what is not wanted.
        after: The id that the page before ended with, or None for the first page.
        limit: The most items of the page.
        ascending: Oldest first.
    """
    found: list[Item] = []
    for ids in _chunks(redis, index, after, min(limit + 1, _CHUNK), ascending=ascending):
        found.extend(load(ids))
        if len(found) > limit:
            break
    return Page(found[:limit], has_more=len(found) > limit)


def check_cursor(after: str | None, form: str) -> None:
    """Refuse a cursor that cannot be an id of the list: it does not begin with `form`.

    Raises:
        InvalidRequest: With the parameter `after`.
    """
    if after is not None and not after.startswith(form):
        raise InvalidRequest(
            f"after is {after[:80]!r}; expected the id of an item of this list, {form}...",
            code="invalid_cursor",
            param="after",
        )


def batches(ids: list[str]) -> Iterator[list[str]]:
    """Ids in portions that Redis answers without keeping others waiting."""
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]


def _chunks(
    redis: Client, index: str, after: str | None, size: int, *, ascending: bool
) -> Iterator[list[str]]:
    """The ids behind `after`, `size` at a time."""
    while True:
        place = None if after is None else f"({after}"
        with available():
            ids = (
                redis.zrangebylex(index, place or "-", "+", start=0, num=size)
                if ascending
                else redis.zrevrangebylex(index, place or "+", "-", start=0, num=size)
            )
        if ids:
            yield ids
        if len(ids) < size:
            return
        after = ids[-1]
