"""Every metric of `GET /metrics`: one table, from which they are made and documented.

Names are stable: dashboards and alerts depend on them. They follow Prometheus's conventions: base
units, the unit in the name, `_total` for what only grows. No label names a project, a key, a file
or a batch, so that there are never more series than routes, models and engines call for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a metric behaves over time."""

    COUNTER = "counter"  # only grows, until whoever counts is started again
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Where a metric comes from, and so what it says."""

    HTTP = "HTTP requests of this server process"
    JOBS = "Background work of this server process"
    STORE = "The store, for all servers together"
    ENGINES = "Engines, as of their last heartbeat"
    SERVER = "The server process"


@dataclass(frozen=True)
class MetricSpec:
    """A metric.

    Attributes:
        name: in full, with `_total` if it is a counter.
        help: what is counted or measured, in which unit.
        buckets: of a histogram, upper bounds.
    """

    name: str
    kind: Kind
    source: Source
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


ENGINE_LABELS = ("engine", "model", "device")

# From the quickest look at a batch to an upload of hundreds of megabytes.
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# From a batch of one line to one of as many as may be.
JOB_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)

HTTP_REQUESTS = MetricSpec(
    "trunkline_http_requests_total",
    Kind.COUNTER,
    Source.HTTP,
    "HTTP requests that were answered, or given up by the client (counted as 4xx).",
    ("route", "method", "status_class"),
)
HTTP_SECONDS = MetricSpec(
    "trunkline_http_request_duration_seconds",
    Kind.HISTOGRAM,
    Source.HTTP,
    "From the request's arrival to the last byte of its answer. Streams last as long as somebody "
    "listens.",
    ("route", "method"),
    REQUEST_SECONDS,
)
HTTP_RECEIVED = MetricSpec(
    "trunkline_http_received_bytes_total",
    Kind.COUNTER,
    Source.HTTP,
    "Bytes of request bodies.",
    ("route", "method"),
)
HTTP_SENT = MetricSpec(
    "trunkline_http_sent_bytes_total",
    Kind.COUNTER,
    Source.HTTP,
    "Bytes of response bodies.",
    ("route", "method"),
)
HTTP_IN_FLIGHT = MetricSpec(
    "trunkline_http_requests_in_flight",
    Kind.GAUGE,
    Source.HTTP,
    "HTTP requests that have begun and are not through.",
)
LIVE_REQUESTS = MetricSpec(
    "trunkline_live_requests_total",
    Kind.COUNTER,
    Source.HTTP,
    "Requests whose clients waited for an engine's answer, by the status that it ended with; 499: "
    "the client went away. A stream may end with an error after it has begun well.",
    ("endpoint", "status"),
)
JOB_DURATION = MetricSpec(
    "trunkline_job_duration_seconds",
    Kind.HISTOGRAM,
    Source.JOBS,
    "Time to validate a batch's input, or to finalize a batch. The result is the batch's status "
    "after it, `lost` when another server has it, or `error`.",
    ("kind", "result"),
    JOB_SECONDS,
)
BUILD = MetricSpec(
    "trunkline_build_info", Kind.GAUGE, Source.SERVER, "Always 1; tells the version.", ("version",)
)

STORE_UP = MetricSpec(
    "trunkline_store_up",
    Kind.GAUGE,
    Source.STORE,
    "1 when the database could be asked; otherwise 0, and what comes from the store is missing.",
)
BATCHES = MetricSpec(
    "trunkline_batches", Kind.GAUGE, Source.STORE, "Batches that have this status.", ("status",)
)
LINES = MetricSpec(
    "trunkline_lines_total",
    Kind.COUNTER,
    Source.STORE,
    "Lines of batches that have an outcome: `completed` was answered, `failed` was refused, "
    "expired or cancelled.",
    ("model", "outcome"),
)
QUEUED_REQUESTS = MetricSpec(
    "trunkline_queued_requests",
    Kind.GAUGE,
    Source.STORE,
    "Lines without an outcome, of batches in progress: `running` at an engine, `waiting` for one, "
    "or `paused`.",
    ("model", "state"),
)
QUEUED_TOKENS = MetricSpec(
    "trunkline_queued_prompt_tokens",
    Kind.GAUGE,
    Source.STORE,
    "Tokens of their prompts, as estimated when the batch was validated.",
    ("model", "state"),
)
OLDEST_WAITING = MetricSpec(
    "trunkline_oldest_waiting_batch_age_seconds",
    Kind.GAUGE,
    Source.STORE,
    "How long the batch that has waited longest in this status has been in it without anybody "
    "working on it; 0 when none waits. Paused batches do not count.",
    ("status",),
)
PROMPT_TOKENS = MetricSpec(
    "trunkline_prompt_tokens_total",
    Kind.COUNTER,
    Source.STORE,
    "Prompt tokens of lines that were answered, cached ones included.",
    ("model",),
)
CACHED_TOKENS = MetricSpec(
    "trunkline_cached_prompt_tokens_total",
    Kind.COUNTER,
    Source.STORE,
    "Those of them that another request had paid for.",
    ("model",),
)
OUTPUT_TOKENS = MetricSpec(
    "trunkline_output_tokens_total",
    Kind.COUNTER,
    Source.STORE,
    "Tokens of the answers.",
    ("model",),
)
FILES = MetricSpec("trunkline_files", Kind.GAUGE, Source.STORE, "Files.", ("purpose",))
FILE_BYTES = MetricSpec(
    "trunkline_file_bytes", Kind.GAUGE, Source.STORE, "Bytes of the files.", ("purpose",)
)
DELIVERIES = MetricSpec(
    "trunkline_webhook_deliveries",
    Kind.GAUGE,
    Source.STORE,
    "Webhook events on their way to an endpoint (`pending`), `delivered`, or given up (`failed`). "
    "The latter two are forgotten after 30 days.",
    ("state",),
)

ENGINE_ALIVE = MetricSpec(
    "trunkline_engine_alive",
    Kind.GAUGE,
    Source.ENGINES,
    "1 when the engine's last heartbeat is recent; otherwise 0, and its other metrics are missing. "
    "An engine that was stopped in order is not listed, nor one silent for an hour.",
    ENGINE_LABELS,
)

# Metric -> the engine's figure that it shows.
ENGINE_FIGURES = {
    MetricSpec(f"trunkline_engine_{name}", kind, Source.ENGINES, text, ENGINE_LABELS): figure
    for name, kind, figure, text in (
        ("running_sequences", Kind.GAUGE, "num_running", "Sequences in the running batch."),
        ("waiting_sequences", Kind.GAUGE, "num_waiting", "Sequences that wait for room in it."),
        ("kv_pages_used", Kind.GAUGE, "kv_pages_in_use", "Pages of the KV cache that are needed."),
        ("kv_pages_capacity", Kind.GAUGE, "kv_pages", "Pages of the KV cache."),
        ("steps_total", Kind.COUNTER, "num_steps", "Steps since the engine's start."),
        (
            "preemptions_total",
            Kind.COUNTER,
            "num_preemptions",
            "Sequences that gave their memory up and are computed again.",
        ),
        (
            "step_seconds",
            Kind.GAUGE,
            "step_seconds",
            "Mean time of a step between the last two heartbeats with steps.",
        ),
        (
            "computed_prompt_tokens_total",
            Kind.COUNTER,
            "num_computed_prompt_tokens",
            "Prompt tokens that were computed.",
        ),
        (
            "cached_prompt_tokens_total",
            Kind.COUNTER,
            "num_cached_prompt_tokens",
            "Prompt tokens of finished requests that need not be computed.",
        ),
        ("output_tokens_total", Kind.COUNTER, "num_output_tokens", "Tokens that were sampled."),
        (
            "prompt_tokens_per_second",
            Kind.GAUGE,
            "prompt_tokens_per_second",
            "Prompt tokens computed per second between the last two heartbeats.",
        ),
        (
            "output_tokens_per_second",
            Kind.GAUGE,
            "output_tokens_per_second",
            "Tokens sampled per second between the last two heartbeats.",
        ),
    )
}

METRICS = (
    *(HTTP_REQUESTS, HTTP_SECONDS, HTTP_RECEIVED, HTTP_SENT, HTTP_IN_FLIGHT, LIVE_REQUESTS),
    *(JOB_DURATION, BUILD),
    *(STORE_UP, BATCHES, LINES, QUEUED_REQUESTS, QUEUED_TOKENS, OLDEST_WAITING),
    *(PROMPT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS, FILES, FILE_BYTES, DELIVERIES),
    *(ENGINE_ALIVE, *ENGINE_FIGURES),
)
