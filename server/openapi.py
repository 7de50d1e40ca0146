"""The OpenAPI document: request bodies that the routes read themselves, and the shape of errors.

Bodies are parsed by hand, since a wrong one has to be answered in the words of OpenAI's API; what
they look like is said here, beside the route, by `json_body` and `multipart_body`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

Schema = Mapping[str, Any]

_ERROR: Schema = {
    "type": "object",
    "title": "Error",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

EXPIRES_AFTER: Schema = {
    "type": "object",
    "required": ["anchor", "seconds"],
    "properties": {
        "anchor": {"const": "created_at"},
        "seconds": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}


def json_body(properties: Mapping[str, Schema], required: Sequence[str]) -> dict[str, Any]:
    """For a route's `openapi_extra`: its body is a JSON object. Unknown keys are ignored."""
    schema = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def multipart_body(properties: Mapping[str, Schema], required: Sequence[str]) -> dict[str, Any]:
    """For a route's `openapi_extra`: its body is a form with a file in it."""
    schema = {"type": "object", "properties": dict(properties), "required": list(required)}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def install_openapi(app: FastAPI) -> None:
    """Let `app` describe itself as it is: errors in their one shape, keys as bearer tokens."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to replace it


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    # Wrong parameters are 400, in the shape of every other error.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Error"] = dict(_ERROR)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            replies = operation["responses"]
            replies.pop("422", None)
            replies.setdefault("4XX", {"description": "Refused", "content": error})
            replies.setdefault("5XX", {"description": "Failed", "content": error})
            if path.startswith("/v1/"):
                operation["security"] = [{}, {"key": []}]
    return made
