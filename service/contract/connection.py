"""Open Redis, change it in transactions, and turn its absence into the one error callers know."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    WatchError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from service.contract.commands import Client, Pipe
from service.contract.errors import Unavailable
from service.contract.settings import Settings

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
SOCKET_TIMEOUT_S = 5.0
# A writer that loses every one of these races is one of hundreds: it had better come back later.
_TRIES = 100
_MAX_PAUSE_S = 0.05
# Answers of a server that cannot write its append-only file, or has lost its replicas.
_CANNOT_WRITE = ("MISCONF", "NOREPLICAS")


def connect(settings: Settings, timeout_s: float = SOCKET_TIMEOUT_S) -> Redis:
    """A client with a connection pool; it connects on first use and reconnects by itself.

    Args:
        settings: Where Redis is.
        timeout_s: How long a call may wait for an answer; it is not asked twice.
    """
    password = settings.redis_password()
    return Redis.from_url(
        settings.redis_url,
        password=password.get_secret_value() if password else None,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # Once: the pool may hold connections from before a restart of Redis.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )


class AccessRefused(Exception):
    """Redis lets nobody in with the credentials of the settings, or they cannot be read."""


def check_access(settings: Settings) -> None:
    """Find out at the start whether Redis takes our password: later, it only seems to be away.

    A Redis that does not answer, or whose disk is full, may yet come round; the log is told.

    Raises:
        AccessRefused: It does not take the password, or wants one, or its file cannot be read.
    """
    with _connect_or_refuse(settings) as redis:
        try:
            redis.ping()
        except AuthenticationError as error:
            why = _refusal(settings, redis, error)
            raise AccessRefused(f"Redis at {settings.redis_address} {why}") from error
        except (RedisConnectionError, RedisTimeoutError, ResponseError) as error:
            _LOG.warning("Redis at %s does not serve yet: %s", settings.redis_address, error)


def _connect_or_refuse(settings: Settings) -> Redis:
    try:
        return connect(settings)  # it reads the file; the network comes later
    except OSError as error:
        why = error.strerror
    except UnicodeDecodeError:
        why = "it is no text"  # the error itself would quote the password
    raise AccessRefused(
        f"The password of Redis at {settings.redis_address} cannot be read from "
        f"{settings.redis_password_file}, which HEADROOM_REDIS_PASSWORD_FILE names: {why}"
    )


def _refusal(settings: Settings, redis: Redis, error: AuthenticationError) -> str:
    if settings.redis_password_file is not None:
        return f"refuses the password in {settings.redis_password_file}: {error}"
    if redis.connection_pool.connection_kwargs.get("password"):
        return f"refuses the password in HEADROOM_REDIS_URL: {error}"
    # What Redis itself says here is about a command that nobody sent knowingly.
    return "wants a password; HEADROOM_REDIS_PASSWORD_FILE names none."


@contextmanager
def available() -> Iterator[None]:
    """Raise `Unavailable` where Redis cannot be reached, is still loading, or cannot write."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError) as error:
        raise Unavailable(
            "Redis does not answer. Nothing was lost; try again in a few seconds."
        ) from error
    except ResponseError as error:
        if isinstance(error, OutOfMemoryError | ReadOnlyError) or any(
            sign in str(error) for sign in _CANNOT_WRITE
        ):
            raise Unavailable("Redis cannot take writes now: memory or disk is full.") from error
        raise


def transaction(redis: Client, work: Callable[[Pipe], T], *keys: str) -> T:
    """Read, decide and write, with nobody in between.

    `work` reads from the pipe, calls `multi`, queues its writes and returns a value. It may watch
    more keys first, and must watch every key that it reads. It runs again where another writer
    came in between, also where the connection broke and the outcome is unknown: then it finds
    what it wrote itself.

    Args:
        redis: The client.
        work: Called with the pipe, possibly several times.
        keys: The keys to watch before `work` begins.

    Raises:
        Unavailable: Redis does not answer, or every try met another writer.
    """
    with available(), redis.pipeline() as pipe:
        for attempt in range(_TRIES):
            try:
                pipe.watch(*keys)
                value = work(pipe)
                pipe.execute()
            except WatchError:
                time.sleep(random.uniform(0, min(_MAX_PAUSE_S, 0.001 * 2**attempt)))  # noqa: S311
            else:
                return value
    raise Unavailable("Too many writers at once; try again in a few seconds.")
