"""Webhook endpoints of a project, and the events on their way to them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from trunkline.store.database import Database
from trunkline.store.errors import NotFound, UnknownCursor
from trunkline.store.projects import DEFAULT_PROJECT_ID, Projects
from trunkline.store.records import LineError
from trunkline.store.webhooks import (
    EVENT_TYPES,
    OLD_SECRET_SECONDS,
    Deliveries,
    NewWebhookEndpoint,
    WebhookEndpointChange,
    WebhookEndpointRecord,
    WebhookEndpoints,
    enqueue_events,
)

NOW = 1_000_000
NEW = NewWebhookEndpoint("mine", "https://example.org/hook", ("batch.completed", "batch.failed"))


@pytest.fixture
def mine(database: Database) -> WebhookEndpoints:
    return WebhookEndpoints(database, DEFAULT_PROJECT_ID)


@pytest.fixture
def theirs(database: Database) -> WebhookEndpoints:
    return WebhookEndpoints(database, Projects(database).ensure("theirs", NOW).id)


@pytest.fixture
def deliveries(database: Database) -> Deliveries:
    return Deliveries(database)


def end_batch(
    database: Database, batch_id: str = "batch_1", kind: str = "completed", now: int = NOW
) -> None:
    with database.write() as connection:
        enqueue_events(connection, DEFAULT_PROJECT_ID, f"batch.{kind}", batch_id, now)


def test_an_endpoint_from_its_creation_to_its_end(mine: WebhookEndpoints) -> None:
    made = mine.create(NEW, "whsec_1", NOW)
    assert (made.name, made.url, made.event_types) == (NEW.name, NEW.url, NEW.event_types)
    assert made.created_at == made.updated_at == NOW
    assert mine.get(made.id) == made
    assert "whsec_1" not in repr(made)

    changed = mine.update(made.id, WebhookEndpointChange(url="https://example.org/2"), NOW + 1)
    assert changed.url == "https://example.org/2"
    assert (changed.name, changed.event_types) == (made.name, made.event_types)
    assert (changed.created_at, changed.updated_at) == (NOW, NOW + 1)
    same = WebhookEndpointChange(name=made.name, event_types=made.event_types)
    assert mine.update(made.id, same, NOW + 2) == changed, "nothing has changed"

    mine.delete(made.id)
    with pytest.raises(NotFound):
        mine.get(made.id)
    with pytest.raises(NotFound):
        mine.delete(made.id)


def test_a_secret_is_replaced(mine: WebhookEndpoints) -> None:
    endpoint = mine.create(NEW, "whsec_1", NOW)
    assert endpoint.secrets(NOW) == ("whsec_1",)
    kept = mine.rotate_secret(endpoint.id, "whsec_2", NOW + 1, keep_old=True)
    assert kept.secrets(NOW + OLD_SECRET_SECONDS) == ("whsec_2", "whsec_1")
    assert kept.secrets(NOW + 1 + OLD_SECRET_SECONDS) == ("whsec_2",)
    assert kept.updated_at == NOW + 1
    replaced = mine.rotate_secret(endpoint.id, "whsec_3", NOW + 2, keep_old=False)
    assert replaced.secrets(NOW + 2) == ("whsec_3",)
    assert mine.get(endpoint.id) == replaced


def test_pages_newest_first(mine: WebhookEndpoints, theirs: WebhookEndpoints) -> None:
    made = [mine.create(NEW, f"whsec_{i}", NOW + i // 2) for i in range(5)]
    other = theirs.create(NEW, "whsec_x", NOW)
    first = mine.list(limit=3)
    assert first.items == tuple(reversed(made[2:]))
    assert first.has_more
    second = mine.list(limit=3, after=made[2].id)
    assert second.items == (made[1], made[0])
    assert not second.has_more
    for unknown in ("we_unknown", other.id):
        with pytest.raises(UnknownCursor):
            mine.list(after=unknown)


def test_the_endpoints_of_others_are_not_there(
    mine: WebhookEndpoints, theirs: WebhookEndpoints, database: Database
) -> None:
    endpoint = mine.create(NEW, "whsec_1", NOW)
    end_batch(database)
    attempts: list[Callable[[], object]] = [
        lambda: theirs.get(endpoint.id),
        lambda: theirs.update(endpoint.id, WebhookEndpointChange(name="x"), NOW),
        lambda: theirs.rotate_secret(endpoint.id, "whsec_2", NOW, keep_old=False),
        lambda: theirs.delete(endpoint.id),
        lambda: theirs.deliveries(endpoint.id),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound, match="webhook endpoint"):
            attempt()
    assert theirs.list().items == ()
    assert mine.get(endpoint.id) == endpoint
    assert len(mine.deliveries(endpoint.id).items) == 1


def test_an_event_goes_to_those_of_its_project_that_want_it(
    mine: WebhookEndpoints, theirs: WebhookEndpoints, database: Database
) -> None:
    wants = [mine.create(NEW, f"whsec_{i}", NOW) for i in range(2)]
    wants_other = mine.create(NewWebhookEndpoint("x", NEW.url, ("batch.expired",)), "s", NOW)
    other = theirs.create(NEW, "whsec_x", NOW)
    end_batch(database, "batch_7")
    found = [delivery for each in wants for delivery in mine.deliveries(each.id).items]
    assert len(found) == 2
    assert {delivery.event_id for delivery in found} == {found[0].event_id}, "it is one event"
    assert json.loads(found[0].body) == {
        "id": found[0].event_id,
        "object": "event",
        "created_at": NOW,
        "type": "batch.completed",
        "data": {"id": "batch_7"},
    }
    assert mine.deliveries(wants_other.id).items == ()
    assert theirs.deliveries(other.id).items == ()


def test_a_transaction_that_fails_sends_nothing(mine: WebhookEndpoints, database: Database) -> None:
    endpoint = mine.create(NEW, "whsec_1", NOW)

    def fail() -> None:
        with database.write() as connection:
            enqueue_events(connection, DEFAULT_PROJECT_ID, "batch.completed", "batch_1", NOW)
            raise RuntimeError("afterwards")

    with pytest.raises(RuntimeError, match="afterwards"):
        fail()
    assert mine.deliveries(endpoint.id).items == ()


def test_each_end_of_a_batch_is_an_event(store: Any, mine: WebhookEndpoints) -> None:
    endpoint = mine.create(NewWebhookEndpoint("all", NEW.url, EVENT_TYPES), "whsec_1", NOW)
    completed = store.finalizing()
    store.closing.publish(store.closing.claim("server", NOW, 60), None, None, NOW)
    failed = store.validating()
    wrong = LineError("invalid_json_line", "wrong", None, 1)
    store.closing.reject(store.closing.claim("server", NOW, 60), [wrong], NOW)
    cancelled = store.accepted()
    store.batches.cancel(cancelled.id, NOW)
    claim = store.closing.claim("server", NOW, 60)
    store.closing.close_unfinished(claim, NOW)
    store.closing.publish(claim, None, None, NOW)
    expired = store.accepted(expires_at=NOW + 2)
    assert store.closing.expire_due(NOW + 2) == 1
    claim = store.closing.claim("server", NOW, 60)
    store.closing.close_unfinished(claim, NOW)
    store.closing.publish(claim, None, None, NOW)
    events = [json.loads(delivery.body) for delivery in mine.deliveries(endpoint.id).items]
    assert sorted((event["type"], event["data"]["id"]) for event in events) == [
        ("batch.cancelled", cancelled.id),
        ("batch.completed", completed.id),
        ("batch.expired", expired.id),
        ("batch.failed", failed.id),
    ]


def test_what_is_due_is_claimed_once(
    mine: WebhookEndpoints, deliveries: Deliveries, database: Database
) -> None:
    endpoint = mine.create(NEW, "whsec_1", NOW)
    assert not deliveries.any_due(NOW)
    assert deliveries.claim(NOW, 60) is None
    end_batch(database)
    assert not deliveries.any_due(NOW - 1)
    assert deliveries.any_due(NOW)
    assert not deliveries.any_due(NOW, {endpoint.id})
    assert deliveries.claim(NOW, 60, {endpoint.id}) is None
    claimed = deliveries.claim(NOW, 60, {"we_other"})
    assert claimed is not None
    assert claimed.endpoint == endpoint
    assert claimed.delivery.num_attempts == 1
    assert not deliveries.any_due(NOW + 59)
    assert deliveries.claim(NOW + 59, 60) is None
    again = deliveries.claim(NOW + 60, 60)
    assert again is not None, "the claim has lapsed"
    assert again.delivery.num_attempts == 2


def test_the_oldest_comes_first(
    mine: WebhookEndpoints, deliveries: Deliveries, database: Database
) -> None:
    mine.create(NEW, "whsec_1", NOW)
    for now in (NOW + 2, NOW, NOW + 1):
        end_batch(database, f"batch_{now}", now=now)
    for now in (NOW, NOW + 1, NOW + 2):
        claimed = deliveries.claim(NOW + 9, 60)
        assert claimed is not None
        assert claimed.delivery.created_at == now


def test_outcomes_are_noted(
    mine: WebhookEndpoints, deliveries: Deliveries, database: Database
) -> None:
    endpoint = mine.create(NEW, "whsec_1", NOW)
    end_batch(database)
    first = deliveries.claim(NOW, 60)
    assert first is not None
    deliveries.failed(first.delivery, "HTTP 500", NOW + 5.5)
    (state,) = mine.deliveries(endpoint.id).items
    assert (state.last_error, state.next_attempt_at) == ("HTTP 500", NOW + 5.5)

    second = deliveries.claim(NOW + 6, 60)
    third = deliveries.claim(NOW + 66, 60)
    assert second is not None
    assert third is not None
    deliveries.failed(second.delivery, "too late", None)
    (state,) = mine.deliveries(endpoint.id).items
    assert state.last_error == "HTTP 500", "the third has it"
    deliveries.succeeded(second.delivery, NOW + 67)
    (state,) = mine.deliveries(endpoint.id).items
    assert (state.delivered_at, state.next_attempt_at) == (NOW + 67, None)
    assert state.last_error is None
    deliveries.failed(third.delivery, "twice", NOW + 70)
    assert mine.deliveries(endpoint.id).items == (state,), "what is delivered stays delivered"


def test_giving_up(mine: WebhookEndpoints, deliveries: Deliveries, database: Database) -> None:
    endpoint = mine.create(NEW, "whsec_1", NOW)
    end_batch(database)
    claimed = deliveries.claim(NOW, 60)
    assert claimed is not None
    deliveries.failed(claimed.delivery, "HTTP 500", None)
    assert deliveries.claim(NOW + 10**6, 60) is None
    (state,) = mine.deliveries(endpoint.id).items
    assert (state.last_error, state.delivered_at) == ("HTTP 500", None)


def test_deliveries_newest_first(mine: WebhookEndpoints, database: Database) -> None:
    endpoint, other = (mine.create(NEW, f"whsec_{i}", NOW) for i in range(2))
    for i in range(5):
        end_batch(database, f"batch_{i}", now=NOW + i // 2)
    first = mine.deliveries(endpoint.id, limit=3)
    assert first.has_more
    second = mine.deliveries(endpoint.id, limit=3, after=first.items[-1].event_id)
    assert not second.has_more
    found = [json.loads(each.body)["data"]["id"] for each in first.items + second.items]
    assert found == [f"batch_{i}" for i in reversed(range(5))]
    mine.delete(other.id)
    with pytest.raises(UnknownCursor):
        mine.deliveries(endpoint.id, after="evt_unknown")


def test_an_endpoint_takes_its_deliveries_with_it(
    mine: WebhookEndpoints, deliveries: Deliveries, database: Database
) -> None:
    endpoint = mine.create(NEW, "whsec_1", NOW)
    for i in range(2):
        end_batch(database, f"batch_{i}")
    claimed = deliveries.claim(NOW, 60)
    assert claimed is not None
    mine.delete(endpoint.id)
    assert not deliveries.any_due(NOW)
    deliveries.succeeded(claimed.delivery, NOW)
    deliveries.failed(claimed.delivery, "gone", NOW)


def test_old_deliveries_are_swept(
    mine: WebhookEndpoints, deliveries: Deliveries, database: Database
) -> None:
    endpoint = mine.create(NEW, "whsec_1", NOW)
    for i in range(4):
        end_batch(database, f"batch_{i}", now=NOW + i)
    for end in (deliveries.succeeded, lambda it, at: deliveries.failed(it, "no", None)):
        claimed = deliveries.claim(NOW + 9, 60)
        assert claimed is not None
        end(claimed.delivery, NOW + 9)
    assert deliveries.sweep(NOW) == 0
    assert deliveries.sweep(NOW + 9, limit=1) == 1
    assert deliveries.sweep(NOW + 9) == 1
    assert deliveries.sweep(NOW + 9) == 0, "the others are still on their way"
    assert len(mine.deliveries(endpoint.id).items) == 2


@pytest.fixture
def other_database(database_url: str) -> Iterator[Database]:
    """The same database, as another process has it."""
    with closing(Database.open(database_url)) as opened:
        yield opened


def run_at_once(*functions: Callable[[], None]) -> None:
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


def test_two_that_claim_at_once_take_different_ones(
    mine: WebhookEndpoints, database: Database, other_database: Database
) -> None:
    mine.create(NEW, "whsec_1", NOW)
    for i in range(40):
        end_batch(database, f"batch_{i}")
    taken: list[str] = []

    def claim_all(own: Database) -> None:
        while (claimed := Deliveries(own).claim(NOW, 60)) is not None:
            taken.append(claimed.delivery.event_id)

    run_at_once(*(lambda own=own: claim_all(own) for own in (database, other_database)))
    assert len(taken) == len(set(taken)) == 40


def test_a_batch_ends_although_endpoints_come_and_go(
    mine: WebhookEndpoints, database: Database, other_database: Database
) -> None:
    made: list[WebhookEndpointRecord] = [mine.create(NEW, f"s{i}", NOW) for i in range(30)]

    def end_batches() -> None:
        for i in range(30):
            end_batch(database, f"batch_{i}")

    def delete_endpoints() -> None:
        for endpoint in made:
            WebhookEndpoints(other_database, DEFAULT_PROJECT_ID).delete(endpoint.id)

    def claim_and_sweep() -> None:
        own = Deliveries(other_database)
        for _ in range(30):
            if (claimed := own.claim(NOW, 60)) is not None:
                own.succeeded(claimed.delivery, NOW)
            own.sweep(NOW + 1)

    run_at_once(end_batches, delete_endpoints, claim_and_sweep)
    assert mine.list().items == ()
    assert not Deliveries(database).any_due(NOW + 1000), "their deliveries are gone with them"
