"""Where webhooks may go.

A server that sends requests wherever its users say can be made to send them to its own neighbours:
to services behind the firewall, or to a cloud's metadata. So an address counts as public only when
it is known to be, and the address that was looked at is the one that is connected to: asked twice,
a name may give two answers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import httpx

MAX_URL_CHARACTERS = 2048
HOW_TO_ALLOW = "The server's setting TRUNKLINE_WEBHOOK_ALLOW_PRIVATE_ADDRESSES allows it."

# IANA's special-purpose registry, and addresses that clouds answer on. `ipaddress` knows most of
# them, but not the same ones in each version of Python.
NOT_PUBLIC_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's own services
            "169.254.0.0/16",  # link-local, metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)

# All of IPv6 that is routed. Outside are loopback, private, link-local and multicast addresses, and
# those that stand for an IPv4 address: mapped ones and NAT64.
ROUTED_V6 = IPv6Network("2000::/3")
NOT_PUBLIC_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which stands for an IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)

# From a host and a port to addresses; raises OSError when there are none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class UrlRefused(Exception):  # noqa: N818  # it reads as what it says
    """Nothing is sent to this URL; the message says why."""


def is_public(address: str) -> bool:
    """Whether anybody on the internet could connect to this IP address."""
    ip = ip_address(address)
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in NOT_PUBLIC_V4)
    return ip in ROUTED_V6 and not any(ip in network for network in NOT_PUBLIC_V6)


def parse_url(url: str, *, allow_private: bool) -> httpx.URL:
    """The URL of an endpoint, as far as it can be judged without looking up its host.

    Args:
        allow_private: allow plain http and addresses that are not public.

    Raises:
        UrlRefused: it is not one to send events to.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise UrlRefused(
            f"The URL has {len(url)} characters, at most {MAX_URL_CHARACTERS} are allowed."
        )
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UrlRefused(f"It is not a valid URL: {error}.") from None
    if parsed.userinfo:
        # They would be shown to whoever may see the endpoint.
        raise UrlRefused("The URL holds a user name or password, which is not allowed.")
    allowed = ("https", "http") if allow_private else ("https",)
    if parsed.scheme not in allowed:
        expected = " or ".join(map(repr, allowed))
        hint = f" {HOW_TO_ALLOW}" if parsed.scheme == "http" else ""
        raise UrlRefused(f"The URL's scheme is {parsed.scheme!r}, expected {expected}.{hint}")
    if not parsed.host:
        raise UrlRefused("The URL has no host.")
    if parsed.port is not None and not 1 <= parsed.port <= 65_535:
        raise UrlRefused(f"The URL's port is {parsed.port}, expected 1 to 65535.")
    if not allow_private and not _may_be_public(parsed.host):
        raise UrlRefused(f"{parsed.host!r} is not a public address. {HOW_TO_ALLOW}")
    return parsed


def _may_be_public(host: str) -> bool:
    try:
        return is_public(host)
    except ValueError:  # a name, to be looked up when there is something to send
        return True


async def resolve_by_system(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, in the order in which the system would try them.

    Raises:
        OSError: it has none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


async def addresses_of(url: httpx.URL, resolve: Resolve, *, allow_private: bool) -> Sequence[str]:
    """The addresses that may be connected to for `url`.

    Raises:
        UrlRefused: one of them is not public, and that is not allowed.
        OSError: there are none.
    """
    # As the host is on the wire: ASCII.
    host = url.raw_host.decode()
    try:
        addresses = await resolve(host, url.port or (443 if url.scheme == "https" else 80))
    except UnicodeError as error:
        raise OSError(f"not a host name: {error}") from None
    if not addresses:
        raise OSError("no addresses")
    # One bad address is enough: which one is used must not be a matter of luck. It is not shown,
    # for the names inside a network are nobody else's business.
    if not allow_private and not all(map(is_public, addresses)):
        raise UrlRefused(f"{host!r} has an address that is not public. {HOW_TO_ALLOW}")
    return addresses
