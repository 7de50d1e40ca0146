"""Webhook objects on the wire, and the bodies that ask for them. Every key is always there."""

from __future__ import annotations

import json
from typing import Any, Literal

# Pydantic, which describes these types in the OpenAPI document, cannot read Python 3.11's own.
from typing_extensions import TypedDict

from trunkline.server.openapi import json_body
from trunkline.server.webhooks.addresses import MAX_URL_CHARACTERS
from trunkline.server.webhooks.requests import KEEP_OLD, MAX_NAME_CHARACTERS
from trunkline.server.webhooks.signing import secret_hint
from trunkline.store.webhooks import EVENT_TYPES, DeliveryRecord, WebhookEndpointRecord


class EventTypes(TypedDict):
    object: Literal["list"]
    data: list[str]


class EndpointObject(TypedDict):
    id: str
    object: Literal["webhook_endpoint"]
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str


class EndpointWithSecret(EndpointObject):
    """Shown when the secret is new, and never again."""

    signing_secret: str


class DeletedEndpoint(TypedDict):
    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class TestResult(TypedDict):
    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True]


class DeliveryObject(TypedDict):
    """What OpenAI's API does not have: an event on its way to an endpoint."""

    id: str
    object: Literal["webhook_endpoint.delivery"]
    webhook_endpoint_id: str
    event: dict[str, Any]
    status: Literal["pending", "delivered", "failed"]
    created_at: int
    num_attempts: int
    next_attempt_at: int | None
    delivered_at: int | None
    last_error: str | None


_EVENT_TYPE = {"enum": list(EVENT_TYPES)}
_PROPERTIES = {
    "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARACTERS},
    "url": {"type": "string", "format": "uri", "maxLength": MAX_URL_CHARACTERS},
    "event_types": {"type": "array", "items": _EVENT_TYPE, "minItems": 1},
}
NEW_ENDPOINT = json_body(_PROPERTIES, list(_PROPERTIES))
CHANGE = json_body(_PROPERTIES, [])
ROTATION = json_body({KEEP_OLD: {"type": "boolean", "default": False}}, [])
TEST = json_body({"event_type": _EVENT_TYPE}, ["event_type"])


def endpoint_object(endpoint: WebhookEndpointRecord) -> EndpointObject:
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": list(endpoint.event_types),
        "signing_secret_hint": secret_hint(endpoint.secret),
    }


def endpoint_with_secret(endpoint: WebhookEndpointRecord) -> EndpointWithSecret:
    return {**endpoint_object(endpoint), "signing_secret": endpoint.secret}


def delivery_object(delivery: DeliveryRecord) -> DeliveryObject:
    next_attempt_at = delivery.next_attempt_at
    status: Literal["pending", "delivered", "failed"] = "pending"
    if next_attempt_at is None:
        status = "failed" if delivery.delivered_at is None else "delivered"
    return {
        "id": delivery.event_id,
        "object": "webhook_endpoint.delivery",
        "webhook_endpoint_id": delivery.endpoint_id,
        "event": json.loads(delivery.body),
        "status": status,
        "created_at": delivery.created_at,
        "num_attempts": delivery.num_attempts,
        "next_attempt_at": None if next_attempt_at is None else int(next_attempt_at),
        "delivered_at": delivery.delivered_at,
        "last_error": delivery.last_error,
    }
