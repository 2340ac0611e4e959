"""/v1/fleet: who trains, and on what."""

from fastapi import APIRouter
from pydantic import BaseModel

from service.contract.fleet import LiveWorker
from service.deps import GuardedRoute, Organization, ServicesDep
from service.problems import ERROR_RESPONSES

router = APIRouter(
    prefix="/v1/fleet", tags=["Fleet"], responses=ERROR_RESPONSES, route_class=GuardedRoute
)


class Workers(BaseModel):
    """The workers that are alive and train."""

    data: list[LiveWorker]


@router.get("")
def list_workers(org: Organization, services: ServicesDep) -> Workers:  # noqa: ARG001 -- a key is needed
    """Extension: the workers that train, by name, each with its device."""
    return Workers(data=services.fleet.live())
