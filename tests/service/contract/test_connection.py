"""Opening Redis: the password and its absence; outages and races have files of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError

from service.contract.commands import Pipe, typed
from service.contract.connection import (
    AccessRefused,
    available,
    check_access,
    connect,
    transaction,
)
from service.contract.errors import Unavailable
from service.contract.settings import Settings
from service.redis_server import RedisServer, start_redis


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that asks for a password."""
    server = start_redis(tmp_path / "redis", tmp_path / "redis.log")
    yield server
    server.part.terminate()
    server.part.join(10)


def test_the_password_is_that_of_its_file_and_answers_are_text(guarded: RedisServer) -> None:
    with connect(guarded.settings) as redis:
        redis.set("key", "ä")
        assert typed(redis).get("key") == "ä"


@pytest.mark.parametrize("password", [None, "guessed"])
def test_a_wrong_password_is_told_to_the_log_and_not_to_the_caller(
    guarded: RedisServer, tmp_path: Path, password: str | None
) -> None:
    file = None
    if password is not None:
        file = tmp_path / "password"
        file.write_text(password)
    settings = Settings(redis_url=guarded.url, redis_password_file=file)
    with connect(settings) as redis, pytest.raises(Unavailable) as caught, available():
        redis.get("key")
    assert caught.value.message.startswith("Redis does not answer.")
    assert isinstance(caught.value.__cause__, AuthenticationError)


def test_access_is_checked_and_the_reason_told_without_the_password(
    guarded: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_access(guarded.settings)
    assert caplog.messages == []

    file = tmp_path / "wrong"
    file.write_text("s3cret")
    secret_url = guarded.url.replace("//", "//:s3cret@")
    for settings, given in [
        (
            Settings(redis_url=guarded.url, redis_password_file=file),
            f"refuses the password in {file}: ",
        ),
        (Settings(redis_url=secret_url), "in HEADROOM_REDIS_URL: "),
        (Settings(redis_url=f"{guarded.url}?password=s3cret"), "in HEADROOM_REDIS_URL: "),
        (
            Settings(redis_url=guarded.url),
            "wants a password; HEADROOM_REDIS_PASSWORD_FILE names none",
        ),
    ]:
        with pytest.raises(AccessRefused, match=f"^Redis at {guarded.url} ") as caught:
            check_access(settings)
        assert given in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_a_password_that_cannot_be_read_is_told_with_its_file_and_the_reason(
    tmp_path: Path,
) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"s3cret\xff")
    for file, reason in [
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (binary, "it is no text"),
    ]:
        settings = Settings(redis_url="redis://:s3cret@127.0.0.1:1/0", redis_password_file=file)
        with pytest.raises(AccessRefused) as caught:
            check_access(settings)
        assert str(caught.value) == (
            f"The password of Redis at redis://127.0.0.1:1/0 cannot be read from {file}, "
            f"which HEADROOM_REDIS_PASSWORD_FILE names: {reason}"
        )


def test_a_redis_that_is_away_may_yet_come(caplog: pytest.LogCaptureFixture) -> None:
    check_access(Settings(redis_url="redis://:s3cret@127.0.0.1:1/0"))
    (told,) = caplog.messages
    assert told.startswith("Redis at redis://127.0.0.1:1/0 does not serve yet: ")


def test_a_transaction_that_raises_writes_nothing(guarded: RedisServer) -> None:
    with connect(guarded.settings) as redis:

        def work(pipe: Pipe) -> None:
            pipe.multi()
            pipe.set("key", "half")
            raise RuntimeError("a change of mind")

        with pytest.raises(RuntimeError, match="a change of mind"):
            transaction(typed(redis), work, "key")
        assert redis.get("key") is None
        redis.set("other", "1")
        assert redis.get("other") == "1"
