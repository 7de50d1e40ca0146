"""Alembic's entry: runs migrations on the connection that `trunkline.store.migrate` opened."""

from __future__ import annotations

from alembic import context

from trunkline.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters tables by copying them.
    render_as_batch=True,
    # The caller holds the transaction, and with it the lock.
    transactional_ddl=False,
)
context.run_migrations()
