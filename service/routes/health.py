"""/healthz and /readyz: is the process alive, and can it serve."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service.contract.connection import available
from service.deps import ServicesDep
from service.problems import ERROR_RESPONSES

router = APIRouter(tags=["Health"])


class Health(BaseModel):
    """All is well; where it is not, the answer is an error."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process answers; it looks at nothing else."""
    return Health()


@router.get("/readyz", responses={503: ERROR_RESPONSES[503]})
def readyz(services: ServicesDep) -> Health:
    """Whether Redis answers and the storage can be written to; 503 until both do."""
    with available():
        services.redis.ping()
    services.storage.check()
    return Health()
