"""Settings of a worker, from `HEADROOM_*` variables: the shared ones and its own."""

import socket
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from service.contract.connection import SOCKET_TIMEOUT_S
from service.contract.settings import FROM_JSON, Settings
from worker.events import DeviceChoice

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
# Above all levels of torch's profiler, which counts memory on CPU: the last words of a trainer that
# dies would else be of its starts and stops.
_QUIET_PROFILER = "6"


class WorkerSettings(Settings):
    """What a worker needs beside the settings that it shares with the service.

    Attributes:
        worker_name: How jobs and logs name this machine.
        work_dir: Local scratch space; the folder of an attempt goes when the attempt ends.
        trainer_command: The trainer; the spec's path and `--events-fd N` are appended.
        device: What jobs are trained on: `auto` is a GPU where there is one; with `cuda` jobs fail
            where there is none, instead of taking days on the CPU.
        device_command: Says, as JSON on standard output, what `device` is here; it is appended.
        allocator_conf: PyTorch's settings of its allocator (PYTORCH_ALLOC_CONF) for the trainer.
            Segments that can grow keep memory from being lost to gaps, in which nothing fits.
        keep_checkpoints: The newest checkpoints of a job that are kept.
        stop_grace_s: Time for a trainer to end by itself after SIGTERM, before SIGKILL.
        progress_interval_s: The shortest time between two writes of a job's progress.
        resend_grace_s: How long a job may be without a message before the reaper sends another.
        log_level: The least that the worker logs.
    """

    worker_name: str = Field(default_factory=socket.gethostname)
    work_dir: Path = Path("headroom-data/work")
    trainer_command: Annotated[list[str], *FROM_JSON] = Field(
        default_factory=lambda: [sys.executable, "-m", "worker.training"], min_length=1
    )
    device: DeviceChoice = "auto"
    device_command: Annotated[list[str], *FROM_JSON] = Field(
        default_factory=lambda: [sys.executable, "-m", "worker.training.device"], min_length=1
    )
    allocator_conf: str = "expandable_segments:True"
    keep_checkpoints: int = Field(3, ge=1)
    stop_grace_s: float = Field(3.0, ge=0)
    progress_interval_s: float = Field(0.5, ge=0)
    resend_grace_s: float = Field(5.0, ge=0)
    log_level: LogLevel = "INFO"

    @property
    def trainer_environment(self) -> dict[str, str]:
        """Variables that the trainer gets beside the worker's own."""
        return {"PYTORCH_ALLOC_CONF": self.allocator_conf, "KINETO_LOG_LEVEL": _QUIET_PROFILER}

    @property
    def redis_timeout_s(self) -> float:
        """How long the supervisor waits for Redis: several tries must fit into a lease."""
        return min(SOCKET_TIMEOUT_S, self.lease_s / 5)
