"""Repair what was lost: leases that ran out, messages that are gone, files that nobody needs.

Every worker runs one; they need not know of each other, since each repair is one transition that
only the first can make, and a message too many is refused at the claim.
"""

import logging
import shutil
import time
from dataclasses import dataclass, field

from service.contract.errors import Conflict, Unavailable
from service.contract.files import Files
from service.contract.job import Event, JobError, JobRecord, JobStatus
from service.contract.queue import TRAIN, VALIDATE, Queue, QueueName
from service.contract.storage import Storage
from service.contract.store import Store
from worker.settings import WorkerSettings

logger = logging.getLogger(__name__)
# A request or more to the storage each: lost jobs must not wait until thousands are done with.
_TIDIED_AT_ONCE = 100
_QUEUES: dict[JobStatus, QueueName] = {
    JobStatus.VALIDATING_FILES: VALIDATE,
    JobStatus.QUEUED: TRAIN,
}


@dataclass(frozen=True)
class Reaper:
    """Looks at every unfinished job; holds nothing but since when a job has had no message."""

    settings: WorkerSettings
    store: Store
    queue: Queue
    storage: Storage
    files: Files
    _unsent: dict[str, float] = field(default_factory=dict)

    def sweep(self) -> None:
        """Repair once; where Redis or the storage is away, the next sweep does."""
        try:
            unheld = self.store.unheld()
            for job_id, status in unheld.items():
                if status is JobStatus.RUNNING:
                    self._requeue(self.store.get(job_id))
            self._resend([job_id for job_id, status in unheld.items() if status in _QUEUES])
            self.files.remove_expired(self.storage.delete)
            self._remove_abandoned_folders()
            self._tidy_up_after_ended_jobs()
        except Unavailable as away:
            logger.warning("Not swept: %s", away)

    def _requeue(self, job: JobRecord) -> None:
        """Queue the job of a lost worker again, or fail it when its tries are used up."""
        lost = f"Worker {job.worker} was lost during attempt {job.attempt}."
        try:
            if job.attempt < self.settings.max_attempts:
                event = Event(level="warn", message=f"{lost} The job waits for another.")
                job = self.store.transition(job.id, JobStatus.QUEUED, event)
            else:
                self._fail(job, lost)
        except Conflict:
            return  # it is held again, or another reaper was first
        if job.status is JobStatus.QUEUED:
            self.queue.send(job.id, TRAIN)

    def _fail(self, job: JobRecord, message: str) -> None:
        error = JobError(code="worker_lost", message=message)
        event = Event(level="error", message=message, data={"code": error.code})
        self.store.transition(job.id, JobStatus.FAILED, event, error=error)

    def _resend(self, job_ids: list[str]) -> None:
        """Send a message for each job that has been without one for the grace period."""
        sent = self.queue.waiting(VALIDATE) | self.queue.waiting(TRAIN)
        now = time.monotonic()
        since = {id_: self._unsent.get(id_, now) for id_ in job_ids if id_ not in sent}
        self._unsent.clear()
        for job_id, start in since.items():
            if now - start < self.settings.resend_grace_s:
                self._unsent[job_id] = start
            else:
                self._send_again(self.store.get(job_id))

    def _send_again(self, job: JobRecord) -> None:
        """Send a job's message; a validation that never ends well has its tries counted here."""
        if job.status not in _QUEUES:
            return  # it was taken, or has ended, since we looked
        validating = job.status is JobStatus.VALIDATING_FILES
        if validating and job.token >= self.settings.max_attempts:
            try:
                self._fail(job, f"Every worker that validated the job was lost, {job.token} times.")
            except Conflict:
                return
        else:
            logger.warning("%s: had no message in its queue; sending another.", job.id)
            self.queue.send(job.id, _QUEUES[job.status])

    def _remove_abandoned_folders(self) -> None:
        """Delete the scratch folders of attempts that nobody is at: their worker was killed."""
        for folder in self.settings.work_dir.glob("ftjob-*"):
            job_id, _, _ = folder.name.rpartition("-")
            if not self.store.has_lease(job_id):
                shutil.rmtree(folder, ignore_errors=True)

    def _tidy_up_after_ended_jobs(self) -> None:
        """Leave of checkpoints what makes them models: nobody will resume a job that has ended.

        A job is done with when there is nothing left to remove, and not before: whoever removes
        may die meanwhile, or another reaper be at the same.
        """
        for job_id in self.store.untidy()[:_TIDIED_AT_ONCE]:
            if paths := self._of_no_more_use(job_id):
                for path in paths:
                    self.storage.delete(path)
            else:
                self.store.tidied(job_id)

    def _of_no_more_use(self, job_id: str) -> list[str]:
        """The training state of an ended job's checkpoints, and checkpoints without a record."""
        recorded = {checkpoint.path for checkpoint in self.store.checkpoints(job_id)}
        found = []
        for path in self.storage.children(f"checkpoints/{job_id}"):
            if path not in recorded:
                found.append(path)
            elif self.storage.children(state := f"{path}/state"):
                found.append(state)
        return found
