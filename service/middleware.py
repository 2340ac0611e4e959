"""What wraps every request: its id, and the limit of its body."""

import secrets
from collections.abc import Callable

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"
_STATE = "request_id"
# From the path of a request to the most bytes of its body.
Limit = Callable[[str], int]


def request_id(scope: Scope) -> str:
    """The id of a request that came through `RequestIds`."""
    name: str = scope["state"][_STATE]
    return name


class RequestIds:
    """Gives every request an id, and every answer the header `x-request-id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})[_STATE] = name

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        await self._app(scope, receive, send_named)


class BodyLimit:
    """Refuses a body over the limit, by its declared length or as soon as it has come too far."""

    def __init__(self, app: ASGIApp, limit: Limit) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope["path"])
        came = 0
        declared = Headers(scope=scope).get("content-length", "")

        async def receive_limited() -> Message:
            nonlocal came
            if declared.isdecimal() and int(declared) > limit:
                raise _too_large(limit)
            message = await receive()
            came += len(message.get("body", b""))
            if came > limit:
                raise _too_large(limit)
            return message

        await self._app(scope, receive_limited, send)


def _too_large(limit: int) -> HTTPException:
    # The framework takes any other error, while it reads a body, for a broken one.
    return HTTPException(413, f"The body is over the limit of {limit:,} bytes.")
