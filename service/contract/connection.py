"""Open Redis, and turn its absence into the one error that callers know."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError  # noqa: A004 -- redis's own names

from service.contract.errors import Unavailable
from service.contract.settings import Settings

SOCKET_TIMEOUT_S = 5.0


def connect(settings: Settings, timeout_s: float = SOCKET_TIMEOUT_S) -> "Redis":
    """A client with a connection pool; it connects on first use and reconnects by itself.

    Args:
        settings: Where Redis is.
        timeout_s: How long a call may wait for an answer.
    """
    password = settings.redis_password()
    return Redis.from_url(
        settings.redis_url,
        password=password.get_secret_value() if password else None,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )


@contextmanager
def available() -> Iterator[None]:
    """Raise `Unavailable` where Redis cannot be reached or is still loading."""
    try:
        yield
    except (ConnectionError, TimeoutError, BusyLoadingError) as error:
        raise Unavailable(
            "Redis does not answer. Nothing was lost; try again in a few seconds."
        ) from error
