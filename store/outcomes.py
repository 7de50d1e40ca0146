"""Reading the outcomes of a batch. Who may see the batch is asked elsewhere: see `Batches`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, Select, func, or_, select

from trunkline.store.database import Database
from trunkline.store.records import Outcome, OutcomeRow
from trunkline.store.schema import batch_requests, outcomes

# Outcomes that are read at once.
CHUNK_ROWS = 500

_IS_SUCCESS = outcomes.c.status_code == 200
_IS_FAILURE = or_(outcomes.c.status_code.is_(None), outcomes.c.status_code != 200)


def last_position(connection: Connection, batch_id: str) -> int:
    """The position of the outcome that was committed last; 0 before the first."""
    query = select(func.max(outcomes.c.position)).where(outcomes.c.batch_id == batch_id)
    return connection.execute(query).scalar() or 0


class Outcomes:
    """Outcomes of batches; few in memory at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def by_line(self, batch_id: str) -> Iterator[OutcomeRow]:
        """All of a batch, in the order of the input file."""
        query = _rows_of(batch_id).order_by(outcomes.c.line).limit(CHUNK_ROWS)
        after = 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(outcomes.c.line > after)).all()
            yield from map(_record, rows)
            if len(rows) < CHUNK_ROWS:
                return
            after = rows[-1].line

    def last_position(self, batch_id: str) -> int:
        """See the function of this name."""
        with self._database.read() as connection:
            return last_position(connection, batch_id)

    def by_position(
        self, batch_id: str, after: int, until: int, *, is_success: bool
    ) -> Iterator[OutcomeRow]:
        """The answers, or the failures, with a position in (after, until], in that order."""
        query = (
            _rows_of(batch_id)
            .where(_IS_SUCCESS if is_success else _IS_FAILURE, outcomes.c.position <= until)
            .order_by(outcomes.c.position)
            .limit(CHUNK_ROWS)
        )
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(outcomes.c.position > after)).all()
            yield from map(_record, rows)
            if len(rows) < CHUNK_ROWS:
                return
            after = rows[-1].position

    def failed_places(self, batch_id: str) -> Iterator[tuple[int, int]]:
        """Offset and length, in bytes, of the input lines that were not answered."""
        query = (
            select(outcomes.c.line, batch_requests.c.offset, batch_requests.c.num_bytes)
            .select_from(outcomes.join(batch_requests))
            .where(outcomes.c.batch_id == batch_id, _IS_FAILURE)
            .order_by(outcomes.c.line)
            .limit(CHUNK_ROWS)
        )
        after = 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(outcomes.c.line > after)).all()
            for row in rows:
                yield row.offset, row.num_bytes
            if len(rows) < CHUNK_ROWS:
                return
            after = rows[-1].line


def _rows_of(batch_id: str) -> Select[Any]:
    return (
        select(outcomes, batch_requests.c.custom_id)
        .select_from(outcomes.join(batch_requests))
        .where(outcomes.c.batch_id == batch_id)
    )


def _record(row: Row[Any]) -> OutcomeRow:
    return OutcomeRow(
        position=row.position,
        request_id=row.request_id,
        custom_id=row.custom_id,
        outcome=Outcome(
            line=row.line,
            status_code=row.status_code,
            body=row.body,
            error_code=row.error_code,
            error_message=row.error_message,
            num_prompt_tokens=row.num_prompt_tokens,
            num_cached_tokens=row.num_cached_tokens,
            num_output_tokens=row.num_output_tokens,
            num_reasoning_tokens=row.num_reasoning_tokens,
        ),
    )
