"""Processes that meet: each has connections of its own, as another process would."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from trunkline.store.batches import Batches
from trunkline.store.database import Database
from trunkline.store.errors import InUse, NotFound
from trunkline.store.files import FileExpiry
from trunkline.store.projects import DEFAULT_PROJECT_ID
from trunkline.store.records import NewBatch, Outcome
from trunkline.store.work import Work

NOW = 1_000_000
MODEL = "tiny"


def run_at_once(functions: Iterable[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_no_batch_is_held_by_two_engines(store: Any, database_url: str) -> None:
    ids = {store.accepted(num_lines=1).id for _ in range(20)}
    held: list[str] = []

    def work(name: str) -> None:
        with closing(Database.open(database_url)) as database:
            work = Work(database, store.blobs)
            while (claim := work.claim(name, [MODEL], NOW, 600)) is not None:
                held.append(claim.batch_id)
                assert work.commit(claim, [Outcome(1, 200, "{}")], NOW) == 1
                assert work.finish(claim, NOW)

    run_at_once(lambda name=f"engine {i}": work(name) for i in range(4))
    assert len(held) == len(set(held)), "two held one batch"
    assert set(held) == ids


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """The same database, as another process has it."""
    with closing(Database.open(database_url)) as database:
        yield database


def test_no_batch_is_created_on_a_file_that_is_being_deleted(store: Any, other: Database) -> None:
    for round_number in range(30):
        file = store.file(expires_at=NOW)
        new = NewBatch("/v1/completions", file.id, "24h", NOW + 9, None, None)
        created: list[str] = []
        removed: list[str] = []

        def create(new: NewBatch = new, created: list[str] = created) -> None:
            with suppress(NotFound):
                created.append(Batches(other, DEFAULT_PROJECT_ID).create(new, NOW).id)

        def delete(file_id: str = file.id, removed: list[str] = removed) -> None:
            with suppress(InUse):
                removed.append(store.files.delete(file_id).id)

        def sweep(removed: list[str] = removed) -> None:
            removed.extend(file.id for file in FileExpiry(store.database).take_expired(NOW))

        run_at_once([create, sweep if round_number % 2 else delete])
        assert len(created) + len(removed) == 1
