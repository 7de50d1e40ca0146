"""One look-up at a time for all who ask at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Mapping
from contextvars import Context
from typing import Generic, TypeVar

from anyio.to_thread import run_sync

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Together(Generic[K, V]):
    """Looks up values by key, in a thread; who asks while a look-up runs shares the next one.

    A server that hundreds watch answers each at once when it has nothing else to do, and all who
    have come meanwhile with one query when it has. To be used on one event loop.
    """

    def __init__(self, look_up: Callable[[Collection[K]], Mapping[K, V]]) -> None:
        """Make one.

        Args:
            look_up: the values of those keys that have one. Called from one thread at a time. What
                it raises is raised for all who share it, so no single key should be a reason.
        """
        self._look_up = look_up
        self._asked: dict[K, asyncio.Future[V | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The value of `key` as it is now or later; None without one.

        Raises:
            Exception: what `look_up` has raised.
        """
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
        if self._task is None:
            # Not in the context of the request that happens to come first: the others are not
            # part of its trace.
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        # Others may wait for the same value when this one goes away.
        return await asyncio.shield(future)

    async def _run(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                try:
                    found = await run_sync(self._look_up, tuple(asked))
                except Exception as error:
                    for future in asked.values():
                        future.set_exception(error)
                        future.exception()  # nobody may be there any more to take it
                else:
                    for key, future in asked.items():
                        future.set_result(found.get(key))
        finally:
            self._task = None
