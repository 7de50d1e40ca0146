"""Who asks while a look-up runs shares the next one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection

import pytest

from trunkline.server.together import Together

TIMEOUT_SECONDS = 30


class Slow:
    """Squares of positive numbers; a look-up takes until it is told to go on."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, keys: Collection[int]) -> dict[int, int]:
        self.calls.append(tuple(keys))
        self.has_begun.set()
        assert self.may_go_on.wait(TIMEOUT_SECONDS)
        if 0 in keys:
            raise LookupError("zero")
        return {key: key * key for key in keys if key > 0}

    async def asked(
        self, together: Together[int, int], *keys: int
    ) -> tuple[asyncio.Task[int | None], list[asyncio.Task[int | None]]]:
        """Questions: one for 2, whose look-up has begun, then one for each of `keys`."""
        first = asyncio.create_task(together.get(2))
        assert await asyncio.to_thread(self.has_begun.wait, TIMEOUT_SECONDS)
        others = [asyncio.create_task(together.get(key)) for key in keys]
        await asyncio.sleep(0)
        return first, others


def test_who_comes_meanwhile_shares_the_next_look_up() -> None:
    async def scenario() -> None:
        slow = Slow()
        together = Together(slow)
        # 2 as well: what was read before this question may be old by now.
        first, others = await slow.asked(together, 2, 3, 3, -1)
        slow.may_go_on.set()
        assert await first == 4
        assert await asyncio.gather(*others) == [4, 9, 9, None]
        assert slow.calls == [(2,), (2, 3, -1)]
        assert await together.get(5) == 25

    asyncio.run(scenario())


def test_who_goes_away_takes_nobody_along() -> None:
    async def scenario() -> None:
        slow = Slow()
        together = Together(slow)
        first, (leaving, staying) = await slow.asked(together, 3, 3)
        for each in (first, leaving):
            each.cancel()
            with pytest.raises(asyncio.CancelledError):
                await each
        slow.may_go_on.set()
        assert await staying == 9
        assert slow.calls == [(2,), (3,)]

    asyncio.run(scenario())


def test_what_goes_wrong_is_told_to_all_who_share_it_and_to_nobody_else() -> None:
    async def scenario() -> None:
        slow = Slow()
        together = Together(slow)
        first, others = await slow.asked(together, 0, 3)
        slow.may_go_on.set()
        assert await first == 4
        for other in others:
            with pytest.raises(LookupError, match="zero"):
                await other
        assert await together.get(3) == 9

    asyncio.run(scenario())
