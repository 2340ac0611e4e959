"""What the routes depend on: the services of the running app, and who is calling.

Dependencies are `async` although they wait for nothing: plain functions would each cost a thread.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from redis import Redis

from service.auth import Keyring
from service.contract.connection import connect
from service.contract.events import Events
from service.contract.files import Files
from service.contract.fleet import Fleet
from service.contract.models import BaseModels, Models
from service.contract.queue import Queue, make_celery
from service.contract.storage import Storage
from service.contract.store import Store
from service.settings import ServiceSettings

# Each takes a thread for seconds, and a processor, of the few that all requests share.
_UPLOADS_AT_ONCE = 4
# A caller is told within seconds that Redis is away; it would rather try again than wait.
_REDIS_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Services:
    """All that a use case may need; made once, shared by every request.

    Attributes:
        uploads: Held by each upload that is being checked and stored.
    """

    settings: ServiceSettings
    redis: Redis
    store: Store
    events: Events
    files: Files
    fleet: Fleet
    models: Models
    base_models: BaseModels
    storage: Storage
    queue: Queue
    keyring: Keyring
    uploads: asyncio.Semaphore


@contextmanager
def open_services(settings: ServiceSettings) -> Iterator[Services]:
    """Open what the app works with; Redis need not be there yet."""
    redis = connect(settings, _REDIS_TIMEOUT_S)
    with redis, make_celery(settings) as celery:
        yield Services(
            settings=settings,
            redis=redis,
            store=Store(redis, lease_s=settings.lease_s),
            events=Events(redis, settings.event_cap),
            files=Files(redis),
            fleet=Fleet(redis),
            models=Models(redis),
            base_models=BaseModels(settings),
            storage=Storage(settings.storage_url),
            queue=Queue(celery, redis),
            keyring=Keyring.load(settings.api_keys_file),
            uploads=asyncio.Semaphore(_UPLOADS_AT_ONCE),
        )


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]

_BEARER = HTTPBearer(auto_error=False, description="Not needed where no API keys are in use.")
Credentials = HTTPAuthorizationCredentials | None


class GuardedRoute(APIRoute):
    """A route for one organization: who is calling is settled before any of the body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind the check of the API key."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            services: Services = request.app.state.services
            sent = await _BEARER(request)
            request.state.organization = services.keyring.organization(
                sent.credentials if sent else None
            )
            return await handle(request)

        return guarded


async def _organization(
    request: Request,
    _: Annotated[Credentials, Depends(_BEARER)],  # for the OpenAPI document
) -> str:
    name: str = request.state.organization
    return name


# Only for the handlers of a `GuardedRoute`.
Organization = Annotated[str, Depends(_organization)]
