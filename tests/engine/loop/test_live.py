"""Requests that clients wait for, beside batches in progress."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from trunkline.engine import live
from trunkline.engine.live import PRIORITY, LiveDesk
from trunkline.engine.request import Request
from trunkline.store.live import LiveRequest
from trunkline.store.states import BatchStatus


def test_a_live_request_is_answered_before_what_waits(bench: Any) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(1500)])
    with bench.loop(seconds_per_step=0.02):
        bench.wait(lambda: bench.batches.get(batch_id).num_completed > 10)
        status, body = bench.reply(bench.submit("say 5"))
        assert bench.batches.get(batch_id).num_completed < 1000
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
    with bench.loop(seconds_per_step=0.05):
        request_id = bench.submit("say 9", is_streaming=True)
        seen: list[int] = []

        def has_ended() -> bool:
            state = bench.live.poll(request_id)
            seen.append(len(state.events))
            return state.status_code is not None

        bench.wait(has_ended)
    chunks = [json.loads(event.data) for event in bench.live.poll(request_id).events]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "x" * 9
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(set(seen)) > 3, "the events came one after the other"


def test_nothing_is_generated_for_a_client_that_has_gone(bench: Any) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(1200)])
    with bench.loop(seconds_per_step=0.02):
        bench.wait(lambda: bench.batches.get(batch_id).num_completed > 10)
        ids = [bench.submit("x" * 120 + "9", ignore_eos=True) for _ in range(20)]
        bench.wait(lambda: bench.live.poll(ids[-1]).engine is not None)
        bench.live.withdraw_all(ids)
        time.sleep(2.5)  # it is asked every second who still waits
        assert bench.status(batch_id) is BatchStatus.IN_PROGRESS
        left = bench.engine.scheduler.unfinished()
        assert left
        assert all(sequence.priority < PRIORITY for sequence in left)
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    assert bench.texts(batch_id) == {i + 1: "x" * 9 for i in range(1200)}


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
    assert store.asked.wait(20)
    is_over.set()
    thread.join()
    desk.add_new()
    assert added == []
