"""Run one job: claim it, supervise its trainer, and end the attempt in one transition.

    claim -> run spec -> trainer -> lines into the record -> validated, succeeded, failed, cancelled
                                                            or back in the queue

What a job may meet, and what becomes of it:

    the trainer reports a failure, a file or the model is gone    failed, with its code
    the device runs out of memory                                 tried again at half the
                                                                  micro-batch, then failed
    the trainer dies, the storage is away, an unexpected error    tried again, then failed
    a cancellation                                                cancelled
    this worker is told to stop                                   back in the queue, uncounted
    the lease is lost                                             nothing: another attempt has it
"""

import logging
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.contract.errors import JobFailure, LostClaim, Unavailable
from service.contract.events import Events
from service.contract.job import DataSize, Event, JobError, JobRecord, JobStatus
from service.contract.queue import TRAIN, VALIDATE, Queue, QueueName
from service.contract.store import CANCELLED, Store
from worker.child import Child
from worker.events import Compared, Failed, Mode, Result, Validated
from worker.lease import CancelRequested, Lease, WorkerStopping
from worker.prepare import Preparation
from worker.publish import Publisher
from worker.recorder import Final, Recorder
from worker.settings import WorkerSettings
from worker.verdict import Retry, judge

logger = logging.getLogger(__name__)
_READ_S = 0.25
_WAITING = {VALIDATE: JobStatus.VALIDATING_FILES, TRAIN: JobStatus.QUEUED}


@dataclass(frozen=True)
class Attempt:
    """One claim on a job, being worked on."""

    record: JobRecord
    lease: Lease
    queue: QueueName
    workdir: Path

    @property
    def mode(self) -> Mode:
        """What the trainer is to do."""
        return "train" if self.queue == TRAIN else "validate"

    @property
    def number(self) -> int:
        """Which try this is: training attempts are counted apart from validations."""
        return self.record.attempt if self.queue == TRAIN else self.record.token


