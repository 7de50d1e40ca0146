"""The migrations lead to the schema that the code has, on both databases."""

from __future__ import annotations

import subprocess
import sys

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from trunkline.store.database import Database
from trunkline.store.migrate import alembic_config, is_current, upgrade
from trunkline.store.schema import metadata


def test_migrations_lead_to_the_schema(database: Database) -> None:
    assert is_current(database)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_an_empty_database_is_not_current_and_a_second_upgrade_does_nothing(
    empty_database_url: str,
) -> None:
    database = Database.open(empty_database_url)
    assert not is_current(database)
    upgrade(empty_database_url)
    upgrade(empty_database_url)
    assert is_current(database)
    tables = set(inspect(database.engine).get_table_names())
    assert tables == set(metadata.tables) | {"alembic_version"}
    database.close()


def test_every_migration_can_be_undone_and_done_again(database: Database) -> None:
    for run, wanted in ((command.downgrade, "base"), (command.upgrade, "head")):
        with database.migration() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            run(config, wanted)
        tables = set(inspect(database.engine).get_table_names()) - {"alembic_version"}
        assert tables == (set(metadata.tables) if wanted == "head" else set())
    assert is_current(database)


def test_several_processes_upgrade_at_once(empty_database_url: str) -> None:
    code = "import sys; from trunkline.store.migrate import upgrade; upgrade(sys.argv[1])"
    command = [sys.executable, "-c", code, empty_database_url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    database = Database.open(empty_database_url)
    assert is_current(database)
    database.close()
