"""The commands of the contract: the client library takes them, and Redis 6.2 knows them."""

import inspect
from collections.abc import Iterator

import pytest
from redis import Redis

from service.contract.commands import Client, Commands, Pipe
from service.redis_server import bundled
from tests.support import redis_server
from tests.support.redis_server import RedisServer

COMMANDS = [name for name, _ in inspect.getmembers(Commands, inspect.isfunction) if name[0] != "_"]
METHODS = {*COMMANDS, "pipeline", "watch", "multi", "execute"}


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """The bundled server, whichever is on the PATH."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_server, "executable", bundled)
        server = RedisServer(tmp_path_factory.mktemp("redis"))
    with Redis(port=server.port) as redis:
        yield redis
    server.kill()


def test_the_bundled_server_is_the_oldest_that_is_supported(oldest: Redis) -> None:
    assert oldest.info("server")["redis_version"].startswith("6.2.")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_oldest_redis_knows_the_command(oldest: Redis, name: str) -> None:
    name = {"delete": "del"}.get(name, name)  # the one that Python took first
    [answer] = oldest.execute_command("COMMAND", "INFO", name).values()
    assert answer["name"] == name


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_client_library_takes_what_is_declared(oldest: Redis, name: str) -> None:
    ours = Client if hasattr(Client, name) else Pipe
    declared = inspect.signature(getattr(ours, name)).parameters
    with oldest.pipeline() as pipe:
        theirs = inspect.signature(getattr(oldest if ours is Client else pipe, name))
    kinds = inspect.Parameter
    given = [each for each in declared.values() if each.name != "self"]
    positional = [object()] * sum(each.kind is not kinds.KEYWORD_ONLY for each in given)
    theirs.bind(*positional, **{each.name: 1 for each in given if each.kind is kinds.KEYWORD_ONLY})
