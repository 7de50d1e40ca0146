"""Events on their way: once to each, again after a failure, and nowhere else."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import openai
import pytest
from openai.types.webhooks import BatchCompletedWebhookEvent

from tests.server.live_server import HANG_SECONDS
from tests.server.stores import every_database
from tests.support import wait_for
from trunkline.server.webhooks import delivery
from trunkline.server.webhooks.backoff import Backoff
from trunkline.server.webhooks.signing import new_secret


@pytest.fixture
def client() -> Any:
    with openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="unused") as made:
        yield made


@every_database
def test_the_official_sdk_verifies_an_event(
    hooks_everywhere: Any, receiver: Any, client: Any
) -> None:
    endpoint = hooks_everywhere.endpoint(receiver.url + "?a=b")
    hooks_everywhere.event("batch_7")
    hooks_everywhere.sender()
    (state,) = hooks_everywhere.delivered(endpoint)
    (request,) = receiver.requests
    assert request.path == "/hook?a=b"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    event = client.webhooks.unwrap(request.body, request.headers, secret=endpoint.secret)
    assert isinstance(event, BatchCompletedWebhookEvent)
    assert event.data.id == "batch_7"
    assert event.object == "event"
    assert event.id == request.event_id == state.event_id
    assert (state.num_attempts, state.last_error, state.next_attempt_at) == (1, None, None)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(request.body + b" ", request.headers, secret=endpoint.secret)


@pytest.mark.parametrize("keep_old", [True, False])
def test_a_kept_old_secret_still_verifies(
    hooks: Any, receiver: Any, client: Any, keep_old: bool
) -> None:
    old = hooks.endpoint(receiver.url)
    new = hooks.endpoints.rotate_secret(old.id, new_secret(), int(time.time()), keep_old=keep_old)
    hooks.event()
    hooks.sender()
    hooks.delivered(new)
    (request,) = receiver.requests
    client.webhooks.unwrap(request.body, request.headers, secret=new.secret)
    if keep_old:
        client.webhooks.unwrap(request.body, request.headers, secret=old.secret)
    else:
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(request.body, request.headers, secret=old.secret)


def test_it_is_tried_again_with_the_same_id_until_it_succeeds(hooks: Any, receiver: Any) -> None:
    endpoint = hooks.endpoint(receiver.url)
    receiver.headers = {"location": receiver.url}
    answers = iter([500, 404, 302, 429, 200])
    receiver.answer = lambda _: next(answers)
    hooks.event()
    hooks.sender()
    (state,) = hooks.delivered(endpoint)
    assert state.num_attempts == 5
    assert len({request.event_id for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1


def test_a_redirect_is_not_followed(hooks: Any, receiver: Any, make_receiver: Any) -> None:
    elsewhere = make_receiver()
    receiver.answer = lambda _: 307
    receiver.headers = {"location": elsewhere.url}
    endpoint = hooks.endpoint(receiver.url)
    hooks.event()
    hooks.sender()
    wait_for(lambda: hooks.states(endpoint)[0].num_attempts > 1)
    assert "307" in hooks.states(endpoint)[0].last_error
    assert "not followed" in hooks.states(endpoint)[0].last_error
    assert elsewhere.requests == []


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    """An endpoint may wait for it instead of answering; it is over when the test is."""
    is_over = threading.Event()
    yield is_over
    is_over.set()


@every_database
def test_an_event_outlives_senders(
    hooks_everywhere: Any, receiver: Any, silence: threading.Event
) -> None:
    """One is stopped while it waits to try again, one while it waits for an answer."""
    endpoint = hooks_everywhere.endpoint(receiver.url)
    receiver.answer = lambda _: 503
    hooks_everywhere.event()
    first = hooks_everywhere.sender(backoff=Backoff(first_seconds=1))
    wait_for(lambda: hooks_everywhere.states(endpoint)[0].last_error)
    hooks_everywhere.stop(first)
    num_refused = len(receiver.requests)

    receiver.answer = lambda _: silence.wait(2 * HANG_SECONDS) and 200
    second = hooks_everywhere.sender()
    wait_for(lambda: len(receiver.requests) == num_refused + 1)
    hooks_everywhere.stop(second)  # does not wait for the answer
    (state,) = hooks_everywhere.states(endpoint)
    assert "stopped" in state.last_error
    assert state.next_attempt_at <= time.time()

    receiver.answer = lambda _: 200
    hooks_everywhere.sender()
    (state,) = hooks_everywhere.delivered(endpoint)
    assert state.num_attempts == num_refused + 2


@every_database
def test_what_a_dead_sender_had_claimed_is_delivered(hooks_everywhere: Any, receiver: Any) -> None:
    endpoint = hooks_everywhere.endpoint(receiver.url)
    hooks_everywhere.event()
    assert hooks_everywhere.deliveries.claim(time.time(), 0.5) is not None
    hooks_everywhere.sender()
    (state,) = hooks_everywhere.delivered(endpoint)
    assert state.num_attempts == 2


@every_database
def test_two_senders_send_each_event_once(
    hooks_everywhere: Any, receiver: Any, make_receiver: Any
) -> None:
    receivers = [receiver, *(make_receiver() for _ in range(3))]
    endpoints = [hooks_everywhere.endpoint(each.url) for each in receivers]
    for each in receivers:
        each.answer = lambda _: time.sleep(0.02) or 200
    for i in range(12):
        hooks_everywhere.event(f"batch_{i}")
    for _ in range(2):
        hooks_everywhere.sender()
    for endpoint, each in zip(endpoints, receivers, strict=True):
        hooks_everywhere.delivered(endpoint)
        assert len(each.requests) == 12
        assert Counter(request.event_id for request in each.requests).most_common(1)[0][1] == 1
        assert set(each.most_at_once.values()) == {1}


def test_a_slow_endpoint_holds_up_nobody_else(
    hooks: Any, receiver: Any, make_receiver: Any, silence: threading.Event
) -> None:
    slow = make_receiver()
    slow.answer = lambda _: silence.wait(2 * HANG_SECONDS) and 200
    # More for the slow one than there are attempts at the same time; the other's come last.
    slow_endpoint = hooks.endpoint(slow.url)
    for i in range(delivery.MAX_CONCURRENT + 1):
        hooks.event(f"batch_{i}", age_seconds=10)
    endpoint = hooks.endpoint(receiver.url)
    hooks.event("batch_last")
    hooks.sender()
    hooks.delivered(endpoint)
    assert len(slow.requests) == 1
    states = hooks.states(slow_endpoint)
    assert len(states) == delivery.MAX_CONCURRENT + 2
    assert {state.delivered_at for state in states} == {None}


@contextmanager
def dripping_server() -> Iterator[int]:
    """A server whose answer never ends, while there is always some more of it; its port."""
    closing = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nx-long: ")
            while not closing.wait(0.05):
                connection.sendall(b"x")

    def serve() -> None:
        with suppress(OSError):
            while True:
                drip(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            closing.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("is_dripping", [True, False])
def test_an_endpoint_that_does_not_answer_in_time(
    hooks: Any, receiver: Any, silence: threading.Event, is_dripping: bool
) -> None:
    receiver.answer = lambda _: silence.wait(2 * HANG_SECONDS) and 200
    with dripping_server() as port:
        endpoint = hooks.endpoint(f"http://127.0.0.1:{port}/" if is_dripping else receiver.url)
        hooks.event()
        hooks.sender(webhook_timeout_seconds=0.3, backoff=Backoff(give_up_seconds=0))
        wait_for(lambda: hooks.states(endpoint)[0].last_error)
    (state,) = hooks.states(endpoint)
    assert state.last_error == "127.0.0.1 did not answer within 0.3 seconds."
    assert (state.num_attempts, state.next_attempt_at, state.delivered_at) == (1, None, None)


def test_nobody_listens(hooks: Any, make_receiver: Any) -> None:
    gone = make_receiver()
    endpoint = hooks.endpoint(gone.url.replace(f":{gone.port}", ":1"))
    hooks.event()
    hooks.sender(backoff=Backoff(give_up_seconds=0))
    wait_for(lambda: hooks.states(endpoint)[0].last_error)
    assert hooks.states(endpoint)[0].last_error.startswith("127.0.0.1: ConnectError: ")


def test_waking_is_faster_than_polling(
    hooks: Any, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "POLL_SECONDS", 86_400.0)
    any_due, looks = type(hooks.deliveries).any_due, []

    def count(*arguments: Any) -> bool:
        looks.append(any_due(*arguments))
        return looks[-1]

    monkeypatch.setattr(type(hooks.deliveries), "any_due", count)
    endpoint = hooks.endpoint(receiver.url)
    sender = hooks.sender()
    wait_for(lambda: looks)
    hooks.event()
    sender.wake()
    hooks.delivered(endpoint)


def test_an_error_in_the_store_does_not_end_the_thread(
    hooks: Any, receiver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PAUSE_SECONDS", 0.05)
    endpoint = hooks.endpoint(receiver.url)
    hooks.event()
    claim, failures = type(hooks.deliveries).claim, iter([True, False])

    def sometimes(*arguments: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("no database")
        return claim(*arguments)

    monkeypatch.setattr(type(hooks.deliveries), "claim", sometimes)
    hooks.sender()
    hooks.delivered(endpoint)


def test_old_deliveries_are_forgotten(hooks: Any, receiver: Any) -> None:
    endpoint = hooks.endpoint(receiver.url)
    hooks.event("batch_old", age_seconds=delivery.KEPT_SECONDS + 60)
    hooks.event("batch_new")
    first = hooks.sender()
    hooks.delivered(endpoint)
    hooks.stop(first)
    assert len(hooks.states(endpoint)) == 2
    hooks.sender()
    wait_for(lambda: len(hooks.states(endpoint)) == 1)
    assert "batch_new" in hooks.states(endpoint)[0].body


def test_the_pause_doubles_up_to_a_limit_and_ends() -> None:
    backoff = Backoff()
    for attempt, longest in [(1, 5), (2, 10), (5, 80), (11, 5120), (12, 7200), (10_000, 7200)]:
        at = backoff.next_attempt_at(0, attempt, 1000)
        assert at is not None
        assert longest / 2 <= at - 1000 <= longest
    assert backoff.next_attempt_at(0, 1, 72 * 3600) is None
    pauses = {backoff.next_attempt_at(0, 3, 0) for _ in range(10)}
    assert len(pauses) > 1, "all at the same time"
