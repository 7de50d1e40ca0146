"""Queries of the engine: claim a batch, read its requests, commit what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, BinaryIO

from sqlalchemy import Row, Select, and_, delete, func, insert, or_, select, update

from trunkline.store.blobs import BlobStore
from trunkline.store.database import Database, new_id
from trunkline.store.leases import (
    NO_LEASE,
    claim_one,
    extend,
    guard,
    release,
    release_all_of,
)
from trunkline.store.live import release_live
from trunkline.store.outcomes import last_position
from trunkline.store.records import Claim, EngineRecord, Held, Outcome, RequestRow
from trunkline.store.schema import batch_requests, batches, engines, files, outcomes
from trunkline.store.states import BatchStatus

# Requests that are read, and outcomes that are looked up, with one statement.
CHUNK_ROWS = 500

# An engine that has been silent for so long is forgotten, and with it the model that it served.
FORGET_SECONDS = 7 * 86_400


class Work:
    """What an engine does with the store."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def register(self, record: EngineRecord) -> None:
        """Announce an engine, and give back what a former one of its name still holds."""
        values = {**asdict(record), "figures": json.dumps(record.figures)}
        with self._database.write() as connection:
            is_forgotten = engines.c.heartbeat_at < record.heartbeat_at - FORGET_SECONDS
            connection.execute(
                delete(engines).where(or_(engines.c.name == record.name, is_forgotten))
            )
            connection.execute(insert(engines).values(**values))
            release_all_of(connection, record.name)
            release_live(connection, record.name)

    def unregister(self, name: str, now: float) -> None:
        """Say that the engine has stopped. What it served is still known as a model."""
        with self._database.write() as connection:
            connection.execute(update(engines).where(engines.c.name == name).values(stopped_at=now))
            release_live(connection, name)

    def heartbeat(
        self,
        name: str,
        figures: dict[str, Any],
        claims: Sequence[Claim],
        now: float,
        lease_seconds: float,
    ) -> dict[str, Held]:
        """Say that the engine lives, and renew its leases.

        Returns:
            How each claimed batch stands, by its id. A batch that is missing was lost; one that
            is not in progress any more, or is paused, is not to be worked on.
        """
        with self._database.write() as connection:
            connection.execute(
                update(engines)
                .where(engines.c.name == name)
                .values(heartbeat_at=now, figures=json.dumps(figures))
            )
            return extend(connection, claims, now, lease_seconds)

    def claim(
        self, holder: str, models: Sequence[str], now: float, lease_seconds: float
    ) -> Claim | None:
        """Claim a batch of one of `models`: the highest priority first, then the earliest end."""
        waiting = and_(
            batches.c.status == BatchStatus.IN_PROGRESS,
            batches.c.paused_at.is_(None),
            batches.c.model.in_(list(models)),
        )
        order = (
            batches.c.priority.desc(),
            batches.c.expires_at,
            batches.c.created_at,
            batches.c.id,
        )
        with self._database.write() as connection:
            return claim_one(connection, waiting, order, holder, now, lease_seconds)

    def unfinished(self, claim: Claim) -> Iterator[RequestRow]:
        """The lines without an outcome, in order; few in memory at once.

        Raises:
            FileNotFoundError: the input file's bytes are gone.
        """
        query = _without_outcome(claim, batch_requests).limit(CHUNK_ROWS)
        after_line = 0
        with self._blobs.open(self._input_key(claim)) as blob:
            while True:
                with self._database.read() as connection:
                    rows = connection.execute(query.where(batch_requests.c.line > after_line)).all()
                for row in rows:
                    yield _request(row, blob)
                if len(rows) < CHUNK_ROWS:
                    return
                after_line = rows[-1].line

    def unfinished_lines(self, claim: Claim) -> list[int]:
        """The numbers of the lines without an outcome; needs no input file."""
        query = _without_outcome(claim, batch_requests.c.line)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def save_plan(self, claim: Claim, plan: dict[str, Any]) -> None:
        """Let everybody see how the batch is planned.

        Raises:
            LeaseLost: see `guard`.
        """
        with self._database.write() as connection:
            guard(connection, claim, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)
            connection.execute(
                update(batches).where(batches.c.id == claim.batch_id).values(plan=json.dumps(plan))
            )

    def finished_lengths(self, claim: Claim, limit: int) -> list[tuple[RequestRow, int]]:
        """Some requests that were answered, and the tokens that each answer has.

        Raises:
            FileNotFoundError: the input file's bytes are gone.
        """
        query = (
            select(batch_requests, outcomes.c.num_output_tokens)
            .join(outcomes)
            .where(batch_requests.c.batch_id == claim.batch_id, outcomes.c.status_code == 200)
            .order_by(batch_requests.c.line.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        if not rows:
            return []
        with self._blobs.open(self._input_key(claim)) as blob:
            # In the order of the file, which is read ahead.
            ascending = sorted(rows, key=lambda row: int(row.offset))
            return [(_request(row, blob), row.num_output_tokens) for row in ascending]

    def commit(self, claim: Claim, new: Iterable[Outcome], now: int) -> int:
        """Store outcomes and raise the batch's counts; a line that has one keeps it.

        Returns:
            How many were new.

        Raises:
            LeaseLost: see `guard`. Nothing is stored then.
        """
        by_line = {outcome.line: outcome for outcome in new}
        with self._database.write() as connection:
            guard(connection, claim, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)
            lines = iter(list(by_line))
            while chunk := list(islice(lines, CHUNK_ROWS)):
                known = connection.execute(
                    select(outcomes.c.line)
                    .where(outcomes.c.batch_id == claim.batch_id)
                    .where(outcomes.c.line.in_(chunk))
                ).scalars()
                for line in known:
                    del by_line[line]
            if not by_line:
                return 0
            added = list(by_line.values())
            # The guard has locked the batch: nobody else gives positions.
            first = last_position(connection, claim.batch_id) + 1
            connection.execute(
                insert(outcomes),
                [
                    {
                        "batch_id": claim.batch_id,
                        "position": position,
                        "request_id": new_id("batch_req_"),
                        "finished_at": now,
                        **asdict(outcome),
                    }
                    for position, outcome in enumerate(added, start=first)
                ],
            )
            num_completed = sum(outcome.status_code == 200 for outcome in added)
            raised = {
                "num_completed": num_completed,
                "num_failed": len(added) - num_completed,
                **{
                    name: sum(getattr(outcome, name) for outcome in added)
                    for name in (
                        "num_prompt_tokens",
                        "num_cached_tokens",
                        "num_output_tokens",
                        "num_reasoning_tokens",
                    )
                },
            }
            connection.execute(
                update(batches)
                .where(batches.c.id == claim.batch_id)
                .values({name: batches.c[name] + amount for name, amount in raised.items()})
            )
            return len(added)

    def finish(self, claim: Claim, now: int) -> bool:
        """Send the batch on to finalizing if every line has an outcome; whether it was."""
        num_settled = (
            select(func.count())
            .select_from(outcomes)
            .where(outcomes.c.batch_id == claim.batch_id)
            .scalar_subquery()
        )
        with self._database.write() as connection:
            done = connection.execute(
                update(batches)
                .where(batches.c.id == claim.batch_id, batches.c.lease_token == claim.token)
                .where(batches.c.status == BatchStatus.IN_PROGRESS)
                .where(batches.c.num_total == num_settled)
                .values(status=BatchStatus.FINALIZING, finalizing_at=now, **NO_LEASE)
            )
        return done.rowcount > 0

    def release(self, claim: Claim) -> None:
        """Give the lease back, unless it was lost."""
        with self._database.write() as connection:
            release(connection, claim)

    def _input_key(self, claim: Claim) -> str:
        """The key of the input file's blob.

        Raises:
            FileNotFoundError: there is no such file any more.
        """
        query = select(files.c.blob_key).where(files.c.id == claim.input_file_id)
        with self._database.read() as connection:
            key: str | None = connection.execute(query).scalar()
        if key is None:
            raise FileNotFoundError(f"the input file {claim.input_file_id} is gone")
        return key


def _without_outcome(claim: Claim, *columns: Any) -> Select[Any]:
    """The claimed batch's requests that have no outcome, by line."""
    return (
        select(*columns)
        .select_from(batch_requests)
        .outerjoin(outcomes)
        .where(batch_requests.c.batch_id == claim.batch_id, outcomes.c.line.is_(None))
        .order_by(batch_requests.c.line)
    )


def _request(row: Row[Any], blob: BinaryIO) -> RequestRow:
    blob.seek(row.offset)
    body = json.loads(blob.read(row.num_bytes))["body"]
    return RequestRow(row.batch_id, row.line, row.custom_id, body)
