"""The job records: atomic transitions, claims with a lease, and writes behind a fencing token.

Every change reads the record under WATCH, decides, and writes record, indexes and event in one
MULTI; a concurrent writer makes it start over. Nothing else in the code base writes a job.

Who may write is decided by the token and the status alone. The lease only says when somebody else
may take over: an attempt that is late but not yet replaced goes on.
"""

import time
from collections.abc import Callable
from typing import Any

from redis import Redis

from service.contract import events as event_stream
from service.contract import index, keys, rules, tally
from service.contract.commands import Pipe
from service.contract.connection import available, transaction
from service.contract.errors import Conflict
from service.contract.job import Checkpoint, Event, JobRecord, JobStatus
from service.contract.models import ModelRecord, Models
from service.contract.records import Records, decode, encode, no_such_job
from service.contract.rules import CANCELLED, Claim, Decision

__all__ = ["CANCELLED", "Claim", "Store"]

# From the record, and whether a live lease is on it, to what happens.
Decide = Callable[[JobRecord, bool], Decision]
# Further writes, queued into the transaction of a change.
Also = Callable[[Pipe], object]


class Store(Records):
    """The truth about every job."""

    def __init__(self, redis: Redis, *, lease_s: float) -> None:
        super().__init__(redis)
        self._lease_ms = int(lease_s * 1000)

    # Creating

    def create(
        self,
        record: JobRecord,
        *,
        dedupe_key: str | None,
        dedupe_s: int,
        event: Event,
        also_ended: bool = False,
        check: Callable[[], None] | None = None,
    ) -> tuple[JobRecord, bool]:
        """Write a new record, unless a job of the same `dedupe_key` is still fresh.

        Args:
            record: The new record.
            dedupe_key: What a repeated request has in common with the first, or None.
            dedupe_s: How long a job is fresh; 0 for never.
            event: The first event.
            also_ended: Whether a job that has ended is answered too: right for a key that the
                caller chose; a mere repetition of the same body may well ask for a second job.
            check: Raises where a new record would name a file or a model that is not there; called
                again where one of them is removed before the record is written.

        Returns:
            The record that now stands, and whether this call made it.
        """
        key, slot = keys.job(record.id), keys.dedupe(record.org, dedupe_key or record.id)
        spec = record.spec

        def write(pipe: Pipe) -> JobRecord:
            # Of this id, where an earlier try went through and its answer was lost.
            first = _read(pipe, record.id) or _read(pipe, pipe.get(slot))
            if first is not None and (also_ended or not first.terminal or first.id == record.id):
                pipe.multi()
                return first
            if check is not None:
                check()
            pipe.multi()
            pipe.hset(key, mapping=encode(record.model_dump(mode="json")))
            index.add(pipe, keys.org_index(record.org, "jobs"), record.id)
            if spec.comparison is not None:
                index.add(pipe, keys.org_index(record.org, "comparisons"), record.id)
            pipe.sadd(keys.ACTIVE, record.id)
            for needed in spec.needs:
                pipe.sadd(keys.users(needed), record.id)
            tally.created(pipe, record)
            event_stream.append(pipe, record.id, event)
            if dedupe_s:
                pipe.set(slot, record.id, ex=dedupe_s)
            return record

        files = map(keys.file, spec.files)
        stands = transaction(self._redis, write, key, slot, keys.model(spec.model), *files)
        return stands, stands.id == record.id

    # Claiming

    def claim(self, job_id: str, worker: str, waiting: JobStatus) -> Claim | None:
        """Take a job that waits in status `waiting`; None where there is nothing to take.

        Whoever validates has no GPU and must not take a job for training: hence the status. The
        claim bumps the fencing token and sets the lease in the same step. A queued job becomes
        running; a job that waits for validation keeps its status. A job that was asked to be
        cancelled, while an attempt held it that has gone since, is cancelled instead.
        """
        assert waiting in rules.CLAIMABLE, waiting
        lease = keys.lease(job_id)

        def write(pipe: Pipe) -> Claim | None:
            record = decode(pipe.hgetall(keys.job(job_id)))
            leased = pipe.exists(lease)
            pipe.multi()
            if record is None or leased or record.status is not waiting:
                return None
            if record.cancel_requested:
                self._write(pipe, record, rules.cancelled())
                return None
            claim = Claim(job_id, record.token + 1)
            self._write(pipe, record, rules.start(record, claim, worker))
            pipe.set(lease, claim.token, px=self._lease_ms)
            return claim

        return transaction(self._redis, write, keys.job(job_id), lease)

    def heartbeat(self, claim: Claim) -> JobRecord:
        """Renew the lease, and see what has been asked of the job meanwhile.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
        """

        def renew(pipe: Pipe) -> JobRecord:
            record = rules.held(decode(pipe.hgetall(keys.job(claim.job_id))), claim)
            pipe.multi()
            pipe.set(keys.lease(claim.job_id), claim.token, px=self._lease_ms)
            return record

        return transaction(self._redis, renew, keys.job(claim.job_id))

    # Writing, by the holder of a claim

    def update(self, claim: Claim, event: Event | None = None, **changes: Any) -> None:
        """Change fields of the record, and append an event in the same step.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
        """
        rules.check_names(changes)

        def decide(record: JobRecord, _: bool) -> Decision:
            rules.held(record, claim)
            return changes, event

        self._change(claim.job_id, decide)

    def release(self, claim: Claim, event: Event) -> None:
        """Give a claim back without a change of status: the job waits for validation again.

        A job that was asked to be cancelled is cancelled.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
        """

        def decide(record: JobRecord, _: bool) -> Decision:
            rules.held(record, claim)
            return rules.cancelled() if record.cancel_requested else ({}, event)

        self._change(claim.job_id, decide, lambda pipe: pipe.delete(keys.lease(claim.job_id)))

    def add_checkpoint(
        self, claim: Claim, checkpoint: Checkpoint, model: ModelRecord, *, keep: int
    ) -> list[Checkpoint]:
        """Record a checkpoint that is whole in the storage, and the model that it can be used as.

        All but the newest `keep` checkpoints of the job are forgotten, with their models, unless
        another job trains on one or an adapter stands on it; one of the same step is replaced.

        Returns:
            The forgotten checkpoints; their folders are the caller's to delete.

        Raises:
            LostClaim: Another attempt has the job, or it has ended.
        """
        key, checkpoints = keys.job(claim.job_id), keys.checkpoints(claim.job_id)
        event = Event(
            message=f"Checkpoint created at step {checkpoint.step}.",
            data={"step": checkpoint.step, "checkpoint": checkpoint.id},
        )

        def write(pipe: Pipe) -> list[Checkpoint]:
            record = rules.held(decode(pipe.hgetall(key)), claim)
            known = [Checkpoint.model_validate_json(raw) for raw in pipe.zrange(checkpoints, 0, -1)]
            others = [old for old in known if old.step != checkpoint.step]
            newest = max(0, len(others) - keep + 1)
            spared = [old for old in others[:newest] if _is_needed(pipe, old.model)]
            kept = [*spared, *others[newest:], checkpoint]
            paths = {each.path for each in kept}
            dropped = [old for old in known if old.path not in paths]
            pipe.multi()
            pipe.delete(checkpoints)
            pipe.zadd(checkpoints, {each.model_dump_json(): each.step for each in kept})
            for old in dropped:
                Models.erase(pipe, model.model_copy(update={"id": old.model}))
            Models.write(pipe, model)
            self._write(pipe, record, ({}, event))
            return dropped

        return transaction(self._redis, write, key, checkpoints)

    # Moving along the edges

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
            to: The new status; not `running`, which is what a claim is for.
            event: What to tell about it.
            token: The claim's fencing token; None for an actor that holds no claim (a cancel of a
                waiting job, the reaper), which may then move only a job without a live lease.
            also: Further writes of the same transaction, for example the records of a result.
            changes: Further fields to set.

        Raises:
            NotFound: No such job.
            Conflict: The edge is not legal from the present status, or an attempt holds the job.
            LostClaim: The token is not the record's.
        """
        assert to is not JobStatus.RUNNING, "only a claim makes a job run"
        rules.check_names(changes)

        def decide(record: JobRecord, leased: bool) -> Decision:
            if token is not None:
                rules.held(record, Claim(job_id, token))
            elif leased:
                raise Conflict(f"An attempt holds job {job_id}.", code="job_held")
            return rules.move(record, to, event, changes)

        return self._change(job_id, decide, also)

    def tidied(self, job_id: str) -> None:
        """Forget that an ended job may have left training state in the storage."""
        with available():
            self._redis.srem(keys.UNTIDY, job_id)

    def request_cancel(self, job_id: str) -> JobRecord:
        """Ask the attempt that holds the job to stop; a job that nobody holds is cancelled now.

        Raises:
            NotFound: No such job.
            Conflict: The job has ended.
        """
        return self._change(job_id, lambda record, leased: rules.cancel(record, leased=leased))

    def _change(self, job_id: str, decide: Decide, also: Also | None = None) -> JobRecord:
        """Read, decide and write in one transaction."""
        key, lease = keys.job(job_id), keys.lease(job_id)

        def write(pipe: Pipe) -> JobRecord:
            record = decode(pipe.hgetall(key))
            if record is None:
                raise no_such_job(job_id)
            decision = decide(record, bool(pipe.exists(lease)))
            pipe.multi()
            if also is not None:
                also(pipe)
            return self._write(pipe, record, decision)

        return transaction(self._redis, write, key, lease)

    def _write(self, pipe: Pipe, record: JobRecord, decision: Decision) -> JobRecord:
        """Queue the changed fields, the indexes and the event on a pipeline in MULTI."""
        changes, event = decision
        changes = {**changes, "version": record.version + 1}
        after = JobRecord.model_validate({**dict(record), **changes})
        changed = after.model_dump(mode="json", include={*changes})
        pipe.hset(keys.job(record.id), mapping=encode(changed))
        if after.status is not record.status:
            _move(pipe, after)
            tally.moved(pipe, record.status, after)
        if event is not None:
            event_stream.append(pipe, record.id, event)
        return after


def _move(pipe: Pipe, record: JobRecord) -> None:
    """Queue what a new status means for the lease and the indexes."""
    if record.status not in rules.CLAIMED:
        pipe.delete(keys.lease(record.id))
    if record.status is JobStatus.QUEUED:
        # Microseconds: two jobs of one millisecond keep their order, and a double holds the number.
        pipe.zadd(keys.WAITING, {record.id: time.time_ns() // 1_000})
    else:
        pipe.zrem(keys.WAITING, record.id)
    if record.terminal:
        pipe.srem(keys.ACTIVE, record.id)
        for needed in record.spec.needs:
            pipe.srem(keys.users(needed), record.id)
        pipe.sadd(keys.UNTIDY, record.id)


def _is_needed(pipe: Pipe, model_id: str) -> bool:
    """Whether an unfinished job trains on a model, or an adapter stands on it; watched from now."""
    needs = keys.users(model_id), keys.adapters(model_id)
    pipe.watch(*needs)
    return pipe.exists(*needs) > 0


def _read(pipe: Pipe, job_id: str | None) -> JobRecord | None:
    """A record, watched from now on."""
    if job_id is None:
        return None
    pipe.watch(keys.job(job_id))
    return decode(pipe.hgetall(keys.job(job_id)))
