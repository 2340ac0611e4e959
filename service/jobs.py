"""The use cases of fine-tuning jobs: create one, look at it, cancel it."""

import hashlib
import logging
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache

from service.comparison_request import ComparisonCreate
from service.contract import batching
from service.contract.errors import Conflict, InvalidRequest, JobFailure, NotFound, Unavailable
from service.contract.job import Event, JobRecord, new_id
from service.contract.models import ModelRecord, is_hub_id
from service.contract.queue import VALIDATE
from service.contract.records import PREFIX, Standing
from service.contract.resolve import sequence_length
from service.contract.spec import JobSpec
from service.deps import Services
from service.job_request import JobCreate
from service.model_configs import context_of
from service.schemas import Job, JobMemory

_LOG = logging.getLogger(__name__)
_KEY_FRESH_S = 24 * 3600
# Of a few KB each: as many as there may be jobs that somebody watches.
_KEPT_ANSWERS = 256


Request = JobCreate | ComparisonCreate


def create(
    services: Services, org: str, request: Request, idempotency_key: str | None
) -> tuple[Job, bool]:
    """Record a job and ask for its validation; a repeated request gets the job of the first.

    A request is repeated where it has the same `Idempotency-Key` within a day, or, since clients
    replay without one, the same body within the deduplication window while the job goes on.

    Returns:
        The job, and whether this request made it.

    Raises:
        InvalidRequest: The model, a file or a combination of options is wrong.
        Conflict: The key came before with another body.
        Unavailable: Redis does not answer.
    """
    spec = request.spec(seed=secrets.randbelow(2**31))
    record = JobRecord(id=new_id(PREFIX), org=org, created_at=int(time.time()), spec=spec)
    kind = "fine-tuning job" if spec.comparison is None else "comparison"
    stands, is_new = services.store.create(
        record,
        dedupe_key=_dedupe_key(request, idempotency_key),
        dedupe_s=_KEY_FRESH_S if idempotency_key else services.settings.dedupe_window_s,
        event=Event(message=f"Created {kind}: {record.id}"),
        also_ended=idempotency_key is not None,
        check=lambda: check(services, org, spec),
    )
    if is_new:
        _enqueue(services, stands.id)
    elif stands.spec != request.spec(seed=stands.spec.seed):
        raise Conflict(
            f"This Idempotency-Key made job {stands.id} from another body.",
            code="idempotency_key_reused",
        )
    return view(services, stands), is_new


@dataclass(frozen=True)
class Shown:
    """A job as the API answers it: the JSON, and whether the job has ended."""

    body: bytes
    ended: bool


@lru_cache(maxsize=_KEPT_ANSWERS)
def shown(standing: Standing) -> Shown:
    """The answer to whoever asks for a job; they all get the same one until there is news."""
    record = standing.record
    job = Job.of(record, standing.place)
    return Shown(job.model_dump_json().encode(), ended=record.terminal)


def memory(services: Services, org: str, job_id: str) -> JobMemory:
    """What a job of `org` measured of its memory and time.

    Raises:
        NotFound: No such job, or it has measured nothing (`memory_not_measured`): not yet, never
            before it ended, at its caller's wish, or as a comparison.
    """
    record = services.store.get(job_id, org)
    if record.memory is not None:
        return JobMemory.of(record, record.memory)
    if record.spec.comparison is not None:
        why = "it is a comparison, which reports the memory of each loss in its result files"
    elif not record.spec.options.memory_ledger:
        why = "it was created with memory_ledger false"
    elif record.terminal:
        why = f"it {record.status} before"
    else:
        why = f"it is {record.status}, and measures when training begins"
    raise NotFound(
        f"Job {job_id} has no memory ledger: {why}.", code="memory_not_measured", param="job_id"
    )


def cancel(services: Services, org: str, job_id: str) -> Job:
    """Ask for a job to end; one that no worker holds has ended on return.

    Raises:
        NotFound: No such job, or another organization's.
        Conflict: It has ended already.
    """
    services.store.version(job_id, org)  # raises where it is not the caller's
    return view(services, services.store.request_cancel(job_id))


