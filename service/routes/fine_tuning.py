"""/v1/fine_tuning/jobs: submit a job, follow it, cancel it."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, Field

from service import jobs
from service.conditional import NOT_MODIFIED, IfChanged
from service.contract.errors import InvalidRequest
from service.contract.index import check_cursor
from service.deps import GuardedRoute, Organization, ServicesDep
from service.job_request import JobCreate
from service.openapi import links
from service.problems import ERROR_RESPONSES
from service.schemas import Job, JobCheckpoint, JobEvent, JobMemory, Listing, MetricPoint

PATH = "/v1/fine_tuning/jobs"
router = APIRouter(
    prefix=PATH, tags=["Fine-tuning"], responses=ERROR_RESPONSES, route_class=GuardedRoute
)

# Seconds that a poller may well wait until a running job has news.
_POLL_S = 1
_CHECKPOINT = "ftckpt_"
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_METADATA_DOC: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "description": "`metadata[k]=v`: only jobs that have all of these pairs.",
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}
_OF_JOB = (
    "get_job",
    "cancel_job",
    "list_events",
    "list_metrics",
    "get_memory",
    "list_checkpoints",
)
_LINKS = links("job_id", *_OF_JOB)
_CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "A repeated request: the first one's job.", "links": _LINKS},
    201: {"links": _LINKS},
}
Limit = Annotated[int, Query(ge=1, le=1000)]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


class EventQuery(BaseModel):
    """Which part of a history is asked for."""

    after: str | None = None
    limit: Limit = 20
    order: Literal["asc", "desc"] = Field(
        "desc", description="Extension: `asc`, oldest first, for followers."
    )


async def _metadata(request: Request) -> dict[str, str]:
    """The pairs of the filter, which come as `metadata[k]=v`."""
    pairs = {}
    for name, value in request.query_params.items():
        if match := _METADATA.fullmatch(name):
            pairs[match[1]] = value
        elif name.startswith("metadata"):  # without it, every job would be listed
            raise InvalidRequest(
                f"{name[:80]!r} filters by nothing; expected pairs, as metadata[k]=v.",
                code="invalid_value",
                param="metadata",
            )
    return pairs


@router.post("", status_code=201, responses=_CREATED)
def create_job(
    body: JobCreate,
    org: Organization,
    services: ServicesDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Create a fine-tuning job; `Location` says where to follow it.

    A repeated request is answered with the first one's job and status 200: the same
    `Idempotency-Key` within a day, or without one the same body within two minutes.
    """
    job, is_new = jobs.create(services, org, body, idempotency_key)
    response.headers["Location"] = f"{PATH}/{job.id}"
    response.status_code = 201 if is_new else 200
    return job


@router.get("", openapi_extra=_METADATA_DOC)
def list_jobs(
    org: Organization,
    services: ServicesDep,
    metadata: Annotated[dict[str, str], Depends(_metadata)],
    after: str | None = None,
    limit: Limit = 20,
) -> Listing[Job]:
    """Jobs, newest first, comparisons among them."""
    page = services.store.page(org, after=after, limit=limit, metadata=metadata)
    return Listing.of(jobs.views(services, page.items), has_more=page.has_more)


@router.get("/{job_id}", response_model=Job, responses=NOT_MODIFIED)
def get_job(
    job_id: str, org: Organization, services: ServicesDep, changed: IfChanged, response: Response
) -> Response:
    """A job as it stands. Poll with `If-None-Match`: the answer is 304 while nothing is new."""
    standing = services.store.standing(job_id, org)
    changed.check(standing.tag)
    shown = jobs.shown(standing)
    if not shown.ended:
        response.headers["Retry-After"] = str(_POLL_S)
    # Not the job itself: FastAPI would validate it again, for which it goes to another thread.
    return Response(shown.body, media_type="application/json", headers=response.headers)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, org: Organization, services: ServicesDep) -> Job:
    """Cancel a job; a running one ends within seconds, see `cancel_requested`."""
    return jobs.cancel(services, org, job_id)


@router.get("/{job_id}/events", responses=NOT_MODIFIED)
def list_events(
    job_id: str,
    org: Organization,
    services: ServicesDep,
    changed: IfChanged,
    asked: Annotated[EventQuery, Query()],
) -> Listing[JobEvent]:
    """A job's history, newest first; with `order=asc`, `after` is the last event already seen."""
    changed.check(services.store.version(job_id, org))
    read = services.events.page if asked.order == "desc" else services.events.since
    page = read(job_id, after=asked.after, limit=asked.limit)
    return Listing.of([JobEvent.of(event) for event in page.items], has_more=page.has_more)


@router.get("/{job_id}/metrics", responses=NOT_MODIFIED)
def list_metrics(
    job_id: str,
    org: Organization,
    services: ServicesDep,
    changed: IfChanged,
    resolution: Annotated[int, Query(ge=2, le=5000, description="The most points.")] = 300,
) -> Listing[MetricPoint]:
    """Extension: the loss curve, oldest first, thinned evenly; the newest point is always there."""
    changed.check(services.store.version(job_id, org))
    points = services.events.metrics(job_id, resolution)
    return Listing.of([MetricPoint.of(event) for event in points])


@router.get("/{job_id}/memory", responses=NOT_MODIFIED)
def get_memory(
    job_id: str, org: Organization, services: ServicesDep, changed: IfChanged
) -> JobMemory:
    """Extension: the memory ledger, and where a step's time goes; 404 until it is measured."""
    changed.check(services.store.version(job_id, org))
    return jobs.memory(services, org, job_id)


@router.get("/{job_id}/checkpoints", responses=NOT_MODIFIED)
def list_checkpoints(
    job_id: str,
    org: Organization,
    services: ServicesDep,
    changed: IfChanged,
    after: str | None = None,
    limit: Limit = 10,
) -> Listing[JobCheckpoint]:
    """A job's checkpoints, newest first; older ones than the last few are not kept."""
    changed.check(services.store.version(job_id, org))
    check_cursor(after, _CHECKPOINT)
    # Ids are in order of creation: a cursor holds although its checkpoint is gone.
    found = [each for each in services.store.checkpoints(job_id) if not after or each.id < after]
    data = [JobCheckpoint.of(job_id, each) for each in found[:limit]]
    return Listing.of(data, has_more=len(found) > limit)
