"""The tables. `migrations/` brings a database to this state; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
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

# Everything that clients make belongs to a project, and is seen with a key of that project only.
projects = Table(
    "projects",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    # Limits; NULL: none.
    Column("max_queued_requests", BigInteger),
    Column("max_queued_tokens", BigInteger),
    Column("max_requests_per_minute", Integer),  # HTTP requests
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("key_sha256", String(64), nullable=False, unique=True),
    Column("hint", String(16), nullable=False),  # the key's last characters
    Column("created_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger),
    Column("revoked_at", BigInteger),  # NULL: valid
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("blob_key", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    CheckConstraint("num_bytes >= 0", name="num_bytes"),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "expires_at"),
)

# A file that arrives in parts.
uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),  # as announced
    Column("status", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("file_expires_after_seconds", BigInteger),
    Column("file_id", String(64)),  # when completed
    Column("part_ids_sha256", String(64)),  # of the parts that it was completed with
    CheckConstraint(
        "status IN ('pending', 'completed', 'cancelled', 'expired')",
        name="status",
    ),
    CheckConstraint("num_bytes >= 0", name="num_bytes"),
    Index(None, "status", "expires_at"),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("upload_id", String(64), ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False),
    Column("blob_key", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "upload_id"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
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
    Column("priority", Integer, nullable=False, server_default="0"),  # higher runs first
    Column("paused_at", BigInteger),  # NULL: not paused
    Column("retry_of", String(64)),  # the batch whose failed lines these are
    # Of the prompts, as estimated from their characters when the batch was validated.
    Column("num_estimated_tokens", BigInteger, nullable=False, server_default="0"),
    Column("idempotency_key", String(255)),
    Column("idempotency_sha256", String(64)),  # of the request that the key came with
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
    CheckConstraint("(idempotency_key IS NULL) = (idempotency_sha256 IS NULL)", name="idempotency"),
    UniqueConstraint("project_id", "idempotency_key"),
    Index(None, "project_id", "created_at", "id"),
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
    # From 1, in the order of commit: who reads along continues behind the last one it has.
    Column("position", Integer, nullable=False),
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
    UniqueConstraint("batch_id", "position"),
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

# A request whose client waits for it: there as long as it does. The long columns come last, so that
# SQLite need not read them to find a row.
live_requests = Table(
    "live_requests",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("server", String(255), nullable=False),  # that the client is connected to
    Column("endpoint", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("is_streaming", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("engine", String(255)),  # NULL: nobody works on it
    Column("claim_token", String(64)),
    Column("status_code", Integer),  # NULL: not answered
    Column("body", Text, nullable=False),  # JSON object
    Column("answer", Text),  # JSON
    CheckConstraint("(engine IS NULL) = (claim_token IS NULL)", name="claim"),
    CheckConstraint("(status_code IS NULL) = (answer IS NULL)", name="answer"),
    Index(None, "engine", "created_at", "id"),
    Index(None, "expires_at"),
)

# Parts of the answers to those requests that want a stream.
live_events = Table(
    "live_events",
    metadata,
    Column(
        "request_id",
        String(64),
        ForeignKey("live_requests.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("event", String(64)),  # its name; NULL: none
    Column("data", Text, nullable=False),
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", Text, nullable=False),  # JSON list
    # Signing needs the secret itself; a hash would not do.
    Column("secret", Text, nullable=False),
    Column("old_secret", Text),
    Column("old_secret_expires_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index(None, "project_id", "created_at", "id"),
)

# An event on its way to an endpoint.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("event_id", String(64), primary_key=True),
    Column(
        "endpoint_id",
        String(64),
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("event_type", String(64), nullable=False),
    Column("body", Text, nullable=False),  # JSON, byte for byte what is signed
    Column("created_at", BigInteger, nullable=False),
    Column("num_attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", Double),  # NULL: delivered, or given up
    Column("delivered_at", BigInteger),
    Column("last_error", Text),
    Index(None, "next_attempt_at"),
    Index(None, "endpoint_id"),
)
