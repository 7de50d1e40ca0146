"""Requests that a client waits for: from a server to an engine and back, through the store alone.

The server that a client is connected to writes the request and looks for what becomes of it; an
engine claims it, writes events if the client wants a stream, and then the answer. In the end the
server deletes the request, and with it everything that was written for it. So a row that is there
has, or had until its server died, somebody who waits for it.

Nothing of this has to survive a power cut, which ends the clients' connections too; so no commit
waits for the disk.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, or_, select, update

from trunkline.store.database import Database, new_id
from trunkline.store.schema import live_events, live_requests

T = TypeVar("T")

# Requests that are looked up with one statement.
CHUNK_ROWS = 200

# A request is deleted so long after its end by whoever sweeps, if its own server has not done so.
LEFTOVER_SECONDS = 60.0

BEFORE_ALL_EVENTS = -1


@dataclass(frozen=True, slots=True)
class NewLiveRequest:
    """A request to be answered while its client waits.

    Attributes:
        body: JSON text of an object.
        server: name of the server that waits.
        expires_at: unix seconds; nobody waits any longer.
    """

    project_id: str
    endpoint: str
    model: str
    body: str
    is_streaming: bool
    server: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """A request that an engine has claimed."""

    id: str
    project_id: str
    endpoint: str
    model: str
    body: dict[str, Any]
    is_streaming: bool
    created_at: float  # unix seconds


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """An event of a stream; `number` counts them for each request, from 0 or 1."""

    request_id: str
    number: int
    event: str | None  # its name, if it has one
    data: str


@dataclass(frozen=True, slots=True)
class LiveAnswer:
    """The end of a request.

    Attributes:
        status_code: of the reply. A stream that went well ends with 200.
        body: JSON text. Of a stream that went well it is not looked at.
    """

    request_id: str
    status_code: int
    body: str


@dataclass(frozen=True, slots=True)
class LiveState:
    """What has become of a request; `status_code` and `body` are None until it has ended."""

    events: tuple[LiveEvent, ...]  # behind the last that was known, in order
    status_code: int | None
    body: str | None
    engine: str | None  # None: nobody has claimed it


class LiveRequests:
    """What a server does with live requests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self, new: NewLiveRequest, now: float) -> str:
        """Let engines see the request; its id."""
        request_id = new_id("live_")
        values = {"id": request_id, "created_at": now, **asdict(new)}
        with self._database.write(is_durable=False) as connection:
            connection.execute(insert(live_requests).values(**values))
        return request_id

    def poll(self, request_id: str, after_number: int = BEFORE_ALL_EVENTS) -> LiveState | None:
        """How the request stands, with the events behind `after_number`; None: it is gone."""
        return self.poll_many({request_id: after_number}).get(request_id)

    def poll_many(self, after_numbers: Mapping[str, int]) -> dict[str, LiveState]:
        """How each request stands, by its id; those that are gone are missing.

        Args:
            after_numbers: request id -> number of the last event that is known.
        """
        states: dict[str, LiveState] = {}
        with self._database.read() as connection:
            for chunk in _chunks(after_numbers.items()):
                states |= _states(connection, dict(chunk))
        return states

    def withdraw(self, request_id: str) -> None:
        """Delete the request: it was answered, or nobody waits for it any more."""
        self.withdraw_all([request_id])

    def withdraw_all(self, request_ids: Iterable[str]) -> None:
        for chunk in _chunks(sorted(request_ids)):
            with self._database.write(is_durable=False) as connection:
                found = _lock(connection, live_requests.c.id.in_(chunk))
                connection.execute(delete(live_requests).where(live_requests.c.id.in_(found)))

    def withdraw_all_of(self, server: str) -> int:
        """Delete what a former process of the server's name has left; how many requests."""
        return self._withdraw_where(live_requests.c.server == server)

    def sweep(self, now: float) -> int:
        """Delete requests that their servers have left behind; how many."""
        return self._withdraw_where(live_requests.c.expires_at < now - LEFTOVER_SECONDS)

    def _withdraw_where(self, condition: ColumnElement[bool]) -> int:
        with self._database.read() as connection:
            found = list(connection.execute(select(live_requests.c.id).where(condition)).scalars())
        self.withdraw_all(found)
        return len(found)