@dataclass(frozen=True)
class Runner:
    """Runs jobs, one at a time, until the worker is told to stop."""

    settings: WorkerSettings
    store: Store
    events: Events
    queue: Queue
    preparation: Preparation
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, job_id: str, queue: QueueName) -> None:
        """Work on a job that waits in `queue`; do nothing where it does not, or is held."""
        since = time.monotonic()
        try:
            claim = self.store.claim(job_id, self.settings.worker_name, _WAITING[queue])
            if claim is None:
                logger.info("%s: not waiting any more, or held by another worker.", job_id)
                return
            lease = Lease(self.store, claim, self.settings, since=since, stopping=self.stopping)
            workdir = self.settings.work_dir.resolve() / f"{job_id}-{claim.token}"
            record = lease.insist(lambda: self.store.get(job_id))
            self._attempt(Attempt(record, lease, queue, workdir))
        except LostClaim as lost:
            logger.warning("%s: gave up: %s", job_id, lost.message)
        except Unavailable as away:
            logger.warning("%s: not claimed, the reaper will send it again: %s", job_id, away)

    def _attempt(self, attempt: Attempt) -> None:
        """Do the work, and make of every end of it one transition.

        Raises:
            LostClaim: Another attempt has the job, or may have it.
        """
        logger.info("%s: %s, attempt %d.", attempt.record.id, attempt.mode, attempt.number)
        try:
            self._work(attempt)
        except LostClaim:
            raise
        except CancelRequested:
            self._end(attempt, JobStatus.CANCELLED, CANCELLED)
        except WorkerStopping:
            event = Event(
                level="warn", message="The worker was stopped; the job waits for another."
            )
            self._give_back(attempt, event, attempt=max(0, attempt.record.attempt - 1))
        except JobFailure as failure:
            self._fail(attempt, failure)
        except Exception as error:  # whatever it is, the job must not hang
            logger.exception("%s: unexpected error", attempt.record.id)
            message = f"Unexpected {type(error).__name__} in the worker; its log says more."
            self._fail(attempt, JobFailure("worker_lost", message))
        finally:
            shutil.rmtree(attempt.workdir, ignore_errors=True)

    def _work(self, attempt: Attempt) -> None:
        """Prepare, train or validate, publish."""
        record, lease, workdir = attempt.record, attempt.lease, attempt.workdir
        lease.beat()
        workdir.mkdir(parents=True)
        model = self.preparation.model(record, workdir, lease)
        spec = self.preparation.run_spec(record, attempt.mode, model, workdir, lease)
        spec_path = workdir / "spec.json"
        spec_path.write_text(spec.model_dump_json())
        publisher = Publisher(
            self.store,
            self.preparation.storage,
            lease,
            record,
            base=model.base,
            keep_checkpoints=self.settings.keep_checkpoints,
        )
        if attempt.mode == "train":
            publisher.remove_leftovers()
        recorder = Recorder(
            self.store, self.events, publisher, lease, self.settings.progress_interval_s
        )
        with Child(
            [*self.settings.trainer_command, str(spec_path)],
            log=workdir / "trainer.log",
            cwd=workdir,
            grace_s=self.settings.stop_grace_s,
            environment=self.settings.trainer_environment,
        ) as child:
            final = _follow(child, recorder, lease)
        self._conclude(attempt, final, publisher)

    def _conclude(self, attempt: Attempt, final: Final, publisher: Publisher) -> None:
        """Make of the trainer's last line the end of the attempt."""
        match final:
            case Validated():
                message = (
                    f"Files validated: {final.examples} examples, {final.tokens} tokens,"
                    f" {final.supervised_tokens} of them trained on."
                )
                size = DataSize.model_validate(final.model_dump(exclude={"kind"}))
                event = Event(message=message, data=size.model_dump())
                self._end(attempt, JobStatus.QUEUED, event, data=size)
                self._send(attempt.record.id, TRAIN)
            case Result():
                publisher.result(final)
            case Compared():
                publisher.comparison(final)
            case Failed():
                self._fail(
                    attempt,
                    JobFailure(final.code, final.message, param=final.param, data=final.data),
                )

    def _fail(self, attempt: Attempt, failure: JobFailure) -> None:
        """Try again where that may help and the tries are not used up; else the job has failed."""
        tries, most = attempt.number, self.settings.max_attempts
        match judge(failure, attempt.record, tries=tries, max_tries=most):
            case Retry(event, changes):
                self._give_back(attempt, event, **changes)
            case JobError() as error:
                data = {"code": error.code, **failure.data}
                event = Event(level="error", message=error.message, data=data)
                self._end(attempt, JobStatus.FAILED, event, error=error)

    def _give_back(self, attempt: Attempt, event: Event, /, **changes: Any) -> None:
        """Put the job back in the queue that it came from."""
        if attempt.queue == TRAIN:
            self._end(attempt, JobStatus.QUEUED, event, **changes)
        else:
            attempt.lease.insist(lambda: self.store.release(attempt.lease.claim, event))
        self._send(attempt.record.id, attempt.queue)

    def _end(self, attempt: Attempt, to: JobStatus, event: Event, /, **changes: Any) -> None:
        token = attempt.lease.claim.token
        attempt.lease.insist(
            lambda: self.store.transition(attempt.record.id, to, event, token=token, **changes)
        )
        logger.info("%s: %s.", attempt.record.id, to)

    def _send(self, job_id: str, queue: QueueName) -> None:
        try:
            self.queue.send(job_id, queue)
        except Unavailable:
            logger.warning("%s: no message sent; the reaper will send one.", job_id)


def _follow(child: Child, recorder: Recorder, lease: Lease) -> Final:
    """Record a trainer's lines until its last one.

    Raises:
        JobFailure: It ended without one.
    """
    while not child.exited:
        lease.beat()
        for line in child.read(_READ_S):
            if isinstance(line, Final):
                recorder.flush(now=True)
                return line
            recorder.record(line)
        recorder.flush()
    raise JobFailure("trainer_crashed", child.obituary())
