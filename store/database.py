"""The connection to SQLite or PostgreSQL, and the only place that knows which it is."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from trunkline.store.errors import StoreError

BUSY_TIMEOUT_SECONDS = 60
_WRITE = {"trunkline_write": True}
_SCHEMES = ("sqlite", "postgresql", "postgres", "postgresql+psycopg")

# Connections are kept for as many threads as answer requests (anyio has 40), and for some more.
# To open one takes longer than most of what is done with it.
_POOL = {"pool_size": 40, "max_overflow": 10}

# Any number that no other program on the same PostgreSQL server uses.
_MIGRATION_LOCK = 0x7472756E6B


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
        """Connect to `sqlite:///PATH` or `postgresql://USER@HOST/NAME`.

        Raises:
            ArgumentError: the URL is of another kind.
        """
        # The scheme is all that is shown of a wrong URL: the rest may hold a password.
        scheme = url.partition("://")[0].partition(":")[0]
        if scheme not in _SCHEMES:
            raise ArgumentError(
                f"The database URL begins with {scheme!r}; it must be sqlite:///PATH or "
                "postgresql://USER@HOST/NAME."
            )
        parsed = make_url(normalised_url(url))
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in {None, "", ":memory:"}:
                raise ArgumentError(
                    f"The database URL {url!r} names no file, so that no other process could see "
                    "what is in it; it must be sqlite:///PATH."
                )
            engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, **_POOL)
            event.listen(engine, "connect", _set_up_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            engine = create_engine(
                parsed,
                isolation_level="READ COMMITTED",
                # A connection that the server has dropped is noticed before it is used.
                pool_pre_ping=True,
                connect_args=_KEEPALIVE,
                **_POOL,
            )
            event.listen(engine, "connect", _set_up_postgres)
        return cls(engine)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that only reads; on SQLite all that it reads is of one moment."""
        with self.engine.connect() as connection:
            if not self._is_sqlite:
                # Each statement sees what is committed either way; so it is one round trip, not
                # one more for the beginning and one for the end.
                connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection

    @contextmanager
    def write(self, *, is_durable: bool = True) -> Iterator[Connection]:
        """A transaction that is committed at the end, or rolled back by an exception.

        Args:
            is_durable: the commit is on the disk when this returns. Otherwise a power cut may undo
                it, wholly, with what was committed after it; a crash of this process may not.
        """
        if not self._is_sqlite:
            with self.engine.begin() as connection:
                if not is_durable:
                    connection.execute(text("SET LOCAL synchronous_commit = off"))
                yield connection
            return
        with self._writer, self.engine.connect().execution_options(**_WRITE) as connection:
            if is_durable:
                with connection.begin():
                    yield connection
                return
            # The setting cannot be changed in a transaction.
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA synchronous=NORMAL")
            try:
                with connection.begin():
                    yield connection
            finally:
                cursor.execute("PRAGMA synchronous=FULL")

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """A transaction that may change tables, one at a time among all processes.

        Raises:
            StoreError: it would leave rows that refer to rows that are not there.
        """
        if not self._is_sqlite:
            with self.engine.begin() as connection:
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK}
                )
                yield connection
            return
        with self._writer, self.engine.connect().execution_options(**_WRITE) as connection:
            # SQLite alters a table by copying it and dropping the old one; that would delete
            # the rows of other tables that refer to it. The setting is ignored in a transaction.
            cursor = connection.connection.cursor()
            cursor.execute("PRAGMA foreign_keys=OFF")
            try:
                with connection.begin():
                    yield connection
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
                    if broken is not None:
                        raise StoreError(
                            f"rows of the table {broken[0]} refer to rows of the table {broken[2]} "
                            "that are not there"
                        )
            finally:
                cursor.execute("PRAGMA foreign_keys=ON")

    def close(self) -> None:
        self.engine.dispose()


# Whoever is cut off in the middle of a transaction must not keep its rows locked for hours.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_IDLE_TRANSACTION_SECONDS = 60


def _set_up_postgres(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_TRANSACTION_SECONDS}s'")
    connection.commit()


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