class LiveWork:
    """What an engine does with live requests; one object for the whole life of its process.

    Each object marks what it claims with a token of its own, and writes only to requests that bear
    it. So an engine that lost a request without noticing, to another process or because the client
    has gone, can change nothing, and nothing that it writes for such a request is an error.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._token = secrets.token_hex(16)

    def claim(
        self, engine: str, models: Sequence[str], now: float, limit: int
    ) -> list[LiveRequest]:
        """Claim up to `limit` requests for one of `models`, those that wait longest.

        Writes nothing when there is none, so that it may be called often.
        """
        is_free = and_(
            live_requests.c.engine.is_(None),
            live_requests.c.status_code.is_(None),
            live_requests.c.model.in_(list(models)),
            live_requests.c.expires_at > now,
        )
        first = (
            select(live_requests.c.id)
            .where(is_free)
            .order_by(live_requests.c.created_at, live_requests.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            if connection.execute(first.limit(1)).first() is None:
                return []
        # On PostgreSQL two that claim at once take different requests. SQLite has one writer.
        locked = first.with_for_update(skip_locked=True).scalar_subquery()
        with self._database.write(is_durable=False) as connection:
            rows = connection.execute(
                update(live_requests)
                .where(live_requests.c.id.in_(locked))
                .values(engine=engine, claim_token=self._token)
                .returning(*(live_requests.c[name] for name in LiveRequest.__slots__))
            ).all()
        rows = sorted(rows, key=lambda row: (row.created_at, row.id))
        return [LiveRequest(**{**row._mapping, "body": json.loads(row.body)}) for row in rows]

    def append(self, events: Sequence[LiveEvent]) -> None:
        """Store events; those of requests that are not this engine's any more are dropped."""
        self.commit(events, ())

    def answer(self, request_id: str, status_code: int, body: str) -> None:
        """End a request, unless it is not this engine's any more; see `LiveAnswer`."""
        self.commit((), [LiveAnswer(request_id, status_code, body)])

    def commit(self, events: Sequence[LiveEvent], answers: Sequence[LiveAnswer]) -> None:
        """`append` and `answer` at once, in one transaction: what one step of the engine made."""
        if not events and not answers:
            return
        with self._database.write(is_durable=False) as connection:
            request_ids = {event.request_id for event in events}
            request_ids |= {answer.request_id for answer in answers}
            held = self._hold(connection, request_ids)
            rows = [asdict(event) for event in events if event.request_id in held]
            if rows:
                connection.execute(insert(live_events), rows)
            for answer in answers:
                if answer.request_id in held:
                    connection.execute(
                        update(live_requests)
                        .where(live_requests.c.id == answer.request_id)
                        .where(live_requests.c.status_code.is_(None))
                        .values(status_code=answer.status_code, answer=answer.body)
                    )

    def wanted(self, request_ids: Collection[str]) -> set[str]:
        """Those of the claimed requests that somebody still waits for."""
        found: set[str] = set()
        with self._database.read() as connection:
            for chunk in _chunks(request_ids):
                query = select(live_requests.c.id).where(self._is_held(chunk))
                found.update(connection.execute(query).scalars())
        return found

    def _hold(self, connection: Connection, request_ids: Collection[str]) -> set[str]:
        """Those of the requests that are this engine's; they stay so for this transaction."""
        held: set[str] = set()
        for chunk in _chunks(sorted(request_ids)):
            held.update(_lock(connection, self._is_held(chunk)))
        return held

    def _is_held(self, request_ids: Sequence[str]) -> ColumnElement[bool]:
        return and_(live_requests.c.id.in_(request_ids), live_requests.c.claim_token == self._token)


def release_live(connection: Connection, engine: str) -> None:
    """Give back what a former process of the engine's name has claimed and not ended.

    Another engine may claim it, unless a part of the answer has gone out: such a request is
    deleted, and whoever waits for it sees that it is gone.
    """
    is_open = and_(live_requests.c.engine == engine, live_requests.c.status_code.is_(None))
    _lock(connection, is_open)
    has_begun = exists().where(live_events.c.request_id == live_requests.c.id)
    connection.execute(delete(live_requests).where(is_open, has_begun))
    connection.execute(update(live_requests).where(is_open).values(engine=None, claim_token=None))


def _states(connection: Connection, after_numbers: Mapping[str, int]) -> dict[str, LiveState]:
    rows = connection.execute(
        select(
            live_requests.c.id,
            live_requests.c.engine,
            live_requests.c.status_code,
            live_requests.c.answer,
            live_requests.c.is_streaming,
        ).where(live_requests.c.id.in_(list(after_numbers)))
    ).all()
    # The events are read last: when the end was seen, all events that belong before it are.
    events: dict[str, list[LiveEvent]] = {row.id: [] for row in rows}
    is_new = [
        and_(live_events.c.request_id == row.id, live_events.c.number > after_numbers[row.id])
        for row in rows
        if row.is_streaming and row.engine is not None
    ]
    if is_new:
        found = connection.execute(
            select(live_events)
            .where(or_(*is_new))
            .order_by(live_events.c.request_id, live_events.c.number)
        )
        for row in found:
            events[row.request_id].append(LiveEvent(**row._mapping))
    return {
        row.id: LiveState(tuple(events[row.id]), row.status_code, row.answer, row.engine)
        for row in rows
    }


def _lock(connection: Connection, condition: ColumnElement[bool]) -> list[str]:
    """Lock requests for this transaction; their ids.

    Always in the order of the ids, so that no two transactions wait for each other.
    """
    query = select(live_requests.c.id).where(condition).order_by(live_requests.c.id)
    return list(connection.execute(query.with_for_update()).scalars())


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK_ROWS)):
        yield chunk
