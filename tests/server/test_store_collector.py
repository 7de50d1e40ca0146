"""How often the store is read for the metrics page."""

from __future__ import annotations

import pytest

from trunkline.server import store_collector
from trunkline.server.store_collector import (
    MAX_READING_SHARE,
    MIN_CACHE_SECONDS,
    StoreCollector,
)
from trunkline.store.database import Database
from trunkline.store.engines import Engines
from trunkline.store.totals import StoreTotals, Totals

START = 1000.0


class Clock:
    """A clock that stands still unless it is put forward."""

    def __init__(self) -> None:
        self.now = START

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The collector's."""
    made = Clock()
    monkeypatch.setattr(store_collector, "time", made)
    return made


class CountingTotals(Totals):
    """Knows how often it was asked, and takes its time, by the clock."""

    def __init__(self, database: Database, clock: Clock, seconds: float = 0.0) -> None:
        super().__init__(database)
        self.num_reads = 0
        self._clock = clock
        self._seconds = seconds

    def read(self) -> StoreTotals:
        self.num_reads += 1
        self._clock.now += self._seconds
        return super().read()


def scrape(database: Database, totals: Totals) -> StoreCollector:
    """A collector that was asked once."""
    collector = StoreCollector(totals, Engines(database), 30, now=lambda: 0)
    assert list(collector.collect())
    return collector


def test_scraping_often_does_not_load_the_store(database: Database, clock: Clock) -> None:
    totals = CountingTotals(database, clock)
    collector = scrape(database, totals)
    for _ in range(20):
        list(collector.collect())
    clock.now += 0.99 * MIN_CACHE_SECONDS
    list(collector.collect())
    assert totals.num_reads == 1
    clock.now += 0.02 * MIN_CACHE_SECONDS
    list(collector.collect())
    assert totals.num_reads == 2


def test_a_slow_store_is_read_less_often(database: Database, clock: Clock) -> None:
    seconds = 10 * MIN_CACHE_SECONDS * MAX_READING_SHARE
    totals = CountingTotals(database, clock, seconds)
    collector = scrape(database, totals)
    for factor, num_reads in ((1.1, 1), (9.9, 1), (10.1, 2)):
        clock.now = START + seconds + factor * MIN_CACHE_SECONDS
        list(collector.collect())
        assert totals.num_reads == num_reads
