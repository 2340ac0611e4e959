"""/v1/fine_tuning/comparisons: jobs that train with every loss, to see what each costs.

A comparison is a job: its status, events and cancellation are the job's.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from service import jobs
from service.comparison_request import ComparisonCreate
from service.conditional import NOT_MODIFIED, IfChanged
from service.contract.errors import NotFound
from service.deps import GuardedRoute, Organization, ServicesDep
from service.openapi import links
from service.problems import ERROR_RESPONSES
from service.routes import fine_tuning
from service.routes.fine_tuning import EventQuery, IdempotencyKey, Limit
from service.schemas import Job, JobEvent, Listing

PATH = "/v1/fine_tuning/comparisons"
router = APIRouter(
    prefix=PATH, tags=["Comparisons"], responses=ERROR_RESPONSES, route_class=GuardedRoute
)
_LINKS = links("comparison_id", "get_comparison", "cancel_comparison", "list_comparison_events")
_CREATED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "A repeated request: the first one.", "links": _LINKS},
    201: {"links": _LINKS},
}


def _comparison(comparison_id: str, org: Organization, services: ServicesDep) -> str:
    """The id of a job that is a comparison."""
    if services.store.get(comparison_id, org).spec.comparison is None:
        raise NotFound(
            f"Job {comparison_id} is no comparison.",
            code="comparison_not_found",
            param="comparison_id",
        )
    return comparison_id


ComparisonId = Annotated[str, Depends(_comparison)]


@router.post("", status_code=201, responses=_CREATED)
def create_comparison(
    body: ComparisonCreate,
    org: Organization,
    services: ServicesDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Train with each loss at each batch size, from the same weights on the same data.

    The reports, as JSON, CSV and HTML, are the job's `result_files`. Repeated requests are answered
    as those for a job are.
    """
    job, is_new = jobs.create(services, org, body, idempotency_key)
    response.headers["Location"] = f"{PATH}/{job.id}"
    response.status_code = 201 if is_new else 200
    return job


@router.get("")
def list_comparisons(
    org: Organization, services: ServicesDep, after: str | None = None, limit: Limit = 20
) -> Listing[Job]:
    """Comparisons, newest first; the list of jobs has them too."""
    page = services.store.page(org, after=after, limit=limit, metadata={}, kind="comparisons")
    return Listing.of(jobs.views(services, page.items), has_more=page.has_more)


@router.get("/{comparison_id}", response_model=Job, responses=NOT_MODIFIED)
def get_comparison(
    job_id: ComparisonId,
    org: Organization,
    services: ServicesDep,
    changed: IfChanged,
    response: Response,
) -> Response:
    """A comparison as it stands, as `GET /v1/fine_tuning/jobs/{job_id}` answers it."""
    return fine_tuning.get_job(job_id, org, services, changed, response)


@router.post("/{comparison_id}/cancel")
def cancel_comparison(job_id: ComparisonId, org: Organization, services: ServicesDep) -> Job:
    """Cancel a comparison, within seconds."""
    return jobs.cancel(services, org, job_id)


@router.get("/{comparison_id}/events", responses=NOT_MODIFIED)
def list_comparison_events(
    job_id: ComparisonId,
    org: Organization,
    services: ServicesDep,
    changed: IfChanged,
    asked: Annotated[EventQuery, Query()],
) -> Listing[JobEvent]:
    """A comparison's history, newest first; one for each loss at each batch size among it."""
    return fine_tuning.list_events(job_id, org, services, changed, asked)
