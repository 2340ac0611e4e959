"""What the worker's tests stand on: a deployment of real parts, and patience."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.contract import keys
from service.contract.connection import connect
from service.contract.device import Device
from service.contract.errors import Conflict
from service.contract.events import Events
from service.contract.files import FileRecord, Files
from service.contract.job import Event, JobRecord, JobStatus, new_id
from service.contract.models import Models
from service.contract.queue import VALIDATE, Queue, make_celery
from service.contract.spec import JobSpec
from service.contract.storage import Storage
from service.contract.store import Store
from worker.app import make_supervisor
from worker.lease import Lease
from worker.reaper import Reaper
from worker.runner import Runner
from worker.settings import WorkerSettings

REPOSITORY = Path(__file__).parents[2]
ORG = "org-test"
# Instead of the real look at the device, which imports torch.
DEVICE = Device(kind="cpu", name="cpu", total_bytes=2**34)
TRAINER = [sys.executable, str(Path(__file__).with_name("scripted_trainer.py"))]


def until(condition: Callable[[], Any], timeout_s: float = 15.0, what: str = "") -> Any:
    """The first true value of `condition`; an AssertionError where none comes in time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what or condition}"
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class WorkerProcess:
    """A real worker: `python -m worker`."""

    def __init__(self, settings: WorkerSettings, queues: list[str], log: Path) -> None:
        values = json.loads(settings.model_dump_json())
        environment = {
            f"HEADROOM_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
            if value is not None
        }
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker", "--queues", *queues],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> "WorkerProcess":
        until(lambda: " ready." in self.log.read_text(), what=f"a worker: {self.log.read_text()}")
        return self

    def terminate(self) -> int:
        """SIGTERM, as `docker stop` does; the exit code."""
        self._process.terminate()
        return self._process.wait(timeout=15)

    def kill(self) -> None:
        """SIGKILL to the main process alone."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()


class Deployment:
    """One Redis, one storage, and as many workers as a test starts."""

    def __init__(self, redis_url: str, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.settings = WorkerSettings(
            **{
                "redis_url": redis_url,
                "storage_url": str(folder / "storage"),
                "model_folders": [folder / "models"],
                "work_dir": folder / "work",
                "trainer_command": TRAINER,
                "device_command": ["sh", "-c", f"echo '{DEVICE.model_dump_json()}'"],
                "worker_name": "test",
                "lease_s": 2.0,
                "heartbeat_s": 0.2,
                "reaper_interval_s": 0.3,
                "resend_grace_s": 1.0,
                "stop_grace_s": 1.0,
                "progress_interval_s": 0.05,
                **options,
            }
        )
        base = folder / "models" / "base"
        base.mkdir(parents=True, exist_ok=True)
        (base / "config.json").write_text("{}")
        self.redis = connect(self.settings)
        self.celery = make_celery(self.settings)
        self.store = Store(self.redis, lease_s=self.settings.lease_s)
        self.events = Events(self.redis, self.settings.event_cap)
        self.queue = Queue(self.celery, self.redis)
        self.storage = Storage(self.settings.storage_url)
        self.files = Files(self.redis)
        self.models = Models(self.redis)
        self._workers: list[WorkerProcess] = []

    # Jobs

    def upload(self, content: bytes = b'{"text": "hello"}\n', **fields: Any) -> str:
        """The id of a new training file."""
        record = FileRecord(
            **{
                "id": new_id("file-"),
                "org": ORG,
                "bytes": len(content),
                "created_at": int(time.time()),
                "filename": "train.jsonl",
                "purpose": "fine-tune",
                "format": "text",
                "sha256": "0" * 64,
                **fields,
            }
        )
        with self.storage.write(record.path) as stream:
            stream.write(content)
        self.files.add(record)
        return record.id

    def create(
        self, *script: Any, status: str = "queued", valid: bool = False, **fields: Any
    ) -> str:
        """The id of a new job whose trainer does `script`; no message is sent.

        The script is that of the phase that the job waits for; with `valid`, that of the training.
        """
        phase = "train" if valid or status == "queued" else "validate"
        metadata = {phase: json.dumps(script)}
        spec = {
            "model": "base",
            "training_file": fields.pop("training_file", None) or self.upload(),
            "seed": 1,
            "metadata": metadata,
            **fields,
        }
        record = JobRecord(
            id=new_id("ftjob-"), org=ORG, created_at=int(time.time()), spec=JobSpec(**spec)
        )
        created = Event(message="Created.")
        self.store.create(record, dedupe_key=None, dedupe_s=0, event=created)
        if status == "queued":
            self.store.transition(record.id, JobStatus.QUEUED, Event(message="Queued."))
        return record.id

    def submit(self, *script: Any, **fields: Any) -> str:
        """The id of a new job that is on its way, as the service would send it."""
        job_id = self.create(*script, status="validating_files", valid=True, **fields)
        self.queue.send(job_id, VALIDATE)
        return job_id

    def status(self, job_id: str) -> JobStatus:
        return self.store.get(job_id).status

    def messages(self, job_id: str) -> list[Event]:
        """The job's events, oldest first."""
        return self.events.since(job_id, after=None, limit=10_000).items

    def said(self, job_id: str, message: str, timeout_s: float = 15.0) -> Any:
        """Wait for an event with this message; its data."""

        def find() -> Event | None:
            return next((e for e in self.messages(job_id) if e.message == message), None)

        return until(find, timeout_s, what=f"{message!r} of {job_id}").data

    def reaches(self, job_id: str, *statuses: str, timeout_s: float = 20.0) -> JobRecord:
        """Wait until a job has one of `statuses`; its record."""
        what = f"{job_id} to be {statuses}"
        until(lambda: self.status(job_id) in statuses, timeout_s, what)
        return self.store.get(job_id)

    def hold(self, job_id: str) -> Lease:
        """Claim a waiting job as a worker does, with nobody to renew the lease."""
        since = time.monotonic()
        claim = self.store.claim(job_id, self.settings.worker_name, self.status(job_id))
        assert claim is not None
        stopping = threading.Event()
        return Lease(self.store, claim, self.settings, since=since, stopping=stopping)

    def lose(self, job_id: str) -> None:
        """Requeue a running job as if its lease had run out, whatever its worker thinks."""
        while self.status(job_id) == "running":
            self.redis.delete(keys.lease(job_id))
            with suppress(Conflict):  # a heartbeat came in between
                self.store.transition(job_id, JobStatus.QUEUED, Event(message="Lost."))

    # Workers

    def worker(self, *queues: str, **changes: Any) -> WorkerProcess:
        """Start a worker process."""
        number = len(self._workers)
        name = f"{self.settings.worker_name}-{number}"
        settings = self.settings.model_copy(update={"worker_name": name, **changes})
        log = self.folder / f"worker-{number}.log"
        self._workers.append(WorkerProcess(settings, list(queues or ("train",)), log))
        return self._workers[-1]

    def supervisor(self, **changes: Any) -> tuple[Runner, Reaper]:
        """A worker's runner and reaper, in this process."""
        return make_supervisor(self.settings.model_copy(update=changes), self.celery)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.redis.close()
        self.celery.close()
