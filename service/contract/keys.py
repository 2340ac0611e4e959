"""Every Redis key, its type and what it holds.

    job:{id}                 HASH    a JobRecord, each top-level field as JSON
    lease:{id}               STRING  the fencing token of the attempt that holds a job; expires
    events:{id}              STREAM  a job's events: level, message, type, data (JSON)
    checkpoints:{id}         ZSET    a job's checkpoints as JSON, scored by step
    jobs:active              SET     ids of jobs that have not ended: what the reaper looks at
    jobs:untidy              SET     ids of jobs that have ended, but may have left training state
    jobs:waiting             ZSET    ids of queued jobs, scored by when they were queued, in ms
    users:{id}               SET     ids of jobs that have not ended and name this file or model
    org:{org}:jobs           ZSET    ids of an organization's jobs, in order of creation
    org:{org}:comparisons    ZSET    those of its jobs that are comparisons, in order of creation
    file:{id}                STRING  a FileRecord as JSON; expires with the file
    org:{org}:files          ZSET    ids of an organization's files, in order of creation
    files:expiring           ZSET    "{id} {org}" of each file that expires, scored by when, in s
    model:{id}               STRING  a ModelRecord as JSON
    org:{org}:models         ZSET    ids of an organization's models, scored by creation, in s
    adapters:{id}            SET     ids of the adapters that stand on this model
    worker:{name}            STRING  a LiveWorker as JSON; expires when the worker is silent
    workers:live             ZSET    names of workers, scored by when they count as gone, in ms
    dedupe:{org}:{key}       STRING  the job that a create with this key or body made; expires
    jobs:tally               HASH    how many jobs there are in each status
    tally:{distribution}     HASH    what ended jobs measured, by labels and bucket: see `tally.py`

No prefix followed by an id, which may come from a caller, is a key of another type. Celery keeps
its own keys (the queues' names are in `queue.py`) in the same database.
"""

ACTIVE = "jobs:active"
UNTIDY = "jobs:untidy"
WAITING = "jobs:waiting"
EXPIRING = "files:expiring"
WORKERS = "workers:live"
JOB_TALLY = "jobs:tally"


def job(job_id: str) -> str:
    """HASH of a job record."""
    return f"job:{job_id}"


def lease(job_id: str) -> str:
    """STRING that exists while an attempt is alive."""
    return f"lease:{job_id}"


def events(job_id: str) -> str:
    """STREAM of a job's events."""
    return f"events:{job_id}"


def checkpoints(job_id: str) -> str:
    """ZSET of a job's checkpoints."""
    return f"checkpoints:{job_id}"


def users(id_: str) -> str:
    """SET of the unfinished jobs that need a file or a model."""
    return f"users:{id_}"


def adapters(model_id: str) -> str:
    """SET of the adapters on a model."""
    return f"adapters:{model_id}"


def org_index(org: str, kind: str) -> str:
    """ZSET of an organization's objects of one kind: jobs, comparisons, files or models."""
    return f"org:{org}:{kind}"


def file(file_id: str) -> str:
    """STRING of a file record."""
    return f"file:{file_id}"


def model(model_id: str) -> str:
    """STRING of a model record."""
    return f"model:{model_id}"


def worker(name: str) -> str:
    """STRING of what a live worker has told."""
    return f"worker:{name}"


def dedupe(org: str, key: str) -> str:
    """STRING that names the job a create request has already made."""
    return f"dedupe:{org}:{key}"


def distribution(name: str) -> str:
    """HASH of the buckets of a distribution."""
    return f"tally:{name}"
