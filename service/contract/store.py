"""The job records: atomic transitions, claims with a lease, and writes behind a fencing token.

Every change reads the record under WATCH, decides, and writes record, indexes and event in one
MULTI; a concurrent writer makes it start over. Nothing else in the code base writes a job.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from service.contract import events as event_stream
from service.contract import keys
from service.contract.connection import available
from service.contract.errors import Conflict, LostClaim, NotFound
from service.contract.index import Page, newest_first
from service.contract.job import EDGES, Checkpoint, Event, JobRecord, JobStatus
from service.contract.models import ModelRecord, Models

# A queued job is claimed for training, one that waits for validation for that.
_CLAIMABLE = frozenset({JobStatus.VALIDATING_FILES, JobStatus.QUEUED})
# Where an attempt works on a job; in any other status its claim is over.
_CLAIMED = frozenset({JobStatus.VALIDATING_FILES, JobStatus.RUNNING})
Change = Callable[[JobRecord], tuple[dict[str, Any], Event | None]]
# Further writes, queued into the transaction of a change.
Also = Callable[["Pipeline[Any]"], None]

CANCELLED = Event(level="warn", message="Cancelled by request.")


@dataclass(frozen=True)
class Claim:
    """The right to work on a job, until the lease runs out or another attempt takes over."""

    job_id: str
    token: int


class Store:
    """The truth about every job."""

    def __init__(self, redis: Redis, *, lease_s: float) -> None:
        self._redis = redis
        self._lease_ms = int(lease_s * 1000)

    # Reading

    def get(self, job_id: str, org: str | None = None) -> JobRecord:
        """The record of a job, of any organization where `org` is None.

        Raises:
            NotFound: No such job, or another organization's.
        """
        with available():
            record = _parse(self._redis.hgetall(keys.job(job_id)))
        if record is None or org not in {None, record.org}:
            raise NotFound(
                f"No such fine-tuning job: {job_id}.", code="job_not_found", param="job_id"
            )
        return record

    def page(
        self, org: str, *, after: str | None, limit: int, metadata: dict[str, str]
    ) -> Page[JobRecord]:
        """Jobs of `org`, newest first, behind the cursor `after`, with all of `metadata`."""
        found: list[JobRecord] = []
        with available():
            ids = newest_first(self._redis, keys.org_index(org, "jobs"), after)
        for job_id in ids:
            record = self.get(job_id)
            if metadata.items() <= record.spec.metadata.items():
                found.append(record)
            if len(found) > limit:
                break
        return Page(found[:limit], has_more=len(found) > limit)

    def active(self) -> list[JobRecord]:
        """Every job that has not ended."""
        with available():
            ids: set[str] = self._redis.smembers(keys.ACTIVE)
        return [self.get(job_id) for job_id in ids]

    def queue_position(self, job_id: str) -> int | None:
        """1 for the next job that a worker will take, None for a job that is not queued."""
        with available():
            rank = self._redis.zrank(keys.WAITING, job_id)
        return None if rank is None else rank + 1

    def has_lease(self, job_id: str) -> bool:
        """Whether an attempt holds the job now."""
        with available():
            return bool(self._redis.exists(keys.lease(job_id)))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """A job's checkpoints, newest first."""
        with available():
            raws = self._redis.zrevrange(keys.checkpoints(job_id), 0, -1)
        return [Checkpoint.model_validate_json(raw) for raw in raws]

    # Creating

    def create(
        self, record: JobRecord, *, dedupe_key: str | None, dedupe_s: int, event: Event
    ) -> tuple[JobRecord, bool]:
        """Write a new record, unless an unfinished job of the same `dedupe_key` is still fresh.

        Returns:
            The record that now stands, and whether this call made it.
        """
        slot = keys.dedupe(record.org, dedupe_key or record.id)

        def write(pipe: "Pipeline[Any]") -> JobRecord:
            previous = _parse(pipe.hgetall(keys.job(pipe.get(slot) or "")))
            pipe.multi()
            if previous is not None and not previous.terminal:
                return previous
            pipe.hset(keys.job(record.id), mapping=_fields(record.model_dump(mode="json")))
            pipe.zadd(keys.JOBS, {record.id: _now_ms()})
            pipe.zadd(keys.org_index(record.org, "jobs"), {record.id: _now_ms()})
            pipe.sadd(keys.ACTIVE, record.id)
            event_stream.append(pipe, record.id, event)
            if dedupe_s:
                pipe.set(slot, record.id, ex=dedupe_s)
            return record

        with available():
            stands = self._redis.transaction(write, slot, value_from_callable=True)
        return stands, stands.id == record.id

    # Claiming

    def claim(self, job_id: str, worker: str, waiting: JobStatus) -> Claim | None:
        """Take a job that waits in status `waiting`; None where there is nothing to take.

        Whoever validates has no GPU and must not take a job for training: hence the status. The
        claim bumps the fencing token and sets the lease in the same step. A queued job becomes
        running; a job that waits for validation keeps its status.
        """
        assert waiting in _CLAIMABLE, waiting
        lease = keys.lease(job_id)

        def write(pipe: "Pipeline[Any]") -> Claim | None:
            record = _parse(pipe.hgetall(keys.job(job_id)))
            held = bool(pipe.exists(lease))
            pipe.multi()
            if record is None or held or record.status is not waiting:
                return None
            changes: dict[str, Any] = {"token": record.token + 1, "worker": worker}
            event = Event(message="Validating the training file.")
            if record.status is JobStatus.QUEUED:
                attempt = record.attempt + 1
                changes |= {
                    "status": JobStatus.RUNNING,
                    "attempt": attempt,
                    "started_at": record.started_at or int(time.time()),
                }
                event = Event(message="Job started." if attempt == 1 else f"Attempt {attempt}.")
            self._write(pipe, record, changes, event)
            pipe.set(lease, record.token + 1, px=self._lease_ms)
            return Claim(job_id, record.token + 1)

        with available():
            return self._redis.transaction(write, keys.job(job_id), lease, value_from_callable=True)

    def heartbeat(self, claim: Claim) -> JobRecord:
        """Renew the lease, and see what has been asked of the job meanwhile.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
        """

        def renew(pipe: "Pipeline[Any]") -> JobRecord:
            record = _held(_parse(pipe.hgetall(keys.job(claim.job_id))), claim)
            pipe.multi()
            pipe.set(keys.lease(claim.job_id), claim.token, px=self._lease_ms)
            return record

        with available():
            return self._redis.transaction(
                renew, keys.job(claim.job_id), keys.lease(claim.job_id), value_from_callable=True
            )

    # Writing, by the holder of a claim

    def update(self, claim: Claim, event: Event | None = None, **changes: Any) -> None:
        """Change fields of the record, and append an event in the same step.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
        """
        self._change(
            claim.job_id, lambda record: (_held(record, claim) and changes, event), claim.token
        )

    def release(self, claim: Claim, event: Event) -> None:
        """Give a claim back without a change of status: the job waits for validation again.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
        """
        self._change(claim.job_id, lambda _: ({}, event), claim.token, release=True)

    def add_checkpoint(
        self, claim: Claim, checkpoint: Checkpoint, model: ModelRecord, *, keep: int
    ) -> list[Checkpoint]:
        """Record a checkpoint that is whole in the storage, and the model that it can be used as.

        All but the newest `keep` checkpoints of the job are forgotten, with their models.

        Returns:
            The forgotten checkpoints; their folders are the caller's to delete.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
        """
        key, index = keys.job(claim.job_id), keys.checkpoints(claim.job_id)

        def write(pipe: "Pipeline[Any]") -> list[Checkpoint]:
            record = _held(_parse(pipe.hgetall(key)), claim)
            known = [Checkpoint.model_validate_json(raw) for raw in pipe.zrange(index, 0, -1)]
            others = [old for old in known if old.step != checkpoint.step]
            kept = [*others[max(0, len(others) - keep + 1) :], checkpoint]
            dropped = [old for old in known if old.path not in {each.path for each in kept}]
            pipe.multi()
            pipe.delete(index)
            pipe.zadd(index, {each.model_dump_json(): each.step for each in kept})
            for old in dropped:
                Models.erase(pipe, record.org, old.model)
            Models.write(pipe, model, _now_ms())
            event = Event(
                message=f"Checkpoint created at step {checkpoint.step}.",
                data={"step": checkpoint.step, "checkpoint": checkpoint.id},
            )
            self._write(pipe, record, {}, event)
            return dropped

        with available():
            return self._redis.transaction(write, key, index, value_from_callable=True)

    def transition(
        self,
        job_id: str,
        to: JobStatus,
        event: Event,
        *,
        token: int | None = None,
        also: Also | None = None,
        **changes: Any,
    ) -> JobRecord:
        """Move a job along a legal edge, release the lease, and append the event, all or nothing.

        A job that would go back to the queue, but was asked to be cancelled, is cancelled.

        Args:
            job_id: The job.
            to: The new status.
            event: What to tell about it.
            token: The claim's fencing token; None for an actor that holds no claim (a cancel of a
                waiting job, the reaper), which may then move only a job without a live lease.
            also: Further writes of the same transaction, for example the records of a result.
            changes: Further fields to set.

        Raises:
            Conflict: The edge is not legal from the present status, or an attempt holds the job.
            LostClaim: The token is not the record's.
        """

        def decide(record: JobRecord) -> tuple[dict[str, Any], Event]:
            if to is JobStatus.QUEUED and record.cancel_requested:
                return _arrival(JobStatus.CANCELLED), CANCELLED
            if to not in EDGES[record.status]:
                raise Conflict(
                    f"Job {job_id} is {record.status}; it cannot become {to}.",
                    code="illegal_transition",
                )
            return {**_arrival(to), **changes}, event

        return self._change(job_id, decide, token, release=True, also=also)

    def request_cancel(self, job_id: str) -> JobRecord:
        """Ask the attempt that holds the job to stop; a job that nobody holds is cancelled now.

        Raises:
            Conflict: The job has ended.
        """
        asked = Event(level="warn", message="Cancellation requested.")
        while True:
            try:
                return self.transition(job_id, JobStatus.CANCELLED, CANCELLED)
            except Conflict:
                record = self.get(job_id)
                if record.terminal:
                    raise
            # Where the attempt has ended meanwhile, nobody would hear the request: start over.
            with suppress(LostClaim):
                return self._change(
                    job_id, lambda _: ({"cancel_requested": True}, asked), record.token
                )

    def _change(
        self,
        job_id: str,
        decide: Change,
        token: int | None,
        *,
        release: bool = False,
        also: Also | None = None,
    ) -> JobRecord:
        """Read, decide and write in one transaction; see `transition` for `token`."""
        key, lease = keys.job(job_id), keys.lease(job_id)

        def write(pipe: "Pipeline[Any]") -> JobRecord:
            record = _parse(pipe.hgetall(key))
            if record is None:
                raise NotFound(f"No such fine-tuning job: {job_id}.", code="job_not_found")
            if token is None and pipe.exists(lease):
                raise Conflict(f"An attempt holds job {job_id}.", code="job_held")
            if token is not None:
                _held(record, Claim(job_id, token))
            changes, event = decide(record)
            pipe.multi()
            if release:
                pipe.delete(lease)
            if also is not None:
                also(pipe)
            return self._write(pipe, record, changes, event)

        with available():
            return self._redis.transaction(write, key, lease, value_from_callable=True)

    def _write(
        self,
        pipe: "Pipeline[Any]",
        record: JobRecord,
        changes: dict[str, Any],
        event: Event | None,
    ) -> JobRecord:
        """Queue the changed fields, the indexes and the event on a pipeline in MULTI."""
        after = record.model_copy(update={**changes, "version": record.version + 1})
        changed = after.model_dump(mode="json", include={*changes, "version"})
        pipe.hset(keys.job(record.id), mapping=_fields(changed))
        if after.status is not record.status:
            if after.status is JobStatus.QUEUED:
                pipe.zadd(keys.WAITING, {record.id: _now_ms()})
            else:
                pipe.zrem(keys.WAITING, record.id)
            if after.terminal:
                pipe.srem(keys.ACTIVE, record.id)
        if event is not None:
            event_stream.append(pipe, record.id, event)
        return after


def _held(record: JobRecord | None, claim: Claim) -> JobRecord:
    """The record, if the claim still holds it."""
    if record is None or record.token != claim.token or record.status not in _CLAIMED:
        raise LostClaim(f"Attempt {claim.token} no longer holds job {claim.job_id}.")
    return record


def _arrival(to: JobStatus) -> dict[str, Any]:
    """The fields that every transition to `to` sets."""
    finished = {"finished_at": int(time.time())} if not EDGES[to] else {}
    return {"status": to, "cancel_requested": False, **finished}


def _parse(fields: dict[str, str]) -> JobRecord | None:
    """A record from its hash; None for a hash that does not exist."""
    if not fields:
        return None
    return JobRecord.model_validate({name: json.loads(raw) for name, raw in fields.items()})


def _fields(values: dict[str, Any]) -> dict[str, str]:
    """A hash from the values of a record's fields."""
    return {name: json.dumps(value) for name, value in values.items()}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
