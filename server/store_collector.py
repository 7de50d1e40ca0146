"""The metrics that are in the store: read when somebody asks, and not too often."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from trunkline.server import metric_table as table
from trunkline.server.metric_table import Kind, MetricSpec
from trunkline.store.engines import Engines
from trunkline.store.records import EngineRecord
from trunkline.store.states import BatchStatus
from trunkline.store.totals import StoreTotals, Totals

logger = logging.getLogger(__name__)

# However many scrape, the store is read once in so long, and for at most that share of the time.
MIN_CACHE_SECONDS = 5.0
MAX_READING_SHARE = 0.05

# An engine that is silent for longer has been given up rather than lost.
FORGET_SECONDS = 3600.0

# Statuses in which a batch waits for somebody to work on it.
WAITING = (
    BatchStatus.VALIDATING,
    BatchStatus.IN_PROGRESS,
    BatchStatus.FINALIZING,
    BatchStatus.CANCELLING,
)

# Label values -> value.
Samples = Mapping[tuple[str, ...], float]


class StoreCollector(Collector):
    """Makes metrics of the store's totals and of the engines' last figures."""

    def __init__(
        self,
        totals: Totals,
        engines: Engines,
        engine_alive_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Read from `totals` and `engines`.

        Args:
            engine_alive_seconds: an engine is alive so long after its last heartbeat.
            now: unix seconds.
        """
        self._totals = totals
        self._engines = engines
        self._alive_seconds = engine_alive_seconds
        self._now = now
        self._lock = threading.Lock()  # one reads, the others wait for what it has read
        self._read_at = 0.0
        self._valid_until = 0.0
        self._cached: tuple[StoreTotals, tuple[EngineRecord, ...]] | None = None

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not read the store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        found = self._read()
        yield _family(table.STORE_UP, {(): float(found is not None)})
        if found is None:
            return
        totals, engines = found
        now = self._now()
        for spec, samples in (_of_store(totals, now) | self._of_engines(engines, now)).items():
            yield _family(spec, samples)

    def _read(self) -> tuple[StoreTotals, tuple[EngineRecord, ...]] | None:
        """What is in the store, or was shortly ago; None when it cannot be read."""
        with self._lock:
            started = time.monotonic()
            if started < self._valid_until:
                return self._cached
            try:
                silent_seconds = max(FORGET_SECONDS, self._alive_seconds)
                engines = self._engines.list(self._now(), silent_seconds)
                self._cached = (self._totals.read(), engines)
            except SQLAlchemyError as error:
                logger.warning("the store cannot be read for metrics: %s", error)
                self._cached = None
            ended = time.monotonic()
            pause = max(MIN_CACHE_SECONDS, (ended - started) / MAX_READING_SHARE)
            self._valid_until = ended + pause
            return self._cached

    def _of_engines(
        self, engines: tuple[EngineRecord, ...], now: float
    ) -> dict[MetricSpec, Samples]:
        samples: dict[MetricSpec, dict[tuple[str, ...], float]] = {
            spec: {} for spec in (table.ENGINE_ALIVE, *table.ENGINE_FIGURES)
        }
        for engine in engines:
            labels = (engine.name, engine.model, engine.device)
            is_alive = engine.heartbeat_at >= now - self._alive_seconds
            samples[table.ENGINE_ALIVE][labels] = float(is_alive)
            if not is_alive:
                continue
            for spec, figure in table.ENGINE_FIGURES.items():
                # An engine that has just started, or one of another version, tells less.
                if figure in engine.figures:
                    samples[spec][labels] = float(engine.figures[figure])
        return dict(samples)


def _of_store(totals: StoreTotals, now: float) -> dict[MetricSpec, Samples]:
    by_status: dict[tuple[str, ...], float] = {(status.value,): 0.0 for status in BatchStatus}
    oldest: dict[tuple[str, ...], float] = {(status.value,): 0.0 for status in WAITING}
    lines: defaultdict[tuple[str, ...], float] = defaultdict(float)
    queued: defaultdict[tuple[str, ...], float] = defaultdict(float)
    queued_tokens: defaultdict[tuple[str, ...], float] = defaultdict(float)
    prompt: defaultdict[tuple[str, ...], float] = defaultdict(float)
    cached: defaultdict[tuple[str, ...], float] = defaultdict(float)
    output: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for group in totals.batches:
        by_status[group.status.value,] += group.num_batches
        if group.status in WAITING and not group.is_claimed and not group.is_paused:
            key = (group.status.value,)
            oldest[key] = max(oldest[key], now - group.since)
        if group.model is None:
            continue
        model = group.model
        lines[model, "completed"] += group.num_completed
        lines[model, "failed"] += group.num_failed
        prompt[model,] += group.num_prompt_tokens
        cached[model,] += group.num_cached_tokens
        output[model,] += group.num_output_tokens
        if group.status is BatchStatus.IN_PROGRESS:
            claimed = "running" if group.is_claimed else "waiting"
            state = "paused" if group.is_paused else claimed
            queued[model, state] += group.num_lines - group.num_completed - group.num_failed
            queued_tokens[model, state] += group.num_queued_tokens
    deliveries = totals.deliveries
    return {
        table.BATCHES: by_status,
        table.LINES: lines,
        table.QUEUED_REQUESTS: queued,
        table.QUEUED_TOKENS: queued_tokens,
        table.OLDEST_WAITING: oldest,
        table.PROMPT_TOKENS: prompt,
        table.CACHED_TOKENS: cached,
        table.OUTPUT_TOKENS: output,
        table.FILES: {(each.purpose,): each.num_files for each in totals.files},
        table.FILE_BYTES: {(each.purpose,): each.num_bytes for each in totals.files},
        table.DELIVERIES: {
            ("pending",): deliveries.num_pending,
            ("delivered",): deliveries.num_delivered,
            ("failed",): deliveries.num_failed,
        },
    }


def _family(spec: MetricSpec, samples: Samples) -> Metric:
    kind = CounterMetricFamily if spec.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(spec.name, spec.help, labels=spec.labels)
    for labels, value in sorted(samples.items()):
        family.add_metric(labels, value)
    return family
