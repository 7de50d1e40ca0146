"""Opens the installation's database, with all migrations, or says in one line why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic.util.exc import CommandError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from trunkline.options import ConfigError
from trunkline.store.database import Database
from trunkline.store.location import StoreLocation
from trunkline.store.migrate import upgrade


def migrate(location: StoreLocation) -> None:
    """Make the data folder and bring the database to the current schema.

    Raises:
        ConfigError: the database cannot be used.
    """
    try:
        location.data_dir.mkdir(parents=True, exist_ok=True)
        upgrade(location.url)
    except (SQLAlchemyError, CommandError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"the database at {_without_password(location.url)} cannot be used: {reason}"
        ) from None


@contextmanager
def opened(location: StoreLocation) -> Iterator[Database]:
    """The database, migrated.

    Raises:
        ConfigError: the database cannot be used.
    """
    migrate(location)
    database = Database.open(location.url)
    try:
        yield database
    finally:
        database.close()


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return f"{url.partition('://')[0]}://***"  # where in it a password is cannot be told
