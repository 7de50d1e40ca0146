"""Leases: who may work on a batch, and until when.

A claim is one statement; it marks the batch with a fresh token. Whatever the holder writes later is
guarded by that token, so that one who lost the lease without noticing can change nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, or_, select, update

from trunkline.store.errors import LeaseLost
from trunkline.store.records import Claim, Held
from trunkline.store.schema import batches
from trunkline.store.states import BatchStatus

NO_LEASE = {"lease_holder": None, "lease_token": None, "lease_expires_at": None}


def claim_one(
    connection: Connection,
    condition: ColumnElement[bool],
    order: Iterable[ColumnElement[object]],
    holder: str,
    now: float,
    lease_seconds: float,
) -> Claim | None:
    """Claim the first batch that meets `condition` and has no lease, or one that ran out."""
    is_free = or_(batches.c.lease_token.is_(None), batches.c.lease_expires_at < now)
    first = (
        select(batches.c.id)
        .where(condition, is_free)
        .order_by(*order)
        .limit(1)
        # On PostgreSQL two that claim at once take different batches. SQLite has one writer.
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = connection.execute(
        update(batches)
        .where(batches.c.id == first)
        .values(
            lease_holder=holder,
            lease_token=secrets.token_hex(16),
            lease_expires_at=now + lease_seconds,
        )
        .returning(
            batches.c.id,
            batches.c.project_id,
            batches.c.lease_token,
            batches.c.endpoint,
            batches.c.input_file_id,
            batches.c.model,
            batches.c.status,
            batches.c.expires_at,
            batches.c.num_total,
            batches.c.priority,
        )
    ).first()
    if row is None:
        return None
    return Claim(
        batch_id=row.id,
        project_id=row.project_id,
        token=row.lease_token,
        holder=holder,
        endpoint=row.endpoint,
        input_file_id=row.input_file_id,
        model=row.model,
        status=BatchStatus(row.status),
        expires_at=row.expires_at,
        num_total=row.num_total,
        priority=row.priority,
    )


def guard(connection: Connection, claim: Claim, *statuses: BatchStatus) -> BatchStatus:
    """Lock the claimed batch for this transaction; its status.

    Raises:
        LeaseLost: the claim is no longer valid, or the batch has none of `statuses`.
    """
    status = connection.execute(
        update(batches)
        .where(batches.c.id == claim.batch_id, batches.c.lease_token == claim.token)
        .where(batches.c.status.in_(statuses))
        .values(lease_token=claim.token)
        .returning(batches.c.status)
    ).scalar()
    if status is None:
        raise LeaseLost(claim.batch_id)
    return BatchStatus(status)


def extend(
    connection: Connection, claims: Iterable[Claim], now: float, lease_seconds: float
) -> dict[str, Held]:
    """Renew the leases of `claims`; how each batch stands whose lease is still held."""
    tokens = {claim.batch_id: claim.token for claim in claims}
    if not tokens:
        return {}
    rows = connection.execute(
        update(batches)
        .where(batches.c.id.in_(tokens), batches.c.lease_token.in_(tokens.values()))
        .values(lease_expires_at=now + lease_seconds)
        .returning(batches.c.id, batches.c.status, batches.c.paused_at)
    ).all()
    return {
        row.id: Held(BatchStatus(row.status), is_paused=row.paused_at is not None) for row in rows
    }


def release(connection: Connection, claim: Claim) -> None:
    """Give the lease back, unless it was lost."""
    connection.execute(
        update(batches)
        .where(batches.c.id == claim.batch_id, batches.c.lease_token == claim.token)
        .values(**NO_LEASE)
    )


def release_all_of(connection: Connection, holder: str) -> None:
    """Give back what a former process of the same name still holds."""
    connection.execute(update(batches).where(batches.c.lease_holder == holder).values(**NO_LEASE))
