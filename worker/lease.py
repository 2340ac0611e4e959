"""Hold a claim while working under it: renew its lease, and hear what is asked of the job.

    Interrupted
    ├── CancelRequested     the caller wants the job cancelled
    └── WorkerStopping      this worker has been told to stop

The supervisor has one thread and no timer: wherever it waits, it calls `beat`, or waits through
`insist` or `during`, which do. So a lease is renewed as long as the supervisor makes progress, and
an interruption is raised in the one place that can clean up.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from service.contract.errors import JobFailure, LostClaim, Unavailable
from service.contract.store import Claim, Store
from worker.settings import WorkerSettings

T = TypeVar("T")
logger = logging.getLogger(__name__)
RETRY_S = 0.25


class Interrupted(Exception):
    """The attempt must end, through no fault of the job."""


class CancelRequested(Interrupted):
    """The caller wants the job cancelled."""


class WorkerStopping(Interrupted):
    """This worker has been told to stop."""


class Lease:
    """A claim and the time until which it is safely ours."""

    def __init__(
        self,
        store: Store,
        claim: Claim,
        settings: WorkerSettings,
        *,
        since: float,
        stopping: threading.Event,
    ) -> None:
        """Take charge of a claim that was asked for at `since`, on the monotonic clock."""
        self.claim = claim
        self._store = store
        self._heartbeat_s = settings.heartbeat_s
        # The last call may hang for as long as its timeout: give up that much earlier.
        self._ours_s = settings.lease_s - settings.redis_timeout_s
        self._stopping = stopping
        self._renewed = since
        self._next_beat = since + settings.heartbeat_s

    def beat(self) -> None:
        """Renew the lease when it is time.

        Raises:
            LostClaim: Another attempt has the job, or the lease has run out unrenewed.
            CancelRequested: The caller wants the job cancelled.
            WorkerStopping: This worker has been told to stop.
        """
        if self._stopping.is_set():
            raise WorkerStopping
        if time.monotonic() >= self._next_beat:
            self.insist(self._renew)

    def insist(self, write: Callable[[], T]) -> T:
        """Call `write` until Redis answers, for as long as the lease is ours by our own clock.

        Raises:
            LostClaim: The lease has run out: another attempt may have the job by now.
        """
        while True:
            try:
                return write()
            except Unavailable:
                logger.warning("%s: Redis does not answer; retrying.", self.claim.job_id)
            # Redis may have dropped the lease although it never told us.
            if time.monotonic() - self._renewed >= self._ours_s:
                raise LostClaim(f"The lease on {self.claim.job_id} ran out while Redis was away.")
            time.sleep(RETRY_S)

    def during(self, transfer: Callable[[], T]) -> T:
        """Run a blocking storage transfer in a thread of its own, and beat meanwhile.

        An interruption leaves the transfer behind: it writes to a path that nothing names.

        Raises:
            JobFailure: The storage does not answer.
        """
        self.beat()
        with _background(transfer) as future:
            while not future.done():
                self.beat()
                wait([future], timeout=RETRY_S)
        try:
            return future.result()
        except Unavailable as error:
            raise JobFailure("storage_unavailable", error.message) from error

    def _renew(self) -> None:
        asked = time.monotonic()
        record = self._store.heartbeat(self.claim)
        self._renewed = asked
        self._next_beat = asked + self._heartbeat_s
        if record.cancel_requested:
            raise CancelRequested


@contextmanager
def _background(transfer: Callable[[], T]) -> Iterator[Future[T]]:
    """The future of `transfer` on a thread that the block does not wait for."""
    executor = ThreadPoolExecutor(max_workers=1)
    try:
        yield executor.submit(transfer)
    finally:
        executor.shutdown(wait=False)
