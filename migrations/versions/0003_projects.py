"""Projects and their keys; priority, pause, retry and idempotency of batches; order of outcomes

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# What was there before belongs to the project of those who come without a key.
DEFAULT_PROJECT_ID = "proj_default"


def upgrade() -> None:
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("max_queued_requests", sa.BigInteger(), nullable=True),
        sa.Column("max_queued_tokens", sa.BigInteger(), nullable=True),
        sa.Column("max_requests_per_minute", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
    )
    op.bulk_insert(
        projects,
        [{"id": DEFAULT_PROJECT_ID, "name": "default", "created_at": int(time.time())}],
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("hint", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_api_keys_project_id")
        ),
        sa.UniqueConstraint("key_sha256", name=op.f("uq_api_keys_key_sha256")),
    )
    for table in ("files", "batches"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(
                sa.Column(
                    "project_id",
                    sa.String(length=64),
                    nullable=False,
                    server_default=DEFAULT_PROJECT_ID,
                )
            )
            batch_op.drop_index(f"ix_{table}_created_at_id")
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.alter_column(
                "project_id", existing_type=sa.String(length=64), server_default=None
            )
            batch_op.create_foreign_key(
                op.f(f"fk_{table}_project_id"), "projects", ["project_id"], ["id"]
            )
            batch_op.create_index(
                f"ix_{table}_project_id_created_at_id", ["project_id", "created_at", "id"]
            )
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.add_column(sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("paused_at", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("retry_of", sa.String(length=64), nullable=True))
        batch_op.add_column(
            sa.Column("num_estimated_tokens", sa.BigInteger(), server_default="0", nullable=False)
        )
        batch_op.add_column(sa.Column("idempotency_key", sa.String(length=255), nullable=True))
        batch_op.add_column(sa.Column("idempotency_sha256", sa.String(length=64), nullable=True))
        batch_op.create_unique_constraint(
            op.f("uq_batches_project_id_idempotency_key"), ["project_id", "idempotency_key"]
        )
        batch_op.create_check_constraint(
            op.f("ck_batches_idempotency"),
            "(idempotency_key IS NULL) = (idempotency_sha256 IS NULL)",
        )
    with op.batch_alter_table("outcomes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("position", sa.Integer(), nullable=True))
    # Any order will do for what was committed before somebody could read along.
    op.execute("UPDATE outcomes SET position = line")
    with op.batch_alter_table("outcomes", schema=None) as batch_op:
        batch_op.alter_column("position", existing_type=sa.Integer(), nullable=False)
        batch_op.create_unique_constraint(
            op.f("uq_outcomes_batch_id_position"), ["batch_id", "position"]
        )


def downgrade() -> None:
    with op.batch_alter_table("outcomes", schema=None) as batch_op:
        batch_op.drop_constraint(op.f("uq_outcomes_batch_id_position"), type_="unique")
        batch_op.drop_column("position")
    with op.batch_alter_table("batches", schema=None) as batch_op:
        batch_op.drop_constraint(op.f("ck_batches_idempotency"), type_="check")
        batch_op.drop_constraint(op.f("uq_batches_project_id_idempotency_key"), type_="unique")
        for column in (
            "idempotency_sha256",
            "idempotency_key",
            "num_estimated_tokens",
            "retry_of",
            "paused_at",
            "priority",
        ):
            batch_op.drop_column(column)
    for table in ("batches", "files"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_index(f"ix_{table}_project_id_created_at_id")
            batch_op.drop_constraint(op.f(f"fk_{table}_project_id"), type_="foreignkey")
            batch_op.drop_column("project_id")
            batch_op.create_index(f"ix_{table}_created_at_id", ["created_at", "id"])
    op.drop_table("api_keys")
    op.drop_table("projects")
