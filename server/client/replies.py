"""The server's objects, as far as the commands need them."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trunkline.server.client.errors import BadReply

R = TypeVar("R", bound=BaseModel)

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True)


class Counts(_Reply):
    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(_Reply):
    cached_tokens: int = 0


class Usage(_Reply):
    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0

    @property
    def saved_share(self) -> float | None:
        """The part of the prompts that was not computed again."""
        if not self.input_tokens:
            return None
        return self.input_tokens_details.cached_tokens / self.input_tokens


class ValidationFailure(_Reply):
    message: str
    line: int | None = None  # from 1

    @property
    def sentence(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


class ValidationFailures(_Reply):
    data: tuple[ValidationFailure, ...] = ()


class Extension(_Reply):
    priority: int = 0
    paused_at: int | None = None
    retry_of: str | None = None


class Batch(_Reply):
    """A batch; times are unix seconds."""

    id: str
    status: str
    endpoint: str
    created_at: int
    input_file_id: str
    model: str | None = None
    errors: ValidationFailures | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts | None = None
    usage: Usage | None = None
    metadata: dict[str, str] | None = None
    trunkline: Extension = Extension()

    @property
    def counts(self) -> Counts:
        return self.request_counts or Counts()

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    @property
    def ended_at(self) -> int | None:
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at

    @property
    def is_all_answered(self) -> bool:
        return self.status == "completed" and not self.counts.failed


class BatchList(_Reply):
    data: tuple[Batch, ...]
    has_more: bool = False


class ErrorGroup(_Reply):
    """Failed lines with the same reason."""

    code: str | None = None
    status_code: int | None = None
    message: str | None = None
    count: int
    lines: tuple[int, ...] = ()  # the first few, from 1


class Progress(_Reply):
    elapsed_seconds: float | None = None
    eta_seconds: float | None = None
    requests_per_second: float | None = None
    output_tokens_per_second: float | None = None
    errors: tuple[ErrorGroup, ...] = Field(default=())


class Identified(_Reply):
    """Any object, for its id."""

    id: str


class Upload(Identified):
    file: Identified | None = None


def parse(kind: type[R], content: Any, source: str) -> R:
    """`content` as `kind`.

    Raises:
        BadReply: it is something else.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise BadReply(
            f"{source} sent no {kind.__name__.lower()} that can be read ({place}: {first['msg']}); "
            "is --base-url a Trunkline server?"
        ) from None
