"""Transactions on both databases."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.exc import ArgumentError

from trunkline.store.database import Database, normalised_url
from trunkline.store.schema import batch_requests, batches


def test_an_exception_undoes_the_transaction(store: Any) -> None:
    batch = store.validating()
    with suppress(RuntimeError), store.database.write() as connection:
        connection.execute(sa.delete(batches))
        raise RuntimeError
    assert store.batches.get(batch.id) == batch


def test_a_migration_that_copies_a_table_keeps_the_rows_that_refer_to_it(store: Any) -> None:
    store.accepted(num_lines=3)
    with store.database.migration() as connection:
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("batches") as table:
            table.alter_column("model", new_column_name="model_name")
    count = sa.select(sa.func.count()).select_from(batch_requests)
    with store.database.read() as connection:
        assert connection.execute(count).scalar() == 3
    with pytest.raises(sa.exc.IntegrityError), store.database.write() as connection:
        connection.execute(sa.update(batch_requests).values(batch_id="nobody's"))


def test_a_migration_that_would_break_references_is_undone(store: Any) -> None:
    batch = store.accepted(num_lines=3)
    with pytest.raises(Exception, match="batch_requests"), store.database.migration() as connection:
        connection.execute(sa.update(batch_requests).values(batch_id="nobody's"))
    lines = sa.select(batch_requests.c.line).where(batch_requests.c.batch_id == batch.id)
    with store.database.read() as connection:
        assert len(connection.execute(lines).all()) == 3


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://user:secret@host/name", "begins with 'mysql'; it must be sqlite:///PATH or"),
        ("trunkline.db", "begins with 'trunkline.db'; it must be sqlite:///PATH or"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_other_urls_are_refused(url: str, complaint: str) -> None:
    with pytest.raises(ArgumentError, match=complaint) as caught:
        Database.open(url)
    assert "secret" not in str(caught.value)


def test_urls_of_postgresql_get_the_driver_that_is_used(tmp_path: Path) -> None:
    for url in ("postgres://u@h/n", "postgresql://u@h/n", "postgresql+psycopg://u@h/n"):
        assert normalised_url(url) == "postgresql+psycopg://u@h/n"
    assert normalised_url(f"sqlite:///{tmp_path}/x") == f"sqlite:///{tmp_path}/x"
