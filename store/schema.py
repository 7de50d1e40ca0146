"""The tables. `migrations/` brings a database to this state; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from trunkline.store.states import BatchStatus

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_STATUSES = ", ".join(f"'{status}'" for status in BatchStatus)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("blob_key", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    CheckConstraint("num_bytes >= 0", name="num_bytes"),
    Index(None, "created_at", "id"),
    Index(None, "expires_at"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("endpoint", String(64), nullable=False),
    # Not a foreign key: a batch outlives its input file.
    Column("input_file_id", String(64), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("model", Text),
    Column("errors", Text),  # JSON list of LineError; NULL: none
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("in_progress_at", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    Column("finalizing_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("failed_at", BigInteger),
    Column("expired_at", BigInteger),
    Column("cancelling_at", BigInteger),
    Column("cancelled_at", BigInteger),
    Column("num_total", Integer, nullable=False, server_default="0"),
    Column("num_completed", Integer, nullable=False, server_default="0"),
    Column("num_failed", Integer, nullable=False, server_default="0"),
    Column("num_prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("num_cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("num_output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("num_reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    Column("metadata", Text),  # JSON object; NULL: none
    Column("output_expires_after_seconds", BigInteger),
    Column("plan", Text),  # JSON object, by the engine; NULL: not planned yet
    Column("lease_holder", Text),
    Column("lease_token", String(64)),
    Column("lease_expires_at", Double),
    CheckConstraint(f"status IN ({_STATUSES})", name="status"),
    CheckConstraint(
        "num_completed >= 0 AND num_failed >= 0 AND num_completed + num_failed <= num_total",
        name="counts",
    ),
    CheckConstraint(
        "(lease_token IS NULL) = (lease_holder IS NULL)"
        " AND (lease_token IS NULL) = (lease_expires_at IS NULL)",
        name="lease",
    ),
    Index(None, "created_at", "id"),
    Index(None, "status", "expires_at"),
    Index(None, "input_file_id"),
)

batch_requests = Table(
    "batch_requests",
    metadata,
    Column("batch_id", String(64), ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("custom_id", Text, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    UniqueConstraint("batch_id", "custom_id"),
)

# A request is finished when it has a row here; there is no second place that says so.
outcomes = Table(
    "outcomes",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("request_id", String(64), nullable=False),
    Column("status_code", Integer),
    Column("body", Text),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("num_prompt_tokens", BigInteger, nullable=False),
    Column("num_cached_tokens", BigInteger, nullable=False),
    Column("num_output_tokens", BigInteger, nullable=False),
    Column("num_reasoning_tokens", BigInteger, nullable=False),
    Column("finished_at", BigInteger, nullable=False),
    ForeignKeyConstraint(
        ["batch_id", "line"],
        ["batch_requests.batch_id", "batch_requests.line"],
        ondelete="CASCADE",
    ),
    CheckConstraint(
        "(status_code IS NULL) = (body IS NULL)"
        " AND (error_code IS NULL) = (error_message IS NULL)"
        " AND (status_code IS NULL) <> (error_code IS NULL)",
        name="one_result",
    ),
)

engines = Table(
    "engines",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("model", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Column("stopped_at", Double),  # NULL: runs, or has died
    Column("max_model_tokens", Integer, nullable=False),
    Column("figures", Text, nullable=False),  # JSON object
)
