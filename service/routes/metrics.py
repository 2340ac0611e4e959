"""/metrics: the state of the service in Prometheus' text format."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.deps import GuardedRoute, Organization, ServicesDep
from service.metrics import ServiceCollector
from service.openapi import TEXT
from service.problems import ERROR_RESPONSES

router = APIRouter(tags=["Health"], route_class=GuardedRoute)
_RESPONSES = TEXT | {status: ERROR_RESPONSES[status] for status in (401, 503)}


@router.get("/metrics", response_class=Response, responses=_RESPONSES)
def get_metrics(org: Organization, services: ServicesDep) -> Response:  # noqa: ARG001 -- a key is needed
    """Jobs, queues, workers, and what ended jobs measured, of all organizations, for Prometheus.

    The numbers are of the whole service, whichever of its processes answers.
    """
    return Response(generate_latest(ServiceCollector(services)), media_type=CONTENT_TYPE_LATEST)
