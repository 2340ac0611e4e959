"""Tell the service that this worker is alive, and what it trains on.

What that is, only torch knows, which the supervisor never imports: a short-lived child looks once,
while the worker starts. Until it has answered, and where it fails, nothing is told.
"""

import logging
import os
import subprocess
import sys

from pydantic import ValidationError

from service.contract.device import Device
from service.contract.errors import Unavailable
from service.contract.fleet import Fleet, LiveWorker
from worker import lifeline
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


class Presence:
    """Announces one worker; `tick` is to be called now and then, and never waits for the child."""

    def __init__(self, settings: WorkerSettings, fleet: Fleet) -> None:
        self._settings = settings
        self._fleet = fleet
        self._child: subprocess.Popen[str] | None = None
        self._device: Device | None = None

    def start(self) -> None:
        """Start the child that looks at the device."""
        shim = [sys.executable, "-IS", lifeline.__file__, str(os.getpid())]
        self._child = subprocess.Popen(  # noqa: S603 -- the configured command
            [*shim, *self._settings.device_command, self._settings.device],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tick(self) -> None:
        """Tell what is known, until the lease of a job would have run out."""
        if self._child is not None and self._child.poll() is not None:
            self._device = self._read(self._child)
            self._child = None
        if self._device is None:
            return
        worker = LiveWorker(name=self._settings.worker_name, device=self._device)
        try:
            self._fleet.announce(worker, self._settings.lease_s)
        except Unavailable as away:
            logger.warning("Not announced: %s", away)

    def stop(self) -> None:
        """Tell that the worker stops."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
        self._child = self._device = None
        try:
            self._fleet.retire(self._settings.worker_name)
        except Unavailable as away:
            logger.warning("Not retired, what was told will expire: %s", away)

    @staticmethod
    def _read(child: subprocess.Popen[str]) -> Device | None:
        """What the child has found; None where it failed, its reason being in the log already."""
        answer, _ = child.communicate()
        try:
            return Device.model_validate_json(answer)
        except ValidationError:
            logger.error(  # noqa: TRY400 -- the child has told why
                "The device is unknown, this worker will not be listed: %r exited with %d.",
                child.args,
                child.returncode,
            )
            return None
