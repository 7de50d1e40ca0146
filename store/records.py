"""Rows as the rest of the program sees them: frozen. Times are unix seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from trunkline.store.states import BatchStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list."""

    items: tuple[T, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class ProjectLimits:
    """What a project may use; None: as much as it likes."""

    max_queued_requests: int | None = None  # lines of batches, without an outcome
    max_queued_tokens: int | None = None  # of their prompts, estimated
    max_requests_per_minute: int | None = None  # HTTP requests


@dataclass(frozen=True, slots=True)
class ProjectRecord:
    """A project: files, batches, uploads and webhooks belong to one."""

    id: str
    name: str
    created_at: int
    limits: ProjectLimits


@dataclass(frozen=True, slots=True)
class ApiKeyRecord:
    """A key of a project, without the key itself."""

    id: str
    project_id: str
    name: str
    hint: str
    created_at: int
    last_used_at: int | None
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """Bytes that are safely in the blob store."""

    key: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of the API."""

    id: str
    project_id: str
    filename: str
    purpose: str
    num_bytes: int
    sha256: str
    blob_key: str
    created_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be created."""

    filename: str
    purpose: str
    blob: StoredBlob
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong with an input file, or with one line of it."""

    code: str
    message: str
    param: str | None
    line: int | None  # from 1; None: not about a line


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's name for a request that must act once, and a digest of what it asks for."""

    key: str
    sha256: str


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to be created."""

    endpoint: str
    input_file_id: str
    completion_window: str
    expires_at: int
    metadata: dict[str, str] | None
    output_expires_after_seconds: int | None
    priority: int = 0  # higher runs first
    retry_of: str | None = None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch, as the API shows it."""

    id: str
    project_id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    model: str | None
    errors: tuple[LineError, ...]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    num_total: int
    num_completed: int
    num_failed: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_reasoning_tokens: int
    metadata: dict[str, str] | None
    output_expires_after_seconds: int | None
    priority: int
    paused_at: int | None
    retry_of: str | None


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A valid line of an input file, and its place in the file's bytes."""

    line: int  # from 1
    custom_id: str
    offset: int  # bytes
    num_bytes: int  # without the line break


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A line to be answered."""

    batch_id: str
    line: int
    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a line: an HTTP-like result, or the reason why it was not run.

    Either `status_code` and `body` are set, or `error_code` and `error_message`.
    """

    line: int
    status_code: int | None = None  # 200: answered
    body: str | None = None  # JSON text
    error_code: str | None = None
    error_message: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """A stored outcome with the names that the output files need."""

    position: int  # from 1, in the order of commit
    request_id: str
    custom_id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on a batch, until its lease runs out."""

    batch_id: str
    project_id: str
    token: str  # fresh for each claim: what a former holder writes is refused
    holder: str
    endpoint: str
    input_file_id: str
    model: str | None
    status: BatchStatus
    expires_at: int
    num_total: int
    priority: int


@dataclass(frozen=True, slots=True)
class Held:
    """How a claimed batch stands."""

    status: BatchStatus
    is_paused: bool

    @property
    def is_to_be_run(self) -> bool:
        return self.status is BatchStatus.IN_PROGRESS and not self.is_paused


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """An engine that serves a model."""

    name: str
    model: str
    device: str
    dtype: str
    started_at: int
    heartbeat_at: float
    max_model_tokens: int
    figures: dict[str, Any]