def view(services: Services, record: JobRecord) -> Job:
    """A record as the API shows it; who is waiting costs a look into the queue."""
    waits = record.status == "queued"
    return Job.of(record, services.store.queue_position(record.id) if waits else None)


def views(services: Services, records: list[JobRecord]) -> list[Job]:
    """Several records, for one look into the queue."""
    positions = services.store.queue_positions([record.id for record in records])
    return [Job.of(*pair) for pair in zip(records, positions, strict=True)]


def check(services: Services, org: str, spec: JobSpec) -> None:
    """Refuse what cannot become a run, before anything is recorded."""
    _check_model(services, org, spec)
    _check_file(services, org, "training_file", spec.training_file)
    if spec.validation_file is not None:
        _check_file(services, org, "validation_file", spec.validation_file)
    _check_length(services, org, spec)
    batching.check(spec)


def _check_model(services: Services, org: str, spec: JobSpec) -> None:
    name = spec.model
    if services.base_models.source(name) is not None:
        return
    try:
        tuned = services.models.get(org, name)
    except NotFound as error:
        message = _unknown_model(services, name)
        raise InvalidRequest(message, code="model_not_found", param="model") from error
    if tuned.kind == "lora":
        _check_adapter(services, tuned, spec)


def _check_adapter(services: Services, tuned: ModelRecord, spec: JobSpec) -> None:
    if spec.options.adapter is not None:
        raise InvalidRequest(
            f"{tuned.id} is an adapter, which a job on it goes on training: leave `adapter` out.",
            code="unsupported_model",
            param="adapter",
        )
    if services.base_models.source(tuned.base) is not None:
        return
    try:
        services.models.get(tuned.org, tuned.base)
    except NotFound as error:
        raise InvalidRequest(
            f"{tuned.id} is an adapter on {tuned.base}, which is not there any more.",
            code="model_not_found",
            param="model",
        ) from error


def _check_length(services: Services, org: str, spec: JobSpec) -> None:
    if spec.options.max_seq_length == "auto":
        return
    try:
        sequence_length(spec, context_of(services, org, spec.model))
    except JobFailure as failure:
        raise InvalidRequest(failure.message, code=failure.code, param=failure.param) from failure


def _unknown_model(services: Services, name: str) -> str:
    """Why there is no such model: a hub id is rather not allowed than mistyped."""
    if is_hub_id(name):
        allowed = ", ".join(services.settings.hub_models) or "none"
        return (
            f"Model {name!r} is a hub id that this server does not allow; it allows {allowed}. "
            "HEADROOM_HUB_MODELS, or `headroom up --hub-model`, names the patterns of those."
        )
    known = ", ".join(services.base_models.names()) or "none in a folder"
    return (
        f"Model {name!r} is neither a base model that may be fine-tuned ({known}) nor a "
        "fine-tuned model of yours. GET /v1/models lists both."
    )


def _check_file(services: Services, org: str, param: str, file_id: str) -> None:
    try:
        file = services.files.get(org, file_id)
    except NotFound as error:
        raise InvalidRequest(error.message, code="file_not_found", param=param) from error
    if file.purpose != "fine-tune" or file.format is None:
        raise InvalidRequest(
            f"File {file_id} has the purpose {file.purpose!r}; expected 'fine-tune'.",
            code="invalid_file_purpose",
            param=param,
        )


def _dedupe_key(request: Request, idempotency_key: str | None) -> str:
    """What two requests for the same job have in common; hashed, whatever a caller sends."""
    kind, text = ("body", request.model_dump_json())
    if idempotency_key is not None:
        kind, text = ("key", idempotency_key)
    return f"{kind}:{hashlib.sha256(text.encode()).hexdigest()}"


def _enqueue(services: Services, job_id: str) -> None:
    """Send the job's message; where that fails, the job stands, and the reaper will send it."""
    try:
        services.queue.send(job_id, VALIDATE)
    except Unavailable as error:
        _LOG.warning("Job %s is left to the reaper: %s", job_id, error)
