"""Webhooks: who wants to hear of what, and the events on their way there.

A delivery is written in the transaction that ends a batch, so that none is lost and none invented.
Whoever delivers claims it with one statement: it counts the attempt, and puts the next one off
until after this one must have ended. A process that dies meanwhile leaves nothing to tidy up.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, select, tuple_, update

from trunkline.store.database import Database, new_id
from trunkline.store.errors import NotFound, UnknownCursor
from trunkline.store.records import Page
from trunkline.store.schema import webhook_deliveries as deliveries
from trunkline.store.schema import webhook_endpoints as endpoints

EVENT_TYPES = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")

# How long a secret that was replaced is still signed with, if that was asked for.
OLD_SECRET_SECONDS = 86_400

_KIND = "webhook endpoint"


@dataclass(frozen=True, slots=True)
class WebhookEndpointRecord:
    """Where the events of a project are sent. Times are unix seconds."""

    id: str
    name: str
    url: str
    event_types: tuple[str, ...]
    secret: str = field(repr=False)
    old_secret: str | None = field(repr=False)
    old_secret_expires_at: int | None
    created_at: int
    updated_at: int

    def secrets(self, now: int) -> tuple[str, ...]:
        """The secrets to sign with, the current one first."""
        if self.old_secret is None or self.old_secret_expires_at is None:
            return (self.secret,)
        is_active = now < self.old_secret_expires_at
        return (self.secret, self.old_secret) if is_active else (self.secret,)


@dataclass(frozen=True, slots=True)
class NewWebhookEndpoint:
    """An endpoint to be created."""

    name: str
    url: str
    event_types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WebhookEndpointChange:
    """What is to be changed about an endpoint; None: leave it."""

    name: str | None = None
    url: str | None = None
    event_types: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """An event on its way to an endpoint. Times are unix seconds."""

    event_id: str
    endpoint_id: str
    event_type: str
    body: str  # JSON
    created_at: int
    num_attempts: int
    next_attempt_at: float | None  # None: delivered, or given up
    delivered_at: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery that the claimer alone may attempt now, with where it goes."""

    delivery: DeliveryRecord
    endpoint: WebhookEndpointRecord


