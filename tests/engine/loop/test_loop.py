"""The engine's loop on a real store, with a device that samples by rule."""

from __future__ import annotations

import time
from typing import Any, BinaryIO

import pytest

from tests.engine.loop.conftest import HANG_SECONDS, LONG_SECONDS, MODEL
from tests.support import wait_for
from trunkline.store.blobs import BlobsUnavailable
from trunkline.store.states import BatchStatus


def test_a_batch_is_answered(bench: Any) -> None:
    batch_id = bench.batch(["say 3", "say 1", "say 9", "x" * 300])
    with bench.loop(steps=0):
        bench.wait(lambda: bench.is_planned(batch_id))
        bench.go()
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    assert bench.texts(batch_id) == {1: "xxx", 2: "x", 3: "x" * 9}
    batch = bench.batches.get(batch_id)
    assert (batch.num_completed, batch.num_failed) == (3, 1)
    assert batch.num_output_tokens == 3 + 1 + 9 + 3
    plan = bench.batches.plan(batch_id)
    assert plan is not None
    assert plan["sequences"] == 3


def test_several_batches_at_once_and_one_that_comes_later(bench: Any) -> None:
    ids = [bench.batch([f"batch {b} say {i % 10}" for i in range(40)]) for b in range(3)]
    with bench.loop(steps=0):
        bench.wait(lambda: all(bench.is_planned(i) for i in ids))
        bench.go(answers=10)
        bench.wait(lambda: any(bench.num_completed(i) > 0 for i in ids))
        ids.append(bench.batch(["late 5", "late 6"]))
        bench.wait(lambda: bench.is_planned(ids[3]))
        bench.go()
        bench.wait(lambda: all(bench.status(i) is BatchStatus.FINALIZING for i in ids))
    for batch_id in ids[:3]:
        assert bench.texts(batch_id) == {i + 1: "x" * (i % 10) for i in range(40)}
    assert bench.texts(ids[3]) == {1: "x" * 5, 2: "x" * 6}


def test_a_cancelled_batch_is_dropped_with_what_is_done(bench: Any) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(200)])
    with bench.loop(answers=30):
        bench.wait_until_held()
        bench.wait(lambda: bench.num_completed(batch_id) > 10)
        bench.batches.cancel(batch_id, int(time.time()))
        bench.wait_until_it_is_to_be_dropped()
        bench.go()
        bench.wait(lambda: not bench.engine_has_work())
        # The engine has given the batch back, so that it can be closed.
        bench.wait(lambda: bench.closing.claim("server", time.time(), 60) is not None)
    done = bench.num_completed(batch_id)
    assert 10 < done < 100
    assert len(bench.texts(batch_id)) == done


def test_a_stopped_engine_leaves_the_rest_to_the_next(bench: Any) -> None:
    batch_id = bench.batch([f"request {i} say {i % 10}" for i in range(200)])
    with bench.loop(answers=30):
        bench.wait(lambda: bench.num_completed(batch_id) > 10)
    done = bench.texts(batch_id)
    assert 10 < len(done) < 100
    with bench.loop("another"):
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    texts = bench.texts(batch_id)
    assert texts == {i + 1: "x" * (i % 10) for i in range(200)}
    assert done.items() <= texts.items()


def test_a_new_engine_learns_from_what_a_former_one_has_answered(bench: Any) -> None:
    opening = "the same opening of more than sixty-four letters, so that it is one template: "
    batch_id = bench.batch([f"{opening}{i:03} say {i % 4}" for i in range(200)])
    with bench.loop(answers=100):
        bench.wait(lambda: bench.num_completed(batch_id) > 40)
    with bench.loop(steps=0):
        bench.wait_until_held()
        waiting = bench.engine.scheduler.unfinished()[-1]
        assert waiting.sampling.max_tokens == 50
        assert bench.engine.output_lengths.expected(waiting) <= 4


