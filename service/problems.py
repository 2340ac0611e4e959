"""The one error body: every error of every route leaves as OpenAI's envelope, made here.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

All four keys are always there. `x-request-id` names the request in the server's log; what went
wrong inside the server is told there, not to the caller.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from service.contract.errors import (
    Conflict,
    HeadroomError,
    InvalidRequest,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from service.datasets import Fault, InvalidDataset
from service.faults import field_faults
from service.middleware import REQUEST_ID, request_id

RETRY_AFTER_S = 2
_MAX_TOLD = 10
_LOG = logging.getLogger(__name__)

_STATUS: dict[type[HeadroomError], int] = {
    InvalidRequest: 400,
    Unauthenticated: 401,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Unavailable: 503,
}
_TYPES = {401: "authentication_error", 500: "server_error", 503: "server_error"}
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    # The openai client would send it again; the object's state will not have changed by then.
    409: {"x-should-retry": "false"},
    503: {"Retry-After": str(RETRY_AFTER_S)},
}
_HTTP_CODES = {400: "invalid_body", 404: "unknown_url", 413: "too_large"}
_FIELD_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
}


class ErrorDetail(BaseModel):
    """What went wrong; `message` says what was got and what is expected."""

    message: str = Field(examples=["n_epochs: Input should be less than or equal to 50; got 500."])
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(
        description="The field at fault, in dotted form.",
        examples=["method.supervised.hyperparameters.n_epochs"],
    )
    code: str | None = Field(
        description="A stable identifier to match on.", examples=["invalid_value"]
    )


class DatasetErrorDetail(ErrorDetail):
    """Why a training file was refused, fault by fault."""

    faults: list[Fault] = Field(description="Extension: the first 100 faults of a training file.")
    fault_count: int = Field(description="Extension: how many faults there are.")


class ErrorBody(BaseModel):
    """The body of every error."""

    error: DatasetErrorDetail | ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "A field, a value or a file is wrong."},
    401: {"model": ErrorBody, "description": "No API key, or not one of ours."},
    404: {"model": ErrorBody, "description": "No such object, or another organization's."},
    409: {"model": ErrorBody, "description": "Wrong in the object's present state."},
    413: {"model": ErrorBody, "description": "Over a documented limit."},
    503: {
        "model": ErrorBody,
        "description": "Redis or the storage does not answer; try again after `Retry-After`.",
    },
}


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer every error of `app`, which serves `routes`, with the envelope."""
    app.add_exception_handler(HeadroomError, _on_headroom_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(405, partial(_on_wrong_method, routes))
    app.add_exception_handler(Exception, _on_defect)


async def _on_headroom_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HeadroomError)
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), None)
    if status is None:  # an error of the workers' world: not one that a caller can cause
        return await _on_defect(request, error)
    if status == 503:
        _LOG.warning("%s: %s", request_id(request.scope), error, exc_info=error.__cause__)
    detail = _detail(status, error.message, param=error.param, code=error.code)
    if isinstance(error, InvalidDataset):
        detail = DatasetErrorDetail(**dict(detail), faults=error.faults, fault_count=error.total)
    return _answer(request, status, detail)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    parts = {
        "body": error.body,
        "query": request.query_params,
        "path": request.path_params,
        "header": request.headers,
    }
    faults = [
        fault
        for part, value in parts.items()
        for fault in field_faults(_within(part, error.errors()), value)
    ]
    told = [f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in faults]
    more = f"; and {len(told) - _MAX_TOLD} more" if len(told) > _MAX_TOLD else ""
    detail = _detail(
        400,
        "; ".join(told[:_MAX_TOLD]) + more + ".",
        param=faults[0].path or None,
        code=_field_code(faults[0].kind),
    )
    return _answer(request, 400, detail)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: an unknown route, a broken body; and 304, no error."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 304:
        return Response(status_code=status, headers=error.headers)
    missing = f"No such route: {request.method} {request.url.path}."
    message = missing if status == 404 else error.detail
    detail = _detail(status, message, code=_HTTP_CODES.get(status, "invalid_request"))
    return _answer(request, status, detail, error.headers)


async def _on_wrong_method(
    routes: Sequence[BaseRoute], request: Request, error: Exception
) -> JSONResponse:
    """`Allow` names the methods of every route of the path; the framework knows the first's."""
    assert isinstance(error, HTTPException)
    allowed = {
        method
        for route in routes
        if isinstance(route, APIRoute) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    message = f"No such method on this route: {request.method} {request.url.path}."
    detail = _detail(405, message, code="method_not_allowed")
    headers = {"Allow": ", ".join(sorted(allowed))} if allowed else error.headers
    return _answer(request, 405, detail, headers)


async def _on_defect(request: Request, error: Exception) -> JSONResponse:
    """A defect of ours: all of it into the log, and only its name there to the caller."""
    name = request_id(request.scope)
    _LOG.error("%s: %s %s failed", name, request.method, request.url.path, exc_info=error)
    message = f"The server failed on this request. Its log tells more under {name}."
    return _answer(request, 500, _detail(500, message, code="internal_error"))


def _detail(
    status: int, message: str, *, code: str | None, param: str | None = None
) -> ErrorDetail:
    kind = _TYPES.get(status, "invalid_request_error")
    return ErrorDetail(message=message, type=kind, param=param, code=code)


def _answer(
    request: Request, status: int, detail: ErrorDetail, headers: Any = None
) -> JSONResponse:
    body = {"error": detail.model_dump(mode="json")}
    named = {REQUEST_ID: request_id(request.scope)}
    return JSONResponse(body, status, {**named, **_HEADERS.get(status, {}), **(headers or {})})


def _within(part: str, errors: Sequence[Any]) -> list[ErrorDetails]:
    """The errors of the body, the query or the path, with their locations inside it."""
    inside = [{**error, "loc": error["loc"][1:]} for error in errors if error["loc"][0] == part]
    return cast("list[ErrorDetails]", inside)


def _field_code(kind: str) -> str:
    """The wire format's code for a kind of pydantic error."""
    wrong_type = kind.endswith(("_type", "_parsing"))
    return _FIELD_CODES.get(kind) or ("invalid_type" if wrong_type else "invalid_value")
