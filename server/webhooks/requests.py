"""The bodies of requests about webhook endpoints, parsed once. Unknown keys are ignored."""

from __future__ import annotations

from typing import Any

from trunkline.server.errors import invalid_type, invalid_value, missing_parameter
from trunkline.server.webhooks.addresses import UrlRefused, parse_url
from trunkline.store.webhooks import EVENT_TYPES, NewWebhookEndpoint, WebhookEndpointChange

MAX_NAME_CHARACTERS = 256
KEEP_OLD = "keep_old_secret_active_for_24_hours"


def parse_new_endpoint(body: dict[str, Any], *, allow_private: bool) -> NewWebhookEndpoint:
    """The endpoint that `body` asks for.

    Args:
        allow_private: see `parse_url`.

    Raises:
        ApiError: something is missing or wrong.
    """
    for name in ("name", "url", "event_types"):
        if body.get(name) is None:
            raise missing_parameter(name)
    return NewWebhookEndpoint(
        name=_name(body["name"]),
        url=_url(body["url"], allow_private),
        event_types=_event_types(body["event_types"]),
    )


def parse_change(body: dict[str, Any], *, allow_private: bool) -> WebhookEndpointChange:
    """What `body` wants changed.

    Raises:
        ApiError: something is wrong.
    """
    name, url, event_types = (body.get(key) for key in ("name", "url", "event_types"))
    return WebhookEndpointChange(
        name=None if name is None else _name(name),
        url=None if url is None else _url(url, allow_private),
        event_types=None if event_types is None else _event_types(event_types),
    )


def parse_keep_old(body: dict[str, Any]) -> bool:
    """Whether a secret that is replaced stays active for a day.

    Raises:
        ApiError: something is wrong.
    """
    value = body.get(KEEP_OLD)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid_type(KEEP_OLD, "a boolean", value)
    return value


def parse_event_type(body: dict[str, Any]) -> str:
    """The type of event that is to be sent as a sample.

    Raises:
        ApiError: it is missing or wrong.
    """
    if body.get("event_type") is None:
        raise missing_parameter("event_type")
    return _event_type("event_type", body["event_type"])


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise invalid_type("name", "a string", value)
    if not 1 <= len(value) <= MAX_NAME_CHARACTERS:
        raise invalid_value(
            "name",
            f"Invalid value for 'name': it has {len(value)} characters, expected 1 to "
            f"{MAX_NAME_CHARACTERS}.",
        )
    return value


def _url(value: Any, allow_private: bool) -> str:
    if not isinstance(value, str):
        raise invalid_type("url", "a string", value)
    try:
        parse_url(value, allow_private=allow_private)
    except UrlRefused as reason:
        raise invalid_value("url", f"Invalid value for 'url': {reason}") from None
    return value


def _event_types(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise invalid_type("event_types", "an array", value)
    if not value:
        raise invalid_value(
            "event_types", "Invalid value for 'event_types': expected at least one type."
        )
    types = (_event_type(f"event_types[{i}]", item) for i, item in enumerate(value))
    return tuple(dict.fromkeys(types))


def _event_type(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise invalid_type(name, "a string", value)
    if value not in EVENT_TYPES:
        allowed = ", ".join(f"'{known}'" for known in EVENT_TYPES)
        raise invalid_value(
            name, f"Invalid value: '{value[:100]}'. Supported values are: {allowed}."
        )
    return value
