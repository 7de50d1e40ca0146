"""Requests that clients wait for, beside batches in progress."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from trunkline.engine import live
from trunkline.engine.live import PRIORITY, LiveDesk
from trunkline.engine.request import Request
from trunkline.store.live import LiveRequest
from trunkline.store.states import BatchStatus


def test_a_live_request_is_answered_before_what_waits(bench: Any) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(400)])
    with bench.loop(answers=30):
        bench.wait_until_held()
        bench.wait(lambda: bench.num_completed(batch_id) > 10)
        request_id = bench.submit("say 5")
        bench.wait(lambda: bench.admission.num_live == 1)
        bench.go(answers=90)
        status, body = bench.reply(request_id)
        assert bench.num_completed(batch_id) < 150
    assert status == 200
    assert body["choices"][0]["text"] == "xxxxx"
    assert body["usage"]["completion_tokens"] == 6


def test_a_live_request_is_answered_by_an_idle_engine(bench: Any) -> None:
    with bench.loop():
        ids = [bench.submit(f"say {i}") for i in range(10)]
        texts = [bench.reply(request_id)[1]["choices"][0]["text"] for request_id in ids]
    assert texts == ["x" * i for i in range(10)]


def test_a_live_request_that_is_wrong_gets_its_error(bench: Any) -> None:
    with bench.loop():
        status, body = bench.reply(bench.submit("say 5", temperature=7))
    assert status == 400
    assert body["error"]["param"] == "temperature"


def test_a_stream_grows_while_it_is_generated(bench: Any) -> None:
    lengths = [0]

    def has_grown_or_ended() -> bool:
        state = bench.live.poll(request_id)
        return len(state.events) > lengths[-1] or state.status_code is not None

    with bench.loop(steps=1):  # its result is looked at in the next one
        request_id = bench.submit("say 9", is_streaming=True)
        bench.wait_until_held()
        while (state := bench.live.poll(request_id)).status_code is None:
            bench.go(steps=1)
            bench.wait(has_grown_or_ended)
            lengths.append(len(bench.live.poll(request_id).events))
    chunks = [json.loads(event.data) for event in state.events]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "x" * 9
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(set(lengths)) > 9, "the events came one after the other"


def test_nothing_is_generated_for_a_client_that_has_gone(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "WANTED_SECONDS", 0.0)
    batch_id = bench.batch([f"request {i} say 9" for i in range(200)])
    with bench.loop(answers=30) as loop:
        bench.wait_until_held()
        bench.wait(lambda: bench.num_completed(batch_id) > 10)
        ids = [bench.submit("x" * 120 + "9", ignore_eos=True) for _ in range(20)]
        bench.wait(lambda: bench.admission.num_live == len(ids))
        bench.go(steps=2)
        bench.wait_until_held()
        assert {s.priority for s in bench.engine.scheduler.unfinished()} == {0, PRIORITY}
        bench.live.withdraw_all(ids)
        bench.wait(lambda: loop._desk._unwanted == set(ids))
        bench.go(steps=1)
        bench.wait_until_held()
        assert {s.priority for s in bench.engine.scheduler.unfinished()} == {0}
        bench.go()
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    assert bench.texts(batch_id) == {i + 1: "x" * 9 for i in range(200)}


class FailingStream:
    """A stream that fails once there is something to tell."""

    def __init__(self, request: Request, *_: Any) -> None:
        self._request = request

    def progress(self) -> list[Any]:
        if self._request.sequences[0].output:
            raise ZeroDivisionError
        return []

    def finish(self) -> list[Any]:
        raise ZeroDivisionError


@pytest.mark.parametrize("prompt", ["say 9", "say 0"])
def test_a_stream_that_fails_ends_alone(
    bench: Any, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    monkeypatch.setattr(live, "stream_of", FailingStream)
    with bench.loop():
        request_id = bench.submit(prompt, is_streaming=True)
        status, body = bench.reply(request_id)
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert bench.reply(bench.submit("say 3"))[1]["choices"][0]["text"] == "xxx"
        bench.wait(lambda: not bench.engine_has_work())


class GoneClient:
    """A store with one request, whose client goes as soon as it is claimed."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._is_claimed = False

    def claim(self, *_: Any) -> list[LiveRequest]:
        if self._is_claimed:
            return []
        self._is_claimed = True
        body = {"model": "m", "prompt": "say 5"}
        return [LiveRequest("live_1", "p", "/v1/completions", "m", body, False, 0.0)]

    def wanted(self, _: Any) -> set[str]:
        self.asked.set()
        return set()

    def commit(self, *_: Any) -> None:
        pass


def test_a_request_whose_client_goes_before_it_runs_is_never_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "WANTED_SECONDS", 0.0)
    added: list[Request] = []
    store: Any = GoneClient()
    engine: Any = SimpleNamespace(add_ahead=added.extend, withdraw=lambda _: None)
    admission: Any = SimpleNamespace(
        admit=lambda lines: [Request(line, None, [], 0, 0) for line in lines]
    )
    desk = LiveDesk(store, engine, admission, "engine", "m", lambda: None)
    is_over = threading.Event()
    thread = threading.Thread(target=desk.serve, args=(is_over, is_over))
    thread.start()
    assert store.asked.wait(120)
    is_over.set()
    thread.join()
    desk.add_new()
    assert added == []
