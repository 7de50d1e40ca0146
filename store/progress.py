"""How a batch gets on: its pace over time, and what went wrong so far."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sqlalchemy import case, func, or_, select

from trunkline.store.database import Database
from trunkline.store.schema import outcomes

# Failed lines that are looked at; a batch that fails altogether says the same thing ever again.
MAX_FAILURES = 10_000
MAX_LINES_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was committed in a span of time."""

    start: int  # unix seconds
    seconds: int
    num_completed: int
    num_failed: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


@dataclass(slots=True)
class ErrorGroup:
    """Lines that failed alike."""

    status_code: int | None  # None: the line was not run
    code: str | None
    message: str  # of the first
    count: int = 0
    lines: list[int] = field(default_factory=list)  # the first, from 1


class Progress:
    """Figures of batches. Who may see a batch is asked elsewhere: see `Batches`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def buckets(self, batch_id: str, start: int, end: int, max_buckets: int) -> list[Bucket]:
        """What was committed from `start` on, unix seconds, in at most so many equal spans.

        Spans in which nothing was committed are left out.
        """
        seconds = max(1, -(-(end - start + 1) // max_buckets))
        # The division is one of integers on both databases.
        number = (outcomes.c.finished_at - start) // seconds
        is_success = case((outcomes.c.status_code == 200, 1), else_=0)
        query = (
            select(
                number.label("number"),
                func.count().label("num_settled"),
                func.sum(is_success).label("num_completed"),
                func.sum(outcomes.c.num_prompt_tokens).label("num_prompt_tokens"),
                func.sum(outcomes.c.num_cached_tokens).label("num_cached_tokens"),
                func.sum(outcomes.c.num_output_tokens).label("num_output_tokens"),
            )
            .where(outcomes.c.batch_id == batch_id, outcomes.c.finished_at >= start)
            .group_by("number")
            .order_by("number")
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Bucket(
                start=start + int(row.number) * seconds,
                seconds=seconds,
                num_completed=int(row.num_completed),
                num_failed=int(row.num_settled - row.num_completed),
                num_prompt_tokens=int(row.num_prompt_tokens),
                num_cached_tokens=int(row.num_cached_tokens),
                num_output_tokens=int(row.num_output_tokens),
            )
            for row in rows
        ]

    def error_groups(self, batch_id: str) -> list[ErrorGroup]:
        """The failed lines by what went wrong, the largest group first.

        Of a batch with more than `MAX_FAILURES` of them, those that come first in the file.
        """
        query = (
            select(
                outcomes.c.line,
                outcomes.c.status_code,
                outcomes.c.body,
                outcomes.c.error_code,
                outcomes.c.error_message,
            )
            .where(outcomes.c.batch_id == batch_id)
            .where(or_(outcomes.c.status_code.is_(None), outcomes.c.status_code != 200))
            .order_by(outcomes.c.line)
            .limit(MAX_FAILURES)
        )
        groups: dict[tuple[int | None, str | None], ErrorGroup] = {}
        with self._database.read() as connection:
            for row in connection.execute(query):
                code, message = row.error_code, row.error_message
                if row.body is not None:
                    error = json.loads(row.body)["error"]
                    code, message = error["code"] or error["type"], error["message"]
                group = groups.setdefault(
                    (row.status_code, code), ErrorGroup(row.status_code, code, message)
                )
                group.count += 1
                if len(group.lines) < MAX_LINES_SHOWN:
                    group.lines.append(row.line)
        return sorted(groups.values(), key=lambda group: -group.count)
