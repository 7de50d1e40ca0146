"""Brings a database to the current schema."""

from __future__ import annotations

from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from trunkline.store.database import Database

# Any number that no other program on the same PostgreSQL server uses.
_ADVISORY_LOCK = 0x7472756E6B


def _config() -> Config:
    config = Config()
    with as_file(files("trunkline.migrations")) as folder:
        config.set_main_option("script_location", str(folder))
    return config


def upgrade(url: str) -> None:
    """Run the migrations that the database at `url` lacks.

    Several processes may do so at once: one migrates, the others wait and find it done.
    """
    database = Database.open(url)
    try:
        config = _config()
        if database.engine.dialect.name == "postgresql":
            with database.engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _ADVISORY_LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        else:
            with database.write() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
    finally:
        database.close()


def is_current(database: Database) -> bool:
    """Whether the database has every migration."""
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision() == wanted
