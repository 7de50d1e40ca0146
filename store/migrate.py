"""Brings a database to the current schema."""

from __future__ import annotations

from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from trunkline.store.database import Database


def alembic_config() -> Config:
    """Alembic's settings; the migrations run on the connection in its attribute `connection`."""
    config = Config()
    with as_file(files("trunkline.migrations")) as folder:
        # A percent sign begins an interpolation.
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


def upgrade(url: str) -> None:
    """Run the migrations that the database at `url` lacks.

    Several processes may do so at once: one migrates, the others wait and find it done.
    """
    database = Database.open(url)
    try:
        config = alembic_config()
        with database.migration() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        database.close()


def is_current(database: Database) -> bool:
    """Whether the database has every migration."""
    wanted = ScriptDirectory.from_config(alembic_config()).get_current_head()
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision() == wanted
