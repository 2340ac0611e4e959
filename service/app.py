"""Assemble the HTTP application: routes, errors, limits, and the life of what they work with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service import openapi, problems
from service.dashboard import routes as dashboard
from service.deps import open_services
from service.middleware import BodyLimit, RequestIds
from service.routes import (
    comparisons,
    estimates,
    files,
    fine_tuning,
    fleet,
    health,
    metrics,
    models,
)
from service.settings import ServiceSettings

# What a multipart body has beside the file itself.
_FORM_BYTES = 64 * 1024
_DESCRIPTION = """
Fine-tuning as a service, in the wire format of OpenAI's API: point `OPENAI_BASE_URL` of an
unchanged client at `/v1`. Fields marked as extensions are Headroom's own. Every error, on every
route, has the body `{"error": {"message", "type", "param", "code"}}` and an `x-request-id`; that of
a training file names its `faults` beside them.
"""


def create_app(settings: ServiceSettings) -> FastAPI:
    """The application; it opens Redis and the rest when it starts, and closes them when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with open_services(settings) as services:
            app.state.services = services
            yield

    app = FastAPIOffline(
        title="Headroom",
        version=version("headroom"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,  # its script asks a CDN for a logo
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    jobs = (files, fine_tuning, estimates, comparisons, models)
    operation = (fleet, health, metrics, dashboard)
    routers = [module.router for module in (*jobs, *operation)]
    for router in routers:
        app.include_router(router)
    problems.install(app, [route for router in routers for route in router.routes])
    app.add_middleware(BodyLimit, limit=lambda path: _body_limit(settings, path))
    app.add_middleware(RequestIds)
    keys_in_use = settings.api_keys_file is not None
    app.openapi = partial(openapi.document, app, keys_in_use=keys_in_use)  # type: ignore[method-assign] # FastAPI's documented way
    return app


def _body_limit(settings: ServiceSettings, path: str) -> int:
    if path == files.PATH:
        return settings.max_file_bytes + _FORM_BYTES
    return settings.max_body_bytes
