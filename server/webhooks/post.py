"""One attempt to hand an event to an endpoint."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from functools import cache

import anyio
import httpx

import trunkline
from trunkline.server.settings import ServerSettings
from trunkline.server.webhooks.addresses import (
    Resolve,
    addresses_of,
    parse_url,
    resolve_by_system,
)
from trunkline.server.webhooks.signing import signed_headers

# Of a host with many addresses, so many are tried.
MAX_ADDRESSES = 4


class Unreachable(Exception):  # noqa: N818  # it reads as what it says
    """There was no answer; the message says why."""


class Poster:
    """Sends events. Of the answer nothing but the status is read; redirects are not followed.

    Args:
        settings: how long an attempt may take in all, and where it may go.
        resolve: looks up hosts.
        tls: decides which certificates are trusted; None: as httpx does.
    """

    def __init__(
        self,
        settings: ServerSettings,
        resolve: Resolve = resolve_by_system,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_seconds = settings.webhook_timeout_seconds
        self._allow_private = settings.webhook_allow_private_addresses
        self._resolve = resolve
        self._tls = tls or _default_tls()

    async def post(
        self, url: str, event_id: str, body: str, secrets: Sequence[str], now: int
    ) -> int:
        """Send an event; the HTTP status of the answer.

        Raises:
            UrlRefused: nothing was sent, because the URL leads to where nothing may be sent.
            Unreachable: there was no answer.
        """
        parsed = parse_url(url, allow_private=self._allow_private)
        content = body.encode()
        headers = {
            # The address takes the host's place in the URL; the server is told the host here.
            "host": parsed.netloc.decode(),
            "accept": "*/*",
            "connection": "close",
            "content-type": "application/json",
            "user-agent": f"trunkline/{trunkline.__version__}",
            **signed_headers(event_id, content, secrets, now),
        }
        try:
            with anyio.fail_after(self._timeout_seconds):
                return await self._send(parsed, headers, content)
        except (TimeoutError, httpx.TimeoutException):
            raise Unreachable(
                f"{parsed.host} did not answer within {self._timeout_seconds:g} seconds."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"{parsed.host}: {type(error).__name__}: {error}") from None

    async def _send(self, url: httpx.URL, headers: dict[str, str], content: bytes) -> int:
        try:
            addresses = await addresses_of(url, self._resolve, allow_private=self._allow_private)
        except OSError as error:
            raise Unreachable(f"The host {url.host!r} cannot be found: {error}") from None
        addresses = addresses[:MAX_ADDRESSES]
        timeout = httpx.Timeout(
            self._timeout_seconds, connect=self._timeout_seconds / len(addresses)
        )
        # The certificate must be the host's, whatever the address.
        tls_name = {"sni_hostname": url.raw_host.decode().rstrip(".")}
        failure: httpx.HTTPError | None = None
        for address in addresses:
            request = httpx.Request(
                "POST",
                url.copy_with(host=address),
                headers=headers,
                content=content,
                extensions={**tls_name, "timeout": timeout.as_dict()},
            )
            # Made anew each time: a connection that was opened for another host of the same
            # address, and has shown that one's certificate, must not be used again.
            async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
                try:
                    response = await transport.handle_async_request(request)
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    failure = error
                    continue
                await response.aclose()
                return response.status_code
        assert failure is not None, "there is an address"
        raise failure


@cache
def _default_tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()
