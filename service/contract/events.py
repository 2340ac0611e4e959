"""A job's events and metrics: an append-only Redis stream with stable cursors."""

import json
import re

from redis import Redis

from service.contract import keys
from service.contract.commands import Pipe, typed
from service.contract.connection import available
from service.contract.errors import InvalidRequest
from service.contract.index import Page
from service.contract.job import Event, StoredEvent

PREFIX = "ftevent-"
_ID = re.compile(rf"{PREFIX}([1-9]\d{{0,17}}-\d{{1,18}})", re.ASCII)


def append(pipe: Pipe, job_id: str, event: Event) -> None:
    """Queue an event on a pipeline, so that it is written with the change it tells of."""
    fields = {
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": json.dumps(event.data),
    }
    pipe.xadd(keys.events(job_id), fields)


class Events:
    """Read a job's events, and keep their number bounded."""

    def __init__(self, redis: Redis, cap: int) -> None:
        self._redis = typed(redis)
        self._cap = cap

    def page(self, job_id: str, *, after: str | None, limit: int) -> Page[StoredEvent]:
        """Events newest first, older than the cursor `after`.

        Raises:
            InvalidRequest: The cursor is not an event's id.
        """
        end = "+" if after is None else f"({_entry_id(after)}"
        with available():
            entries = self._redis.xrevrange(keys.events(job_id), end, count=limit + 1)
        events = [_stored(entry_id, fields) for entry_id, fields in entries]
        return Page(events[:limit], has_more=len(events) > limit)

    def since(self, job_id: str, *, after: str | None, limit: int) -> Page[StoredEvent]:
        """Events oldest first, newer than the cursor `after`: what a follower polls.

        Raises:
            InvalidRequest: The cursor is not an event's id.
        """
        start = "-" if after is None else f"({_entry_id(after)}"
        with available():
            entries = self._redis.xrange(keys.events(job_id), start, count=limit + 1)
        events = [_stored(entry_id, fields) for entry_id, fields in entries]
        return Page(events[:limit], has_more=len(events) > limit)

    def metrics(self, job_id: str, resolution: int) -> list[StoredEvent]:
        """The metrics, oldest first, thinned evenly to at most `resolution`; the newest stays."""
        with available():
            entries = self._redis.xrange(keys.events(job_id))
        points = [entry for entry in entries if entry[1]["type"] == "metrics"]
        stride = max(1, -(-len(points) // resolution))
        return [_stored(*entry) for entry in points[::-1][::stride][::-1]]

    def thin(self, job_id: str) -> None:
        """Where there are more metrics than the cap, drop a quarter; the newest quarter stays.

        Dropped is what leaves the smallest gaps, so that a long curve keeps the same resolution
        from its beginning on. Messages are never dropped.
        """
        key, portion = keys.events(job_id), self._cap // 4
        with available():
            if self._redis.xlen(key) <= self._cap:
                return
            entries = self._redis.xrange(key)
            metrics = [entry_id for entry_id, fields in entries if fields["type"] == "metrics"]
            if len(metrics) > self._cap:
                self._redis.xdel(key, *_surplus(metrics[:-portion], portion))


def _surplus(entry_ids: list[str], count: int) -> list[str]:
    """At most `count` entries, no two of them neighbours, in the densest parts of a curve."""
    times = [_time_ms(entry_id) for entry_id in entry_ids]
    by_gap = sorted(range(1, len(times) - 1), key=lambda i: times[i + 1] - times[i - 1])
    chosen: set[int] = set()
    for i in by_gap:
        if len(chosen) < count and chosen.isdisjoint((i - 1, i + 1)):
            chosen.add(i)
    return [entry_ids[i] for i in chosen]


def _entry_id(cursor: str) -> str:
    """The stream's own id of an event."""
    match = _ID.fullmatch(cursor)
    if match is None:
        raise InvalidRequest(
            f"after is {cursor[:80]!r}; expected the id of an event, {PREFIX}...",
            code="invalid_cursor",
            param="after",
        )
    return match[1]


def _stored(entry_id: str, fields: dict[str, str]) -> StoredEvent:
    """An event from a stream entry; its time is the id's."""
    return StoredEvent(
        id=f"{PREFIX}{entry_id}",
        created_at=_time_ms(entry_id) // 1000,
        level=fields["level"],
        message=fields["message"],
        type=fields["type"],
        data=json.loads(fields["data"]),
    )


def _time_ms(entry_id: str) -> int:
    """When an entry was written, by the clock of Redis."""
    return int(entry_id.partition("-")[0])
