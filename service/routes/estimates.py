"""/v1/fine_tuning/estimate: what a job would need, before anything runs."""

from fastapi import APIRouter

from service import estimates
from service.deps import GuardedRoute, Organization, ServicesDep
from service.estimate_schemas import Estimate
from service.job_request import JobCreate
from service.problems import ERROR_RESPONSES

PATH = "/v1/fine_tuning/estimate"
router = APIRouter(
    prefix=PATH, tags=["Fine-tuning"], responses=ERROR_RESPONSES, route_class=GuardedRoute
)


@router.post("")
def estimate_job(body: JobCreate, org: Organization, services: ServicesDep) -> Estimate:
    """Extension: predict memory, steps, tokens and time of the job that this body would create.

    Nothing is created. Memory is predicted from the model's config, for each kind of device that a
    live worker trains on.
    """
    return estimates.estimate(services, org, body)
