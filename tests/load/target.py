"""The server that is measured: real Redis, the real API, and a job as a worker leaves it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.contract.connection import connect
from service.contract.store import Store
from service.redis_server import start_redis
from service.settings import ServiceSettings
from tests.support.job_scene import SceneJob
from tests.support.measured import TOTAL_STEPS
from tests.support.process import served

# As often as a worker writes progress (`progress_interval_s` of its settings).
_REPORT_S = 0.5
_STOP_S = 10.0


@dataclass(frozen=True)
class Target:
    """A server, and the job to ask it for.

    Attributes:
        pid: The server's process, where it is ours.
        scene: The job, where it is ours to change.
    """

    url: str
    job_id: str
    pid: int | None = None
    scene: SceneJob | None = None

    def cpu_s(self) -> float:
        """The processor time that the server has taken; 0 where it is not ours."""
        if self.pid is None:
            return 0.0
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = map(int, fields[11:13])
        return (user + system) / os.sysconf("SC_CLK_TCK")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Play the worker meanwhile: it reports a step now and then."""
        ended = threading.Event()
        worker = threading.Thread(target=self._work, args=(ended,))
        worker.start()
        try:
            yield
        finally:
            ended.set()
            worker.join()

    def _work(self, ended: threading.Event) -> None:
        if self.scene is not None:
            for step in range(2, TOTAL_STEPS):
                self.scene.train([step])
                if ended.wait(_REPORT_S):
                    return


@contextmanager
def own_target(folder: Path) -> Iterator[Target]:
    """Start Redis and the API, with their files in `folder`, and record a job that runs."""
    redis_server = start_redis(folder / "redis", folder / "redis.log")
    try:
        settings = ServiceSettings(
            redis_url=redis_server.url,
            redis_password_file=redis_server.password_file,
            storage_url=str(folder / "storage"),
        )
        with connect(settings) as redis, served(settings, folder) as (url, pid):
            job = SceneJob(Store(redis, lease_s=3600))
            job.queue()
            job.start()
            job.verify()
            job.train([1])
            yield Target(url, job.id, pid, job)
    finally:
        redis_server.part.terminate()
        redis_server.part.join(_STOP_S)
