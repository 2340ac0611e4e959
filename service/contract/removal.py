"""Remove a record that jobs may need, unless one does: nobody comes in between."""

from collections.abc import Callable

from service.contract import keys
from service.contract.commands import Client, Pipe
from service.contract.connection import transaction


def remove(
    redis: Client, erase: Callable[[Pipe], None], check: Callable[[], None] | None = None
) -> None:
    """Erase in one step, after `check`.

    Args:
        redis: The client.
        erase: Queues the removal on a pipeline.
        check: Raises where a job needs the record; called again where a job came in between.

    Raises:
        Unavailable: Redis does not answer.
    """

    def write(pipe: Pipe) -> None:
        if check is not None:
            check()
        pipe.multi()
        erase(pipe)

    transaction(redis, write, keys.ACTIVE)
