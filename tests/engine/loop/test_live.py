"""Requests that clients wait for, beside batches in progress."""

from __future__ import annotations

import json
import time
from typing import Any

from trunkline.engine.live import PRIORITY
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