def event_body(event_id: str, event_type: str, batch_id: str, now: int) -> str:
    """The JSON text of an event, byte for byte what is signed and sent."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": now,
        "type": event_type,
        "data": {"id": batch_id},
    }
    return json.dumps(event, separators=(",", ":"))


def enqueue_events(
    connection: Connection, project_id: str, event_type: str, batch_id: str, now: int
) -> None:
    """Send an event to each endpoint of the project that wants it, if the transaction commits."""
    # An endpoint that is deleted at the same time is gone before this, or waits until after it.
    rows = connection.execute(
        select(endpoints.c.id, endpoints.c.event_types)
        .where(endpoints.c.project_id == project_id)
        .with_for_update(read=True, key_share=True)
    ).all()
    event_id = new_id("evt_")
    new = [
        {
            "event_id": event_id,
            "endpoint_id": row.id,
            "event_type": event_type,
            "body": event_body(event_id, event_type, batch_id, now),
            "created_at": now,
            "next_attempt_at": now,
        }
        for row in rows
        if event_type in json.loads(row.event_types)
    ]
    if new:
        connection.execute(insert(deliveries), new)


class WebhookEndpoints:
    """Endpoints of one project; those of others are not there."""

    def __init__(self, database: Database, project_id: str) -> None:
        self._database = database
        self._project_id = project_id

    def create(self, new: NewWebhookEndpoint, secret: str, now: int) -> WebhookEndpointRecord:
        with self._database.write() as connection:
            row = connection.execute(
                insert(endpoints)
                .values(
                    id=new_id("we_"),
                    project_id=self._project_id,
                    name=new.name,
                    url=new.url,
                    event_types=json.dumps(new.event_types),
                    secret=secret,
                    created_at=now,
                    updated_at=now,
                )
                .returning(*_ENDPOINT_COLUMNS)
            ).one()
        return _endpoint_record(row)

    def get(self, endpoint_id: str) -> WebhookEndpointRecord:
        """The endpoint.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            return self._get(connection, endpoint_id)

    def list(self, limit: int = 20, after: str | None = None) -> Page[WebhookEndpointRecord]:
        """Endpoints, newest first, beginning behind the endpoint `after`.

        Raises:
            UnknownCursor: there is no endpoint `after`.
        """
        place = (endpoints.c.created_at, endpoints.c.id)
        query = select(*_ENDPOINT_COLUMNS).where(endpoints.c.project_id == self._project_id)
        with self._database.read() as connection:
            if after is not None:
                cursor = connection.execute(select(*place).where(self._is(after))).first()
                if cursor is None:
                    raise UnknownCursor(after)
                query = query.where(tuple_(*place) < tuple_(*cursor))
            query = query.order_by(*(column.desc() for column in place)).limit(limit + 1)
            rows = connection.execute(query).all()
        return Page(tuple(map(_endpoint_record, rows[:limit])), has_more=len(rows) > limit)

    def update(
        self, endpoint_id: str, change: WebhookEndpointChange, now: int
    ) -> WebhookEndpointRecord:
        """Change an endpoint. Events that are still on their way go to its new address.

        Raises:
            NotFound: there is none.
        """
        with self._database.write() as connection:
            before = self._get(connection, endpoint_id, for_update=True)
            name = before.name if change.name is None else change.name
            url = before.url if change.url is None else change.url
            types = before.event_types if change.event_types is None else change.event_types
            if (name, url, types) == (before.name, before.url, before.event_types):
                return before
            values = {"name": name, "url": url, "event_types": json.dumps(types)}
            return self._set(connection, endpoint_id, {**values, "updated_at": now})

    def rotate_secret(
        self, endpoint_id: str, secret: str, now: int, *, keep_old: bool
    ) -> WebhookEndpointRecord:
        """Replace an endpoint's secret, and sign with the old one too for a day if it is kept.

        Raises:
            NotFound: there is none.
        """
        with self._database.write() as connection:
            before = self._get(connection, endpoint_id, for_update=True)
            values = {
                "secret": secret,
                "old_secret": before.secret if keep_old else None,
                "old_secret_expires_at": now + OLD_SECRET_SECONDS if keep_old else None,
                "updated_at": now,
            }
            return self._set(connection, endpoint_id, values)

    def delete(self, endpoint_id: str) -> None:
        """Remove an endpoint, and with it the events that are on their way to it.

        Raises:
            NotFound: there is none.
        """
        with self._database.write() as connection:
            deleted = connection.execute(delete(endpoints).where(self._is(endpoint_id)))
        if not deleted.rowcount:
            raise NotFound(_KIND, endpoint_id)

    def deliveries(
        self, endpoint_id: str, limit: int = 20, after: str | None = None
    ) -> Page[DeliveryRecord]:
        """An endpoint's deliveries, newest first, beginning behind that of the event `after`.

        Raises:
            NotFound: there is no such endpoint.
            UnknownCursor: none of its deliveries is of the event `after`.
        """
        place = (deliveries.c.created_at, deliveries.c.event_id)
        is_its_own = deliveries.c.endpoint_id == endpoint_id
        query = select(*_DELIVERY_COLUMNS).where(is_its_own)
        with self._database.read() as connection:
            self._get(connection, endpoint_id)
            if after is not None:
                is_cursor = and_(is_its_own, deliveries.c.event_id == after)
                cursor = connection.execute(select(*place).where(is_cursor)).first()
                if cursor is None:
                    raise UnknownCursor(after)
                query = query.where(tuple_(*place) < tuple_(*cursor))
            query = query.order_by(*(column.desc() for column in place)).limit(limit + 1)
            rows = connection.execute(query).all()
        return Page(tuple(map(_delivery_record, rows[:limit])), has_more=len(rows) > limit)

    def _get(
        self, connection: Connection, endpoint_id: str, *, for_update: bool = False
    ) -> WebhookEndpointRecord:
        query = select(*_ENDPOINT_COLUMNS).where(self._is(endpoint_id))
        row = connection.execute(query.with_for_update() if for_update else query).first()
        if row is None:
            raise NotFound(_KIND, endpoint_id)
        return _endpoint_record(row)

    def _set(
        self, connection: Connection, endpoint_id: str, values: dict[str, Any]
    ) -> WebhookEndpointRecord:
        row = connection.execute(
            update(endpoints)
            .where(self._is(endpoint_id))
            .values(**values)
            .returning(*_ENDPOINT_COLUMNS)
        ).one()
        return _endpoint_record(row)

    def _is(self, endpoint_id: str) -> ColumnElement[bool]:
        return and_(endpoints.c.id == endpoint_id, endpoints.c.project_id == self._project_id)


