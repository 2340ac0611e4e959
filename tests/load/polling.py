"""Many clients that ask for one job, in one of three modes, and what they saw."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

from service.routes.fine_tuning import PATH
from tests.load.poller import Poller
from tests.load.target import Target

Mode = Literal["full", "unchanged", "paced"]
MODES: tuple[Mode, ...] = get_args(Mode)
_PACE_S = 1.0


@dataclass
class Tally:
    """What the clients of one mode saw.

    Attributes:
        mode: Which mode.
        times_s: How long each answer took, from the moment the request was due.
        statuses: How often each status came.
        broken: Connections that ended.
        took_s: How long the mode ran.
        client_s: Processor time of the clients; near `took_s`, they are the limit.
        server_s: Processor time of the server.
    """

    mode: Mode
    times_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    took_s: float = 0.0
    client_s: float = 0.0
    server_s: float = 0.0

    @property
    def errors(self) -> int:
        """Answers that were not to be expected, and connections that ended."""
        expected = {200} if self.mode == "full" else {200, 304}
        return self.broken + sum(
            self.statuses[status] for status in self.statuses.keys() - expected
        )

    def percentile_ms(self, share: float) -> float:
        """The time that this share of the answers stayed within."""
        ordered = sorted(self.times_s)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def poll(target: Target, mode: Mode, clients: int, seconds: float, key: str | None) -> Tally:
    """Let the clients of one mode poll, each on its own connection."""
    tally = Tally(mode)
    path = f"{PATH}/{target.job_id}"
    pollers = [await Poller.connect(target.url, path, key) for _ in range(clients)]
    seen = [(await poller.ask()).tag for poller in pollers]  # so that each was served before
    began, client_s, server_s = time.perf_counter(), time.process_time(), target.cpu_s()
    runs = [
        _poll(poller, tag, tally, began + _PACE_S * number / clients, began + seconds)
        for number, (poller, tag) in enumerate(zip(pollers, seen, strict=True))
    ]
    await asyncio.gather(*runs)
    tally.took_s = time.perf_counter() - began
    tally.client_s = time.process_time() - client_s
    tally.server_s = target.cpu_s() - server_s
    for poller in pollers:
        await poller.close()
    return tally


async def _poll(poller: Poller, seen: str | None, tally: Tally, first: float, end: float) -> None:
    """Poll until the end; a paced client begins at `first`, so that they come one by one."""
    paced = tally.mode == "paced"
    due = first if paced else time.perf_counter()
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        try:
            answer = await poller.ask(None if tally.mode == "full" else seen)
        except (OSError, EOFError):
            tally.broken += 1
            return
        now = time.perf_counter()
        tally.times_s.append(now - due)
        tally.statuses[answer.status] += 1
        seen = answer.tag
        due = due + _PACE_S if paced else now