def test_a_batch_whose_input_is_gone_ends_all_the_same(bench: Any) -> None:
    batch_id = bench.batch(["say 1", "say 2"])
    file = bench.files.get(bench.batches.get(batch_id).input_file_id)
    bench.blobs.delete(file.blob_key)
    with bench.loop():
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    codes = [row.outcome.error_code for row in bench.outcomes.by_line(batch_id)]
    assert codes == ["input_file_gone"] * 2


@pytest.mark.parametrize("noticed", ["by a heartbeat", "by a commit"])
def test_a_batch_taken_by_somebody_else_is_left_to_them(bench: Any, noticed: str) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(200)])
    beats = noticed == "by a heartbeat"
    with bench.loop(answers=30, heartbeat_seconds=0.05 if beats else HANG_SECONDS) as loop:
        bench.wait_until_held()
        bench.wait(lambda: bench.num_completed(batch_id) > 10)
        # As if this engine had been silent for longer than its lease.
        later = time.time() + 2 * LONG_SECONDS
        claim = wait_for(lambda: bench.work.claim("thief", [MODEL], later, LONG_SECONDS))
        done = bench.num_completed(batch_id)
        if beats:
            bench.wait_until_it_is_to_be_dropped()
        bench.go()
        bench.wait(lambda: not loop._held)
        bench.wait(lambda: not bench.engine_has_work())
    assert bench.num_completed(batch_id) == done
    assert len(list(bench.work.unfinished(claim))) == 200 - done


def test_a_paused_batch_waits_with_what_is_done(bench: Any) -> None:
    batch_id = bench.batch([f"request {i} say 9" for i in range(200)])
    with bench.loop(answers=30) as loop:
        bench.wait_until_held()
        bench.wait(lambda: bench.num_completed(batch_id) > 10)
        bench.batches.pause(batch_id, int(time.time()))
        bench.wait_until_it_is_to_be_dropped()
        bench.go()
        bench.wait(lambda: not loop._held)  # the last commit was made, and the batch given back
        assert not bench.engine_has_work()
        before = bench.texts(batch_id)
        assert 10 < len(before) < 100
        num_claims = bench.work.num_claims
        bench.wait(lambda: bench.work.num_claims > num_claims + 2)
        assert loop._held == {}, "nobody takes a batch that is paused"
        assert bench.num_completed(batch_id) == len(before)
        assert bench.status(batch_id) is BatchStatus.IN_PROGRESS
        bench.batches.resume(batch_id)
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    texts = bench.texts(batch_id)
    assert before.items() <= texts.items()
    assert texts == {i + 1: "x" * 9 for i in range(200)}


def test_a_higher_priority_overtakes_what_is_held(bench: Any) -> None:
    slow = bench.batch([f"request {i} say 9" for i in range(400)])
    with bench.loop(answers=30):
        bench.wait_until_held()
        bench.wait(lambda: bench.num_completed(slow) > 10)
        urgent = bench.batch([f"urgent {i} say 9" for i in range(30)], priority=10)
        bench.wait(lambda: bench.is_planned(urgent))
        bench.go(answers=150)
        bench.wait(lambda: bench.status(urgent) is BatchStatus.FINALIZING)
        assert bench.status(slow) is BatchStatus.IN_PROGRESS
        assert bench.num_completed(slow) < 200


def test_a_batch_whose_input_cannot_be_reached_is_tried_again(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bench.batch(["say 1", "say 2"])
    tries = []
    really_open = bench.blobs.open

    def open_(key: str) -> BinaryIO:
        tries.append(key)
        if len(tries) <= 3:
            raise BlobsUnavailable("the bucket cannot be reached")
        return really_open(key)

    monkeypatch.setattr(bench.blobs, "open", open_)
    with bench.loop():
        bench.wait(lambda: bench.status(batch_id) is BatchStatus.FINALIZING)
    assert bench.texts(batch_id) == {1: "x", 2: "xx"}
