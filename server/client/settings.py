"""Which server is asked, and with which key."""

from __future__ import annotations

import os
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from trunkline.server.client.errors import WrongUse

DEFAULT_PORTS = {"http": 80, "https": 443}


class ClientSettings(BaseSettings):
    """How the shell client finds its server."""

    model_config = SettingsConfigDict(
        env_prefix="TRUNKLINE_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    base_url: str = Field(
        "http://127.0.0.1:8000", description="The server, with or without /v1 at the end."
    )
    api_key: str | None = Field(
        None,
        description="Key of a project. OPENAI_API_KEY is used if OPENAI_BASE_URL is the same "
        "server, and never otherwise.",
    )

    @field_validator("base_url")
    @classmethod
    def _is_url_of_server(cls, value: str) -> str:
        """The URL without /v1."""
        url = _split(value)
        if url is None or url.username is not None or url.query or url.fragment:
            raise ValueError(
                "must be a URL like http://127.0.0.1:8000, without user, query and fragment"
            )
        return value.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def find_key(settings: ClientSettings) -> str | None:
    """The key to send to the server; None if there is none for it.

    Raises:
        WrongUse: it cannot be a key.
    """
    source, key = "--api-key or TRUNKLINE_API_KEY", settings.api_key or ""
    if not key and _is_same_server(os.environ.get("OPENAI_BASE_URL", ""), settings.base_url):
        source, key = "OPENAI_API_KEY", os.environ.get("OPENAI_API_KEY", "")
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        # The key itself is not for anybody's screen or log.
        raise WrongUse(f"{source} is no key: it must be printable ASCII characters without spaces")
    return key or None


def _is_same_server(one: str, other: str) -> bool:
    first, second = _split(one), _split(other)
    return first is not None and second is not None and _origin(first) == _origin(second)


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or DEFAULT_PORTS[url.scheme]


def _split(text: str) -> SplitResult | None:
    """A URL of a web server, or None."""
    try:
        url = urlsplit(text.strip())
        is_usable = url.scheme in DEFAULT_PORTS and bool(url.hostname) and url.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        return None
    return url if is_usable else None
