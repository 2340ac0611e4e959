"""Cursor pages over a sorted index of ids: what every list endpoint does."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from redis import Redis

Item = TypeVar("Item")


@dataclass(frozen=True)
class Page(Generic[Item]):
    """One page of a list, and whether more follows."""

    items: list[Item]
    has_more: bool


def newest_first(redis: Redis, index: str, after: str | None) -> list[str]:
    """Ids of a ZSET from the newest on, starting behind `after`; an unknown cursor ends the list."""
    if after is None:
        return redis.zrevrange(index, 0, -1)
    rank = redis.zrevrank(index, after)
    return [] if rank is None else redis.zrevrange(index, rank + 1, -1)


def oldest_first(redis: Redis, index: str, after: str | None) -> list[str]:
    """Ids of a ZSET from the oldest on, starting behind `after`; an unknown cursor ends the list."""
    if after is None:
        return redis.zrange(index, 0, -1)
    rank = redis.zrank(index, after)
    return [] if rank is None else redis.zrange(index, rank + 1, -1)
