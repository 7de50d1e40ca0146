"""Twenty workers that crash and stall fight over two hundred batches."""

from __future__ import annotations

import random
import threading
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import func, select

from trunkline.store.database import Database
from trunkline.store.errors import LeaseLost
from trunkline.store.records import Claim, NewBatch, NewRequest, Outcome
from trunkline.store.schema import batches, outcomes
from trunkline.store.states import BatchStatus
from trunkline.store.work import Work

NOW = 1_000_000
MODEL = "tiny"
NUM_WORKERS = 20
NUM_BATCHES = 200
NUM_LINES = 4
# In ticks, of which each call of each worker takes one; a batch takes a worker some ten calls.
LEASE_TICKS = 400
# Of a worker's times with a batch.
CRASH_SHARE = 0.15
STALL_SHARE = 0.1


class Clock:
    """A time that does not depend on the machine: it goes on by what the workers do.

    Whoever sleeps is woken by what the others do meanwhile; when all sleep, the next is woken.
    """

    def __init__(self, num_workers: int) -> None:
        self._condition = threading.Condition()
        self._now = NOW
        self._num_awake = num_workers
        self._wake_times: list[int] = []

    def tick(self) -> int:
        """A later time than any before."""
        with self._condition:
            self._go_on_to(self._now + 1)
            return self._now

    def sleep(self, num_ticks: int) -> None:
        with self._condition:
            until = self._now + num_ticks
            self._wake_times.append(until)
            self._fall_silent()
            while self._now < until:
                self._condition.wait()

    def leave(self) -> None:
        """A worker has ended."""
        with self._condition:
            self._fall_silent()

    def _fall_silent(self) -> None:
        self._num_awake -= 1
        if self._num_awake == 0 and self._wake_times:
            self._go_on_to(min(self._wake_times))

    def _go_on_to(self, now: int) -> None:
        self._now = now
        self._num_awake += sum(time <= now for time in self._wake_times)
        self._wake_times = [time for time in self._wake_times if time > now]
        self._condition.notify_all()


@dataclass
class Holding:
    """A worker's time with a batch, from its claim to the last that it was allowed to do."""

    claim: Claim
    claimed_at: int  # what the store was told
    lease_until: int  # likewise
    returned_at: int  # the claim was known then
    writes: list[int] = field(default_factory=list)  # when each one was begun
    num_committed: int = 0
    has_finished: bool = False
    was_refused: bool = False


class Worker:
    """Claims and answers batches until all have ended; now and then it dies, or sleeps too long."""

    def __init__(self, database: Database, store: Any, clock: Clock, number: int) -> None:
        self.holdings: list[Holding] = []
        self._work = Work(database, store.blobs)
        self._database = database
        self._clock = clock
        self._name = f"worker {number}"
        self._random = random.Random(number)
        self._num_lives = 0

    def run(self) -> None:
        while self._any_left():
            now = self._clock.tick()
            # Who has died comes back under another name, as a process on another machine would.
            holder = f"{self._name}, life {self._num_lives}"
            claim = self._work.claim(holder, [MODEL], now, LEASE_TICKS)
            if claim is None:
                self._clock.sleep(self._random.randrange(10, 50))
                continue
            holding = Holding(claim, now, now + LEASE_TICKS, self._clock.tick())
            self.holdings.append(holding)
            try:
                self._answer(holding)
            except LeaseLost:
                holding.was_refused = True

    def _any_left(self) -> bool:
        query = select(batches.c.id).where(batches.c.status == BatchStatus.IN_PROGRESS).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def _answer(self, holding: Holding) -> None:
        claim = holding.claim
        kind = self._random.random()
        interrupted_at = self._random.randrange(NUM_LINES + 1)
        lines = self._work.unfinished_lines(claim)
        for i in range(len(lines) + 1):
            if i == interrupted_at:
                if kind < CRASH_SHARE:
                    self._num_lives += 1
                    return
                if kind < CRASH_SHARE + STALL_SHARE:
                    self._clock.sleep(int(LEASE_TICKS * self._random.uniform(0.8, 2)))
                else:
                    self._renew(holding)
            if i < len(lines):
                begun = self._clock.tick()
                outcome = Outcome(lines[i], 200, "{}")
                holding.num_committed += self._work.commit(claim, [outcome], begun)
                holding.writes.append(begun)
        begun = self._clock.tick()
        if self._work.finish(claim, begun):
            holding.writes.append(begun)
            holding.has_finished = True

    def _renew(self, holding: Holding) -> None:
        now = self._clock.tick()
        held = self._work.heartbeat(self._name, {}, [holding.claim], now, LEASE_TICKS)
        if holding.claim.batch_id in held:
            holding.writes.append(now)
            holding.lease_until = now + LEASE_TICKS


def make_batches(store: Any) -> list[str]:
    """Batches in progress, all on one input file."""
    file = store.file(b"{}\n" * NUM_LINES)
    new = NewBatch("/v1/completions", file.id, "24h", NOW + 86_400, None, None)
    requests = [NewRequest(i, f"r{i}", 3 * (i - 1), 2) for i in range(1, NUM_LINES + 1)]
    ids = []
    for _ in range(NUM_BATCHES):
        ids.append(store.batches.create(new, NOW).id)
        claim = store.closing.claim("server", NOW, 60)
        store.closing.accept(claim, requests, MODEL, 0, NOW)
    return ids


@pytest.fixture
def holdings(store: Any, database_url: str) -> dict[str, list[Holding]]:
    """What each batch went through, in the order of its claims."""
    ids = make_batches(store)
    failures: list[BaseException] = []
    workers: list[Worker] = []
    clock = Clock(NUM_WORKERS)

    def work(number: int) -> None:
        # Connections and locks of its own, as another process has them.
        with closing(Database.open(database_url)) as database:
            workers.append(worker := Worker(database, store, clock, number))
            try:
                worker.run()
            except BaseException as error:
                failures.append(error)
            finally:
                clock.leave()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(NUM_WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    by_batch: dict[str, list[Holding]] = {batch_id: [] for batch_id in ids}
    for worker in workers:
        for holding in worker.holdings:
            by_batch[holding.claim.batch_id].append(holding)
    for found in by_batch.values():
        # A batch is claimed again only when a lease has run out, so that no two times are alike.
        found.sort(key=lambda holding: holding.claimed_at)
    return by_batch


def test_every_batch_is_worked_on_by_one_at_a_time(
    store: Any, holdings: dict[str, list[Holding]]
) -> None:
    num_taken_over = num_refused = 0
    for found in holdings.values():
        for before, after in pairwise(found):
            num_taken_over += 1
            num_refused += before.was_refused
            # No two leases of a batch overlap …
            assert before.lease_until < after.claimed_at
            # … and whoever had lost it has changed nothing since, whatever it believed.
            assert all(begun < after.returned_at for begun in before.writes)
        assert [holding.has_finished for holding in found] == [False] * (len(found) - 1) + [True]
        assert sum(holding.num_committed for holding in found) == NUM_LINES

    query = select(outcomes.c.batch_id, func.count().label("num")).group_by(outcomes.c.batch_id)
    with store.database.read() as connection:
        counts = {row.batch_id: row.num for row in connection.execute(query)}
    assert counts == dict.fromkeys(holdings, NUM_LINES)
    for batch_id in holdings:
        batch = store.batches.get(batch_id)
        assert batch.status is BatchStatus.FINALIZING
        assert (batch.num_completed, batch.num_failed) == (NUM_LINES, 0)

    # The test is worth nothing unless leases ran out, and under somebody who went on.
    assert num_taken_over >= 10
    assert num_refused >= 1
