"""The Redis commands that the contract uses, as they answer where responses are decoded.

The types of redis-py leave open whether an answer is text or bytes, and whether it must be awaited.
Ours is text, at once. Redis 6.2 knows every command here.
"""

# ruff: noqa: D102 -- the names are Redis's own, and its manual describes them
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from redis import Redis


class Commands(Protocol):
    """Commands, by the type of key that they are for."""

    # Strings
    def get(self, key: str, /) -> str | None: ...
    def mget(self, keys: Sequence[str], /) -> list[str | None]: ...
    def set(
        self,
        key: str,
        value: str | int,
        /,
        *,
        ex: int | None = None,
        px: int | None = None,
        exat: int | None = None,
    ) -> object: ...

    # Any key
    def exists(self, *keys: str) -> int: ...
    def delete(self, *keys: str) -> int: ...
    def time(self) -> tuple[int, int]: ...

    # Hashes
    def hgetall(self, key: str, /) -> dict[str, str]: ...
    def hget(self, key: str, field: str, /) -> str | None: ...
    def hset(self, key: str, /, *, mapping: Mapping[str, str]) -> int: ...
    def hincrby(self, key: str, field: str, by: int, /) -> int: ...
    def hincrbyfloat(self, key: str, field: str, by: float, /) -> float: ...

    # Sets
    def sadd(self, key: str, *members: str) -> int: ...
    def srem(self, key: str, *members: str) -> int: ...
    def smembers(self, key: str, /) -> AbstractSet[str]: ...

    # Sorted sets
    def zadd(self, key: str, mapping: Mapping[str, float], /) -> object: ...
    def zrem(self, key: str, *members: str) -> int: ...
    def zremrangebyscore(self, key: str, least: str, most: float, /) -> int: ...
    def zrank(self, key: str, member: str, /) -> int | None: ...
    def zrange(self, key: str, start: int, end: int, /) -> list[str]: ...
    def zrevrange(self, key: str, start: int, end: int, /) -> list[str]: ...
    def zrangebyscore(
        self, key: str, least: str, most: float, /, *, start: int, num: int
    ) -> list[str]: ...
    def zrangebylex(
        self, key: str, least: str, most: str, /, *, start: int, num: int
    ) -> list[str]: ...
    def zrevrangebylex(
        self, key: str, most: str, least: str, /, *, start: int, num: int
    ) -> list[str]: ...

    # Streams
    def xadd(self, key: str, fields: Mapping[str, str], /) -> object: ...
    def xlen(self, key: str, /) -> int: ...
    def xdel(self, key: str, *ids: str) -> int: ...
    def xrange(
        self, key: str, least: str = "-", most: str = "+", /, *, count: int | None = None
    ) -> list[tuple[str, dict[str, str]]]: ...
    def xrevrange(
        self, key: str, most: str = "+", least: str = "-", /, *, count: int | None = None
    ) -> list[tuple[str, dict[str, str]]]: ...

    # Lists
    def lrange(self, key: str, start: int, end: int, /) -> list[str]: ...
    def llen(self, key: str, /) -> int: ...


class Pipe(Commands, Protocol):
    """A pipeline: commands are answered at once while it watches, and queued otherwise."""

    def watch(self, *keys: str) -> object:
        """Make `execute` fail where one of these changes before it."""

    def multi(self) -> None:
        """From here on, queue."""

    def execute(self) -> list[Any]:
        """Send what is queued; its answers, in order."""


class Client(Commands, Protocol):
    """A connection pool."""

    def pipeline(self, transaction: bool = True) -> AbstractContextManager[Pipe]:
        """A pipeline, atomic unless `transaction` is False."""


def typed(redis: Redis) -> Client:
    """The same client, with types that fit what `connect` sets up."""
    return cast("Client", redis)
