"""Jobs in every state, made as the service and the workers make them."""

import time
from typing import Any

from redis import Redis

from service.contract import keys
from service.contract.files import FileRecord
from service.contract.job import Checkpoint, Event, JobRecord, JobStatus, new_id
from service.contract.models import ModelRecord
from service.contract.spec import JobSpec
from service.contract.store import Claim, Store

ORG = "org-test"
EVENT = Event(message="It was done.")
WAITING = JobStatus.VALIDATING_FILES, JobStatus.QUEUED
TERMINAL = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED


def record(org: str = ORG, **spec: Any) -> JobRecord:
    """A record that is in no store yet."""
    fields = {"model": "base", "training_file": "file-1", "seed": 1, **spec}
    return JobRecord(
        id=new_id("ftjob-"), org=org, created_at=int(time.time()), spec=JobSpec(**fields)
    )


def create(store: Store, org: str = ORG, **spec: Any) -> str:
    """The id of a new job."""
    made, _ = store.create(record(org, **spec), dedupe_key=None, dedupe_s=0, event=EVENT)
    return made.id


def queued(store: Store, **spec: Any) -> str:
    """The id of a job that waits for training."""
    job_id = create(store, **spec)
    store.transition(job_id, JobStatus.QUEUED, EVENT)
    return job_id


def take(store: Store, job_id: str, worker: str = "worker") -> Claim:
    """A claim on a job that waits."""
    claim = store.claim(job_id, worker, store.get(job_id).status)
    assert claim is not None
    return claim


def running(store: Store, **spec: Any) -> Claim:
    """A claim on a job that runs."""
    return take(store, queued(store, **spec))


def lose(redis: Redis, claim: Claim) -> None:
    """Let the lease run out now."""
    assert redis.delete(keys.lease(claim.job_id)) == 1


def job_in(store: Store, redis: Redis, status: JobStatus) -> str:
    """The id of a job in any status, held by nobody."""
    if status is JobStatus.VALIDATING_FILES:
        return create(store)
    if status is JobStatus.QUEUED:
        return queued(store)
    claim = running(store)
    if status is JobStatus.RUNNING:
        lose(redis, claim)
    else:
        store.transition(claim.job_id, status, EVENT, token=claim.token)
    return claim.job_id


def checkpoint(claim: Claim, step: int) -> tuple[Checkpoint, ModelRecord]:
    """A checkpoint of an attempt and the model it can be used as."""
    path = f"checkpoints/{claim.job_id}/{claim.token}-{step}"
    model = model_record(f"ft:base:org::{claim.job_id}:ckpt-step-{step}", path=path, step=step)
    return (
        Checkpoint(
            id=new_id("ftckpt_"), created_at=1, step=step, path=path, model=model.id, metrics={}
        ),
        model,
    )


def model_record(model_id: str, **fields: Any) -> ModelRecord:
    """A model of our organization."""
    given = {"org": ORG, "created_at": 1, "base": "base", "job_id": "ftjob-1", "kind": "full"}
    return ModelRecord(
        **{"id": model_id, "path": f"models/{model_id}", "files": []} | given | fields
    )


def file_record(**fields: Any) -> FileRecord:
    """A file of our organization."""
    given = {"org": ORG, "bytes": 1, "created_at": 1, "filename": "train.jsonl"}
    return FileRecord(
        **{"id": new_id("file-"), "purpose": "fine-tune", "sha256": "0" * 64} | given | fields
    )


def raw(redis: Redis, job_id: str) -> tuple[dict[str, str], list[Any]]:
    """All that Redis holds about a job, to see that nothing was written."""
    return redis.hgetall(keys.job(job_id)), redis.xrange(keys.events(job_id))
