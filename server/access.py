"""Who is asking: from a request's headers to the project whose objects it may see."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from trunkline.server.errors import ApiError
from trunkline.store.projects import DEFAULT_PROJECT_ID, KEY_PREFIX, ApiKeys, Projects
from trunkline.store.records import ProjectRecord

HOW_TO_GET_A_KEY = "Make one with `trunkline keys create --project NAME` on the server."

# Whoever polls asks ever again with the same key: so long it is not looked up anew. A key that is
# revoked opens its project for so much longer.
KNOWN_SECONDS = 1.0
MAX_KNOWN = 10_000


class Access:
    """Keys and request rates.

    Without a key in the store everybody works in the default project; the server is reachable from
    its own machine only then, unless it was told otherwise. Rates are counted by each server
    process for itself.
    """

    def __init__(self, projects: Projects, keys: ApiKeys, *, allow_anonymous: bool) -> None:
        self._projects = projects
        self._keys = keys
        self._allow_anonymous = allow_anonymous
        self._has_keys = False
        # Until when, monotonic, whom a request with these headers is from.
        self._known: dict[tuple[str | None, ...], tuple[float, ProjectRecord]] = {}
        self._lookups: dict[tuple[str | None, ...], asyncio.Task[ProjectRecord]] = {}
        self._rates = MovingWindowRateLimiter(MemoryStorage())

    async def project(self, headers: Mapping[str, str], now: int) -> ProjectRecord:
        """The project that a request with these headers works in.

        Raises:
            ApiError: 401 without a valid key, 403 for a web page that reaches for a server without
                keys, 429 when the project asks too often.
        """
        project = self._remembered(headers)
        if project is None:
            project = await self._looked_up(headers, now)
        self._count(project)
        return project

    async def _looked_up(self, headers: Mapping[str, str], now: int) -> ProjectRecord:
        """The project, looked up once for all requests with these headers that wait for it.

        Each key by itself, not as in `Together`: noting its use may have to wait for a writer.
        """
        identity = _identity(headers)
        lookup = self._lookups.get(identity)
        if lookup is None:
            lookup = asyncio.create_task(run_sync(self._identify, headers, now))
            self._lookups[identity] = lookup
            lookup.add_done_callback(lambda done: self._end_lookup(identity, done))
        # Others may wait for it when this one goes away.
        return await asyncio.shield(lookup)

    def _end_lookup(
        self, identity: tuple[str | None, ...], done: asyncio.Task[ProjectRecord]
    ) -> None:
        del self._lookups[identity]
        # Asking for the exception also says that it is seen, should nobody wait any more.
        if not done.cancelled() and done.exception() is None:
            self._remember(identity, done.result())

    def _remembered(self, headers: Mapping[str, str]) -> ProjectRecord | None:
        known = self._known.get(_identity(headers))
        if known is None or known[0] < time.monotonic():
            return None
        return known[1]

    def _remember(self, identity: tuple[str | None, ...], project: ProjectRecord) -> None:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[identity] = (time.monotonic() + KNOWN_SECONDS, project)

    def _identify(self, headers: Mapping[str, str], now: int) -> ProjectRecord:
        scheme, _, text = headers.get("authorization", "").partition(" ")
        key = text.strip() if scheme.lower() == "bearer" else ""
        is_ours = key.startswith(KEY_PREFIX)
        if is_ours:
            project = self._keys.project_of(key, now)
            if project is not None:
                return project
        # The official clients send a key whether one is needed or not.
        if self._allow_anonymous and not is_ours:
            return self._projects.get(DEFAULT_PROJECT_ID)
        if not self._keys_exist():
            _refuse_web_pages(headers)
            return self._projects.get(DEFAULT_PROJECT_ID)
        if not key:
            raise _unauthorized(
                "You didn't provide an API key. Provide it in an Authorization header with Bearer "
                f"auth (Authorization: Bearer YOUR_KEY). {HOW_TO_GET_A_KEY}",
                None,
            )
        raise _unauthorized(
            f"Incorrect API key provided: {_masked(key)}. {HOW_TO_GET_A_KEY}", "invalid_api_key"
        )

    def _keys_exist(self) -> bool:
        # Keys are revoked, not deleted: once there is one, there is one.
        self._has_keys = self._has_keys or self._keys.exist()
        return self._has_keys

    def _count(self, project: ProjectRecord) -> None:
        limit = project.limits.max_requests_per_minute
        if limit is None:
            return
        item = RateLimitItemPerMinute(limit)
        if self._rates.hit(item, project.id):
            return
        reset_at, _ = self._rates.get_window_stats(item, project.id)
        raise ApiError(
            429,
            f"Rate limit reached for requests in project {project.name}. Limit: {limit} requests "
            "per minute. Please try again later.",
            code="rate_limit_exceeded",
            kind="requests",
            headers={"retry-after": str(max(1, math.ceil(reset_at - time.time())))},
        )


def _identity(headers: Mapping[str, str]) -> tuple[str | None, ...]:
    """All that decides whom a request is from."""
    return tuple(headers.get(name) for name in ("authorization", "host", "origin"))


def is_loopback(host: str) -> bool:
    """Whether a server at this address is reached from its own machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_web_pages(headers: Mapping[str, str]) -> None:
    """Keep pages of other sites from a server that asks nobody for a key.

    A browser on this machine would send their requests here, and a name that they make resolve to
    this machine would let them read the replies. A proxy that makes the server public is refused
    likewise.

    Raises:
        ApiError: 403, the request is for another host, or comes from another one's page.
    """
    places = {"Host": f"//{headers.get('host', '')}", "Origin": headers.get("origin")}
    for name, place in places.items():
        if place is not None and not is_loopback(_hostname(place)):
            raise ApiError(
                403,
                f"This server has no API keys and serves its own machine only; the {name} of this "
                f"request is {place.removeprefix('//')!r}. {HOW_TO_GET_A_KEY}",
                code="key_required",
            )


def _hostname(place: str) -> str:
    try:
        return urlsplit(place).hostname or ""
    except ValueError:
        return ""


def _unauthorized(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})


def _masked(key: str) -> str:
    """Enough of a key to tell which one it was, and not more."""
    return f"{key[:3]}***{key[-2:]}" if len(key) > 12 else "***"
