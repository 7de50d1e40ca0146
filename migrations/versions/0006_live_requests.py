"""Requests that clients wait for

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "live_requests",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("server", sa.String(length=255), nullable=False),
        sa.Column("endpoint", sa.String(length=64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("is_streaming", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("engine", sa.String(length=255), nullable=True),
        sa.Column("claim_token", sa.String(length=64), nullable=True),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_live_requests")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_live_requests_project_id")
        ),
        sa.CheckConstraint(
            "(engine IS NULL) = (claim_token IS NULL)", name=op.f("ck_live_requests_claim")
        ),
        sa.CheckConstraint(
            "(status_code IS NULL) = (answer IS NULL)", name=op.f("ck_live_requests_answer")
        ),
    )
    op.create_index(
        "ix_live_requests_engine_created_at_id", "live_requests", ["engine", "created_at", "id"]
    )
    op.create_index("ix_live_requests_expires_at", "live_requests", ["expires_at"])
    op.create_table(
        "live_events",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=True),
        sa.Column("data", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "number", name=op.f("pk_live_events")),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["live_requests.id"],
            name=op.f("fk_live_events_request_id"),
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    op.drop_table("live_events")
    op.drop_table("live_requests")
