"""Queries on the engines that serve."""

from __future__ import annotations

import json

from sqlalchemy import func, select

from trunkline.store.database import Database
from trunkline.store.records import EngineRecord
from trunkline.store.schema import engines


class Engines:
    """Engines that have registered lately."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, now: float, alive_within_seconds: float) -> tuple[EngineRecord, ...]:
        """Engines whose last heartbeat is at most so long ago, by name."""
        query = (
            select(*(c for c in engines.c if c.name != "stopped_at"))
            .where(engines.c.heartbeat_at >= now - alive_within_seconds)
            .where(engines.c.stopped_at.is_(None))
            .order_by(engines.c.name)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return tuple(
            EngineRecord(**{**row._mapping, "figures": json.loads(row.figures)}) for row in rows
        )

    def alive(self, now: float, within_seconds: float) -> dict[str, str]:
        """Engine -> model of those whose last heartbeat is at most so long ago."""
        query = (
            select(engines.c.name, engines.c.model)
            .where(engines.c.heartbeat_at >= now - within_seconds)
            .where(engines.c.stopped_at.is_(None))
        )
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def models(self) -> tuple[tuple[str, int], ...]:
        """Each model that an engine serves or has served last, and since when (unix seconds)."""
        query = (
            select(engines.c.model, func.min(engines.c.started_at))
            .group_by(engines.c.model)
            .order_by(engines.c.model)
        )
        with self._database.read() as connection:
            return tuple((row[0], row[1]) for row in connection.execute(query))