class Deliveries:
    """The events that are on their way, of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def any_due(self, now: float, busy: Collection[str] = ()) -> bool:
        """Whether `claim` would find one. Reads only, for who asks often."""
        query = select(deliveries.c.event_id).where(_is_due(now, busy)).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def claim(
        self, now: float, claim_seconds: float, busy: Collection[str] = ()
    ) -> ClaimedDelivery | None:
        """Claim the delivery that has been due for longest.

        Args:
            claim_seconds: it is due again after that, unless an outcome is recorded before.
            busy: ids of endpoints for which none is wanted.
        """
        due = (
            select(deliveries.c.event_id, deliveries.c.endpoint_id)
            .where(_is_due(now, busy))
            .order_by(deliveries.c.next_attempt_at, deliveries.c.event_id)
            .limit(1)
            # On PostgreSQL two that claim at once take different ones. SQLite has one writer.
            .with_for_update(skip_locked=True)
            .cte("due")
        )
        with self._database.write() as connection:
            row = connection.execute(
                update(deliveries)
                .where(deliveries.c.event_id == select(due.c.event_id).scalar_subquery())
                .where(deliveries.c.endpoint_id == select(due.c.endpoint_id).scalar_subquery())
                .values(
                    num_attempts=deliveries.c.num_attempts + 1,
                    next_attempt_at=now + claim_seconds,
                )
                .returning(*_DELIVERY_COLUMNS)
            ).first()
            if row is None:
                return None
            endpoint = connection.execute(
                select(*_ENDPOINT_COLUMNS).where(endpoints.c.id == row.endpoint_id)
            ).one()
        return ClaimedDelivery(_delivery_record(row), _endpoint_record(endpoint))

    def succeeded(self, delivery: DeliveryRecord, now: int) -> None:
        """The endpoint has the event, whoever else may have claimed it in the meantime."""
        with self._database.write() as connection:
            connection.execute(
                update(deliveries)
                .where(_is_undelivered(delivery))
                .values(delivered_at=now, next_attempt_at=None, last_error=None)
            )

    def failed(self, delivery: DeliveryRecord, error: str, next_attempt_at: float | None) -> None:
        """The claimed attempt came to nothing; it is not noted if somebody has claimed another.

        Args:
            next_attempt_at: unix seconds; None: give up.
        """
        with self._database.write() as connection:
            connection.execute(
                update(deliveries)
                .where(_is_undelivered(delivery))
                .where(deliveries.c.num_attempts == delivery.num_attempts)
                .values(next_attempt_at=next_attempt_at, last_error=error)
            )

    def sweep(self, before: int, limit: int = 1000) -> int:
        """Forget some of what was delivered or given up and is older than `before`; how many."""
        old = (
            select(deliveries.c.event_id, deliveries.c.endpoint_id)
            .where(deliveries.c.created_at < before, deliveries.c.next_attempt_at.is_(None))
            .limit(limit)
            # Their endpoint may be about to be deleted, and they with it.
            .with_for_update(skip_locked=True)
        )
        with self._database.write() as connection:
            ids = [tuple(row) for row in connection.execute(old)]
            place = tuple_(deliveries.c.event_id, deliveries.c.endpoint_id)
            return connection.execute(delete(deliveries).where(place.in_(ids))).rowcount


_ENDPOINT_COLUMNS = tuple(column for column in endpoints.c if column.name != "project_id")
_DELIVERY_COLUMNS: Sequence[ColumnElement[Any]] = tuple(deliveries.c)


def _endpoint_record(row: Row[Any]) -> WebhookEndpointRecord:
    values = dict(row._mapping)
    values["event_types"] = tuple(json.loads(values["event_types"]))
    return WebhookEndpointRecord(**values)


def _delivery_record(row: Row[Any]) -> DeliveryRecord:
    return DeliveryRecord(**row._mapping)


def _is_due(now: float, busy: Collection[str]) -> ColumnElement[bool]:
    return and_(deliveries.c.next_attempt_at <= now, deliveries.c.endpoint_id.not_in(busy))


def _is_undelivered(delivery: DeliveryRecord) -> ColumnElement[bool]:
    return and_(
        deliveries.c.event_id == delivery.event_id,
        deliveries.c.endpoint_id == delivery.endpoint_id,
        deliveries.c.delivered_at.is_(None),
    )
