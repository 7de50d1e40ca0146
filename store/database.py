"""The connection to SQLite or PostgreSQL, and the only place that knows which it is."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url

BUSY_TIMEOUT_SECONDS = 60
_WRITE = {"trunkline_write": True}


def normalised_url(url: str) -> str:
    """`url` with the driver that is used: psycopg for PostgreSQL."""
    for prefix in ("postgres://", "postgresql://"):
        if url.startswith(prefix):
            return f"postgresql+psycopg://{url.removeprefix(prefix)}"
    return url


def new_id(prefix: str) -> str:
    """A fresh id. Ids of one process sort by the time at which they were made."""
    return f"{prefix}{time.time_ns() // 1000:014x}{secrets.token_hex(6)}"


class Database:
    """Transactions on one database. May be used from any thread, not across a fork."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite has one writer at a time. Queueing here is fair and cheap; queueing in SQLite is
        # a loop of sleeps, which is left for other processes.
        self._is_sqlite = engine.dialect.name == "sqlite"
        self._writer = threading.Lock()

    @classmethod
    def open(cls, url: str) -> Database:
        """Connect to `sqlite:///PATH` or `postgresql://USER@HOST/NAME`."""
        parsed = make_url(normalised_url(url))
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            # A connection that the server has dropped is noticed before it is used.
            engine = create_engine(parsed, pool_pre_ping=True, isolation_level="READ COMMITTED")
        return cls(engine)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or rolled back by an exception."""
        if not self._is_sqlite:
            with self.engine.begin() as connection:
                yield connection
            return
        with (
            self._writer,
            self.engine.connect().execution_options(**_WRITE) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        self.engine.dispose()


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # Python's module must not open transactions on its own: `_begin_sqlite` does.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",  # readers and the writer do not wait for each other
        # A commit is on the disk when it returns, so that a power cut loses nothing. Outcomes are
        # committed in groups, which pays for it.
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that will write takes the lock at once: one that has read before it asks for
    # the lock can be refused without a wait.
    writes = connection.get_execution_options().get("trunkline_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
