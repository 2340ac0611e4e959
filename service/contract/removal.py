"""Remove a record that jobs may need, unless one does: nobody comes in between.

Who needs it is kept in a set of its own, so that this costs the same however many jobs there are,
and only one on this very record is in the way.
"""

from collections.abc import Callable

from service.contract.commands import Client, Pipe
from service.contract.connection import transaction


def remove(
    redis: Client,
    erase: Callable[[Pipe], None],
    *needs: str,
    check: Callable[[], None] | None = None,
) -> None:
    """Erase in one step, after `check`.

    Args:
        redis: The client.
        erase: Queues the removal on a pipeline.
        needs: Keys of the sets of who needs the record.
        check: Raises where somebody does; called again where one of the sets changed meanwhile.

    Raises:
        Unavailable: Redis does not answer.
    """

    def write(pipe: Pipe) -> None:
        if check is not None:
            check()
        pipe.multi()
        erase(pipe)

    transaction(redis, write, *needs)
