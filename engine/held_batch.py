"""A batch that an engine has claimed, and what is seen of it: records and a span."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from opentelemetry.trace import Span

from trunkline.logs import log_fields
from trunkline.store.records import Claim, Outcome
from trunkline.tracing import tracer


@dataclass(eq=False)
class HeldBatch:
    """A batch that this process has claimed.

    Its span lasts from the claim until this process is through with it, and is the root of a
    trace: the request that made the batch is long over. It does nothing unless traces are sent.
    """

    claim: Claim
    # Lines without a committed outcome; None until the feeder has read them all.
    num_open: int | None = None
    # The least time that it can take, and when it was begun, monotonic; None when another batch
    # runs beside it, so that its time says nothing.
    floor_seconds: float | None = None
    began_at: float = 0.0
    num_answered: int = 0  # of the lines that this process has settled
    num_failed: int = 0
    span: Span = field(init=False)

    def __post_init__(self) -> None:
        self.span = tracer.start_span(
            "batch run",
            attributes={
                "trunkline.batch_id": self.claim.batch_id,
                "trunkline.model": self.claim.model or "",
                "trunkline.lines": self.claim.num_total,
            },
        )

    def log_fields(self) -> AbstractContextManager[None]:
        """Records made inside are about this batch."""
        return log_fields(batch_id=self.claim.batch_id, project_id=self.claim.project_id)

    def runs(self, num_requests: int, num_refused: int) -> None:
        """All its lines were read; the requests go to the engine."""
        counts = {"trunkline.requests": num_requests, "trunkline.refused": num_refused}
        if self.span.is_recording():  # a batch without open lines may have ended before
            self.span.add_event("running", counts)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """These outcomes are committed."""
        assert self.num_open is not None, "outcomes come after the lines were read"
        num_answered = sum(outcome.status_code == 200 for outcome in outcomes)
        self.num_open -= len(outcomes)
        self.num_answered += num_answered
        self.num_failed += len(outcomes) - num_answered

    def end(self, result: str) -> None:
        """This process is through with the batch; call it once."""
        self.span.set_attributes(
            {
                "trunkline.result": result,
                "trunkline.answered": self.num_answered,
                "trunkline.failed": self.num_failed,
            }
        )
        self.span.end()
