"""Read the job records: what the service answers from, and what the reaper looks at."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from redis import Redis

from service.contract import index, keys
from service.contract.commands import Pipe, typed
from service.contract.connection import available
from service.contract.errors import NotFound
from service.contract.index import Page
from service.contract.job import Checkpoint, JobRecord, JobStatus

PREFIX = "ftjob-"


@dataclass(frozen=True)
class Standing:
    """A job as it stands; its record is decoded on demand, for most pollers have seen it.

    Attributes:
        job_id: The job.
        version: Of the record, as it is stored.
        place: 1 for the next job that a worker will take, None for a job that is not queued.
        fields: The record, as it is stored.
    """

    job_id: str
    version: str
    place: int | None
    # Compared nevertheless: a Redis that lost its last second gives a version out twice.
    fields: Mapping[str, str] = field(hash=False)

    @property
    def tag(self) -> str:
        """Text that differs whenever the record or the place does."""
        return self.version if self.place is None else f"{self.version}-{self.place}"

    @property
    def record(self) -> JobRecord:
        """The record."""
        record = decode(self.fields)
        assert record is not None, "a job without fields does not stand"
        return record


class Records:
    """The job records, for reading."""

    def __init__(self, redis: Redis) -> None:
        self._redis = typed(redis)

    def get(self, job_id: str, org: str | None = None) -> JobRecord:
        """The record of a job, of any organization where `org` is None.

        Raises:
            NotFound: No such job, or another organization's.
        """
        with available():
            record = decode(self._redis.hgetall(keys.job(job_id)))
        if record is None or org not in {None, record.org}:
            raise no_such_job(job_id)
        return record

    def standing(self, job_id: str, org: str | None = None) -> "Standing":
        """A job as it stands, for one round trip.

        Raises:
            NotFound: No such job, or another organization's.
        """

        def ask(pipe: Pipe) -> None:
            pipe.hgetall(keys.job(job_id))
            pipe.zrank(keys.WAITING, job_id)

        fields, rank = self._ask(ask)
        if not fields or org not in {None, json.loads(fields["org"])}:
            raise no_such_job(job_id)
        return Standing(job_id, fields["version"], None if rank is None else rank + 1, fields)

    def version(self, job_id: str, org: str | None = None) -> str:
        """Text that differs whenever a job or its place in the queue does: an ETag.

        Raises:
            NotFound: No such job, or another organization's.
        """
        return self.standing(job_id, org).tag

    def page(
        self,
        org: str,
        *,
        after: str | None,
        limit: int,
        metadata: dict[str, str],
        kind: Literal["jobs", "comparisons"] = "jobs",
    ) -> Page[JobRecord]:
        """Jobs of `org`, newest first, behind the cursor `after`, with all of `metadata`.

        Comparisons are jobs too.

        Raises:
            InvalidRequest: The cursor is not a job's id.
        """

        def load(ids: list[str]) -> list[JobRecord]:
            return self._many(self._with(metadata, ids) if metadata else ids)

        index.check_cursor(after, PREFIX)
        return index.page(self._redis, keys.org_index(org, kind), load, after=after, limit=limit)

    def active(self) -> list[str]:
        """Ids of the jobs that have not ended, in order of creation."""
        with available():
            return sorted(self._redis.smembers(keys.ACTIVE))

    def unheld(self) -> dict[str, JobStatus]:
        """The status of every job that has not ended and that no attempt holds, by its id.

        Not their records: of thousands that wait, a reaper has need of few.
        """
        return {
            job_id: JobStatus(json.loads(status))
            for batch in index.batches(self.active())
            for job_id, status, held in self._held(batch)
            if not held
        }

    def untidy(self) -> list[str]:
        """Ids of jobs that have ended and may have left training state in the storage."""
        with available():
            return sorted(self._redis.smembers(keys.UNTIDY))

    def users(self, *ids: str) -> list[JobRecord]:
        """Unfinished jobs that name one of `ids` in their spec, or are one of them.

        Who deletes a file or a model asks this first: with the file's id, or with the model's and
        that of the job that made it, which may still need its checkpoint.
        """

        def ask(pipe: Pipe) -> None:
            for id_ in ids:
                pipe.smembers(keys.users(id_))

        found = set(ids).union(*self._ask(ask))
        return [job for job in self._many(sorted(found)) if not job.terminal]

    def queue_position(self, job_id: str) -> int | None:
        """1 for the next job that a worker will take, None for a job that is not queued."""
        return self.queue_positions([job_id])[0]

    def queue_positions(self, job_ids: list[str]) -> list[int | None]:
        """The queue position of each job, for one round trip."""

        def ask(pipe: Pipe) -> None:
            for job_id in job_ids:
                pipe.zrank(keys.WAITING, job_id)

        return [None if rank is None else rank + 1 for rank in self._ask(ask)]

    def has_lease(self, job_id: str) -> bool:
        """Whether an attempt holds the job now."""
        with available():
            return bool(self._redis.exists(keys.lease(job_id)))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        """A job's checkpoints, newest first."""
        with available():
            raws = self._redis.zrevrange(keys.checkpoints(job_id), 0, -1)
        return [Checkpoint.model_validate_json(raw) for raw in raws]

    def _held(self, ids: list[str]) -> Iterator[tuple[str, str, int]]:
        """Each job with its status, as it is stored, and whether an attempt holds it."""

        def ask(pipe: Pipe) -> None:
            for job_id in ids:
                pipe.hget(keys.job(job_id), "status")
                pipe.exists(keys.lease(job_id))

        answers = self._ask(ask)
        return zip(ids, answers[::2], answers[1::2], strict=True)

    def _with(self, metadata: dict[str, str], ids: list[str]) -> list[str]:
        """Those jobs that have all of `metadata`; most have not: their records stay unread."""

        def ask(pipe: Pipe) -> None:
            for job_id in ids:
                pipe.hget(keys.job(job_id), "spec")

        return [
            job_id
            for job_id, spec in zip(ids, self._ask(ask), strict=True)
            if metadata.items() <= json.loads(spec)["metadata"].items()
        ]

    def _many(self, ids: list[str]) -> list[JobRecord]:
        """The records of several jobs."""

        def ask(pipe: Pipe) -> None:
            for job_id in ids:
                pipe.hgetall(keys.job(job_id))

        return [job for job in map(decode, self._ask(ask)) if job is not None]

    def _ask(self, ask: Callable[[Pipe], None]) -> list[Any]:
        """The answers to several reads, for one round trip."""
        with available(), self._redis.pipeline(transaction=False) as pipe:
            ask(pipe)
            return pipe.execute()


def decode(fields: Mapping[str, str]) -> JobRecord | None:
    """A record from its hash; None for a hash that does not exist."""
    if not fields:
        return None
    return JobRecord.model_validate({name: json.loads(raw) for name, raw in fields.items()})


def encode(values: Mapping[str, Any]) -> dict[str, str]:
    """A hash from the values of a record's fields."""
    return {name: json.dumps(value) for name, value in values.items()}


def no_such_job(job_id: str) -> NotFound:
    """The error for a job that is not there, or not the caller's."""
    return NotFound(f"No such fine-tuning job: {job_id}.", code="job_not_found", param="job_id")
