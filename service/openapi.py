"""What the OpenAPI document says beside what FastAPI derives from the routes."""

from typing import Any

from fastapi import FastAPI

Responses = dict[int | str, dict[str, Any]]

BINARY: Responses = {
    200: {
        "description": "The bytes.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
TEXT: Responses = {
    200: {
        "description": "The text.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


def links(parameter: str, *operations: str) -> dict[str, Any]:
    """The operations that take the `id` of an answer as their `parameter`."""
    return {
        name: {"operationId": name, "parameters": {parameter: "$response.body#/id"}}
        for name in operations
    }


def document(app: FastAPI, *, keys_in_use: bool) -> dict[str, Any]:
    """The document: without the 422 that FastAPI declares, since here such faults are 400.

    Args:
        app: The application with all its routes.
        keys_in_use: Whether a caller must send an API key.
    """
    schema = FastAPI.openapi(app)
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if not keys_in_use:
                operation.pop("security", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    return schema
