"""Every Redis key, its type and what it holds.

    job:{id}                 HASH    a JobRecord, each top-level field as JSON
    job:{id}:lease           STRING  the fencing token of the attempt that holds it; expires
    job:{id}:events          STREAM  level, message, type, data (JSON); ids are cursors
    job:{id}:checkpoints     ZSET    Checkpoint as JSON, scored by step
    jobs                     ZSET    ids of every job, scored by creation time in ms
    jobs:active              SET     ids of jobs that have not ended: what the reaper looks at
    jobs:waiting             ZSET    ids of queued jobs, scored by when they were queued, in ms
    org:{org}:jobs           ZSET    an organization's jobs, scored by creation time in ms
    file:{id}                STRING  a FileRecord as JSON
    org:{org}:files          ZSET    an organization's files, scored by creation time in ms
    files:expiring           ZSET    "{id} {org}" of each file that expires, scored by when, in s
    model:{id}               STRING  a ModelRecord as JSON
    org:{org}:models         ZSET    an organization's models, scored by creation time in ms
    dedupe:{org}:{key}       STRING  the job that a create with this key or body made; expires

Celery keeps its own keys (the queues' names are in `queue.py`) in the same database.
"""

JOBS = "jobs"
ACTIVE = "jobs:active"
WAITING = "jobs:waiting"
EXPIRING = "files:expiring"


def job(job_id: str) -> str:
    """HASH of a job record."""
    return f"job:{job_id}"


def lease(job_id: str) -> str:
    """STRING that exists while an attempt is alive."""
    return f"job:{job_id}:lease"


def events(job_id: str) -> str:
    """STREAM of a job's events."""
    return f"job:{job_id}:events"


def checkpoints(job_id: str) -> str:
    """ZSET of a job's checkpoints."""
    return f"job:{job_id}:checkpoints"


def org_index(org: str, kind: str) -> str:
    """ZSET of an organization's objects of one kind: jobs, files or models."""
    return f"org:{org}:{kind}"


def file(file_id: str) -> str:
    """STRING of a file record."""
    return f"file:{file_id}"


def model(model_id: str) -> str:
    """STRING of a model record."""
    return f"model:{model_id}"


def dedupe(org: str, key: str) -> str:
    """STRING that names the job a create request has already made."""
    return f"dedupe:{org}:{key}"
