"""What is seen of the server's background work: metrics, logs, traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from opentelemetry.trace import Span, SpanKind

from trunkline.logs import log_fields
from trunkline.server.metrics import Metrics
from trunkline.store.records import Claim
from trunkline.store.states import BatchStatus
from trunkline.tracing import tracer

LOST = "lost"  # another server has the batch
ERROR = "error"


@dataclass
class ObservedJob:
    """A job that is under way; whoever runs it says how it ended.

    Attributes:
        result: the batch's status after it, or `LOST`; None: it was interrupted, which says
            nothing about jobs.
    """

    result: BatchStatus | str | None = None


@contextmanager
def observed_job(claim: Claim, metrics: Metrics) -> Iterator[ObservedJob]:
    """Watch a claimed batch being validated or finalized."""
    name = "validate" if claim.num_total == 0 else "finalize"
    job = ObservedJob()
    started = time.monotonic()
    with (
        log_fields(batch_id=claim.batch_id, project_id=claim.project_id),
        tracer.start_as_current_span(
            f"batch {name}",
            attributes={"trunkline.batch_id": claim.batch_id, "trunkline.job": name},
        ) as span,
    ):
        try:
            yield job
        except Exception:
            job.result = ERROR
            raise
        finally:
            if job.result is not None:
                span.set_attribute("trunkline.result", str(job.result))
                metrics.count_job(name, str(job.result), time.monotonic() - started)


@contextmanager
def webhook_span(event_type: str, url: str, num_attempts: int) -> Iterator[Span]:
    """A span around one attempt to deliver an event.

    Only the host of `url` is told: the rest may be a secret. Set `http.response.status_code` on
    the span when there is an answer.

    Args:
        num_attempts: how many there were before.
    """
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        "server.address": urlsplit(url).hostname or "",
        "trunkline.event_type": event_type,
        "http.request.resend_count": num_attempts,
    }
    with tracer.start_as_current_span(
        "webhook deliver", kind=SpanKind.CLIENT, attributes=attributes
    ) as span:
        yield span
