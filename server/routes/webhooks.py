"""Webhook endpoints: create, retrieve, list, update, delete, rotate the secret, test.

And, which OpenAI's API does not have, what became of an endpoint's latest events.
"""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request

from trunkline.server.errors import ApiError, invalid_value
from trunkline.server.json_body import parse_object, read_body
from trunkline.server.routes.lists import Cursor
from trunkline.server.scope import ScopeOf
from trunkline.server.state import StateOf
from trunkline.server.webhooks.addresses import UrlRefused
from trunkline.server.webhooks.post import Poster, Unreachable
from trunkline.server.webhooks.requests import (
    parse_change,
    parse_event_type,
    parse_keep_old,
    parse_new_endpoint,
)
from trunkline.server.webhooks.signing import new_secret
from trunkline.server.webhooks.wire import (
    CHANGE,
    NEW_ENDPOINT,
    ROTATION,
    TEST,
    DeletedEndpoint,
    DeliveryObject,
    EndpointObject,
    EndpointWithSecret,
    EventTypes,
    TestResult,
    delivery_object,
    endpoint_object,
    endpoint_with_secret,
)
from trunkline.server.wire import ListObject, page_object
from trunkline.store.database import new_id
from trunkline.store.webhooks import EVENT_TYPES, event_body

router = APIRouter(prefix="/v1")

# The batch of sample events; there is none.
SAMPLE_BATCH_ID = "batch_sample"


async def _read_body(request: Request) -> dict[str, Any]:
    # Where everything is optional, clients send nothing at all.
    raw = await read_body(request)
    return parse_object(raw) if raw else {}


Body = Annotated[dict[str, Any], Depends(_read_body)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("/webhook_event_types")
def list_event_types(_: ScopeOf) -> EventTypes:
    return {"object": "list", "data": list(EVENT_TYPES)}


@router.post("/webhook_endpoints", openapi_extra=NEW_ENDPOINT)
def create(state: StateOf, scope: ScopeOf, body: Body) -> EndpointWithSecret:
    new = parse_new_endpoint(body, allow_private=state.settings.webhook_allow_private_addresses)
    return endpoint_with_secret(scope.webhook_endpoints.create(new, new_secret(), state.now()))


@router.get("/webhook_endpoints")
def list_endpoints(
    scope: ScopeOf, limit: Limit = 20, after: Cursor = None
) -> ListObject[EndpointObject]:
    return page_object(scope.webhook_endpoints.list(limit, after), endpoint_object)


@router.get("/webhook_endpoints/{endpoint_id}")
def retrieve(endpoint_id: str, scope: ScopeOf) -> EndpointObject:
    return endpoint_object(scope.webhook_endpoints.get(endpoint_id))


@router.post("/webhook_endpoints/{endpoint_id}", openapi_extra=CHANGE)
def update(endpoint_id: str, state: StateOf, scope: ScopeOf, body: Body) -> EndpointObject:
    change = parse_change(body, allow_private=state.settings.webhook_allow_private_addresses)
    return endpoint_object(scope.webhook_endpoints.update(endpoint_id, change, state.now()))


@router.delete("/webhook_endpoints/{endpoint_id}")
def delete(endpoint_id: str, scope: ScopeOf) -> DeletedEndpoint:
    scope.webhook_endpoints.delete(endpoint_id)
    return {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret", openapi_extra=ROTATION)
def rotate_secret(
    endpoint_id: str, state: StateOf, scope: ScopeOf, body: Body
) -> EndpointWithSecret:
    endpoint = scope.webhook_endpoints.rotate_secret(
        endpoint_id, new_secret(), state.now(), keep_old=parse_keep_old(body)
    )
    return endpoint_with_secret(endpoint)


@router.post("/webhook_endpoints/{endpoint_id}/test", openapi_extra=TEST)
async def test(endpoint_id: str, state: StateOf, scope: ScopeOf, body: Body) -> TestResult:
    """Send a sample event, once, and tell what came back. The delivery is not listed."""
    event_type = parse_event_type(body)
    endpoint = await run_sync(scope.webhook_endpoints.get, endpoint_id)
    now, event_id = state.now(), new_id("evt_")
    event = event_body(event_id, event_type, SAMPLE_BATCH_ID, now)
    try:
        status_code = await Poster(state.settings).post(
            endpoint.url, event_id, event, endpoint.secrets(now), now
        )
    except UrlRefused as reason:
        raise invalid_value("url", f"Nothing was sent. {reason}") from None
    except Unreachable as reason:
        raise ApiError(
            400,
            f"The webhook endpoint could not be reached. {reason}",
            "url",
            "webhook_endpoint_unreachable",
        ) from None
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": endpoint_id,
        "event_type": event_type,
        "status_code": status_code,
        "success": True,
    }


@router.get("/webhook_endpoints/{endpoint_id}/deliveries")
def list_deliveries(
    endpoint_id: str, scope: ScopeOf, limit: Limit = 20, after: Cursor = None
) -> ListObject[DeliveryObject]:
    """The endpoint's deliveries of the last 30 days, newest first."""
    page = scope.webhook_endpoints.deliveries(endpoint_id, limit, after)
    return page_object(page, delivery_object)
