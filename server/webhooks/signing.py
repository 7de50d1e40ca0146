"""Signatures as in Standard Webhooks (standardwebhooks.com), which the official SDKs verify."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"
SECRET_BYTES = 32
HINT_CHARACTERS = 4


def new_secret() -> str:
    """A fresh signing secret: `whsec_` and the key in base64."""
    return SECRET_PREFIX + b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def secret_hint(secret: str) -> str:
    """Enough of a secret to tell which one it is, and not more."""
    return f"{SECRET_PREFIX}****{secret[-HINT_CHARACTERS:]}"


def signed_headers(
    event_id: str, body: bytes, signing_secrets: Sequence[str], now: int
) -> dict[str, str]:
    """The headers that prove where a request comes from.

    Args:
        event_id: stays the same when the event is sent again.
        body: the request's body.
        signing_secrets: of each a signature is given.
        now: unix seconds; receivers take a request for some minutes only.
    """
    content = f"{event_id}.{now}.".encode() + body
    signatures = (f"v1,{_signature(secret, content)}" for secret in signing_secrets)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(signatures),
    }


def _signature(secret: str, content: bytes) -> str:
    key = b64decode(secret.removeprefix(SECRET_PREFIX))
    return b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
